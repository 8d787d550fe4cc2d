//! What is said of a model's tokenizer beside `tokenizer.json`.
//!
//! transformers reads that file, then changes what it has read: each class of tokenizers has
//! arguments with defaults, `tokenizer_config.json` gives their values, and where these are at odds
//! with `tokenizer.json` they win. [`TokenizerSettings`] is what such a class would do, for the fast
//! classes of the families that run here (transformers 4.57: `tokenization_utils_base.py`,
//! `tokenization_utils_fast.py` and each family's `tokenization_*_fast.py`).

use std::collections::BTreeMap;
use std::path::Path;

use super::json::{Json, JsonFile};
use super::{ModelError, files};

/// The most tokens that are added beside the file.
const TOKENS_LIMIT: usize = 1 << 17;

/// The tokens that have a name, in the order in which transformers adds them.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What settings beside `tokenizer.json` change of what it says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenizerSettings {
    /// Whether a BERT normaliser lowers case; `None` leaves it as it is, here and below.
    pub lowercase: Option<bool>,
    /// Whether it takes accents off; the inner `None` does what it does with case.
    pub strip_accents: Option<Option<bool>>,
    /// Whether it parts Chinese characters.
    pub chinese_characters: Option<bool>,
    /// Whether a byte-level tokenizer puts a space in front of a text.
    pub add_prefix_space: bool,
    /// Whether the model is told which tokens are of a second text.
    pub token_types: bool,
    /// Tokens that are looked for in texts before anything else, beside those of the file, or with
    /// other properties than there, in the order in which they are added.
    pub added_tokens: Vec<AddedToken>,
}

/// A token that is looked for in texts as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    /// Its text.
    pub content: String,
    /// Whether it must not be part of a word.
    pub single_word: bool,
    /// Whether it takes the white space before it with it.
    pub lstrip: bool,
    /// Whether it takes the white space behind it with it.
    pub rstrip: bool,
    /// Whether it is looked for in normalised text.
    pub normalized: bool,
    /// Whether it is one of the model's own marks.
    pub special: bool,
}

/// A class of tokenizers of transformers, as far as it matters here.
struct Class {
    /// Whether it has arguments for case and accents, and one for Chinese characters.
    case: bool,
    chinese: bool,
    /// The named tokens that it has unless told otherwise, in the order of [`NAMED`].
    tokens: [Option<&'static str>; 7],
    /// Whether its mask takes the space before it with it.
    mask_strips: bool,
    /// Whether its other tokens are objects, which are added again even where the file has them.
    objects: bool,
    /// Whether it gives types of tokens, unless told otherwise.
    types: bool,
}

const BERT: Class = Class {
    case: true,
    chinese: true,
    tokens: [
        None,
        None,
        Some("[UNK]"),
        Some("[SEP]"),
        Some("[PAD]"),
        Some("[CLS]"),
        Some("[MASK]"),
    ],
    mask_strips: false,
    objects: false,
    types: true,
};

const ROBERTA: Class = Class {
    case: false,
    chinese: false,
    tokens: [
        Some("<s>"),
        Some("</s>"),
        Some("<unk>"),
        Some("</s>"),
        Some("<pad>"),
        Some("<s>"),
        Some("<mask>"),
    ],
    mask_strips: true,
    objects: false,
    types: false,
};

const MPNET: Class = Class {
    case: true,
    tokens: [
        Some("<s>"),
        Some("</s>"),
        Some("[UNK]"),
        Some("</s>"),
        Some("<pad>"),
        Some("<s>"),
        Some("<mask>"),
    ],
    objects: true,
    ..ROBERTA
};

/// `PreTrainedTokenizerFast`, which does nothing of its own, and every class that isn't known here.
const PLAIN: Class = Class {
    case: false,
    chinese: false,
    tokens: [None; 7],
    mask_strips: false,
    objects: false,
    types: true,
};

impl Class {
    /// From its name, with or without `Fast`.
    fn named(name: &str) -> Self {
        match name.strip_suffix("Fast").unwrap_or(name) {
            "BertTokenizer" | "ElectraTokenizer" => BERT,
            "DistilBertTokenizer" => Self { types: false, ..BERT },
            // What transformers 5 calls the plain one, which has no types any more.
            "TokenizersBackend" => Self { types: false, ..PLAIN },
            "MPNetTokenizer" => MPNET,
            "RobertaTokenizer" | "XLMRobertaTokenizer" | "CamembertTokenizer" => ROBERTA,
            _ => PLAIN,
        }
    }

