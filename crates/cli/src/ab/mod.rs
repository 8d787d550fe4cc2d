//! `vecmill ab`: policies compared on this machine's devices, under a load of one's own.
//!
//! [`arguments`] is its command line. The experiment and its report are those of [`vecmill_lab::ab`].

pub(crate) mod arguments;

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::Path;

use vecmill_lab::ab::{self, Experiment, Load, Report};
use vecmill_lab::traffic::{Mix, Traffic};

use crate::failure::Failure;
use crate::logging;
use crate::new_file::{NewFile, check_writable, write_whole};
use crate::progress::Progress;
use crate::settings::{self, Environment};
use crate::stdout;
use arguments::AbArguments;

/// Part of the capacity when no load is given: busy, but not at the limit.
const USUAL_LOAD: f64 = 0.8;

/// Compares policies, or writes the trace of the requests that would be sent.
pub(crate) fn run(
    arguments: AbArguments,
    environment: &Environment,
    progress: &Progress,
) -> Result<(), Failure> {
    for path in [&arguments.html, &arguments.json, &arguments.write_trace].into_iter().flatten() {
        check_writable(path)?;
    }
    let experiment = arguments.experiment()?;
    if let (Some(path), Some(rate)) = (&arguments.write_trace, arguments.rate) {
        experiment.check_load()?;
        let seconds = experiment.warm_up + experiment.seconds;
        let traffic = Traffic::poisson(experiment.mix, 0, rate, seconds);
        let file = NewFile::create(path).and_then(|mut file| {
            traffic.write(&mut file)?;
            file.finish(path)
        });
        return file.map_err(|source| Failure::Write { path: path.clone(), source });
    }
    experiment.check()?;
    let AbArguments { html, json, flags, .. } = arguments;
    let (settings, warnings) = settings::read(flags, environment)?;
    logging::start(&settings.log.log_level, false, progress, &warnings);
    let builder = settings.engine.builder().on_progress(progress.of_start());
    let bar = progress.of_passes();
    let report = ab::run(builder, &experiment, &|leg| {
        bar.set_length(leg.total as u64);
        bar.set_position(leg.done as u64);
        bar.set_message(leg.what);
    });
    bar.finish_and_clear();
    write(&report?, html.as_deref(), json.as_deref())
}

fn write(report: &Report, html: Option<&Path>, json: Option<&Path>) -> Result<(), Failure> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Failure::Write { path, source }
    };
    if let Some(path) = html {
        write_whole(path, report.html().as_bytes()).map_err(failed(path))?;
    }
    if let Some(path) = json {
        let text = report.json().map_err(failed(path))?;
        write_whole(path, text.as_bytes()).map_err(failed(path))?;
    }
    stdout::write(|out| out.write_all(report.table().as_bytes()))
}

impl AbArguments {
    fn mix(&self) -> Mix {
        Mix { large: self.large, longest: self.longest, seed: self.seed }
    }

    fn experiment(&self) -> Result<Experiment, Failure> {
        let load = match (self.rate, self.load, self.bulk) {
            (Some(rate), _, _) => Load::Rate(rate),
            (_, Some(part), _) => Load::Sustained(part),
            (_, _, Some(requests)) => Load::Bulk(requests),
            _ if self.trace.is_some() => Load::Recorded,
            _ => Load::Sustained(USUAL_LOAD),
        };
        Ok(Experiment {
            policies: self.policies.clone(),
            trace: self.trace.as_deref().map(read).transpose()?,
            mix: self.mix(),
            load,
            seconds: self.seconds,
            warm_up: self.settle,
            drain: self.drain,
            repeats: self.repeats,
            slo: self.slo,
            find_max: self.find_max,
            interference: self.interference,
        })
    }
}

fn read(path: &Path) -> Result<Traffic, Failure> {
    let file =
        File::open(path).map_err(|source| Failure::Read { path: path.to_owned(), source })?;
    Traffic::read(BufReader::new(file))
        .map_err(|source| Failure::RequestTrace { path: path.to_owned(), source })
}
