//! The types of settings that no other crate has.

use std::fmt;
use std::net::Ipv6Addr;
use std::num::NonZeroUsize;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use vecmill_engine::capacity::DType;
use vecmill_engine::{DeviceSpec, PolicyName};

use crate::settings::value::Value;

/// A name of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(pub(crate) String);

impl Value for Name {
    const PLACEHOLDER: &'static str = "NAME";
    const EXPECTED: &'static str = "a name, without spaces around it";

    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty() && text == text.trim()).then(|| Self(text.to_owned()))
    }
}

/// A host's name or IP address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host(pub(crate) String);

impl Value for Host {
    const PLACEHOLDER: &'static str = "HOST";
    const EXPECTED: &'static str = "a host name or an IP address, without a port";

    fn parse(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let named = !bare.is_empty() && bare.chars().all(name);
        (named || bare.parse::<Ipv6Addr>().is_ok()).then(|| Self(bare.to_owned()))
    }
}

/// The number format to compute in; none is the best that each device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dtype(pub(crate) Option<DType>);

impl Value for Dtype {
    const PLACEHOLDER: &'static str = "DTYPE";
    const EXPECTED: &'static str = "auto, float16, bfloat16, float32 or fp8";

    fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self(None)),
            "float16" | "f16" => Some(Self(Some(DType::F16))),
            "bfloat16" | "bf16" => Some(Self(Some(DType::BF16))),
            "float32" | "f32" => Some(Self(Some(DType::F32))),
            "fp8" => Some(Self(Some(DType::F8E4M3))),
            _ => None,
        }
    }
}

/// The most tokens of a batch; none is what suits each device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchTokens(pub(crate) Option<NonZeroUsize>);

/// More never pays.
const AUTO_BATCH_TOKENS: usize = 1 << 16;

impl BatchTokens {
    /// The most tokens, whatever the device.
    pub(crate) fn most(self) -> usize {
        self.0.map_or(AUTO_BATCH_TOKENS, NonZeroUsize::get)
    }
}

impl Value for BatchTokens {
    const PLACEHOLDER: &'static str = "TOKENS";
    const EXPECTED: &'static str = "a whole number of at least 1, or auto";

    fn parse(text: &str) -> Option<Self> {
        if text == "auto" {
            Some(Self(None))
        } else {
            NonZeroUsize::parse(text).map(Some).map(Self)
        }
    }
}

/// A scheduling policy, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy(pub(crate) PolicyName);

impl Value for Policy {
    const PLACEHOLDER: &'static str = "POLICY";
    const EXPECTED: &'static str = "earliest-finish, weighted, least-loaded or round-robin";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

/// Scheduling policies that take turns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policies(pub(crate) Vec<PolicyName>);

impl Value for Policies {
    const PLACEHOLDER: &'static str = "POLICIES";
    const EXPECTED: &'static str = "two or more of earliest-finish, weighted, least-loaded and round-robin, with commas between";

    fn parse(text: &str) -> Option<Self> {
        let names = text.split(',').map(|name| Policy::parse(name.trim()).map(|policy| policy.0));
        let names: Vec<PolicyName> = names.collect::<Option<_>>()?;
        (names.len() > 1).then_some(Self(names))
    }
}

/// Devices to run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Devices(pub(crate) Vec<DeviceSpec>);

impl Value for Devices {
    const PLACEHOLDER: &'static str = "DEVICE";
    const EXPECTED: &'static str = "auto, cpu, cuda for all GPUs, cuda:0 for the first one or cuda:0/sms=32 for a part of it, with \
         commas between several";
    const MANY: bool = true;

    fn parse(text: &str) -> Option<Self> {
        text.split(',').map(|part| part.trim().parse().ok()).collect::<Option<_>>().map(Self)
    }

    fn and(mut self, next: Self) -> Self {
        self.0.extend(next.0);
        self
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) usize);

impl Value for Bytes {
    const PLACEHOLDER: &'static str = "BYTES";
    const EXPECTED: &'static str = "bytes, such as 2000000, 512KiB, 2MiB or 1.5GiB";

    fn parse(text: &str) -> Option<Self> {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "kib" => 10,
            "mib" => 20,
            "gib" => 30,
            "tib" => 40,
            _ => return None,
        };
        let unit = 1_usize.checked_shl(shift)?;
        let whole = number.parse::<usize>().ok().and_then(|count| count.checked_mul(unit));
        let bytes = if number.contains('.') && shift > 0 { fraction(number, unit) } else { whole };
        bytes.filter(|&bytes| bytes > 0).map(Self)
    }
}

/// `number` of `units`, rounded down; exact enough for what has a decimal point.
fn fraction(number: &str, unit: usize) -> Option<usize> {
    let (whole, decimals) = number.split_once('.')?;
    let decimals = decimals.get(..decimals.len().min(6))?;
    let scale = 10_usize.checked_pow(u32::try_from(decimals.len()).ok()?)?;
    let part = unit.checked_mul(decimals.parse().ok()?)? / scale;
    whole.parse::<usize>().ok()?.checked_mul(unit)?.checked_add(part)
}

