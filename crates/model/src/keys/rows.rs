//! The rows themselves, a table for each file.

use std::borrow::Cow;

use super::Plain::{Empty, False, Null, Text};
use super::Rule::{ByClassifier, ByTokenizer, Only, Unread, Used, UsedOrNull};
use super::{Kind, Row, Rule};

pub(crate) const fn row(keys: &'static [&'static str], rule: Rule) -> Row {
    Row { keys: Cow::Borrowed(keys), rule }
}

impl Kind {
    /// Its table. What a family reads is said by its own keys.
    pub(super) fn rows(self) -> impl Iterator<Item = Row> {
        let (general, own): (&[Row], &[Row]) = match self {
            Self::Config(family) => (CONFIG, family.rules),
            Self::Module => (MODULE, &[]),
            Self::Transformer => (TRANSFORMER, &[]),
            Self::Pooling => (POOLING, &[]),
            Self::Dense => (DENSE, &[]),
            Self::Normalize => (NORMALIZE, &[]),
            Self::SentenceTransformers => (SENTENCE_TRANSFORMERS, &[]),
            Self::Index => (INDEX, &[]),
            Self::Tokenizer => (TOKENIZER, SPECIAL_TOKENS),
            Self::SpecialTokens => (SPECIAL_TOKENS, &[]),
        };
        let read = match self {
            Self::Config(family) => Some(Row { keys: family.reads().collect(), rule: Used }),
            _ => None,
        };
        general.iter().cloned().chain(read).chain(own.iter().cloned())
    }
}

const LATE: &str = "late interaction, a vector for each token, is not computed";
const DECODER: &str = "only encoders are computed";

/// `config.json`, whatever the family.
const CONFIG: &[Row] = &[
    row(&["model_type", "vocab_size"], Used),
    row(&["architectures", "auto_map"], UsedOrNull),
    row(&["tokenizer_class"], ByTokenizer),
    row(
        &[
            "id2label",
            "num_labels",
            "_num_labels",
            "problem_type",
            "sentence_transformers",
            "sbert_ce_default_activation_function",
        ],
        ByClassifier,
    ),
    row(
        &["is_decoder", "add_cross_attention", "is_encoder_decoder"],
        Only(&[False, Null], DECODER),
    ),
    row(
        &["quantization_config", "compression_config"],
        Only(&[Null, Empty], "quantised weights are not read"),
    ),
    row(&["pruned_heads"], Only(&[Null, Empty], "pruned heads are not computed")),
    row(&["per_layer_config", "fusion_config"], Only(&[Null, Empty], "all layers are alike")),
    row(
        &["transformers_weights"],
        Only(&[Null, Text("model.safetensors")], "weights are read from model.safetensors"),
    ),
    row(
        &[
            "_name_or_path",
            "name_or_path",
            "_commit_hash",
            "transformers_version",
            "sentence_transformers_version",
            "adapters",
            "model_name",
            "finetuning_task",
            "task_specific_params",
            "prefix",
        ],
        Unread("where the model comes from, and what it was made for"),
    ),
    row(
        &["torch_dtype", "dtype", "use_bfloat16", "tf_legacy_loss", "torchscript"],
        Unread("the format is that of the weights, or the one asked for"),
    ),
    row(
        &[
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "dropout",
            "attention_dropout",
            "classifier_dropout",
            "qa_dropout",
            "seq_classif_dropout",
            "initializer_range",
            "initializer_factor",
            "gradient_checkpointing",
            "loss_type",
            "classifier_dropout_prob",
        ],
        Unread("of training alone"),
    ),
    row(
        &[
            "use_cache",
            "output_past",
            "output_attentions",
            "output_hidden_states",
            "return_dict",
            "chunk_size_feed_forward",
            "attn_implementation",
            "_attn_implementation",
            "_attn_implementation_autoset",
            "experts_implementation",
            "use_return_dict",
        ],
        Unread("how it is computed, not what"),
    ),
    row(
        &[
            "label2id",
            "pooler_fc_size",
            "pooler_type",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "directionality",
            "tie_word_embeddings",
            "tie_encoder_decoder",
            "tie_weights_",
            "cross_attention_hidden_size",
        ],
        Unread("of heads, whose tensors say it, or that nothing goes through"),
    ),
    row(
        &[
            "bos_token_id",
            "eos_token_id",
            "sep_token_id",
            "cls_token_id",
            "mask_token_id",
            "unk_token_id",
            "decoder_start_token_id",
            "forced_bos_token_id",
            "forced_eos_token_id",
        ],
        Unread("the tokenizer's files say which tokens stand where"),
    ),
    row(
        &[
            "max_length",
            "min_length",
            "do_sample",
            "early_stopping",
            "num_beams",
            "num_beam_groups",
            "diversity_penalty",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
            "repetition_penalty",
            "length_penalty",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "bad_words_ids",
            "num_return_sequences",
            "output_scores",
            "return_dict_in_generate",
            "remove_invalid_values",
            "suppress_tokens",
            "begin_suppress_tokens",
            "exponential_decay_length_penalty",
        ],
        Unread("of generating text"),
    ),
];

const MODULE: &[Row] = &[
    row(&["type", "path", "name"], Used),
    row(&["idx"], Unread("modules run in the order in which they stand")),
    row(&["kwargs"], Unread("arguments of calls that are not made")),
];

