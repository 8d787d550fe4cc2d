//! Rotary positions in `config.json`, as transformers 5 writes them (`rope_parameters`) and as older files
//! have them (`rope_theta`, `rope_scaling`).

use super::super::json::{Json, JsonFile};
use super::super::keys::{Row, Rule, row};
use super::super::{ModelError, Rotary, RotaryScaling};

/// Of families that [`read`] reads.
pub(super) const KEYS: Row =
    row(&["rope_parameters", "rope_theta", "rope_scaling"], Rule::UsedOrNull);

/// What a family's positions are where its file doesn't say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Default {
    /// Columns of a head.
    pub(super) dims: usize,
    /// The base of the frequencies.
    pub(super) theta: f64,
    /// Tokens of the longest sequence in training.
    pub(super) trained: usize,
}

/// The rotary positions of `file`.
pub(super) fn read(file: &JsonFile, default: Default) -> Result<Rotary, ModelError> {
    let theta = theta(file, "rope_theta")?.unwrap_or(default.theta);
    let default = Default { theta, ..default };
    match (file.get("rope_parameters"), file.get("rope_scaling")) {
        (Some(_), Some(_)) => Err(file.wrong("rope_scaling", "null beside 'rope_parameters'")),
        (Some(value), None) | (None, Some(value)) => part(file, value, default),
        (None, None) => Ok(plain(default)),
    }
}

/// The rotary positions that one object says.
pub(super) fn part(file: &JsonFile, value: &Json, default: Default) -> Result<Rotary, ModelError> {
    const KNOWN: [&str; 6] =
        ["rope_type", "type", "rope_theta", "factor", "partial_rotary_factor", "mixed_b"];
    let part = JsonFile::part(file.path(), value.clone())?;
    let there = |name: &str| part.get(name).is_some();
    if let Some((other, _)) = part.members().find(|(name, _)| there(name) && !KNOWN.contains(name))
    {
        return Err(part.wrong(other, "left out: such positions are not computed"));
    }
    if there("mixed_b") {
        return Err(part.wrong("mixed_b", "null: such positions are not computed"));
    }
    let theta = theta(&part, "rope_theta")?.unwrap_or(default.theta);
    let rotary = plain(Default {
        theta,
        dims: dims(&part, "partial_rotary_factor", default.dims)?,
        ..default
    });
    let key = if there("rope_type") { "rope_type" } else { "type" };
    let factor = || match part.number("factor")? {
        Some(factor) if (1.0..=1e6).contains(&factor) => Ok(factor),
        _ => Err(part.wrong("factor", "a number from 1 to 1000000")),
    };
    let scaling = match part.text(key)?.unwrap_or("default") {
        "default" => RotaryScaling::None,
        "linear" => RotaryScaling::Linear { factor: factor()? },
        "ntk" => RotaryScaling::Ntk { factor: factor()? },
        "dynamic" => RotaryScaling::DynamicNtk { factor: factor()?, trained: default.trained },
        _ => return Err(part.wrong(key, "default, linear, ntk or dynamic")),
    };
    checked(&part, key, Rotary { scaling, ..rotary })
}

/// Without scaling.
pub(super) fn plain(Default { dims, theta, .. }: Default) -> Rotary {
    Rotary { dims, theta, scaling: RotaryScaling::None }
}

/// How many columns of a head of `size` are turned, where the file says a part of them at `key`.
pub(super) fn dims(file: &JsonFile, key: &str, size: usize) -> Result<usize, ModelError> {
    let Some(part) = file.number(key)? else { return Ok(size) };
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "heads are small, and the part is within bounds"
    )]
    let dims = if part > 0.0 && part <= 1.0 { (part * size as f64) as usize } else { 0 };
    if dims >= 2 && dims.is_multiple_of(2) {
        Ok(dims)
    } else {
        Err(file.wrong(key, format!("a number up to 1 that leaves an even count of {size}")))
    }
}

/// Refuses what has no frequencies.
pub(super) fn checked(file: &JsonFile, key: &str, rotary: Rotary) -> Result<Rotary, ModelError> {
    let least = if rotary.depends_on_length() { 4 } else { 2 };
    if rotary.dims >= least && rotary.dims.is_multiple_of(2) {
        return Ok(rotary);
    }
    Err(file.wrong(key, format!("absent with heads of {} columns", rotary.dims)))
}

/// The base of the frequencies at `key`.
pub(super) fn theta(file: &JsonFile, key: &str) -> Result<Option<f64>, ModelError> {
    match file.number(key)? {
        Some(theta) if !(1.0..=1e12).contains(&theta) => {
            Err(file.wrong(key, "a number from 1 to 1000000000000"))
        }
        theta => Ok(theta),
    }
}
