//! Every model of the test data opens, and no file, however broken, does more than give an error.

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

mod convert;
mod folders;
mod pickle;
mod positions;
mod table;
mod weights;

fn test_data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models")
}

/// A safetensors file with this header and data.
pub(super) fn container(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

pub(super) fn entry(dtype: &str, shape: &[usize], offsets: [usize; 2]) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": offsets})
}

fn config() -> Value {
    json!({
        "model_type": "bert", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "vocab_size": 6, "max_position_embeddings": 16,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"
    })
}

/// A folder with a small valid model, whose only tensors are word embeddings and a layer norm.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let header = json!({
        "__metadata__": {"format": "pt"},
        "embeddings.word_embeddings.weight": entry("F32", &[6, 4], [0, 96]),
        "embeddings.LayerNorm.gamma": entry("F16", &[4], [96, 104]),
        "embeddings.LayerNorm.beta": entry("BF16", &[4], [104, 112]),
        "embeddings.position_ids": entry("I64", &[1, 2], [112, 128]),
    });
    let words: Vec<u8> = (0u8..24).flat_map(|value| f32::from(value).to_le_bytes()).collect();
    let gamma = [0.5, -1.5, 65504.0, 6e-8].map(|value| f16::from_f32(value).to_le_bytes());
    let beta = [1.0, -2.5, 3e38, 0.0].map(|value| bf16::from_f32(value).to_le_bytes());
    let data = [&words[..], gamma.as_flattened(), beta.as_flattened(), &[0; 16]].concat();
    write(&folder, "model.safetensors", &container(header.to_string().as_bytes(), &data));
    write(&folder, "config.json", config().to_string().as_bytes());
    folder
}

pub(super) fn write(folder: &TempDir, name: &str, contents: &[u8]) {
    let path = folder.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, contents).unwrap();
}

pub(super) fn write_json(folder: &TempDir, name: &str, value: &Value) {
    write(folder, name, value.to_string().as_bytes());
}

fn error(folder: &TempDir) -> ModelError {
    Model::open(folder.path()).expect_err("the model should be refused")
}

/// The error of a model whose configuration has `value` at `key`.
fn config_error(key: &str, value: Value) -> ModelError {
    let folder = folder();
    let mut config = config();
    config[key] = value;
    write_json(&folder, "config.json", &config);
    error(&folder)
}

/// The error of a model with these modules.
fn modules_error(modules: &Value) -> ModelError {
    let folder = folder();
    write_json(&folder, "modules.json", modules);
    write_json(&folder, "1_Pooling/config.json", &json!({"pooling_mode": "mean"}));
    error(&folder)
}

fn module(class: &str, path: &str) -> Value {
    json!({"type": format!("sentence_transformers.models.{class}"), "path": path})
}

/// A folder with a transformer and mean pooling.
fn piped() -> TempDir {
    let folder = folder();
    let modules = json!([module("Transformer", ""), module("Pooling", "1_Pooling")]);
    write_json(&folder, "modules.json", &modules);
    write_json(&folder, "1_Pooling/config.json", &json!({"pooling_mode": "mean"}));
    folder
}

/// The pipeline of a model whose pooling module has this configuration.
fn pooling(config: &Value) -> Result<Pipeline, ModelError> {
    let folder = piped();
    write_json(&folder, "1_Pooling/config.json", config);
    Ok(Model::open(folder.path())?.pipeline)
}

#[test]
fn every_model_of_the_test_data_opens_with_all_its_tensors() {
    let mut types = Vec::new();
    for entry in fs::read_dir(test_data()).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        let model = Model::open(&path).unwrap_or_else(|error| panic!("{error}"));
        let expected: Value =
            serde_json::from_slice(&fs::read(path.join("expected.json")).unwrap()).unwrap();
        assert_eq!(expected["dimensions"], model.dimensions(), "{}", path.display());
        assert_eq!(expected["max_tokens"], model.pipeline.max_tokens, "{}", path.display());
        let architecture = model.architecture().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(architecture.layers.len(), model.config.layers, "{}", path.display());
        types.push(model.config.model_type);
    }
    let mut known = families::ALL.iter().flat_map(|family| family.model_types);
    assert!(known.all(|known| types.contains(known)), "{types:?}");
}

