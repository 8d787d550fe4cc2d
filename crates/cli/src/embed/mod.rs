//! `vecmill embed`: texts in, vectors out, in the same order.
//!
//! The parts, in the order in which a text meets them: [`lines`] and [`input`] make records of the
//! input, on a thread of their own; [`window`] keeps some of them in flight through the engine;
//! [`output`] and [`npy`] write what comes back.
//!
//! The choice behind it: every text is a request of its own. The engine batches them anyway, a text
//! that fails fails alone, and memory does not grow with the input.

mod input;
mod lines;
mod npy;
mod output;
mod window;

use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use vecmill_engine::{Engine, Info, Prompt, Request, RequestError, Truncation};

use crate::arguments::EmbedArguments;
use crate::failure::Failure;
use crate::progress::{Progress, Texts};
use crate::settings::{self, Environment};
use crate::{logging, signals};
use input::{Input, Record};
use output::{Output, Target};
use window::{Done, Window};

/// Records read ahead of the window. Few: each may have 16 MiB.
const READ_AHEAD: usize = 8;

/// How long a signal waits for an output that takes no more, before the process ends.
const PATIENCE: Duration = Duration::from_secs(2);

/// Embeds what the arguments ask for.
pub(crate) fn run(
    arguments: EmbedArguments,
    environment: &Environment,
    progress: &Progress,
) -> Result<(), Failure> {
    let input = Input::new(&arguments);
    let target = Target::new(arguments.output.as_deref())?;
    let request = request(&arguments);
    let (settings, warnings) = settings::read(arguments.flags, environment)?;
    logging::start(&settings.log.log_level, false, progress, &warnings);
    input.check()?;

    let engine = settings.engine.builder().on_progress(progress.of_start()).start()?;
    check(&request, engine.info())?;
    if input.is_typed() {
        progress.say("reading texts from the terminal, one per line; Ctrl-D ends them");
    }
    let dimensions = request.dimensions.unwrap_or(engine.info().dimensions);
    let shown = !target.is_terminal() && !input.is_typed();
    // Until here a signal ends the process, with nothing to clear away.
    let [signal, _] = signals::listen(Some(PATIENCE)).map_err(Failure::System)?;
    let mut job = Job {
        unit: input.unit(),
        texts: progress.of_texts(input.size(), shown),
        output: target.open(dimensions)?,
        engine,
        request,
        progress,
        failed: 0,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::System)?;
    let outcome = runtime.block_on(job.run(input, signal));
    job.texts.finish();
    outcome?;
    job.finish()
}

/// The request that every text is sent with.
fn request(arguments: &EmbedArguments) -> Request {
    let prompt = match (&arguments.prompt, &arguments.prompt_name) {
        (Some(text), _) => Prompt::Text(text.clone()),
        (None, Some(name)) => Prompt::Named(name.clone()),
        (None, None) => Prompt::Default,
    };
    Request {
        inputs: Vec::new(),
        truncation: if arguments.no_truncate { Truncation::Refuse } else { Truncation::End },
        normalize: arguments.normalize,
        dimensions: arguments.dimensions.map(NonZeroUsize::get),
        prompt,
        ..Request::default()
    }
}

/// Refuses at once what the model would refuse for every text.
fn check(request: &Request, info: &Info) -> Result<(), RequestError> {
    match (&request.prompt, request.dimensions) {
        (Prompt::Named(name), _) if !info.prompts.contains_key(name) => {
            let known = info.prompts.keys().cloned().collect();
            Err(RequestError::UnknownPrompt { name: name.clone(), known })
        }
        (_, Some(asked)) if asked > info.dimensions => {
            Err(RequestError::Dimensions { asked, available: info.dimensions })
        }
        _ => Ok(()),
    }
}

/// The embedding of one input.
struct Job<'a> {
    engine: Engine,
    request: Request,
    output: Output,
    unit: &'static str,
    progress: &'a Progress,
    texts: Texts,
    failed: u64,
}

impl Job<'_> {
    /// Reads, embeds and writes until the input ends.
    async fn run(
        &mut self,
        input: Input,
        mut signal: oneshot::Receiver<()>,
    ) -> Result<(), Failure> {
        let (mut records, mut reading) = read(input)?;
        let mut window = Window::new(&self.engine);
        let mut ended = false;
        while !(ended && window.is_empty()) {
            tokio::select! {
                biased;
                _ = &mut signal => return Err(Failure::Interrupted),
                Some(done) = window.next(), if !window.is_empty() => {
                    self.take(&done)?;
                    if window.is_empty() {
                        self.output.flush()?;
                    }
                }
                record = records.recv(), if !ended && window.has_room() => match record {
                    Some(record) => window.push(&self.engine, &self.request, record),
                    None => ended = true,
                },
            }
        }
        // The reader has let go of its records, so it has ended, too.
        (&mut reading).await.unwrap_or(Ok(()))
    }

    /// Writes what became of a text.
    fn take(&mut self, done: &Done) -> Result<(), Failure> {
        if let Err(reason) = &done.outcome {
            self.failed += 1;
            self.progress.report(format_args!("vecmill: {} {}: {reason}", self.unit, done.number));
        }
        self.texts.done(done.size);
        self.output.write(done.index, done.outcome.as_ref().map_err(String::as_str))
    }

    /// Completes the output.
    fn finish(self) -> Result<(), Failure> {
        self.output.finish()?;
        tracing::info!("embedded {}", self.texts);
        match self.failed {
            0 => Ok(()),
            failed => Err(Failure::SomeTexts { failed, total: self.texts.count() }),
        }
    }
}

/// How reading ended.
type Read = oneshot::Receiver<Result<(), Failure>>;

/// Reads on a thread of its own: standard input can block for as long as it likes.
fn read(input: Input) -> Result<(mpsc::Receiver<Record>, Read), Failure> {
    let (sender, records) = mpsc::channel(READ_AHEAD);
    let (end, ended) = oneshot::channel();
    let read = move || {
        let outcome = input.read(|record| sender.blocking_send(record).is_ok());
        // Nobody listens any more when writing has failed meanwhile.
        let _ = end.send(outcome);
        drop(sender);
    };
    std::thread::Builder::new().name("read".to_owned()).spawn(read).map_err(Failure::System)?;
    Ok((records, ended))
}
