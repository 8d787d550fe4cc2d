//! `vecmill convert`: a model's folder with its weights in another number format.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vecmill_engine::convert::{ConvertError, Converted};

use crate::arguments::{ConvertArguments, NumberFormat};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::settings::{self, Environment};
use crate::units::bytes;
use crate::{logging, signals, stdout};

/// How long a signal waits for a fetch, or a disk, before the process ends.
const PATIENCE: Duration = Duration::from_secs(2);

/// Converts what the arguments ask for, and says what came of it.
pub(crate) fn run(
    arguments: ConvertArguments,
    environment: &Environment,
    progress: &Progress,
) -> Result<(), Failure> {
    let ConvertArguments { dtype, output, flags } = arguments;
    if dtype == NumberFormat::Fp8 {
        let message = "--dtype: fp8 is for computing, not for files: expected f16, bf16 or f32";
        return Err(Failure::Usage(message.to_owned()));
    }
    let (settings, warnings) = settings::read(flags, environment)?;
    logging::start(&settings.log.log_level, false, progress, &warnings);
    let builder = settings.builder().on_progress(progress.of_start());
    let [signal, _] = signals::listen(Some(PATIENCE)).map_err(Failure::System)?;
    let stopped = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stopped);
    let hear = move || told.store(signal.blocking_recv().is_ok(), Ordering::Relaxed);
    std::thread::Builder::new().spawn(hear).map_err(Failure::System)?;
    let converted = builder.convert_unless(dtype.into(), &output, &stopped);
    let converted = converted.map_err(|error| match error {
        ConvertError::Stopped => Failure::Interrupted,
        error => error.into(),
    })?;
    stdout::write(|out| report(out, &output, &converted))
}

fn report(out: &mut impl Write, output: &Path, converted: &Converted) -> io::Result<()> {
    let size = |size: u64| bytes(usize::try_from(size).unwrap_or(usize::MAX));
    let (before, after) = (size(converted.bytes_before), size(converted.bytes_after));
    writeln!(out, "{}: {after} of weights, {before} before", output.display())?;
    match &converted.rounding {
        Some(rounding) => writeln!(
            out,
            "Largest rounding error: {:.2e}, where {} became {} in {}",
            rounding.error(),
            rounding.from,
            rounding.to,
            rounding.tensor
        ),
        None => writeln!(out, "No number was changed."),
    }
}

#[cfg(test)]
mod tests {
    use vecmill_engine::convert::Rounding;

    use super::*;

    #[test]
    fn the_report_has_sizes_and_the_largest_error() {
        let tensor = "embeddings.weight".to_owned();
        let rounding = Some(Rounding { tensor, from: 1.0005, to: 1.0 });
        let mut converted = Converted { bytes_before: 3 << 20, bytes_after: 3 << 19, rounding };
        let said = |converted: &Converted| {
            let mut out = Vec::new();
            report(&mut out, Path::new("m"), converted).unwrap();
            String::from_utf8(out).unwrap()
        };
        let expected = "m: 1.50 MiB of weights, 3.00 MiB before\n\
                        Largest rounding error: 5.00e-4, where 1.0005 became 1 in embeddings.weight\n";
        assert_eq!(said(&converted), expected);
        converted.rounding = None;
        assert!(said(&converted).ends_with("\nNo number was changed.\n"));
    }
}