#[test]
fn hostile_configurations_are_refused() {
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(u64::MAX)),
        ("hidden_size", json!(-4)),
        ("hidden_size", json!(4.5)),
        ("hidden_size", json!("4")),
        ("hidden_size", json!(null)),
        ("num_attention_heads", json!(3)),
        ("num_attention_heads", json!(0)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("intermediate_size", json!([8])),
        ("vocab_size", json!(1e30)),
        ("max_position_embeddings", json!(0)),
        ("layer_norm_eps", json!(0)),
        ("layer_norm_eps", json!(-1e-5)),
        ("layer_norm_eps", json!("1e-5")),
        ("is_decoder", json!(true)),
        ("is_decoder", json!(1)),
    ] {
        match config_error(key, value.clone()) {
            ModelError::Value { key: named, path, .. } => {
                assert_eq!((named.as_str(), path.ends_with("config.json")), (key, true));
            }
            other => panic!("{key} = {value}: {other}"),
        }
    }
    for (key, value) in [("model_type", json!("gpt2")), ("hidden_act", json!("mish"))] {
        let message = config_error(key, value.clone()).to_string();
        assert!(message.contains(value.as_str().unwrap()), "{message}");
        assert!(message.contains("supported are"), "{message}");
    }
}

#[test]
fn files_that_are_no_json_are_refused() {
    for contents in ["", "{", "[]", "\"text\"", &"[".repeat(100_000)] {
        let folder = folder();
        write(&folder, "config.json", contents.as_bytes());
        error(&folder);
    }
    let folder = folder();
    write(&folder, "config.json", &vec![b' '; 5 << 20]);
    assert!(matches!(error(&folder), ModelError::TooLarge { .. }));
    fs::remove_file(folder.path().join("config.json")).unwrap();
    fs::create_dir(folder.path().join("config.json")).unwrap();
    assert!(matches!(error(&folder), ModelError::NoFile { found: "a folder", .. }));
}

#[cfg(unix)]
#[test]
fn a_link_to_nothing_is_no_missing_file() {
    for name in [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "tokenizer_config.json",
    ] {
        let folder = folder();
        let _ = fs::remove_file(folder.path().join(name));
        if name.ends_with("index.json") {
            fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        }
        std::os::unix::fs::symlink("../../blobs/0000", folder.path().join(name)).unwrap();
        let error = error(&folder);
        assert!(matches!(error, ModelError::DanglingLink { .. }), "{name}: {error}");
        assert!(error.to_string().contains("blobs"), "{error}");
    }
}

#[test]
fn positions_start_after_padding_where_the_family_says_so() {
    let folder = folder();
    let mut config = config();
    config["model_type"] = json!("roberta");
    config["pad_token_id"] = json!(1);
    write_json(&folder, "config.json", &config);
    let model = Model::open(folder.path()).unwrap();
    assert_eq!((model.config.position_offset, model.pipeline.max_tokens), (2, 14));
    for padding in [6, 16, usize::MAX] {
        config["pad_token_id"] = json!(padding);
        write_json(&folder, "config.json", &config);
        assert!(matches!(error(&folder), ModelError::Value { .. }), "{padding}");
    }
}

