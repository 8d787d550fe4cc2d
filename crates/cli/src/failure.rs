//! Why a command failed, and the exit code that tells so.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use vecmill_engine::convert::ConvertError;
use vecmill_engine::{RequestError, StartError};
use vecmill_lab::ab::AbError;
use vecmill_lab::traffic::TraceError as RequestTraceError;
use vecmill_model::disk::NoRoom;
use vecmill_server::ServeError;

use crate::settings::Problems;
use crate::units::{bytes, enough};

/// What a shell says of a command that SIGPIPE ended: 128 and the signal's number.
const ENDED_BY_SIGPIPE: u8 = 128 + 13;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line itself is wrong.
    #[error("{0}")]
    Usage(String),
    /// Settings are wrong.
    #[error("{0}\nRun the command with --help to see what is accepted.")]
    Settings(#[from] Problems),
    /// The request asks for what the model does not have.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The model could not be loaded.
    #[error("the model can't be started: {0}")]
    Start(#[from] StartError),
    /// The model could not be converted.
    #[error("the model can't be converted: {0}")]
    Convert(#[from] ConvertError),
    /// Not even one input fits the memory that a plan is for.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// A trace of requests is not one.
    #[error("{}: {source}", path.display())]
    RequestTrace {
        /// The file.
        path: PathBuf,
        /// What is wrong, and in which line.
        source: RequestTraceError,
    },
    /// Policies could not be compared.
    #[error(transparent)]
    Ab(#[from] AbError),
    /// The thread that loads the model ended without a word.
    #[error(
        "loading the model ended in a bug of vecmill's; the lines above say more, please report"
    )]
    LoaderPanicked,
    /// The server could not listen.
    #[error("{0}{advice}", advice = advice(.0))]
    Serve(#[from] ServeError),
    /// The asynchronous runtime or a signal handler could not be set up.
    #[error("the system refused threads or signal handlers: {0}")]
    System(#[source] io::Error),
    /// Input could not be read.
    #[error("{} can't be read: {source}", path.display())]
    Read {
        /// The file, or `standard input`.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Standard output could not be written.
    #[error("standard output can't be written: {0}")]
    Stdout(#[source] io::Error),
    /// A file could not be written.
    #[error("{}", unwritten(path, source))]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Some texts got no vector; the others did.
    #[error("{failed} of {total} texts failed, as reported above; the others are done")]
    SomeTexts {
        /// Texts without a vector.
        failed: u64,
        /// Texts in all.
        total: u64,
    },
    /// The server stopped before it had answered everything.
    #[error(
        "{requests} accepted requests were cut off: the server was to stop at once, or \
         --shutdown-grace was over"
    )]
    CutOff {
        /// Requests without a whole reply.
        requests: usize,
    },
    /// A signal ended the command.
    #[error("interrupted; an output that is not complete is not kept")]
    Interrupted,
}

impl Failure {
    /// Whether the reader of the output simply wanted no more, as in `vecmill … | head`.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Stdout(error) | Self::Write { source: error, .. }
            if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The exit code: 2 for usage, 3 when some texts failed, 4 when requests were cut off, that of
    /// other commands when the reader of the output is gone, 1 for the rest.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            failure if failure.is_closed_pipe() => ExitCode::from(ENDED_BY_SIGPIPE),
            Self::Usage(_) | Self::Settings(_) | Self::Request(_) => ExitCode::from(2),
            Self::Ab(error) if error.is_usage() => ExitCode::from(2),
            Self::SomeTexts { .. } => ExitCode::from(3),
            Self::CutOff { .. } => ExitCode::from(4),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Not even one input fits the memory that a plan is for.
#[derive(Debug, thiserror::Error)]
#[error(
    "weights of {} and one input of {tokens} tokens, {}, are {} more than the {} there are: set \
     --memory to {} or more, or choose a smaller model{advice}",
    bytes(*weights), bytes(*slab), bytes(*missing), bytes(*budget), enough(budget + missing)
)]
pub(crate) struct TooSmall {
    pub(crate) budget: usize,
    pub(crate) weights: usize,
    pub(crate) slab: usize,
    pub(crate) tokens: usize,
    pub(crate) missing: usize,
    pub(crate) advice: &'static str,
}

/// Why a file could not be written, and what to do where its disk is full.
fn unwritten(path: &Path, error: &io::Error) -> String {
    match NoRoom::of(error, path, None) {
        Some(full) => format!("{full}: make room, or choose a folder on another disk"),
        None => format!("{} can't be written: {error}", path.display()),
    }
}

/// What to do about an address that can't be listened on.
fn advice(error: &ServeError) -> &'static str {
    let ServeError::Bind { source, .. } = error else { return "" };
    match source.kind() {
        io::ErrorKind::AddrInUse => "; another program listens there: choose another --port",
        io::ErrorKind::AddrNotAvailable => "; choose a --hostname of this machine",
        io::ErrorKind::PermissionDenied => "; choose a --port above 1023",
        _ => "",
    }
}
