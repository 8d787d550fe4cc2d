//! Weights: conversion, lookup, shards, and headers that lie.

use super::*;

/// The error of a model with this weights file.
fn weights_error(contents: &[u8]) -> ModelError {
    let folder = folder();
    write(&folder, "model.safetensors", contents);
    error(&folder)
}

fn header_error(header: &Value, data: usize) -> ModelError {
    weights_error(&container(header.to_string().as_bytes(), &vec![0; data]))
}

#[test]
fn tensors_convert_to_single_precision() {
    let folder = folder();
    let weights = Model::open(folder.path()).unwrap().weights;
    let words = weights.tensor("embeddings.word_embeddings.weight", &[6, 4]).unwrap();
    assert_eq!(words.to_f32()[23], 23.0);
    let (gamma, beta) = weights.norm("embeddings.LayerNorm", 4).unwrap();
    assert_eq!((gamma.dtype(), beta.dtype()), (DType::F16, DType::BF16));
    assert_eq!(*gamma.to_f32(), [0.5, -1.5, 65504.0, f16::from_f32(6e-8).to_f32()]);
    assert_eq!(*beta.to_f32(), [1.0, -2.5, bf16::from_f32(3e38).to_f32(), 0.0]);
    assert_eq!(weights.bytes_as(DType::F32), (24 + 4 + 4) * 4, "integers don't count");
}

#[test]
fn unaligned_tensors_convert_too() {
    let mut header = json!({
        "w": entry("F32", &[1], [0, 4]),
        "x": entry("F16", &[1], [4, 6]),
        "y": entry("BF16", &[1], [6, 8]),
    })
    .to_string();
    while header.len() % 4 != 1 {
        header.push(' ');
    }
    let one = [&1f32.to_le_bytes()[..], &f16::ONE.to_le_bytes(), &bf16::ONE.to_le_bytes()].concat();
    let folder = folder();
    write(&folder, "model.safetensors", &container(header.as_bytes(), &one));
    let weights = Model::open(folder.path()).unwrap().weights;
    for name in ["w", "x", "y"] {
        assert_eq!(*weights.tensor(name, &[1]).unwrap().to_f32(), [1.0]);
    }
}