const TRANSFORMER: &[Row] = &[
    row(&["max_seq_length", "do_lower_case"], UsedOrNull),
    row(&["processor_kwargs", "tokenizer_args"], UsedOrNull),
    row(&["transformer_task", "modality_config", "module_output_name"], UsedOrNull),
    row(&["config_kwargs", "config_args"], UsedOrNull),
    row(
        &["processing_kwargs"],
        Only(&[Null, Empty], "the tokenizer is called with its own settings"),
    ),
    row(&["query_length", "document_length", "query_expansion"], Only(&[Null], LATE)),
    row(&["tokenizer_name_or_path"], Only(&[Null], "the tokenizer is read from the same folder")),
    row(
        &["model_kwargs", "model_args", "unpad_inputs", "backend", "cache_dir"],
        Unread("how it is loaded and computed, not what"),
    ),
];

const POOLING: &[Row] = &[
    row(&["word_embedding_dimension", "embedding_dimension"], Used),
    row(&["pooling_mode", "include_prompt"], Used),
    row(
        &[
            "pooling_mode_cls_token",
            "pooling_mode_max_tokens",
            "pooling_mode_mean_tokens",
            "pooling_mode_mean_sqrt_len_tokens",
            "pooling_mode_weightedmean_tokens",
            "pooling_mode_lasttoken",
        ],
        UsedOrNull,
    ),
];

const DENSE: &[Row] = &[
    row(&["in_features", "out_features", "bias", "activation_function"], Used),
    row(
        &["module_input_name"],
        Only(&[Text("sentence_embedding")], "dense layers stand behind pooling"),
    ),
    row(
        &["module_output_name"],
        Only(&[Null, Text("sentence_embedding")], "dense layers give the embedding"),
    ),
    row(&["use_residual"], Only(&[Null, False], "residual dense layers are not computed")),
    row(&["init_weight", "init_bias"], Only(&[Null], "weights are read from model.safetensors")),
];

const NORMALIZE: &[Row] = &[
    row(&["module_input_name"], Only(&[Text("sentence_embedding")], LATE)),
    row(&["module_output_name"], Only(&[Null, Text("sentence_embedding")], LATE)),
];

const SENTENCE_TRANSFORMERS: &[Row] = &[
    row(&["prompts"], Used),
    row(&["default_prompt_name", "truncate_dim", "model_type"], UsedOrNull),
    row(&["activation_fn"], ByClassifier),
    row(&["keep_in_fp32_modules"], Unread("how it is computed, not what")),
    row(
        &[
            "query_prefix",
            "document_prefix",
            "query_length",
            "document_length",
            "do_query_expansion",
            "attend_to_expansion_tokens",
            "skiplist_words",
        ],
        Only(&[Null], LATE),
    ),
    row(&["similarity_fn_name"], Unread("how vectors are compared is their user's choice")),
    row(&["__version__", "requirements"], Unread("of Python's packages")),
];

const INDEX: &[Row] =
    &[row(&["weight_map"], Used), row(&["metadata"], Unread("sizes and origins"))];

/// `tokenizer_config.json`; what it says of special tokens is in the table below.
const TOKENIZER: &[Row] = &[
    row(&["model_max_length", "max_len"], UsedOrNull),
    row(
        &[
            "do_lower_case",
            "strip_accents",
            "tokenize_chinese_chars",
            "add_prefix_space",
            "added_tokens_decoder",
            "tokenizer_class",
            "model_input_names",
        ],
        ByTokenizer,
    ),
    row(
        &[
            "add_bos_token",
            "add_eos_token",
            "do_basic_tokenize",
            "never_split",
            "wordpieces_prefix",
            "sp_model_kwargs",
            "legacy",
            "errors",
            "trim_offsets",
            "keep_accents",
            "remove_space",
            "vocab_type",
            "vocab_file",
            "merges_file",
            "tokenizer_file",
            "special_tokens_map_file",
            "vocab_size",
            "split_special_tokens",
            "spaces_between_special_tokens",
            "from_slow",
            "add_dummy_prefix_space",
        ],
        Unread("tokenizer.json says it"),
    ),
    row(
        &["clean_up_tokenization_spaces", "clean_text", "chat_template", "response_template"],
        Unread("of turning tokens into text, or of chats"),
    ),
    row(
        &[
            "padding_side",
            "padding",
            "pad_to_multiple_of",
            "pad_token_type_id",
            "pad_token_id",
            "truncation_side",
            "truncation_strategy",
            "truncation",
            "stride",
            "return_tensors",
            "max_length",
        ],
        Unread("nothing is padded, and requests say how they are cut"),
    ),
    row(
        &[
            "processor_class",
            "name_or_path",
            "_name_or_path",
            "_commit_hash",
            "use_fast",
            "backend",
            "is_local",
            "local_files_only",
            "auto_map",
            "tokenizer_version",
            "transformers_version",
            "extra_special_tokens",
            "model_specific_special_tokens",
            "init_kwargs",
            "model_type",
            "trust_remote_code",
            "cache_dir",
            "revision",
            "token",
            "fix_mistral_regex",
        ],
        Unread("which of Python's classes reads tokenizer.json"),
    ),
];

const SPECIAL_TOKENS: &[Row] = &[row(
    &[
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
        "mask_token",
        "additional_special_tokens",
    ],
    ByTokenizer,
)];
