//! How token vectors become one, and the module that says so.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::json::{Json, JsonFile, shortened};
use super::keys::{self, Kind};
use super::{CONFIG_FILE, ModelError, Warning};

/// A name that no pooling has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown pooling {0:?}: expected mean, cls, max, last-token, mean-sqrt-len or weighted-mean"
)]
pub struct UnknownPooling(String);

/// How token vectors become one.
///
/// ```
/// assert_eq!("last-token".parse(), Ok(vecmill_model::Pooling::LastToken));
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
    /// Their sum, divided by the square root of how many there are.
    MeanSqrtLen,
    /// Their mean, in which the first token counts once, the second twice, and so on.
    WeightedMean,
}

impl FromStr for Pooling {
    type Err = UnknownPooling;

    /// From its name, as people and models write it.
    fn from_str(text: &str) -> Result<Self, UnknownPooling> {
        let known = |pooling: &Self| [pooling.name(), pooling.plain_name()].contains(&text);
        Self::ALL.into_iter().find(known).ok_or_else(|| UnknownPooling(text.to_owned()))
    }
}

impl Pooling {
    /// All there are.
    pub const ALL: [Self; 6] =
        [Self::Mean, Self::Cls, Self::Max, Self::LastToken, Self::MeanSqrtLen, Self::WeightedMean];

    /// Whether it takes one token's vector as it is.
    pub fn picks_a_row(self) -> bool {
        match self {
            Self::Cls | Self::LastToken => true,
            Self::Mean | Self::Max | Self::MeanSqrtLen | Self::WeightedMean => false,
        }
    }

    /// Its name in `pooling_mode`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
            Self::LastToken => "lasttoken",
            Self::MeanSqrtLen => "mean_sqrt_len_tokens",
            Self::WeightedMean => "weightedmean",
        }
    }

    /// Its name as people write it.
    fn plain_name(self) -> &'static str {
        match self {
            Self::LastToken => "last-token",
            Self::MeanSqrtLen => "mean-sqrt-len",
            Self::WeightedMean => "weighted-mean",
            Self::Mean | Self::Cls | Self::Max => self.name(),
        }
    }
}

/// One pooling or several, whose results stand beside each other in a row.
///
/// ```
/// use vecmill_model::Pooling;
/// use vecmill_model::Poolings;
///
/// let both = Poolings::new(&[Pooling::Mean, Pooling::Max]).unwrap();
/// assert_eq!((both.count(), both.to_string().as_str()), (2, "mean + max"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Poolings([Option<Pooling>; Self::MOST]);

impl Poolings {
    const MOST: usize = Pooling::ALL.len();

    /// These, in this order; `None` where there are none or more than six.
    pub fn new(poolings: &[Pooling]) -> Option<Self> {
        let mut all = [None; Self::MOST];
        for (place, pooling) in all.get_mut(..poolings.len())?.iter_mut().zip(poolings) {
            *place = Some(*pooling);
        }
        all[0].map(|_| Self(all))
    }

    /// How many there are: as many times as many numbers has a pooled row.
    pub fn count(self) -> usize {
        self.iter().count()
    }

    /// Them in order.
    pub fn iter(self) -> impl Iterator<Item = Pooling> + Clone {
        self.0.into_iter().flatten()
    }

    /// Whether one token's vector is taken as it is.
    pub fn picks_a_row(self) -> bool {
        matches!(self.0, [Some(one), None, ..] if one.picks_a_row())
    }
}

impl From<Pooling> for Poolings {
    fn from(one: Pooling) -> Self {
        let mut all = [None; Self::MOST];
        all[0] = Some(one);
        Self(all)
    }
}

impl fmt::Display for Poolings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pooling) in self.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { " + " }, pooling.name())?;
        }
        Ok(())
    }
}

/// How token vectors become one, and whether the prompt's tokens take part.
pub(super) fn open(
    folder: &Path,
    hidden: usize,
    warnings: &mut Vec<Warning>,
) -> Result<(Poolings, bool), ModelError> {
    let file = JsonFile::open(&folder.join(CONFIG_FILE))?;
    keys::check(&file, Kind::Pooling, warnings)?;
    for key in ["word_embedding_dimension", "embedding_dimension"] {
        file.integer(key, hidden..=hidden)?;
    }
    let mut poolings = Vec::new();
    for mode in modes(&file)? {
        let known = Pooling::ALL.into_iter().find(|pooling| pooling.name() == mode);
        poolings.push(known.ok_or_else(|| ModelError::Unsupported {
            path: file.path().to_owned(),
            what: "pooling by",
            found: shortened(&mode),
            supported: Pooling::ALL.map(Pooling::name).join(", "),
        })?);
    }
    let poolings = Poolings::new(&poolings);
    let poolings = poolings.ok_or_else(|| file.wrong("pooling_mode", "one to six modes"))?;
    Ok((poolings, file.flag("include_prompt")?.unwrap_or(true)))
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
            let wrong = || file.wrong("pooling_mode", "a mode, or an array of modes");
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
