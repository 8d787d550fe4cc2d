//! NomicBERT (Nussbaum et al., arXiv:2402.01613): rotary positions, a gated feed-forward part, and mostly no
//! biases. Its files have names of their own; those that transformers 5 writes have BERT's.

use super::super::json::JsonFile;
use super::super::keys::{Plain, Rule, row};
use super::super::{
    Activation, Architecture, Attention, Config, Embedding, FeedForward, Heads, Layer, Linear,
    ModelError, Order, RotaryScaling, Weight,
};
use super::{Family, Keys, Tensors, bert, rope};

const THETA: f64 = 1000.0;

pub(super) const FAMILY: Family = Family {
    name: "NomicBERT",
    model_types: &["nomic_bert"],
    prefixes: &["bert.", "nomic_bert."],
    code: &["NomicBertModel"],
    keys: Keys {
        hidden: &["n_embd", "hidden_size"],
        layers: &["n_layer", "num_hidden_layers"],
        heads: &["n_head", "num_attention_heads"],
        intermediate: &["n_inner", "intermediate_size"],
        positions: &["n_positions", "max_position_embeddings"],
        activation: (&["hidden_act"], "silu"),
        epsilon: Some((&["layer_norm_epsilon", "layer_norm_eps"], 1e-12)),
        ..bert::KEYS
    },
    rules: &[
        bert::PADDING,
        rope::KEYS,
        row(&["activation_function", "head_dim"], Rule::UsedOrNull),
        row(&["rotary_emb_base", "rotary_emb_fraction", "rotary_scaling_factor"], Rule::UsedOrNull),
        row(&["max_trained_positions"], Rule::UsedOrNull),
        row(&["qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"], Rule::UsedOrNull),
        row(&["num_experts"], Rule::UsedOrNull),
        row(
            &["prenorm", "causal", "parallel_block", "use_rms_norm", "rotary_emb_interleaved"],
            Rule::Only(&[Plain::False, Plain::Null], "other blocks are not computed"),
        ),
        row(
            &["rotary_emb_scale_base"],
            Rule::Only(&[Plain::Null], "positions that fade are not computed"),
        ),
        row(
            &["scale_attn_by_inverse_layer_idx", "parallel_block_tied_norm"],
            Rule::Only(&[Plain::False, Plain::Null], "other blocks are not computed"),
        ),
        row(&["position_embedding_type"], Rule::Unread("positions are rotary either way")),
        row(
            &[
                "attn_pdrop",
                "embd_pdrop",
                "resid_pdrop",
                "moe_resid_pdrop",
                "router_aux_loss_coef",
                "expert_choice_router",
                "moe_impl",
            ],
            Rule::Unread("of training alone"),
        ),
        row(
            &[
                "dense_seq_output",
                "fused_bias_fc",
                "fused_dropout_add_ln",
                "reorder_and_upcast_attn",
                "scale_attn_weights",
                "use_flash_attn",
                "use_xentropy",
                "ffn_div",
                "num_shared_experts",
            ],
            Rule::Unread("how it is computed, not what"),
        ),
        row(
            &[
                "summary_type",
                "summary_use_proj",
                "summary_activation",
                "summary_first_dropout",
                "summary_proj_to_labels",
                "add_pooling_layer",
            ],
            Rule::Unread("of heads that an embedding doesn't go through"),
        ),
        row(
            &["pad_vocab_size_multiple"],
            Rule::Unread("the vocabulary's size is already a multiple of it"),
        ),
    ],
    classifier: None,
    settle,
    read,
    ..bert::FAMILY
};

fn settle(file: &JsonFile, config: &mut Config) -> Result<(), ModelError> {
    let size = config.head_size;
    file.integer("head_dim", size..=size)?;
    file.integer("num_experts", 0..=0)?;
    if let Some(name) = file.text("activation_function")? {
        config.activation = match name {
            "swiglu" => Activation::Silu,
            "geglu" => Activation::Gelu,
            other => return Err(Activation::unsupported(file, other)),
        };
    }
    let bias = |key| Ok::<_, ModelError>(file.flag(key)?.unwrap_or(false));
    config.biases.attention = bias("qkv_proj_bias")?;
    config.biases.up = bias("mlp_fc1_bias")?;
    config.biases.down = bias("mlp_fc2_bias")?;
    let trained = file.integer("max_trained_positions", 1..=config.positions)?;
    let default = rope::Default {
        dims: rope::dims(file, "rotary_emb_fraction", size)?,
        theta: rope::theta(file, "rotary_emb_base")?.unwrap_or(THETA),
        trained: trained.unwrap_or(config.positions),
    };
    let mut rotary = rope::read(file, default)?;
    let key = "rotary_scaling_factor";
    if let Some(factor) = file.number(key)? {
        if !(1.0..=1e6).contains(&factor) || rotary.scaling != RotaryScaling::None {
            return Err(file.wrong(key, "a number from 1 to 1000000, and no other scaling"));
        }
        rotary.scaling = RotaryScaling::DynamicNtk { factor, trained: default.trained };
    }
    let rotary = rope::checked(file, "rotary_emb_base", rotary)?;
    config.sights.iter_mut().for_each(|sight| sight.rotary = Some(rotary));
    Ok(())
}

fn read(config: &Config, tensors: &Tensors<'_>) -> Result<Architecture, ModelError> {
    let (hidden, biases) = (config.hidden, config.biases);
    let layer = |index: usize| {
        let at = tensors.under(&format!("encoder.layers.{index}"));
        let sight = config.sights[index];
        Ok(Layer {
            order: Order::Post {
                attention: at.norm("norm1", hidden)?,
                output: at.norm("norm2", hidden)?,
            },
            attention: Attention {
                qkv: at.layer("attn.Wqkv", 3 * hidden, hidden, biases.attention)?,
                output: at.layer("attn.out_proj", hidden, hidden, biases.attention)?,
                heads: Heads::new(config.heads, config.head_size),
                rotary: sight.rotary,
                window: sight.window,
                bias: None,
            },
            feed_forward: feed_forward(config, &at)?,
        })
    };
    let at = tensors.under("embeddings");
    let types = (config.token_types > 0)
        .then(|| at.table("token_type_embeddings", config.token_types, hidden));
    Ok(Architecture {
        embedding: Embedding {
            words: at.table("word_embeddings", config.vocabulary, hidden)?,
            positions: None,
            types: types.transpose()?,
            norm: tensors.norm("emb_ln", hidden)?,
            projection: None,
        },
        layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
        norm: None,
    })
}

/// `fc12` is the gate.
fn feed_forward(config: &Config, at: &Tensors<'_>) -> Result<FeedForward, ModelError> {
    let (hidden, intermediate, biases) = (config.hidden, config.intermediate, config.biases);
    let part = |name| at.layer(name, intermediate, hidden, biases.up);
    let [gate, up] = [part("mlp.fc12")?, part("mlp.fc11")?];
    let stack = |[gate, up]: [&Weight; 2]| {
        Weight::Stack(gate.tensors().iter().chain(up.tensors()).cloned().collect())
    };
    let bias = gate.bias.as_ref().zip(up.bias.as_ref()).map(|(gate, up)| stack([gate, up]));
    Ok(FeedForward::Gated {
        gate_up: Linear { weight: stack([&gate.weight, &up.weight]), bias },
        down: at.layer("mlp.fc2", hidden, intermediate, biases.down)?,
        activation: config.activation,
    })
}