    /// The class of a model of this type that names none.
    fn of_model(model_type: &str) -> Self {
        match model_type {
            "bert" | "distilbert" => BERT,
            "mpnet" => MPNET,
            "roberta" | "xlm-roberta" | "camembert" => ROBERTA,
            _ => PLAIN,
        }
    }
}

impl TokenizerSettings {
    /// Reads what the files in `folder` say: `tokenizer_config.json`, and where that has no
    /// `added_tokens_decoder`, `special_tokens_map.json` and `added_tokens.json`. `own` are the added
    /// tokens of `tokenizer.json`, by their ids.
    ///
    /// # Errors
    /// When a file is there and broken, or a key has a value that can't be.
    pub fn open(folder: &Path, own: &BTreeMap<u32, AddedToken>) -> Result<Self, ModelError> {
        let config = JsonFile::open_optional(&folder.join(files::TOKENIZER_CONFIG))?;
        let class = class(folder, &config)?;
        let mut tokens = Tokens::default();
        if config.get("added_tokens_decoder").is_some() {
            tokens.decoder(&config)?;
            tokens.named(&config, true)?;
        } else {
            tokens.named(&config, true)?;
            tokens.named(&JsonFile::open_optional(&folder.join(files::SPECIAL_TOKENS))?, false)?;
            tokens.legacy(&JsonFile::open_optional(&folder.join(files::ADDED_TOKENS))?)?;
            tokens.by_id.extend(own.iter().map(|(&id, token)| (id.into(), token.clone())));
        }
        Ok(Self {
            lowercase: flag(&config, "do_lower_case", class.case)?,
            strip_accents: class.case.then(|| config.flag("strip_accents")).transpose()?,
            chinese_characters: flag(&config, "tokenize_chinese_chars", class.chinese)?,
            add_prefix_space: config.flag("add_prefix_space")?.unwrap_or(false),
            token_types: token_types(&config, &class)?,
            added_tokens: tokens.of(&class, own),
        })
    }
}

/// The class that reads the tokenizer: named beside it, or by the model's configuration.
fn class(folder: &Path, config: &JsonFile) -> Result<Class, ModelError> {
    if let Some(name) = config.text("tokenizer_class")? {
        return Ok(Class::named(name));
    }
    let model = JsonFile::open_optional(&folder.join(files::CONFIG_FILE))?;
    if let Some(name) = model.text("tokenizer_class")? {
        return Ok(Class::named(name));
    }
    Ok(Class::of_model(model.text("model_type")?.unwrap_or_default()))
}

/// An argument that is true unless the file says otherwise, of a class that has it.
fn flag(config: &JsonFile, key: &str, has: bool) -> Result<Option<bool>, ModelError> {
    has.then(|| Ok(config.flag(key)?.unwrap_or(true))).transpose()
}

/// Whether a model is given types of tokens: the files may list what it is given.
fn token_types(config: &JsonFile, class: &Class) -> Result<bool, ModelError> {
    let key = "model_input_names";
    let Some(value) = config.get(key) else { return Ok(class.types) };
    let names = value.as_array().and_then(|names| names.iter().map(Json::as_text).collect());
    let names: Vec<_> = names.ok_or_else(|| config.wrong(key, "a list of names"))?;
    Ok(names.contains(&"token_type_ids"))
}

/// Tokens as the files have them.
#[derive(Default)]
struct Tokens {
    by_id: BTreeMap<u64, AddedToken>,
    /// Each named token, or that there is none of that name.
    named: BTreeMap<String, Option<Special>>,
    /// More special tokens, without a name.
    more: Vec<Special>,
}

/// The text of a special token; where they are stated, its properties.
type Special = (String, Option<AddedToken>);

impl Tokens {
    /// `added_tokens_decoder`: tokens by their ids.
    fn decoder(&mut self, config: &JsonFile) -> Result<(), ModelError> {
        const KEY: &str = "added_tokens_decoder";
        let expected = || config.wrong(KEY, "an object from ids to tokens with 'content'");
        let Some(Json::Object(entries)) = config.get(KEY) else { return Err(expected()) };
        if entries.len() > TOKENS_LIMIT {
            return Err(config.wrong(KEY, format!("at most {TOKENS_LIMIT} tokens")));
        }
        for (id, token) in entries {
            let token = read(token, false).ok_or_else(expected)?;
            self.by_id.insert(id.parse().map_err(|_| expected())?, token);
        }
        Ok(())
    }

