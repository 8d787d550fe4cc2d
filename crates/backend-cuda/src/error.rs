//! Why there is no GPU to be used. What goes wrong once there is one, `driver/error` has.

/// Why no GPU can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// This machine has no NVIDIA driver, or the loader does not find it.
    #[error(
        "no NVIDIA driver was found on this machine: looked for {}; if it has a GPU, install the \
         driver, or let the container have it (`docker run --gpus all`)",
        shortened(looked_for)
    )]
    NoLibrary {
        /// The file names that were tried, in order.
        looked_for: Vec<String>,
    },
    /// There is a driver, of a version that lacks what vecmill needs.
    #[error(
        "the NVIDIA driver is too old: {reason}, and vecmill needs one that supports CUDA {}.{}; \
         update the driver", needed.0, needed.1
    )]
    TooOld {
        /// The CUDA version that vecmill needs.
        needed: (u32, u32),
        /// What showed it, for example `it supports CUDA 11.4`.
        reason: String,
    },
    /// The driver is there and does not work.
    #[error("the NVIDIA driver does not work: {call} failed with {reason}")]
    Failed {
        /// The driver's function that failed.
        call: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// A part of a GPU was asked for that is larger than what other parts leave.
    #[error(
        "{wanted} multiprocessors are not free there: other parts leave {left}, in groups of {each}"
    )]
    NoPart {
        /// Multiprocessors that were asked for.
        wanted: u32,
        /// Those that no part has.
        left: u32,
        /// Parts are multiples of so many.
        each: u32,
    },
    /// There is no GPU of that number.
    #[error("there is no GPU {ordinal}: the driver shows {count}, counted from 0")]
    NoDevice {
        /// The number that was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
}

/// The first of `names`, which is what the file is usually called, and how many others.
fn shortened(names: &[String]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [only] => only.clone(),
        [first, others @ ..] => format!("{first} and {} other names", others.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_plain() {
        let looked_for = vec!["libcuda.so".to_owned(), "libcuda.so.1".to_owned()];
        let none = Unavailable::NoLibrary { looked_for }.to_string();
        assert!(none.contains("looked for libcuda.so and 1 other names; "), "{none}");
        let reason = "it supports CUDA 11.4".to_owned();
        assert_eq!(
            Unavailable::TooOld { needed: (12, 0), reason }.to_string(),
            "the NVIDIA driver is too old: it supports CUDA 11.4, and vecmill needs one that \
             supports CUDA 12.0; update the driver"
        );
    }
}
