//! How token vectors become one, and the module that says so.

use std::path::Path;
use std::str::FromStr;

use super::json::{Json, JsonFile};
use super::keys::{self, Kind};
use super::{ModelError, Warning};

/// A name that no pooling has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown pooling {0:?}: expected mean, cls, max or last-token")]
pub struct UnknownPooling(String);

/// How token vectors become one.
///
/// ```
/// assert_eq!("last-token".parse(), Ok(vecmill_encoder::Pooling::LastToken));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    Cls,
    /// The maximum in each dimension.
    Max,
    /// The last token's.
    LastToken,
}

impl FromStr for Pooling {
    type Err = UnknownPooling;

    /// From its name, as people and models write it.
    fn from_str(text: &str) -> Result<Self, UnknownPooling> {
        let name = if text == "last-token" { Self::LastToken.name() } else { text };
        let known = Self::ALL.into_iter().find(|pooling| pooling.name() == name);
        known.ok_or_else(|| UnknownPooling(text.to_owned()))
    }
}

impl Pooling {
    const ALL: [Self; 4] = [Self::Mean, Self::Cls, Self::Max, Self::LastToken];

    /// Whether it takes one token's vector as it is.
    pub fn picks_a_row(self) -> bool {
        match self {
            Self::Cls | Self::LastToken => true,
            Self::Mean | Self::Max => false,
        }
    }

    /// Its name in `pooling_mode`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
            Self::LastToken => "lasttoken",
        }
    }
}

/// How token vectors become one, and whether the prompt's tokens take part.
pub(super) fn open(
    folder: &Path,
    hidden: usize,
    warnings: &mut Vec<Warning>,
) -> Result<(Pooling, bool), ModelError> {
    let file = JsonFile::open(&folder.join("config.json"))?;
    keys::check(&file, Kind::Pooling, warnings)?;
    for key in ["word_embedding_dimension", "embedding_dimension"] {
        file.integer(key, hidden..=hidden)?;
    }
    let found = modes(&file)?.join(" + ");
    let pooling = Pooling::ALL.into_iter().find(|pooling| pooling.name() == found);
    let pooling = pooling.ok_or_else(|| ModelError::Unsupported {
        path: file.path().to_owned(),
        what: "pooling by",
        found,
        supported: Pooling::ALL.map(Pooling::name).join(", "),
    })?;
    Ok((pooling, file.flag("include_prompt")?.unwrap_or(true)))
}

/// The modes that are switched on, in the order in which their results stand.
fn modes(file: &JsonFile) -> Result<Vec<String>, ModelError> {
    /// Where each mode has a key of its own, the order is this one.
    const FLAGS: [(&str, &str); 6] = [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        ("pooling_mode_weightedmean_tokens", "weightedmean"),
        ("pooling_mode_lasttoken", "lasttoken"),
    ];
    match file.get("pooling_mode") {
        Some(Json::Text(mode)) => return Ok(vec![mode.clone()]),
        Some(value) => {
            let modes = value.as_array().map(|modes| modes.iter().map(Json::as_text).collect());
            let modes: Option<Vec<&str>> = modes.flatten();
            let modes = modes.filter(|modes| (1..=FLAGS.len()).contains(&modes.len()));
            let wrong = || file.wrong("pooling_mode", "a mode, or an array of at most six");
            return Ok(modes.ok_or_else(wrong)?.into_iter().map(str::to_owned).collect());
        }
        None => {}
    }
    let (mut on, mut off) = (Vec::new(), None);
    for (key, mode) in FLAGS {
        match file.flag(key)? {
            Some(true) => on.push(mode.to_owned()),
            Some(false) => off = Some(key),
            None => {}
        }
    }
    match (on.is_empty(), off) {
        (true, Some(key)) => Err(file.wrong(key, "true, or another pooling mode should be")),
        (true, None) => Ok(vec![Pooling::Mean.name().to_owned()]),
        (false, _) => Ok(on),
    }
}
