//! Models of real ones' sizes, without content.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Hidden size, layers and heads of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) name: &'static str,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
}

/// As all-MiniLM-L6-v2, bge-base-en-v1.5 and bge-large-en-v1.5.
pub(crate) const MODELS: [Sizes; 3] = [
    Sizes { name: "MiniLM", hidden: 384, layers: 6, heads: 12 },
    Sizes { name: "bge-base", hidden: 768, layers: 12, heads: 12 },
    Sizes { name: "bge-large", hidden: 1024, layers: 24, heads: 16 },
];

const VOCABULARY: usize = 30_522;
const POSITIONS: usize = 512;

/// Writes a model whose weights are zeros in f16: a hole in the file, so that it takes no space.
pub(crate) fn write_model(folder: &Path, sizes: Sizes) {
    let Sizes { hidden, layers, heads, .. } = sizes;
    let wide = 4 * hidden;
    let config = format!(
        r#"{{"model_type": "bert", "architectures": ["BertModel"], "hidden_size": {hidden},
        "num_hidden_layers": {layers}, "num_attention_heads": {heads},
        "intermediate_size": {wide}, "hidden_act": "gelu", "vocab_size": {VOCABULARY},
        "max_position_embeddings": {POSITIONS}, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute", "pad_token_id": 0}}"#
    );
    fs::write(folder.join("config.json"), config).unwrap();
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
        tensors.pair(&name("intermediate.dense"), &[wide, hidden]);
        tensors.pair(&name("output.dense"), &[hidden, wide]);
        tensors.pair(&name("output.LayerNorm"), &[hidden]);
    }
    tensors.write(&folder.join("model.safetensors"));
}

/// The table of a safetensors file.
#[derive(Default)]
struct Tensors {
    entries: Vec<String>,
    bytes: usize,
}

impl Tensors {
    fn add(&mut self, name: &str, shape: &[usize]) {
        let (start, end) = (self.bytes, self.bytes + 2 * shape.iter().product::<usize>());
        let entry = format!(
            r#""{name}": {{"dtype": "F16", "shape": {shape:?}, "data_offsets": [{start}, {end}]}}"#
        );
        self.entries.push(entry);
        self.bytes = end;
    }

    /// A weight and a bias as long as the weight's first dimension.
    fn pair(&mut self, name: &str, shape: &[usize]) {
        self.add(&format!("{name}.weight"), shape);
        self.add(&format!("{name}.bias"), &shape[..1]);
    }

    fn write(self, path: &Path) {
        let mut table = format!("{{{}}}", self.entries.join(", "));
        table.push_str(&" ".repeat(table.len().next_multiple_of(8) - table.len()));
        let mut file = File::create(path).unwrap();
        file.write_all(&(table.len() as u64).to_le_bytes()).unwrap();
        file.write_all(table.as_bytes()).unwrap();
        file.set_len((8 + table.len() + self.bytes) as u64).unwrap();
    }
}