#[test]
fn the_length_limit_is_the_smallest_that_is_stated() {
    let folder = piped();
    let limit = || Model::open(folder.path()).unwrap().pipeline.max_tokens;
    assert_eq!(limit(), 16, "positions");
    write(
        &folder,
        "tokenizer_config.json",
        b"{\"model_max_length\": 1000000000000000019884624838656}",
    );
    assert_eq!(limit(), 16, "a tokenizer without a limit");
    write(&folder, "tokenizer_config.json", b"{\"model_max_length\": Infinity}");
    assert_eq!(limit(), 16, "one that says so");
    write(&folder, "tokenizer_config.json", b"{\"model_max_length\": 12.0}");
    assert_eq!(limit(), 12, "the tokenizer's");
    write_json(&folder, "sentence_bert_config.json", &json!({"max_seq_length": 10}));
    assert_eq!(limit(), 10, "the pipeline's goes first");
    write_json(&folder, "sentence_bert_config.json", &json!({"max_seq_length": 99}));
    assert_eq!(limit(), 16, "but not past the positions");
    let older = "sentence_roberta_config.json";
    write_json(&folder, older, &json!({"max_seq_length": 7}));
    assert_eq!(limit(), 16, "the first file counts");
    write_json(&folder, "sentence_bert_config.json", &json!({}));
    assert_eq!(limit(), 7, "if it says something");
    let both = json!({"max_seq_length": 7, "tokenizer_args": {"model_max_length": 5}});
    write_json(&folder, older, &both);
    assert_eq!(limit(), 5, "what the tokenizer is told goes before");
    for wrong in ["0", "NaN", "true", "\"9\"", "8.5", "-1"] {
        let file = format!("{{\"max_seq_length\": {wrong}}}");
        write(&folder, "sentence_bert_config.json", file.as_bytes());
        assert!(matches!(error(&folder), ModelError::Value { .. }), "{wrong}");
        fs::remove_file(folder.path().join("sentence_bert_config.json")).unwrap();
        let file = format!("{{\"model_max_length\": {wrong}}}");
        write(&folder, "tokenizer_config.json", file.as_bytes());
        fs::remove_file(folder.path().join(older)).ok();
        let message = error(&folder).to_string();
        assert!(message.contains("'model_max_length' should be"), "{message}");
    }
}

#[test]
fn pooling_is_read_in_both_spellings() {
    let flags = |on: &[&str]| {
        let mut config = json!({"word_embedding_dimension": 4, "pooling_mode_mean_tokens": false});
        on.iter().for_each(|key| config[*key] = json!(true));
        pooling(&config)
    };
    for (key, name, expected) in [
        ("pooling_mode_mean_tokens", "mean", Pooling::Mean),
        ("pooling_mode_cls_token", "cls", Pooling::Cls),
        ("pooling_mode_max_tokens", "max", Pooling::Max),
        ("pooling_mode_lasttoken", "lasttoken", Pooling::LastToken),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
        ("pooling_mode_weightedmean_tokens", "weightedmean", Pooling::WeightedMean),
    ] {
        let expected = Poolings::from(expected);
        assert_eq!(flags(&[key]).unwrap().pooling, expected);
        let pipeline = pooling(&json!({"pooling_mode": name, "include_prompt": false})).unwrap();
        assert_eq!((pipeline.pooling, pipeline.pool_prompt), (expected, false));
    }
    // Flags stand in one order, a list in its own.
    let both = flags(&["pooling_mode_mean_tokens", "pooling_mode_cls_token"]).unwrap();
    assert_eq!(both.pooling.to_string(), "cls + mean");
    let listed = pooling(&json!({"pooling_mode": ["mean", "cls"]})).unwrap().pooling;
    assert_eq!((listed.to_string().as_str(), listed.picks_a_row()), ("mean + cls", false));
    let silent = pooling(&json!({"word_embedding_dimension": 4})).unwrap().pooling;
    assert_eq!(silent, Pooling::Mean.into());
    for wrong in
        [json!([]), json!(["mean", 1]), json!(["median"]), json!(vec!["mean"; 7]), json!(1)]
    {
        assert!(pooling(&json!({"pooling_mode": wrong})).is_err(), "{wrong}");
    }
    assert!(matches!(flags(&[]), Err(ModelError::Value { .. })));
    assert!(pooling(&json!({"pooling_mode": "median"})).is_err());
    assert!(pooling(&json!({"pooling_mode": "mean", "embedding_dimension": 5})).is_err());
}