    /// `added_tokens.json`: ids by tokens.
    fn legacy(&mut self, file: &JsonFile) -> Result<(), ModelError> {
        for (content, id) in file.members() {
            let id = id.as_integer().and_then(|id| u64::try_from(id).ok());
            let Some(id) = id else { return Err(file.wrong(content, "a token's id")) };
            let mut specials = self.named.values().flatten().chain(&self.more);
            let special = specials.any(|(named, _)| named == content);
            self.by_id.insert(id, AddedToken::plain(content, special));
        }
        Ok(())
    }

    /// The named tokens in a file of settings, or in `special_tokens_map.json`, which is stronger
    /// and whose tokens are objects without saying so.
    fn named(&mut self, file: &JsonFile, marked: bool) -> Result<(), ModelError> {
        let token = |key: &str, value: &Json| match value {
            Json::Text(text) => Ok((text.clone(), None)),
            other => match read(other, !marked) {
                Some(token) => Ok((token.content.clone(), Some(token))),
                None => Err(file.wrong(key, "a token")),
            },
        };
        for (key, value) in file.members().filter(|(key, _)| NAMED.contains(key)) {
            let token = if *value == Json::Null { None } else { Some(token(key, value)?) };
            self.named.insert(key.to_owned(), token);
        }
        const MORE: &str = "additional_special_tokens";
        match file.get(MORE) {
            Some(Json::Array(list)) if list.len() <= TOKENS_LIMIT => {
                for value in list {
                    let token = token(MORE, value)?;
                    if !self.more.contains(&token) {
                        self.more.push(token);
                    }
                }
                Ok(())
            }
            Some(_) => Err(file.wrong(MORE, "a list of tokens")),
            None => Ok(()),
        }
    }

    /// What a class adds: tokens by their ids, then named ones that are not among them.
    fn of(&self, class: &Class, own: &BTreeMap<u32, AddedToken>) -> Vec<AddedToken> {
        let known = |content: &str| self.by_id.values().find(|token| token.content == content);
        let in_file = |content: &str| own.values().any(|token| token.content == content);
        let named = NAMED.into_iter().zip(class.tokens).filter_map(|(key, default)| {
            let mask = key == "mask_token";
            let object = class.objects || mask && class.mask_strips;
            let (content, token) = match self.named.get(key).cloned() {
                // A text is taken for the token with an id, where there is one.
                Some(Some((content, None))) => {
                    let token = known(&content).cloned();
                    (content, token)
                }
                Some(stated) => stated?,
                None => (default?.to_owned(), None),
            };
            let strips = mask && class.mask_strips;
            let made = || {
                object.then(|| AddedToken { lstrip: strips, ..AddedToken::plain(&content, true) })
            };
            let token = token.or_else(made);
            Some((content, token))
        });
        let mut added: Vec<AddedToken> = self.by_id.values().cloned().collect();
        let mut seen = Vec::new();
        for (content, token) in named.chain(self.more.iter().cloned()) {
            if seen.contains(&content) {
                continue;
            }
            let there = match &token {
                Some(token) => added.contains(token),
                None => known(&content).is_some() || in_file(&content),
            };
            if !there {
                let token = token.unwrap_or_else(|| AddedToken::plain(&content, true));
                added.push(AddedToken { special: true, ..token });
            }
            seen.push(content);
        }
        for token in &mut added {
            token.special |= seen.contains(&token.content);
        }
        added
    }
}

impl AddedToken {
    /// A token with the properties that transformers gives to a text.
    fn plain(content: &str, special: bool) -> Self {
        Self {
            content: content.to_owned(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: !special,
            special,
        }
    }
}

/// A token from an object; `None` if it isn't one.
fn read(value: &Json, special: bool) -> Option<AddedToken> {
    let content = value.get("content")?.as_text()?;
    let flag = |key: &str, default: bool| match value.get(key) {
        None | Some(Json::Null) => Some(default),
        Some(Json::Bool(value)) => Some(*value),
        Some(_) => None,
    };
    let special = special || flag("special", false)?;
    Some(AddedToken {
        content: content.to_owned(),
        single_word: flag("single_word", false)?,
        lstrip: flag("lstrip", false)?,
        rstrip: flag("rstrip", false)?,
        normalized: flag("normalized", !special)?,
        special,
    })
}