#[test]
fn tensors_in_memory_have_as_many_values_as_their_shape() {
    let tensor = TensorView::from_f32("t", &[2, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap();
    assert_eq!((tensor.elements(), tensor.bytes().len()), (4, 16));
    let error = TensorView::from_f32("t", &[2, 2], vec![1.0]).unwrap_err();
    assert!(matches!(error, ModelError::Shape { .. }));
    assert!(TensorView::from_f32("t", &[usize::MAX, 2], vec![]).is_err());
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let folder = folder();
    let weights = Model::open(folder.path()).unwrap().weights;
    let message = weights.linear("pooler.dense", 4, 4).unwrap_err().to_string();
    assert!(message.contains("'pooler.dense.weight' is missing"), "{message}");
    let message = weights.norm("nowhere", 4).unwrap_err().to_string();
    assert!(message.contains("'nowhere.weight'"), "the current name, not the old: {message}");
    let message =
        weights.tensor("embeddings.word_embeddings.weight", &[4, 6]).unwrap_err().to_string();
    assert!(message.contains("[4, 6], but has [6, 4]"), "{message}");
    let message = weights.tensor("embeddings.position_ids", &[1, 2]).unwrap_err().to_string();
    assert!(message.contains("I64"), "{message}");
}

#[test]
fn shards_are_one_set_of_weights() {
    let folder = folder();
    fs::rename(folder.path().join("model.safetensors"), folder.path().join("a.safetensors"))
        .unwrap();
    let second = json!({"more": entry("F32", &[1], [0, 4])}).to_string();
    write(&folder, "sub/b.safetensors", &container(second.as_bytes(), &[0; 4]));
    let index =
        |b: &str| json!({"weight_map": {"embeddings.LayerNorm.beta": "a.safetensors", "more": b}});
    write_json(&folder, "model.safetensors.index.json", &index("sub/b.safetensors"));
    let weights = Model::open(folder.path()).unwrap().weights;
    assert!(weights.tensor("more", &[1]).is_ok());
    assert!(weights.norm("embeddings.LayerNorm", 4).is_ok());
    for escape in ["../b.safetensors", "/etc/passwd", "sub\\..\\b", "sub/../../b", "c:b"] {
        write_json(&folder, "model.safetensors.index.json", &index(escape));
        assert!(matches!(error(&folder), ModelError::PathEscape { .. }), "{escape}");
    }
    write_json(&folder, "model.safetensors.index.json", &json!({"weight_map": {"x": 1}}));
    assert!(matches!(error(&folder), ModelError::Value { .. }));
}

#[test]
fn missing_files_are_named() {
    let folder = folder();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let message = error(&folder).to_string();
    assert!(message.contains("model.safetensors: the file is missing"), "{message}");
    write(&folder, "model-00001-of-00002.safetensors", b"");
    let message = error(&folder).to_string();
    assert!(message.contains("index.json: the file is missing"), "{message}");
    write(&folder, "Model.SafeTensors", b"");
    fs::remove_file(folder.path().join("model-00001-of-00002.safetensors")).unwrap();
    let message = error(&folder).to_string();
    assert!(message.contains("'Model.SafeTensors' lies there"), "{message}");
}

#[test]
fn truncated_weights_are_refused_at_every_length() {
    let folder = folder();
    let whole = fs::read(folder.path().join("model.safetensors")).unwrap();
    for length in (0..whole.len()).step_by(7) {
        weights_error(&whole[..length]);
    }
}

#[test]
fn lying_headers_are_refused() {
    let huge = |length: u64| weights_error(&[&length.to_le_bytes()[..], b"{}"].concat());
    assert!(matches!(huge(u64::MAX), ModelError::TooLarge { .. }));
    assert!(matches!(huge(1 << 32), ModelError::TooLarge { .. }));
    assert!(matches!(huge(3), ModelError::Safetensors { .. }));

    let broken = |header: Value, data| match header_error(&header, data) {
        ModelError::Safetensors { what, .. } => what,
        other => panic!("{other}"),
    };
    let max = usize::MAX;
    let one = |value: Value| json!({"a": value});
    assert_eq!(broken(one(entry("F32", &[4], [0, 16])), 8), "the tensor 'a'", "past the end");
    assert_eq!(broken(one(entry("F32", &[2], [8, 0])), 8), "the tensor 'a'", "backwards");
    assert_eq!(broken(one(entry("F32", &[2], [4, 12])), 12), "the tensor 'a'", "a hole");
    assert_eq!(broken(one(entry("F32", &[3], [0, 8])), 8), "the tensor 'a'", "other size");
    assert_eq!(broken(one(entry("F32", &[max, max], [0, 8])), 8), "the tensor 'a'", "overflow");
    assert_eq!(broken(one(entry("F32", &[2], [0, 8])), 9), "the data", "more than is used");
    let overlap = json!({"a": entry("F32", &[2], [0, 8]), "b": entry("F32", &[1], [4, 8])});
    assert_eq!(broken(overlap, 8), "the tensor 'b'");
    let sum = max / 2 - max / 2 % 8;
    let wraps = json!({
        "a": entry("U8", &[sum], [0, sum]), "b": entry("U8", &[sum], [sum, sum + sum]),
    });
    assert_eq!(broken(wraps, 8), "the tensor 'a'", "sums near the largest integer");
    for nonsense in [
        one(json!({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]})),
        one(json!({"dtype": "F32", "shape": [2], "data_offsets": [0.5, 8]})),
        one(json!({"dtype": "F33", "shape": [2], "data_offsets": [0, 8]})),
        one(json!({"dtype": "F32", "shape": 2, "data_offsets": [0]})),
        json!([1, 2]),
        json!("text"),
    ] {
        assert_eq!(broken(nonsense, 8), "the header");
    }
    let nested = "[".repeat(100_000);
    assert!(matches!(
        weights_error(&container(nested.as_bytes(), &[])),
        ModelError::Safetensors { .. }
    ));
}
