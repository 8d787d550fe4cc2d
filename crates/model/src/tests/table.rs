//! Tables without a transformer: what they say, and lies.

use super::*;

/// A Model2Vec folder with these tensors, of so many bytes together.
fn model2vec(tensors: &Value, data: &[u8]) -> TempDir {
    let folder = TempDir::new().unwrap();
    write(&folder, "model.safetensors", &container(tensors.to_string().as_bytes(), data));
    write_json(&folder, "config.json", &json!({"model_type": "model2vec", "normalize": true}));
    folder
}

/// Two rows of two numbers in i8, for three tokens.
fn shared(mapping: [i64; 3]) -> TempDir {
    let tensors = json!({
        "embeddings": entry("I8", &[2, 2], [0, 4]),
        "mapping": entry("I64", &[3], [4, 28]),
        "weights": entry("F32", &[3], [28, 40]),
    });
    let mapping = mapping.map(i64::to_le_bytes);
    let weights = [1.0f32, 0.5, 2.0].map(f32::to_le_bytes);
    let data = [&[1, 2, 0xff, 127], mapping.as_flattened(), weights.as_flattened()].concat();
    model2vec(&tensors, &data)
}

#[test]
fn tokens_get_the_rows_that_they_share() {
    let model = Model::open(shared([1, 0, 1]).path()).unwrap();
    assert_eq!(
        (model.dimensions(), model.config.vocabulary, model.max_input_tokens()),
        (2, 3, 512)
    );
    let pipeline = &model.pipeline;
    assert!(pipeline.normalize && pipeline.drops_unknown && !pipeline.special_tokens);
    let Architecture { embedding, layers, norm } = model.architecture().unwrap();
    assert_eq!(*embedding.words.to_f32(), [-1.0, 127.0, 0.5, 1.0, -2.0, 254.0]);
    assert!(layers.is_empty() && norm.is_none() && embedding.norm.is_none());
}

#[test]
fn rows_that_are_not_there_are_refused() {
    for row in [2, -1, i64::MAX, i64::MIN] {
        let model = Model::open(shared([0, row, 0]).path()).unwrap();
        assert!(matches!(model.architecture(), Err(ModelError::Shape { .. })), "{row}");
    }
}

#[test]
fn tables_of_other_shapes_are_refused() {
    let error = |tensors: Value, bytes: usize| {
        Model::open(model2vec(&tensors, &vec![0; bytes]).path()).unwrap_err()
    };
    let other = error(json!({"other": entry("F32", &[2, 2], [0, 16])}), 16);
    assert!(matches!(other, ModelError::MissingTensor { .. }), "{other}");
    for (shape, bytes) in [(&[4][..], 16), (&[2, 2, 1], 16), (&[0, 4], 0), (&[4, 0], 0)] {
        let error = error(json!({"embeddings": entry("F32", shape, [0, bytes])}), bytes);
        assert!(matches!(error, ModelError::Shape { .. }), "{error}");
    }
    let weights = error(
        json!({"embeddings": entry("F32", &[2, 2], [0, 16]), "weights": entry("F32", &[3], [16, 28])}),
        28,
    );
    assert!(
        weights.to_string().contains("'weights' should have shape [2], but has [3]"),
        "{weights}"
    );
    // A small file that would be a table of 64 GiB.
    let (columns, tokens) = (1 << 16, 1 << 18);
    let large = error(
        json!({
            "embeddings": entry("I8", &[1, columns], [0, columns]),
            "mapping": entry("I64", &[tokens], [columns, columns + 8 * tokens]),
        }),
        columns + 8 * tokens,
    );
    assert!(matches!(large, ModelError::Shape { .. }), "{large}");
}

#[test]
fn what_sentence_transformers_saves_is_a_table_where_modules_say_so() {
    let folder = TempDir::new().unwrap();
    let tensors = json!({"embedding.weight": entry("F16", &[3, 2], [0, 12])}).to_string();
    write(&folder, "model.safetensors", &container(tensors.as_bytes(), &[0; 12]));
    let modules = |more: &[Value]| {
        let modules: Vec<_> = [&[module("StaticEmbedding", "")], more].concat();
        write_json(&folder, "modules.json", &json!(modules));
        Model::open(folder.path())
    };
    let model = modules(&[module("Normalize", "1_Normalize")]).unwrap();
    assert!(model.pipeline.normalize && !model.pipeline.drops_unknown);
    assert_eq!(model.pipeline.pooling.to_string(), "mean");
    assert!(modules(&[]).is_ok_and(|model| !model.pipeline.normalize));
    for other in ["Pooling", "Transformer", "StaticEmbedding"] {
        let error = modules(&[module(other, "1_Other")]).unwrap_err();
        assert!(matches!(error, ModelError::Unsupported { .. }), "{error}");
    }
}
