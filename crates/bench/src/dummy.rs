//! Dummy models, each as large as a real one: a folder with its configuration and a file of weights
//! that has its length and no content. Batches of them can be planned, not run.

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use clap::ValueEnum;
use serde_json::{Map, Value, json};
use vecmill_encoder::{
    Graph, Lower, Node, Op, Precision, Program, Programs, RowBound, Shape, Step, WeightPlan,
};
use vecmill_memory::Plan;
use vecmill_model::{DType, Model};

/// The most tokens of a batch.
pub(crate) const BATCH_TOKENS: usize = 16_384;

const VOCABULARY: usize = 30_522;
const POSITIONS: usize = 512;

/// Shapes of real models, with the speed of an H200 in f16 as measured with PyTorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Size {
    /// all-MiniLM-L6: 384 wide, 6 layers
    Minilm,
    /// bge-large: 1024 wide, 24 layers
    BgeLarge,
}

impl Size {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Minilm => "MiniLM (384 wide, 6 layers)",
            Self::BgeLarge => "bge-large (1024 wide, 24 layers)",
        }
    }

    pub(crate) fn tokens_per_second(self) -> f64 {
        match self {
            Self::Minilm => 10.8e6,
            Self::BgeLarge => 0.73e6,
        }
    }
}

/// Plans batches of a dummy model.
#[derive(Debug)]
pub(crate) struct Planner(Programs<Activations>);

/// In f16, and without scratch memory for products: a framework takes that once, not per tensor, so
/// that it would only blur the comparison. What a norm reads is written by nobody else, so sums are
/// normalised in their place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Activations;

impl Lower for Activations {
    type Kernel = ();

    fn lower(&self, graph: &Graph, rows: RowBound) -> Program<()> {
        let mut program = Program::new(graph, rows);
        for node in graph.nodes() {
            let output = node.output;
            let in_place = node.inputs.first().filter(|&&input| {
                matches!(node.op, Op::Add | Op::Norm { .. }) && graph.is_read_once(input)
            });
            match in_place {
                Some(&input) => program.share(output, input),
                None => program.keep(output, vec![2 * graph.value(output).columns]),
            }
            let (reads, writes) = (node.inputs.clone(), vec![output]);
            let reads_batch = node.op.reads_batch();
            program.push(Step { kernel: (), reads, writes, scratch: 0, reads_batch });
        }
        program
    }

    fn store(&self, _: &Graph, _: &Node, _: &mut WeightPlan) {}

    fn precision(&self, _: &Graph, _: &Node, _: RowBound) -> Precision {
        Precision::of(DType::F16)
    }
}

impl Planner {
    pub(crate) fn new(size: Size) -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        write_model(folder.path(), size)?;
        let programs = Programs::of(Activations, &Model::open(folder.path())?, None)?;
        let largest = Shape { tokens: BATCH_TOKENS, sequences: BATCH_TOKENS, longest: POSITIONS };
        Ok(Self(programs.with_largest(largest)))
    }

    /// The bytes of the plan that serves the shape, made for all shapes of its bucket.
    pub(crate) fn bucketed(&self, shape: Shape) -> usize {
        self.0.get(shape).plan().peak_bytes()
    }

    /// The plan of this very shape.
    pub(crate) fn exact(&self, shape: Shape) -> Plan {
        self.0.make(RowBound::Bucket(shape)).plan().clone()
    }
}

/// Writes the folder of a dummy model.
pub(crate) fn write_model(folder: &Path, size: Size) -> Result<(), Box<dyn Error>> {
    let (hidden, layers, heads) = match size {
        Size::Minilm => (384, 6, 12),
        Size::BgeLarge => (1024, 24, 16),
    };
    let config = json!({
        "model_type": "bert", "architectures": ["BertModel"], "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 4 * hidden, "hidden_act": "gelu", "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute", "pad_token_id": 0,
    });
    fs::write(folder.join("config.json"), config.to_string())?;
    let mut tensors = Tensors::default();
    for (name, rows) in [("word", VOCABULARY), ("position", POSITIONS), ("token_type", 2)] {
        tensors.add(&format!("embeddings.{name}_embeddings.weight"), &[rows, hidden]);
    }
    tensors.pair("embeddings.LayerNorm", &[hidden]);
    for layer in 0..layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        for part in ["query", "key", "value"] {
            tensors.pair(&name(&format!("attention.self.{part}")), &[hidden, hidden]);
        }
        tensors.pair(&name("attention.output.dense"), &[hidden, hidden]);
        tensors.pair(&name("attention.output.LayerNorm"), &[hidden]);
        tensors.pair(&name("intermediate.dense"), &[4 * hidden, hidden]);
        tensors.pair(&name("output.dense"), &[hidden, 4 * hidden]);
        tensors.pair(&name("output.LayerNorm"), &[hidden]);
    }
    tensors.write(&folder.join("model.safetensors"))
}

/// The table of a safetensors file.
#[derive(Debug, Default)]
struct Tensors {
    table: Map<String, Value>,
    bytes: usize,
}

impl Tensors {
    fn add(&mut self, name: &str, shape: &[usize]) {
        let end = self.bytes + 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "F16", "shape": shape, "data_offsets": [self.bytes, end]});
        self.table.insert(name.to_owned(), entry);
        self.bytes = end;
    }

    /// A weight and a bias as long as the weight's first dimension.
    fn pair(&mut self, name: &str, shape: &[usize]) {
        self.add(&format!("{name}.weight"), shape);
        self.add(&format!("{name}.bias"), &shape[..1]);
    }

    /// The file has its full length, but holes take no space.
    fn write(self, path: &Path) -> Result<(), Box<dyn Error>> {
        let mut table = Value::Object(self.table).to_string();
        table.push_str(&" ".repeat(table.len().next_multiple_of(8) - table.len()));
        let mut file = File::create(path)?;
        file.write_all(&(table.len() as u64).to_le_bytes())?;
        file.write_all(table.as_bytes())?;
        file.set_len((8 + table.len() + self.bytes) as u64)?;
        Ok(())
    }
}