/// A token that is passed on. Nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// The secret itself, for the one place that needs it.
    pub(crate) fn reveal(self) -> String {
        self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Value for Secret {
    const PLACEHOLDER: &'static str = "SECRET";
    const EXPECTED: &'static str = "visible ASCII characters without spaces";
    const SECRET: bool = true;

    fn parse(text: &str) -> Option<Self> {
        let usable = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        usable.then(|| Self(text.to_owned()))
    }
}

/// A web origin that may call the server from a browser; `*` is all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin(pub(crate) String);

impl Value for Origin {
    const PLACEHOLDER: &'static str = "ORIGIN";
    const EXPECTED: &'static str =
        "an origin such as https://example.org or http://localhost:8080, or * for all";

    fn parse(text: &str) -> Option<Self> {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let plain = |host: &str| {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@*,".contains(&b))
        };
        (text == "*" || host.is_some_and(plain)).then(|| Self(text.to_ascii_lowercase()))
    }
}

/// Which events are logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogFilter(String);

impl LogFilter {
    /// The filter for the subscriber.
    pub(crate) fn filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}

impl Value for LogFilter {
    const PLACEHOLDER: &'static str = "LEVEL";
    const EXPECTED: &'static str = "error, warn, info, debug, trace or off, or levels by module such as info,vecmill_engine=debug";

    fn parse(text: &str) -> Option<Self> {
        // The filter itself would take any lone word for a module's name.
        let level = |part: &str| {
            let level = part.rsplit_once('=').map_or(part, |(_, level)| level).trim();
            tracing_subscriber::filter::LevelFilter::from_str(level).is_ok()
        };
        let usable = text.split(',').all(level) && EnvFilter::try_new(text).is_ok();
        usable.then(|| Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use vecmill_engine::ModelRef;

    use super::*;

    #[test]
    fn batches_are_as_large_as_is_said_or_as_suits_the_device() {
        assert_eq!(BatchTokens::parse("512").map(BatchTokens::most), Some(512));
        assert_eq!(BatchTokens::parse("auto").map(BatchTokens::most), Some(AUTO_BATCH_TOKENS));
        for wrong in ["0", "", "Auto", "-1"] {
            assert_eq!(BatchTokens::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn policies_are_known_and_an_experiment_has_two() {
        for name in PolicyName::ALL.map(PolicyName::as_str) {
            assert!(Policy::parse(name).is_some() && Policy::EXPECTED.contains(name), "{name}");
        }
        assert_eq!(Policy::parse("random"), None);
        let both = Policies::parse("round-robin, weighted").map(|policies| policies.0);
        assert_eq!(both, Some(vec![PolicyName::RoundRobin, PolicyName::Weighted]));
        for wrong in ["round-robin", "round-robin,random", ""] {
            assert_eq!(Policies::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_are_bytes_with_binary_units() {
        let bytes = |text| Bytes::parse(text).map(|bytes| bytes.0);
        assert_eq!(bytes("2000000"), Some(2_000_000));
        assert_eq!(bytes("1 KiB"), Some(1024));
        assert_eq!(bytes("2mib"), Some(2 << 20));
        assert_eq!(bytes("1.5GiB"), Some(3 << 29));
        assert_eq!(bytes("0.25KiB"), Some(256));
        for wrong in ["", "0", "-1", "GiB", "1.5", "1.x", "1..2GiB", "2GB", "99999999TiB", "1e9"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn devices_are_a_list() {
        let devices = |text| Devices::parse(text).map(|devices| devices.0);
        assert_eq!(devices("auto"), Some(vec![DeviceSpec::AUTO]));
        let both = vec!["cuda:1".parse().unwrap(), DeviceSpec::CPU];
        assert_eq!(devices("cuda:1, cpu").as_ref(), Some(&both));
        let one = Devices(vec!["cuda:1".parse().unwrap()]);
        assert_eq!(one.and(Devices(vec![DeviceSpec::CPU])).0, both);
        for wrong in ["", "gpu", "cpu,", "cuda:x"] {
            assert_eq!(devices(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn models_are_ids_or_folders_that_exist() {
        let id = "BAAI/bge-small-en-v1.5".to_owned();
        assert_eq!(ModelRef::parse(&id), Some(ModelRef::Hub { id, revision: None }));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(ModelRef::parse(path), Some(ModelRef::Folder(path.into())));
        for wrong in ["", "/no/such/folder", "./missing", "../x", "a/b/c", "a b", "a/", "~/model"] {
            assert_eq!(ModelRef::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        let host = |text| Host::parse(text).map(|host| host.0);
        for right in ["localhost", "0.0.0.0", "::1", "a-b.example.org"] {
            assert_eq!(host(right).as_deref(), Some(right));
        }
        assert_eq!(host("[::]").as_deref(), Some("::"));
        for wrong in ["", "localhost:3000", "http://localhost", "a b", "[]"] {
            assert_eq!(host(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret = Secret::parse("hf_abc").unwrap();
        assert!(!format!("{secret:?}").contains("hf_abc"));
        assert_eq!(Secret::parse("two words"), None);
        assert_eq!(Secret::parse("line\n"), None);
    }

    #[test]
    fn log_filters_name_levels() {
        assert!(LogFilter::parse("debug").is_some());
        assert!(LogFilter::parse("info,vecmill_engine=trace").is_some());
        assert!(LogFilter::parse("loud").is_none());
        assert!(LogFilter::parse("vecmill_engine=loud").is_none());
    }

    #[test]
    fn origins_have_a_scheme_and_no_path() {
        for right in ["*", "https://example.org", "http://localhost:8080"] {
            assert!(Origin::parse(right).is_some(), "{right}");
        }
        for wrong in ["example.org", "https://", "https://example.org/", "https://a,https://b"] {
            assert!(Origin::parse(wrong).is_none(), "{wrong}");
        }
    }
}
