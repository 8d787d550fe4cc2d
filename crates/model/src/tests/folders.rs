//! Folders whose files contradict one another, are partly there, or are for another task.

use super::*;

/// Changes the value of `key` in `config.json`.
fn configure(folder: &TempDir, key: &str, value: Value) {
    let mut config = config();
    config[key] = value;
    write_json(folder, "config.json", &config);
}

fn architecture(class: &str) -> TempDir {
    let folder = folder();
    configure(&folder, "architectures", json!([class]));
    folder
}

/// Adds tensors of one number to the weights.
fn with_tensors(folder: &TempDir, names: &[&str]) {
    let mut tensors = json!({"embeddings.word_embeddings.weight": entry("F32", &[6, 4], [0, 96])});
    for (index, name) in names.iter().enumerate() {
        tensors[*name] = entry("F32", &[1], [96 + 4 * index, 100 + 4 * index]);
    }
    let data = vec![0; 96 + 4 * names.len()];
    write(folder, "model.safetensors", &container(tensors.to_string().as_bytes(), &data));
}

fn warnings(folder: &TempDir) -> Vec<String> {
    let model = Model::open(folder.path()).unwrap_or_else(|error| panic!("{error}"));
    model.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn another_task_is_refused_by_what_says_so() {
    for (class, task) in [
        ("BertCrossEncoder", "ranks pairs"),
        ("BertForTokenClassification", "tags"),
        ("BertForQuestionAnswering", "answers"),
        ("BertForMultipleChoice", "chooses"),
        ("BertLMHeadModel", "generates"),
        ("HF_ColBERT", "each token"),
        ("SpladeModel", "sparse"),
    ] {
        let folder = architecture(class);
        let message = error(&folder).to_string();
        assert!(message.contains(class) && message.contains(task), "{message}");
        let chosen = Model::open_as(folder.path(), Some(Pooling::Cls));
        assert!(matches!(chosen, Err(ModelError::Task { may_embed: false, .. })), "{class}");
    }
    for tensor in ["classifier.weight", "score.weight", "qa_outputs.weight", "linear.weight"] {
        for class in ["BertModel", ""] {
            let folder = architecture(class);
            if class.is_empty() {
                write_json(&folder, "config.json", &config());
            }
            with_tensors(&folder, &[tensor]);
            let message = error(&folder).to_string();
            assert!(message.contains(tensor) && message.contains("choose a model"), "{message}");
        }
    }
    let ranks = folder();
    configure(&ranks, "sbert_ce_default_activation_function", json!("torch.nn.Sigmoid"));
    assert!(matches!(error(&ranks), ModelError::Task { .. }));
    let colbert = folder();
    write(&colbert, "artifact.metadata", b"{}");
    assert!(matches!(error(&colbert), ModelError::Task { .. }));
}

/// A model of the test data in a folder of its own.
fn copied(name: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(test_data().join(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn head(folder: &Path) -> Classifier {
    match Model::open(folder).unwrap().task {
        Task::Classify(head) => head,
        task => panic!("{}: {task:?}", folder.display()),
    }
}

#[test]
fn a_head_of_classification_is_found_by_its_class_or_its_modules() {
    use ScoreActivation::{Identity, Sigmoid, Softmax};
    for (name, first, activation, labels) in [
        ("bert-rerank", Activation::Tanh, Sigmoid, &["LABEL_0"][..]),
        ("bert-rerank-st6", Activation::Tanh, Sigmoid, &["LABEL_0"]),
        ("bert-classify", Activation::Tanh, Softmax, &["entailment", "neutral", "contradiction"]),
        ("roberta-rerank", Activation::Tanh, Sigmoid, &["LABEL_0"]),
        ("xlm-roberta-rerank", Activation::Tanh, Identity, &["LABEL_0"]),
        ("distilbert-classify", Activation::Relu, Softmax, &["NEGATIVE", "POSITIVE"]),
        ("electra-classify", Activation::Gelu, Sigmoid, &["calm", "glad", "cross"]),
    ] {
        let head = head(&test_data().join(name));
        let [HeadLayer::Linear(_, found), HeadLayer::Linear(out, last)] = head.layers.as_slice()
        else {
            panic!("{name}: {head:?}")
        };
        assert_eq!((*found, *last, head.activation), (first, Activation::Identity, activation));
        assert_eq!(
            (out.weight.shape().rows, head.labels.as_slice()),
            (labels.len(), &*owned(labels))
        );
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

#[test]
fn a_model_that_classifies_is_not_pooled_and_must_have_its_whole_head() {
    let folder = copied("bert-rerank");
    assert_eq!(warnings(&folder), [""; 0], "nothing is assumed of it");
    let chosen = Model::open_as(folder.path(), Some(Pooling::Mean));
    assert!(matches!(chosen, Err(ModelError::Task { may_embed: false, .. })));
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["id2label"] = json!({"0": "no", "1": "yes"});
    write_json(&folder, "config.json", &config);
    let message = error(&folder).to_string();
    assert!(message.contains("classifier.weight") && message.contains("[2, 32]"), "{message}");
    config["architectures"] = json!(["BertModel"]);
    write_json(&folder, "config.json", &config);
    assert!(matches!(error(&folder), ModelError::Task { .. }), "a body doesn't say so");
}

#[test]
fn modules_of_a_model_that_classifies_say_nothing_else() {
    let general = "config_sentence_transformers.json";
    for (file, key, value) in [
        (general, "model_type", json!("SentenceTransformer")),
        (general, "activation_fn", json!("modeling.Steps")),
        (general, "prompts", json!({"query": "query: "})),
        ("sentence_bert_config.json", "transformer_task", json!("feature-extraction")),
        ("sentence_bert_config.json", "module_output_name", json!("token_embeddings")),
    ] {
        let folder = copied("bert-rerank-st6");
        let path = folder.path().join(file);
        let mut settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        settings[key] = value;
        if key == "prompts" {
            settings["default_prompt_name"] = json!("query");
        }
        write_json(&folder, file, &settings);
        let message = error(&folder).to_string();
        assert!(message.contains("json"), "{key}: {message}");
    }
}

#[test]
fn a_language_model_embeds_if_its_user_says_how() {
    for class in ["BertForMaskedLM", "BertForPreTraining", "Contriever"] {
        let folder = architecture(class);
        let message = error(&folder).to_string();
        assert!(message.contains(class) && message.contains("--pooling"), "{message}");
        assert!(Model::open_as(folder.path(), Some(Pooling::Mean)).is_ok(), "{class}");
    }
    let folder = folder();
    with_tensors(&folder, &["cls.predictions.transform.dense.weight"]);
    assert!(matches!(error(&folder), ModelError::Task { may_embed: true, .. }));
    configure(&folder, "architectures", json!(["BertModel"]));
    assert!(Model::open(folder.path()).is_ok(), "a body says what it is");
}

#[test]
fn modules_say_that_a_model_embeds() {
    for class in ["BertForMaskedLM", "BertForSequenceClassification", "HF_ColBERT"] {
        let folder = piped();
        configure(&folder, "architectures", json!([class]));
        with_tensors(&folder, &["classifier.weight"]);
        assert_eq!(warnings(&folder), [""; 0], "{class}");
    }
    for (key, value) in [("model_type", "CrossEncoder"), ("model_type", "SparseEncoder")] {
        let folder = piped();
        write_json(&folder, "config_sentence_transformers.json", &json!({key: value}));
        let message = error(&folder).to_string();
        assert!(message.contains(value), "{message}");
    }
}

#[test]
fn code_of_its_own_and_adapters_are_refused() {
    let message = config_error("auto_map", json!({"AutoModel": "jina.JinaBertModel"})).to_string();
    assert!(message.contains("jina.JinaBertModel"), "{message}");
    let folder = folder();
    configure(&folder, "auto_map", json!({"AutoModelForMaskedLM": "a.B"}));
    assert!(Model::open(folder.path()).is_ok(), "its body is the library's");
    write_json(&folder, "adapter_config.json", &json!({"peft_type": "LORA"}));
    let message = error(&folder).to_string();
    assert!(message.contains("adapter_config.json") && message.contains("merge"), "{message}");
}

#[test]
fn what_an_embedding_is_cut_to_is_read() {
    let folder = piped();
    let file = "config_sentence_transformers.json";
    for (kept, dimensions) in [(3, 3), (4, 4), (9, 4)] {
        write_json(&folder, file, &json!({"truncate_dim": kept}));
        let model = Model::open(folder.path()).unwrap();
        assert_eq!((model.dimensions(), model.row()), (dimensions, 4));
    }
    for wrong in [json!(0), json!(-3), json!(2.5), json!("3"), json!(true)] {
        write_json(&folder, file, &json!({"truncate_dim": wrong}));
        assert!(matches!(error(&folder), ModelError::Value { .. }), "{wrong}");
    }
}

#[test]
fn optional_files_are_in_one_list() {
    assert!(files::TRANSFORMER.iter().all(|name| OPTIONAL_FILES.contains(name)));
    let mut names = OPTIONAL_FILES;
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
}

#[test]
fn what_is_assumed_without_modules_is_said() {
    let folder = folder();
    assert!(matches!(warnings(&folder).as_slice(), [one] if one.contains("mean of all tokens")));
    write_json(&folder, "1_Pooling/config.json", &json!({"pooling_mode": "cls"}));
    write_json(&folder, "sentence_bert_config.json", &json!({"max_seq_length": 3}));
    let said = warnings(&folder);
    let [warning] = said.as_slice() else { panic!("{said:?}") };
    assert!(warning.contains("modules.json") && warning.contains("1_Pooling"), "{warning}");
    assert!(warning.contains("sentence_bert_config.json"), "{warning}");
    let model = Model::open(folder.path()).unwrap();
    assert_eq!((model.pipeline.pooling, model.pipeline.max_tokens), (Pooling::Mean.into(), 16));
}

#[test]
fn what_lies_beside_and_is_not_read_is_said() {
    let folder = piped();
    assert_eq!(warnings(&folder), [""; 0]);
    write_json(&folder, "2_Dense/config.json", &json!({"in_features": 4}));
    write_json(&folder, "Sentence_BERT_config.json", &json!({"max_seq_length": 3}));
    write_json(&folder, "model.safetensors.index.json", &json!({"weight_map": {"x": "gone"}}));
    let said = warnings(&folder).join("\n");
    for part in
        ["2_Dense: not used", "should be 'sentence_bert_config.json'", "index.json: not read"]
    {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn shards_are_all_there_and_hold_what_the_index_says() {
    let folder = folder();
    fs::rename(folder.path().join("model.safetensors"), folder.path().join("a.safetensors"))
        .unwrap();
    let index = |map: Value| json!({"weight_map": map});
    let name = "model.safetensors.index.json";
    write_json(&folder, name, &index(json!({"x": "a.safetensors"})));
    let message = error(&folder).to_string();
    assert!(message.contains("'x' is missing") && message.contains("a.safetensors"), "{message}");
    let word = "embeddings.word_embeddings.weight";
    write_json(&folder, name, &index(json!({word: "a.safetensors", "y": "b.safetensors"})));
    let message = error(&folder).to_string();
    assert!(message.contains("b.safetensors: the file is missing"), "{message}");
    fs::copy(folder.path().join("a.safetensors"), folder.path().join("b.safetensors")).unwrap();
    write_json(
        &folder,
        name,
        &index(json!({word: "a.safetensors",
        "embeddings.LayerNorm.beta": "b.safetensors"})),
    );
    assert!(matches!(error(&folder), ModelError::Twice { .. }));
}

#[test]
fn a_model_is_there_once() {
    let folder = folder();
    with_tensors(&folder, &["bert.embeddings.word_embeddings.weight"]);
    let message = error(&folder).to_string();
    assert!(message.contains("'bert.embeddings.word_embeddings.weight'"), "{message}");
}

#[test]
fn a_chosen_pooling_fits_the_dense_layer_behind_it() {
    let folder = test_data().join("bert-mean-and-max");
    assert_eq!(Model::open(&folder).unwrap().row(), 24);
    let message = Model::open_as(&folder, Some(Pooling::Cls)).unwrap_err().to_string();
    assert!(message.contains("'in_features' should be 32, but is 64"), "{message}");
    let folder = test_data().join("bert-poolings");
    assert_eq!(Model::open(&folder).unwrap().dimensions(), 96);
    assert_eq!(Model::open_as(&folder, Some(Pooling::Cls)).unwrap().dimensions(), 32);
}

#[test]
fn a_dense_layer_has_the_tensors_that_it_says() {
    let folder = piped();
    let modules = json!([
        module("Transformer", ""),
        module("Pooling", "1_Pooling"),
        module("Dense", "2_Dense")
    ]);
    write_json(&folder, "modules.json", &modules);
    let with = |tensors: &[(&str, &[usize])], config: &Value| {
        let (mut header, mut end) = (json!({}), 0);
        for (name, shape) in tensors {
            let bytes = 4 * shape.iter().product::<usize>();
            header[*name] = entry("F32", shape, [end, end + bytes]);
            end += bytes;
        }
        let file = container(header.to_string().as_bytes(), &vec![0; end]);
        write(&folder, "2_Dense/model.safetensors", &file);
        write_json(&folder, "2_Dense/config.json", config);
        Model::open(folder.path()).map(|model| model.dimensions()).map_err(|e| e.to_string())
    };
    let (weight, bias): ((_, &[usize]), (_, &[usize])) =
        (("linear.weight", &[3, 4]), ("linear.bias", &[3]));
    let plain = json!({"in_features": 4, "out_features": 3});
    let mut unbiased = plain.clone();
    unbiased["bias"] = json!(false);
    assert_eq!(with(&[weight, bias], &plain), Ok(3));
    assert_eq!(with(&[weight], &unbiased), Ok(3));
    assert!(with(&[weight], &plain).unwrap_err().contains("linear.bias"));
    assert!(with(&[weight, bias], &unbiased).unwrap_err().contains("linear.bias"));
    let residual: (_, &[usize]) = ("residual.weight", &[3, 4]);
    assert!(with(&[weight, bias, residual], &plain).unwrap_err().contains("residual.weight"));
    let mut own = plain;
    for class in ["mine.Tanh", "transformers.activations.GELUActivation", "torch.nn.Softmax"] {
        own["activation_function"] = json!(class);
        assert!(with(&[weight, bias], &own).unwrap_err().contains(class), "{class}");
    }
}

#[test]
fn settings_are_as_python_and_editors_write_them() {
    let folder = piped();
    let mark = |name: &str| {
        let mut contents = fs::read(folder.path().join(name)).unwrap();
        contents.splice(0..0, *b"\xef\xbb\xbf");
        write(&folder, name, &contents);
    };
    let mut text = config().to_string();
    text.insert_str(1, "\"loss_weight\": NaN, \"max_loss\": Infinity, \"hidden_size\": 9, ");
    write(
        &folder,
        "config.json",
        text.replace("\"vocab_size\":6", "\"vocab_size\":6.0").as_bytes(),
    );
    for name in ["config.json", "modules.json", "1_Pooling/config.json"] {
        mark(name);
    }
    let said = warnings(&folder);
    assert!(
        matches!(said.as_slice(), [one] if one.contains("'loss_weight', 'max_loss'")),
        "{said:?}"
    );
    for (key, value, found) in [
        ("layer_norm_eps", "NaN", "NaN"),
        ("hidden_size", "Infinity", "Infinity"),
        ("hidden_size", "1e999", "Infinity"),
        ("vocab_size", "-Infinity", "-Infinity"),
        ("hidden_act", "\"gelu\\ud800\"", "half a surrogate pair"),
        ("vocab_size", "123456789012345678901234567890", "1.2345678901234568e29"),
    ] {
        let mut config = config();
        config.as_object_mut().unwrap().remove(key);
        let mut text = config.to_string();
        text.insert_str(1, &format!("\"{key}\": {value}, "));
        write(&folder, "config.json", text.as_bytes());
        let message = error(&folder).to_string();
        assert!(message.contains(key) && message.contains(found), "{message}");
    }
}

#[test]
fn what_tools_leave_in_a_files_place_is_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    for (contents, found) in [
        (&pointer[..], "Git LFS"),
        (b"<!DOCTYPE html><title>Sign in</title>", "web page"),
        (b"", "empty"),
        (b"PK\x03\x04\x00\x00", "pickle"),
    ] {
        for name in ["model.safetensors", "config.json", "modules.json"] {
            let folder = folder();
            write(&folder, name, contents);
            let message = error(&folder).to_string();
            assert!(message.contains(name) && message.contains(found), "{message}");
        }
    }
}

#[cfg(unix)]
#[test]
fn files_that_may_not_be_read_are_not_missing() {
    use std::os::unix::fs::PermissionsExt;
    let folder = piped();
    let path = folder.path().join("config_sentence_transformers.json");
    fs::write(&path, b"{}").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&path).is_ok() {
        return; // root reads everything
    }
    assert!(matches!(error(&folder), ModelError::Io { .. }));
}
