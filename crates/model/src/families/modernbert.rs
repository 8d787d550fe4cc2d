//! ModernBERT (Warner et al., arXiv:2412.13663): norms before each half, rotary positions, a gated
//! feed-forward part, and attention that mostly sees a window.

use super::super::json::{Json, JsonFile};
use super::super::keys::{Plain, Rule, row};
use super::super::{
    Architecture, Attention, Config, Embedding, FeedForward, Heads, Layer, ModelError, Norm, Order,
    Sight, Window,
};
use super::{Family, Keys, Tensors, bert, rope};

/// Of layers that see all of a sequence, and of those that see a window.
const THETAS: [f64; 2] = [160_000.0, 10_000.0];
const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];

/// Every so many layers see all, where the file doesn't say.
const EVERY: usize = 3;
/// Tokens of a window, to both sides together, where the file doesn't say.
const WINDOW: usize = 128;

pub(super) const FAMILY: Family = Family {
    name: "ModernBERT",
    model_types: &["modernbert"],
    prefixes: &[],
    words: "embeddings.tok_embeddings.weight",
    keys: Keys {
        activation: (&["hidden_activation"], "gelu"),
        epsilon: Some((&["norm_eps"], 1e-5)),
        token_types: None,
        ..bert::KEYS
    },
    rules: &[
        bert::PADDING,
        row(&["rope_parameters", "global_rope_theta", "local_rope_theta"], Rule::UsedOrNull),
        row(&["layer_types", "global_attn_every_n_layers", "local_attention"], Rule::UsedOrNull),
        row(&["attention_bias", "mlp_bias", "norm_bias"], Rule::UsedOrNull),
        row(&["rope_scaling"], Rule::Only(&[Plain::Null], "scaled positions are not computed")),
        row(&["position_embedding_type"], Rule::Unread("it means nothing: positions are rotary")),
        row(
            &["layer_norm_eps", "hidden_act", "type_vocab_size"],
            Rule::Unread("other keys say it"),
        ),
        row(
            &[
                "embedding_dropout",
                "mlp_dropout",
                "initializer_cutoff_factor",
                "sparse_prediction",
                "sparse_pred_ignore_index",
            ],
            Rule::Unread("of training alone"),
        ),
        row(
            &[
                "reference_compile",
                "deterministic_flash_attn",
                "repad_logits_with_grad",
                "unpad_no_grad",
            ],
            Rule::Unread("how it is computed, not what"),
        ),
        row(
            &[
                "decoder_bias",
                "classifier_pooling",
                "classifier_bias",
                "classifier_activation",
                "causal_mask",
            ],
            Rule::Unread("of heads that an embedding doesn't go through"),
        ),
    ],
    classifier: None,
    settle,
    read,
    ..bert::FAMILY
};

fn settle(file: &JsonFile, config: &mut Config) -> Result<(), ModelError> {
    let bias = |key| Ok::<_, ModelError>(file.flag(key)?.unwrap_or(false));
    config.biases.attention = bias("attention_bias")?;
    (config.biases.up, config.biases.down) = (bias("mlp_bias")?, bias("mlp_bias")?);
    config.biases.norm = bias("norm_bias")?;
    let window = file.integer("local_attention", 1..=1 << 20)?.unwrap_or(WINDOW);
    let windows = [Window::FULL, Window::around(window / 2)];
    let mut kinds = Vec::with_capacity(LAYER_TYPES.len());
    for (index, window) in windows.into_iter().enumerate() {
        kinds.push(Sight { rotary: Some(rotary(file, config, index)?), window });
    }
    let sights = layers(file, config.layers)?.into_iter().map(|kind| kinds[kind]);
    config.sights = sights.collect();
    Ok(())
}

/// The positions of a kind of layer: newer files have them by the kind's name.
fn rotary(file: &JsonFile, config: &Config, kind: usize) -> Result<crate::Rotary, ModelError> {
    let key = ["global_rope_theta", "local_rope_theta"][kind];
    let theta = rope::theta(file, key)?.unwrap_or(THETAS[kind]);
    let (dims, trained) = (config.head_size, config.positions);
    let default = rope::Default { dims, theta, trained };
    let all = "rope_parameters";
    let own = match file.get(all) {
        None => None,
        Some(Json::Object(kinds)) if kinds.keys().all(|name| LAYER_TYPES.contains(&&**name)) => {
            kinds.get(LAYER_TYPES[kind]).filter(|own| **own != Json::Null)
        }
        Some(_) => return Err(file.wrong(all, "an object by full_attention, sliding_attention")),
    };
    let rotary = match own {
        Some(own) => rope::part(file, own, default)?,
        None => rope::plain(default),
    };
    rope::checked(file, "num_attention_heads", rotary)
}

/// The kind of each layer.
fn layers(file: &JsonFile, count: usize) -> Result<Vec<usize>, ModelError> {
    let every = file.integer("global_attn_every_n_layers", 1..=1 << 10)?.unwrap_or(EVERY);
    let key = "layer_types";
    let Some(value) = file.get(key) else {
        return Ok((0..count).map(|layer| usize::from(layer % every != 0)).collect());
    };
    let kind = |name: &Json| LAYER_TYPES.iter().position(|known| name.as_text() == Some(known));
    let kinds =
        value.as_array().and_then(|names| names.iter().map(kind).collect::<Option<Vec<_>>>());
    let wrong = || file.wrong(key, format!("{count} of full_attention, sliding_attention"));
    kinds.filter(|kinds| kinds.len() == count).ok_or_else(wrong)
}

fn read(config: &Config, tensors: &Tensors<'_>) -> Result<Architecture, ModelError> {
    let (hidden, intermediate, biases) = (config.hidden, config.intermediate, config.biases);
    let layer = |index: usize| {
        let at = tensors.under(&format!("layers.{index}"));
        let sight = config.sights[index];
        // What comes to the first layer is normalised already.
        let attention = (index > 0).then(|| norm(config, &at, "attn_norm")).transpose()?;
        Ok(Layer {
            order: Order::Pre { attention, feed_forward: norm(config, &at, "mlp_norm")? },
            attention: Attention {
                qkv: at.layer("attn.Wqkv", 3 * hidden, hidden, biases.attention)?,
                output: at.layer("attn.Wo", hidden, hidden, biases.attention)?,
                heads: Heads::new(config.heads, config.head_size),
                rotary: sight.rotary,
                window: sight.window,
                bias: None,
            },
            feed_forward: FeedForward::Gated {
                gate_up: at.layer("mlp.Wi", 2 * intermediate, hidden, biases.up)?,
                down: at.layer("mlp.Wo", hidden, intermediate, biases.down)?,
                activation: config.activation,
            },
        })
    };
    let at = tensors.under("embeddings");
    Ok(Architecture {
        embedding: Embedding {
            words: at.table("tok_embeddings", config.vocabulary, hidden)?,
            positions: None,
            types: None,
            norm: norm(config, &at, "norm")?,
            projection: None,
        },
        layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
        norm: Some(norm(config, tensors, "final_norm")?),
    })
}

fn norm(config: &Config, at: &Tensors<'_>, name: &str) -> Result<Norm, ModelError> {
    if config.biases.norm { at.norm(name, config.hidden) } else { at.scale(name, config.hidden) }
}
