//! How models see positions, in the words of older files and of newer ones.

use super::*;
use crate::config::Sight;
use crate::{Rotary, RotaryScaling, Window};

fn read(config: &Value) -> Result<Config, ModelError> {
    let file = JsonFile::parse(Path::new("config.json"), config.to_string().as_bytes())?;
    Config::read(&file, &mut Vec::new())
}

/// A configuration of this type, 32 columns in two heads and 100 positions, with more keys.
fn of(model_type: &str, more: &Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "hidden_size": 32, "num_hidden_layers": 4,
        "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 9,
        "max_position_embeddings": 100,
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

fn plain(theta: f64) -> Rotary {
    Rotary { dims: 16, theta, scaling: RotaryScaling::None }
}

/// The scaling of all layers.
fn scaling(config: &Value) -> RotaryScaling {
    read(config).unwrap().sights[0].rotary.unwrap().scaling
}

fn refused(config: &Value, said: &str) {
    let error = read(config).expect_err("it should be refused").to_string();
    assert!(error.contains(said), "{error}");
}

#[test]
fn modernbert_sees_windows_in_older_and_newer_words() {
    let full = Sight { rotary: Some(plain(160_000.0)), window: Window::FULL };
    let local = |theta| Sight { rotary: Some(plain(theta)), window: Window::around(64) };
    let usual = [full, local(10_000.0), local(10_000.0), full];
    assert_eq!(read(&of("modernbert", &json!({}))).unwrap().sights, usual);
    // As answerdotai/ModernBERT-base: what the position type says means nothing.
    let old = json!({
        "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0, "local_attention": 128,
        "global_attn_every_n_layers": 3, "position_embedding_type": "absolute",
    });
    assert_eq!(read(&of("modernbert", &old)).unwrap().sights, usual);
    let by_type = |full: f64, sliding: f64| {
        json!({"full_attention": {"rope_type": "default", "rope_theta": full},
               "sliding_attention": {"rope_type": "default", "rope_theta": sliding}})
    };
    let (all, some) = ("full_attention", "sliding_attention");
    let new = json!({
        "rope_parameters": by_type(160_000.0, 10_000.0), "layer_types": [all, some, some, all],
    });
    assert_eq!(read(&of("modernbert", &new)).unwrap().sights, usual);
    // As mmBERT: one theta for both. The newer words count where both are there.
    let mm = json!({
        "rope_parameters": by_type(160_000.0, 160_000.0), "local_rope_theta": 10_000.0,
        "position_embedding_type": "sans_pos",
    });
    assert_eq!(read(&of("modernbert", &mm)).unwrap().sights[1], local(160_000.0));
    refused(&of("modernbert", &json!({"layer_types": [all, some]})), "'layer_types'");
    refused(&of("modernbert", &json!({"layer_types": ["a", "b", "c", "d"]})), "'layer_types'");
    refused(&of("modernbert", &json!({"rope_parameters": {"rope_theta": 5.0}})), "rope_parameters");
}

#[test]
fn a_scaling_factor_stretches_positions_and_none_leaves_them() {
    let nomic = |more: Value| {
        let mut config = json!({
            "model_type": "nomic_bert", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_inner": 64,
            "vocab_size": 9, "n_positions": 400, "max_trained_positions": 100,
            "activation_function": "swiglu", "rotary_emb_base": 1000,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    // nomic-embed-text-v1.5 says null.
    assert_eq!(scaling(&nomic(json!({"rotary_scaling_factor": null}))), RotaryScaling::None);
    let stretched = RotaryScaling::DynamicNtk { factor: 2.0, trained: 100 };
    assert_eq!(scaling(&nomic(json!({"rotary_scaling_factor": 2}))), stretched);
    let dynamic = json!({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0});
    let saved_again = of("nomic_bert", &json!({"rope_parameters": dynamic}));
    assert_eq!(scaling(&saved_again), stretched);
    // Then positions are those of training; a file may ask for more, up to a bound.
    let config = read(&saved_again).unwrap();
    assert_eq!((config.usual_tokens(), config.max_tokens()), (100, 400));
    refused(&nomic(json!({"causal": true})), "'causal'");
    refused(&nomic(json!({"num_experts": 8})), "'num_experts'");
    refused(&nomic(json!({"hidden_size": 48})), "the same as 'n_embd'");
    refused(&nomic(json!({"activation_function": "gelu"})), "the activation 'gelu'");
}

#[test]
fn gte_scales_once_and_for_all() {
    let gte = |more: Value| of("new", &more);
    let ntk = json!({"rope_theta": 500_000, "rope_scaling": {"type": "ntk", "factor": 2.0}});
    assert_eq!(scaling(&gte(ntk.clone())), RotaryScaling::Ntk { factor: 2.0 });
    assert_eq!(read(&gte(ntk)).unwrap().sights[0].rotary.unwrap().theta, 500_000.0);
    let new = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}});
    assert_eq!(read(&gte(new)).unwrap().sights[0].rotary, Some(plain(20_000.0)));
    assert_eq!(read(&gte(json!({}))).unwrap().sights[0].rotary, Some(plain(160_000.0)));
    for (scaling, said) in [
        (json!({"type": "ntk"}), "'factor'"),
        (json!({"type": "ntk", "factor": 2.0, "mixed_b": 0.5}), "'mixed_b'"),
        (json!({"type": "yarn", "factor": 2.0}), "'type'"),
        (json!({"type": "linear", "factor": 2.0, "low_freq_factor": 1.0}), "'low_freq_factor'"),
    ] {
        refused(&gte(json!({"rope_scaling": scaling})), said);
    }
    refused(&gte(json!({"logn_attention_scale": true})), "'logn_attention_scale'");
}

#[test]
fn jinas_body_is_told_from_bert_by_its_positions() {
    let code = json!({"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"});
    let jina = json!({"position_embedding_type": "alibi", "auto_map": code});
    assert_eq!(read(&of("bert", &jina)).unwrap().family.name, "JinaBERT");
    assert_eq!(read(&of("bert", &json!({}))).unwrap().family.name, "BERT");
    // Code that a family doesn't know is not guessed at, whatever the model says it is.
    refused(&of("bert", &json!({"auto_map": code})), "JinaBertModel");
    let other = json!({"AutoModel": "modeling.OwnModel"});
    for model_type in ["new", "nomic_bert", "modernbert"] {
        refused(&of(model_type, &json!({"auto_map": other})), "OwnModel");
    }
}

#[test]
fn halves_of_a_matrix_change_places() {
    let tensor = |rows: usize, first: f32| {
        let values = (0..2 * rows).map(|index| first + index as f32).collect();
        TensorView::from_f32("w", &[rows, 2], values).unwrap()
    };
    let swapped = Weight::Tensor(tensor(4, 0.0)).with_halves_swapped();
    assert_eq!(*swapped.to_f32(), [4.0, 5.0, 6.0, 7.0, 0.0, 1.0, 2.0, 3.0]);
    assert_eq!((swapped.shape().rows, swapped.shape().columns), (4, 2));
    let stack = Weight::Stack(vec![tensor(1, 0.0), tensor(3, 2.0)]).with_halves_swapped();
    assert_eq!(*stack.to_f32(), *swapped.to_f32());
}
