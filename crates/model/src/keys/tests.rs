//! Each row against a real folder: its key set to a value that decides.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::tests::{container, entry, write, write_json};
use crate::{Model, families};

/// A folder with every file that a table is about, and `value` at `key` of one.
fn folder(kind: Kind, key: Option<(&str, &Value)>) -> TempDir {
    let folder = TempDir::new().unwrap();
    let family = if let Kind::Config(family) = kind { family } else { families::ALL[0] };
    let words = json!({family.words: entry("F32", &[6, 4], [0, 96])});
    let words = container(words.to_string().as_bytes(), &[0; 96]);
    let dense = json!({
        "linear.weight": entry("F32", &[3, 4], [0, 48]), "linear.bias": entry("F32", &[3], [48, 60]),
    });
    write(&folder, "2_Dense/model.safetensors", &container(dense.to_string().as_bytes(), &[0; 60]));
    write(&folder, if kind == Kind::Index { "a" } else { "model.safetensors" }, &words);
    for (of, name, mut contents) in files(family) {
        if of == Kind::Index && kind != Kind::Index {
            continue;
        }
        if let Some((key, value)) = key
            && of == kind
        {
            contents[key] = value.clone();
        }
        if of == Kind::Module {
            let module = |class: &str, path: &str| json!({"type": class, "path": path});
            let own = "sentence_transformers.models";
            contents = json!([
                contents,
                module(&format!("{own}.Pooling"), "1_Pooling"),
                module(&format!("{own}.Dense"), "2_Dense"),
                module(&format!("{own}.Normalize"), "3_Normalize"),
            ]);
        }
        write_json(&folder, name, &contents);
    }
    folder
}

fn files(family: &'static Family) -> Vec<(Kind, &'static str, Value)> {
    let model_type = family.model_types[0];
    let config = match model_type {
        "distilbert" => json!({
            "model_type": model_type, "dim": 4, "n_layers": 1, "n_heads": 2, "hidden_dim": 8,
            "vocab_size": 6, "max_position_embeddings": 16,
        }),
        "nomic_bert" => json!({
            "model_type": model_type, "n_embd": 4, "n_layer": 1, "n_head": 1, "n_inner": 8,
            "vocab_size": 6, "n_positions": 16, "rotary_scaling_factor": 2.0,
        }),
        _ => json!({
            "model_type": model_type, "hidden_size": 4, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 6,
            "max_position_embeddings": 16,
        }),
    };
    vec![
        (Kind::Config(family), "config.json", config),
        (Kind::Module, "modules.json", json!({"type": "sentence_transformers.models.Transformer"})),
        (Kind::Transformer, "sentence_bert_config.json", json!({"max_seq_length": 9})),
        (Kind::Pooling, "1_Pooling/config.json", json!({"word_embedding_dimension": 4})),
        (Kind::Dense, "2_Dense/config.json", json!({"in_features": 4, "out_features": 3})),
        (Kind::Normalize, "3_Normalize/config.json", json!({})),
        (Kind::SentenceTransformers, "config_sentence_transformers.json", json!({})),
        (Kind::Index, "model.safetensors.index.json", json!({"weight_map": {family.words: "a"}})),
        (Kind::Tokenizer, "tokenizer_config.json", json!({})),
        (Kind::SpecialTokens, "special_tokens_map.json", json!({})),
    ]
}

/// What the model in `folder` is, or why it is refused; and its warnings.
fn open(folder: &TempDir) -> Result<(String, Vec<Warning>), String> {
    let model = Model::open(folder.path()).map_err(|error| error.to_string())?;
    Ok((format!("{:?} {:?}", model.config, model.pipeline), model.warnings))
}

fn kinds() -> Vec<Kind> {
    let others = [
        Kind::Module,
        Kind::Transformer,
        Kind::Pooling,
        Kind::Dense,
        Kind::Normalize,
        Kind::SentenceTransformers,
        Kind::Index,
        Kind::Tokenizer,
        Kind::SpecialTokens,
    ];
    families::ALL.iter().copied().map(Kind::Config).chain(others).collect()
}

