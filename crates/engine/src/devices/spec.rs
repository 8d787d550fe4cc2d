//! Devices as they are asked for.

use std::fmt;
use std::str::FromStr;

/// A device, or several, that an engine shall run on.
///
/// ```
/// use vecmill_engine::DeviceSpec;
///
/// assert_eq!("cuda:1".parse(), Ok(DeviceSpec::Cuda(Some(1))));
/// assert_eq!(DeviceSpec::Cuda(None).to_string(), "cuda");
/// assert!("gpu".parse::<DeviceSpec>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceSpec {
    /// `auto`: all GPUs that can be used, else the CPU.
    Auto,
    /// `cpu`: this machine's processor.
    Cpu,
    /// `cuda`: all NVIDIA GPUs; `cuda:0`: the one of that number.
    Cuda(Option<usize>),
    /// `cuda:0/sms=32`: a part of a GPU, of at least so many multiprocessors that no other part
    /// has. Given twice, they are two parts.
    CudaPart {
        /// The GPU's number.
        ordinal: usize,
        /// Multiprocessors.
        sms: u32,
    },
}

/// A text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no device: expected auto, cpu, cuda, cuda:0 for the first GPU, or cuda:0/sms=32 for 32 of its \
     multiprocessors"
)]
pub struct DeviceSpecError(String);

impl FromStr for DeviceSpec {
    type Err = DeviceSpecError;

    fn from_str(text: &str) -> Result<Self, DeviceSpecError> {
        let gpu = || {
            let rest = text.strip_prefix("cuda:")?;
            let (ordinal, parts) = rest.split_once('/').map_or((rest, None), |(a, b)| (a, Some(b)));
            let ordinal = ordinal.parse().ok()?;
            let Some(parts) = parts else { return Some(Self::Cuda(Some(ordinal))) };
            let sms = parts.strip_prefix("sms=")?.parse().ok().filter(|&sms| sms > 0)?;
            Some(Self::CudaPart { ordinal, sms })
        };
        let spec = match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(None)),
            _ => gpu(),
        };
        spec.ok_or_else(|| DeviceSpecError(text.to_owned()))
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(ordinal)) => write!(f, "cuda:{ordinal}"),
            Self::CudaPart { ordinal, sms } => write!(f, "cuda:{ordinal}/sms={sms}"),
        }
    }
}

/// The name of a part of a GPU before which so many of the same kind were opened: `cuda:0/sms=32`,
/// then `cuda:0/sms=32#2`.
pub(super) fn part_name(part: DeviceSpec, earlier: usize) -> String {
    if earlier == 0 { part.to_string() } else { format!("{part}#{}", earlier + 1) }
}

/// How many of these devices are parts of the same kind as `part`.
pub(super) fn parts_like<'a>(part: DeviceSpec, names: impl Iterator<Item = &'a str>) -> usize {
    let part = part.to_string();
    names.filter(|name| name.split('#').next() == Some(&part)).count()
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
    }
    #[test]
    fn parts_are_told_apart_by_their_whole_names() {
        let mut names: Vec<String> = Vec::new();
        for text in
            ["cuda:0/sms=80", "cuda:0/sms=8", "cuda:0/sms=8", "cuda:0/sms=80", "cuda:0/sms=8"]
                .into_iter()
                .chain(["cuda:1/sms=8", "cuda:10/sms=8", "cuda:1/sms=8", "cuda:0/sms=800"])
        {
            let part = text.parse().unwrap();
            let earlier = parts_like(part, names.iter().map(String::as_str));
            names.push(part_name(part, earlier));
        }
        let expected = [
            "cuda:0/sms=80",
            "cuda:0/sms=8",
            "cuda:0/sms=8#2",
            "cuda:0/sms=80#2",
            "cuda:0/sms=8#3",
            "cuda:1/sms=8",
            "cuda:10/sms=8",
            "cuda:1/sms=8#2",
            "cuda:0/sms=800",
        ];
        assert_eq!(names, expected);
    }
}