#[test]
fn modules_have_known_classes_in_one_order() {
    let (transformer, pooling) = (module("Transformer", ""), module("Pooling", "1_Pooling"));
    for class in ["CNN", "WeightedLayerPooling", "Normalise", ""] {
        let refused = modules_error(&json!([transformer, pooling, module(class, "")]));
        assert!(matches!(refused, ModelError::Unsupported { .. }), "{class}: {refused}");
    }
    modules_error(&json!([pooling, transformer]));
    modules_error(&json!([transformer]));
    modules_error(&json!([]));
    modules_error(&json!({}));
    modules_error(&json!([transformer, 7]));
    let named = |module: &Value| {
        let mut module = module.clone();
        module["name"] = json!("0");
        module
    };
    modules_error(&json!([named(&transformer), named(&pooling)]));
    for (class, told) in [
        ("custom_st.Transformer", "code"),
        ("pylate.models.Dense.Dense", "code"),
        ("sentence_transformers.models.CLIPModel", "images"),
        ("sentence_transformers.sparse_encoder.models.SpladePooling", "sparse"),
        ("sentence_transformers.models.WordEmbeddings", "table of words"),
        ("sentence_transformers.models.CNN", "no such module"),
    ] {
        let message = modules_error(&json!([transformer, {"type": class}])).to_string();
        assert!(message.contains(class) && message.contains(told), "{message}");
    }
    modules_error(&json!(vec![transformer.clone(); 1000]));
    modules_error(&json!([transformer, pooling, module("Normalize", ""), module("Dense", "2")]));
    for escape in ["../1_Pooling", "/1_Pooling", "a/../../b", "..\\x"] {
        let refused = modules_error(&json!([transformer, module("Pooling", escape)]));
        assert!(matches!(refused, ModelError::PathEscape { .. }), "{escape}: {refused}");
    }
}

#[test]
fn the_default_prompt_must_exist() {
    let folder = piped();
    let name = "config_sentence_transformers.json";
    let prompts =
        |default: &str| json!({"prompts": {"query": "q: "}, "default_prompt_name": default});
    write_json(&folder, name, &prompts("query"));
    let pipeline = Model::open(folder.path()).unwrap().pipeline;
    assert_eq!(pipeline.prompts[&pipeline.default_prompt.unwrap()], "q: ");
    write_json(&folder, name, &prompts("document"));
    assert!(matches!(error(&folder), ModelError::Value { .. }));
    write_json(&folder, name, &json!({"prompts": {"query": 1}}));
    assert!(matches!(error(&folder), ModelError::Value { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Random damage to any file gives a model or an error; whatever opens can be read to the end.
    #[test]
    fn damaged_files_never_panic(
        file in prop::sample::select(vec!["model.safetensors", "config.json", "modules.json",
            "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6),
    ) {
        let folder = folder();
        let source = test_data().join("bert-dense");
        for name in ["modules.json", "1_Pooling/config.json", "2_Dense/config.json",
            "2_Dense/model.safetensors", "config.json", "model.safetensors"] {
            write(&folder, name, &fs::read(source.join(name)).unwrap());
        }
        let mut contents = fs::read(folder.path().join(file)).unwrap();
        for (index, byte, edit) in edits {
            // Most of a weights file is data: aim at its header.
            let at = index.index(contents.len().clamp(1, 4096));
            match edit {
                0 if at < contents.len() => contents[at] = byte,
                1 => contents.truncate(at),
                _ => contents.insert(at, b"0123456789[]{}\","[usize::from(byte) % 16]),
            }
        }
        write(&folder, file, &contents);
        if let Ok(model) = Model::open(folder.path()) {
            let _ = model.architecture();
            prop_assert!(model.config.positions > model.config.position_offset);
            prop_assert!(model.weights.bytes_as(DType::F32) <= 4 * contents.len().max(200_000));
        }
    }
}