/// A value under which the reference computes other vectors than without the key, or refuses, and
/// other files that it needs for that.
fn deciding(kind: Kind, key: &str) -> Value {
    match (kind, key) {
        (Kind::Config(_), "model_type") => json!("gpt2"),
        (Kind::Config(_), "architectures") => json!(["BertForMaskedLM"]),
        (Kind::Config(_), "auto_map") => json!({"AutoModel": "modeling.JinaBertModel"}),
        (Kind::Config(_), "hidden_act" | "activation" | "hidden_activation") => json!("relu"),
        (Kind::Config(_), "activation_function") => json!("geglu"),
        (Kind::Config(_), "layer_norm_eps" | "layer_norm_epsilon" | "norm_eps") => json!(1e-3),
        (Kind::Config(family), "rope_parameters") if family.name == "ModernBERT" => {
            json!({"full_attention": {"rope_theta": 5.0}})
        }
        (Kind::Config(_), "rope_parameters") => json!({"rope_theta": 5.0}),
        (Kind::Config(_), "rope_scaling") => json!({"type": "linear", "factor": 2.0}),
        (Kind::Config(_), "rotary_emb_fraction") => json!(0.5),
        (Kind::Config(_), "layer_types") => json!(["sliding_attention", "full_attention"]),
        (Kind::Config(_), "global_attn_every_n_layers" | "num_experts") => json!(1),
        (Kind::Config(_), "type_vocab_size") => json!(3),
        (Kind::Config(_), key) if key.ends_with("_bias") => json!(true),
        (Kind::Config(_), "pad_token_id") => json!(0),
        (Kind::Config(_), "hidden_size" | "dim" | "n_embd" | "embedding_size") => json!(6),
        (Kind::Config(_), "relative_attention_num_buckets") => json!(8),
        (Kind::Config(family), "num_attention_heads") if family.name == "NomicBERT" => json!(2),
        (Kind::Config(_), "num_attention_heads" | "n_heads") => json!(1),
        (Kind::Config(_), "n_head") => json!(2),
        (Kind::Config(_), _) => json!(5),
        (Kind::Module, "type") => json!("sentence_transformers.models.CNN"),
        (Kind::Module, "path") => json!("0_Transformer"),
        (Kind::Module, "name") => json!(7),
        (Kind::Transformer, "max_seq_length") => json!(5),
        (Kind::Transformer, "do_lower_case") => json!(true),
        (Kind::Transformer, "processor_kwargs" | "tokenizer_args") => {
            json!({"model_max_length": 3})
        }
        (Kind::Transformer, "transformer_task") => json!("fill-mask"),
        (Kind::Transformer, "module_output_name") => json!("scores"),
        (Kind::Transformer, "modality_config") => {
            json!({"text": {"method": "forward", "method_output_name": ["hidden_states", -2]}})
        }
        (Kind::Transformer, "config_kwargs" | "config_args") => json!({"num_hidden_layers": 1}),
        (Kind::Pooling, "pooling_mode") => json!("max"),
        (Kind::Pooling, "include_prompt") => json!(false),
        (Kind::Pooling, "pooling_mode_mean_tokens") => json!(false),
        (Kind::Pooling, "word_embedding_dimension" | "embedding_dimension") => json!(5),
        (Kind::Pooling, _) => json!(true),
        (Kind::Dense, "in_features" | "out_features") => json!(5),
        (Kind::Dense, "bias") => json!(false),
        (Kind::Dense, "activation_function") => json!("torch.nn.modules.activation.ReLU"),
        (Kind::SentenceTransformers, "prompts") => json!({"query": "query: "}),
        (Kind::SentenceTransformers, "default_prompt_name") => json!("query"),
        (Kind::SentenceTransformers, "model_type") => json!("SparseEncoder"),
        (Kind::SentenceTransformers, "truncate_dim") => json!(2),
        (Kind::Index, "weight_map") => json!({}),
        (Kind::Tokenizer, "model_max_length" | "max_len") => json!(5),
        _ => panic!("{kind:?}: no value decides about '{key}'"),
    }
}

/// A value that no table allows.
fn strange() -> [Value; 3] {
    [json!("something else"), json!(true), json!({"a": [1]})]
}

