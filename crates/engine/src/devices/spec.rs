//! Devices as they are asked for.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use super::{KINDS, Kind};

const AUTO: &str = "auto";

/// A device, or several, that an engine shall run on: `auto` for all of the fastest kind that can be
/// used, `cpu` for this machine's processor, `cuda` for all NVIDIA GPUs, `cuda:0` for the first of them,
/// `cuda:0/sms=32` for a part of it that has at least so many multiprocessors for itself (given twice,
/// they are two parts).
///
/// ```
/// use vecmill_engine::DeviceSpec;
///
/// let second: DeviceSpec = "cuda:1".parse()?;
/// assert_eq!(second.to_string(), "cuda:1");
/// assert_eq!("cpu".parse(), Ok(DeviceSpec::CPU));
/// assert!("gpu".parse::<DeviceSpec>().is_err());
/// # Ok::<(), vecmill_engine::DeviceSpecError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeviceSpec(Cow<'static, str>);

/// A text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no device: expected {AUTO}{forms}", forms = forms())]
pub struct DeviceSpecError(String);

/// What may be written beside `auto`, in words.
fn forms() -> String {
    KINDS.iter().rev().map(|kind| format!(", {}", kind.forms())).collect()
}

impl DeviceSpec {
    /// All devices of the fastest kind of which any can be used.
    pub const AUTO: Self = Self(Cow::Borrowed(AUTO));

    /// This machine's processor.
    pub const CPU: Self = Self(Cow::Borrowed("cpu"));

    /// The kind of the devices, and what is said of them behind its name; `None` for any kind.
    pub(super) fn kind(&self) -> Option<(&'static dyn Kind, &str)> {
        KINDS.into_iter().find_map(|kind| {
            let which = self.0.strip_prefix(kind.name())?;
            kind.knows(which).then_some((kind, which))
        })
    }
}

impl FromStr for DeviceSpec {
    type Err = DeviceSpecError;

    fn from_str(text: &str) -> Result<Self, DeviceSpecError> {
        let spec = Self(Cow::Owned(text.to_owned()));
        if text == AUTO || spec.kind().is_some() {
            Ok(spec)
        } else {
            Err(DeviceSpecError(text.to_owned()))
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "cuda:0/sms=32"] {
            assert_eq!(text.parse::<DeviceSpec>().unwrap().to_string(), text);
        }
        for wrong in
            ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda:0/", "cuda:0/sms=0", "cpu:0"]
        {
            assert!(wrong.parse::<DeviceSpec>().is_err(), "{wrong}");
        }
        let error = "gpu".parse::<DeviceSpec>().unwrap_err().to_string();
        assert!(error.contains("expected auto, cpu, cuda, cuda:0 for"), "{error}");
    }
}