#[test]
fn each_key_is_used_or_refused_or_of_no_concern() {
    for kind in kinds() {
        let (plain, warnings) = open(&folder(kind, None)).unwrap();
        assert_eq!(warnings, [], "{kind:?}");
        for row in kind.rows() {
            for &key in row.keys.iter() {
                let with = |value: Value| open(&folder(kind, Some((key, &value))));
                let refused = |value: Value| {
                    let message = with(value.clone()).expect_err(key);
                    assert!(message.contains(key), "{kind:?}: {value}: {message}");
                };
                match row.rule {
                    Rule::Used | Rule::UsedOrNull => {
                        let folder = folder(kind, Some((key, &deciding(kind, key))));
                        // These are asked only where nothing that stands before them is there.
                        let before = match (kind, key) {
                            (Kind::Tokenizer, _) => Some("sentence_bert_config.json"),
                            (_, "architectures") => Some("modules.json"),
                            _ => None,
                        };
                        if let Some(before) = before {
                            std::fs::remove_file(folder.path().join(before)).unwrap();
                        }
                        if let Ok((model, _)) = open(&folder) {
                            assert_ne!(model, plain, "{kind:?}: '{key}'");
                        }
                        if matches!(row.rule, Rule::Used) {
                            refused(Value::Null);
                        } else {
                            assert!(with(Value::Null).is_ok(), "{kind:?}: '{key}'");
                        }
                    }
                    Rule::Only(values, _) => {
                        strange().into_iter().for_each(refused);
                        for value in values {
                            let value = match *value {
                                Plain::Null => Value::Null,
                                Plain::False => json!(false),
                                Plain::Text(text) => json!(text),
                                Plain::Empty => json!({}),
                            };
                            assert_eq!(with(value), Ok((plain.clone(), vec![])), "'{key}'");
                        }
                    }
                    Rule::SameAs(other) => {
                        refused(json!(3));
                        let Kind::Config(family) = kind else { panic!("{kind:?}") };
                        let file = files(family).remove(0).2;
                        assert_eq!(with(file[other].clone()), Ok((plain.clone(), vec![])));
                    }
                    Rule::ByTokenizer | Rule::ByClassifier | Rule::Unread(_) => {
                        for value in strange() {
                            assert_eq!(with(value), Ok((plain.clone(), vec![])), "'{key}'");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_key_is_in_one_row() {
    for kind in kinds() {
        let mut keys: Vec<_> = kind.rows().flat_map(|row| row.keys.into_owned()).collect();
        keys.sort_unstable();
        let twice = keys.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None, "{kind:?}");
    }
}

#[test]
fn a_key_that_nobody_knows_is_said_aloud() {
    for kind in kinds() {
        if kind == Kind::Index {
            continue; // its keys are Python's alone
        }
        let (_, warnings) = open(&folder(kind, Some(("window", &json!(64))))).unwrap();
        let [warning] = warnings.as_slice() else { panic!("{kind:?}: {warnings:?}") };
        assert!(warning.to_string().ends_with("not known, and not used: 'window'"), "{warning}");
    }
    let many = ["a", "b", "c", "d", "e", "f", "g", "h"];
    assert!(unknown_keys(&many).ends_with("'e', 'f' and 2 more"));
    assert!(unknown_keys(&["k".repeat(10_000).as_str()]).len() < 200);
}

/// The table as a page for people.
fn page() -> String {
    let mut page = "# What is read of a model's files\n\n\
         Each key that sentence-transformers 6 and transformers 5 read in the files of a model, and \
         what vecmill does. *Used* is used as they do. *Only* lists the values that are computed: \
         any other is refused at the start, by its name. *Unread* bears on no vector. A key that is \
         in no row is named in a warning at the start.\n\n\
         `crates/model/src/keys/rows.rs` has the table, and a test goes through each row \
         and writes this page (`UPDATE_PAGES=1 cargo test -p vecmill-model the_page`).\n"
        .to_owned();
    let [bert, others @ ..] = families::ALL else { unreachable!("there is BERT") };
    let mut files = vec![(Kind::Config(bert), format!("`config.json`, {}", bert.name))];
    files.extend(others.iter().copied().map(|family| {
        (Kind::Config(family), format!("`config.json`, {}: unlike {}", family.name, bert.name))
    }));
    let named = [
        (Kind::Module, "`modules.json`, each module"),
        (Kind::Transformer, "`sentence_bert_config.json` and its older names"),
        (Kind::Pooling, "`1_Pooling/config.json`"),
        (Kind::Dense, "`2_Dense/config.json`"),
        (Kind::Normalize, "`3_Normalize/config.json`"),
        (Kind::SentenceTransformers, "`config_sentence_transformers.json`"),
        (Kind::Index, "`model.safetensors.index.json`"),
        (Kind::Tokenizer, "`tokenizer_config.json` and `special_tokens_map.json`"),
    ];
    files.extend(named.map(|(kind, name)| (kind, name.to_owned())));
    for (kind, name) in files {
        page += &format!("\n## {name}\n\n| keys | done |\n|---|---|\n");
        let as_bert: Vec<_> = Kind::Config(bert).rows().map(|row| line(&row)).collect();
        let other = matches!(kind, Kind::Config(family) if family != *bert);
        let lines =
            kind.rows().map(|row| line(&row)).filter(|line| !(other && as_bert.contains(line)));
        page.extend(lines);
    }
    page
}

fn line(row: &Row) -> String {
    let done = match row.rule {
        Rule::Used => "used".to_owned(),
        Rule::UsedOrNull => "used, null is as good as nothing".to_owned(),
        Rule::ByTokenizer => "used with tokenizer.json".to_owned(),
        Rule::ByClassifier => "used where the model classifies".to_owned(),
        Rule::Only(values, why) => {
            let values: Vec<_> = values.iter().map(|value| value.words()).collect();
            format!("only {}: {why}", values.join(" or "))
        }
        Rule::SameAs(other) => format!("must be the same as `{other}`"),
        Rule::Unread(why) => format!("unread: {why}"),
    };
    let keys: Vec<_> = row.keys.iter().map(|key| format!("`{key}`")).collect();
    format!("| {} | {done} |\n", keys.join(" "))
}

#[test]
fn the_page_says_what_the_table_says() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/model-files.md");
    if std::env::var_os("UPDATE_PAGES").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), page());
}
