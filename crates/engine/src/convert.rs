//! Models in another number format: smaller files, of which a GPU takes the weights as they are.
//!
//! The choice behind it: the new folder is made under another name beside its place and renamed, so
//! that it is there whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use vecmill_hub::{ModelFiles, join};
use vecmill_model::disk::NoRoom;
use vecmill_model::{ModelError, WEIGHTS_FILE, Weights};

pub use vecmill_model::{DType, Rounding};

use crate::builder::Builder;
use crate::fetch::FetchError;
use crate::settings::Progress;
use crate::stage::Stage;

/// What was converted.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// Bytes of the weights before.
    pub bytes_before: u64,
    /// Bytes of the weights' new files.
    pub bytes_after: u64,
    /// The number that was changed most, if any was.
    pub rounding: Option<Rounding>,
}

/// Why a model could not be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// Something has the new folder's name.
    #[error(
        "{}: exists already, and nothing is overwritten: choose another folder",
        path.display()
    )]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// The model could not be found or fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The model's files are not what vecmill can run, or the format can't hold its weights.
    #[error(transparent)]
    Weights(#[from] vecmill_model::ConvertError),
    /// The new folder's disk is full.
    #[error("{0}: make room, or choose a folder on another disk")]
    NoRoom(NoRoom),
    /// The new folder could not be written.
    #[error("{}: can't be written: {error}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// It was to stop.
    #[error("the conversion was stopped")]
    Stopped,
}

impl ConvertError {
    /// For `map_err` on what is done to `path`.
    fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| match NoRoom::of(&error, &path, None) {
            Some(full) => Self::NoRoom(full),
            None => Self::Write { path, error },
        }
    }
}

impl From<ModelError> for ConvertError {
    fn from(error: ModelError) -> Self {
        Self::Weights(error.into())
    }
}

impl Builder {
    /// Writes the model into the new folder `output` with its matrices in `format`, and takes along
    /// what else a model folder needs. Fetches the model's files as [`start`](Self::start) does.
    ///
    /// # Errors
    /// When `output` exists, the model is broken, or `format` can't hold one of its numbers. Then
    /// there is no new folder.
    pub fn convert(&self, format: DType, output: &Path) -> Result<Converted, ConvertError> {
        self.convert_unless(format, output, &AtomicBool::new(false))
    }

    /// As [`convert`](Self::convert), but stops when `stopped` becomes true. A fetch is not stopped.
    ///
    /// # Errors
    /// Those, and [`ConvertError::Stopped`]. Then there is no new folder.
    pub fn convert_unless(
        &self,
        format: DType,
        output: &Path,
        stopped: &AtomicBool,
    ) -> Result<Converted, ConvertError> {
        refuse_existing(output)?;
        let settings = self.settings();
        let source = settings.fetch()?;
        // Whatever serving would refuse is not worth converting.
        settings.open_unserved(&source)?;
        let files = ModelFiles::of(&source).map_err(FetchError::incomplete(&source))?;
        let parent = output.parent().filter(|folder| !folder.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let work = tempfile::Builder::new().prefix(".vecmill-").suffix(".part").tempdir_in(parent);
        let work = work.map_err(ConvertError::write(parent))?;
        let staged = work.path().join("model"); // not `work` itself, which only its owner can read
        for file in &files.settings {
            let target = create_parent(staged.join(file))?;
            fs::copy(source.join(file), &target).map_err(ConvertError::write(&target))?;
        }
        let converted =
            convert_weights(&settings.progress, (&source, &files), format, &staged, stopped);
        if stopped.load(Ordering::Relaxed) {
            return Err(ConvertError::Stopped);
        }
        let converted = converted?;
        // A rename would replace a folder that is empty.
        refuse_existing(output)?;
        fs::rename(&staged, output).map_err(ConvertError::write(output))?;
        Ok(converted)
    }
}

/// Converts the weights of each module that has some.
fn convert_weights(
    progress: &Progress,
    (source, files): (&Path, &ModelFiles),
    format: DType,
    staged: &Path,
    stopped: &AtomicBool,
) -> Result<Converted, ConvertError> {
    let mut modules = Vec::new();
    for (module, _) in &files.weights {
        modules.push((module, Weights::open(&source.join(module))?));
    }
    let needed = modules.iter().map(|(_, weights)| weights.bytes_as(format) as u64).sum();
    NoRoom::check(staged, needed).map_err(ConvertError::NoRoom)?;
    let total = modules.iter().map(|(_, weights)| weights.stored_bytes() as u64).sum();
    let mut converted = Converted { bytes_before: 0, bytes_after: 0, rounding: None };
    for (module, weights) in modules {
        let target = create_parent(staged.join(join(module, WEIGHTS_FILE)))?;
        let before = converted.bytes_before;
        let progress = |bytes| progress(Stage::Converting { done: before + bytes as u64, total });
        let rounding = write(&weights, format, &target, &progress, stopped)?;
        weights.check_unchanged()?;
        converted.bytes_before += weights.stored_bytes() as u64;
        let file = fs::metadata(&target).map_err(ConvertError::write(&target))?;
        converted.bytes_after += file.len();
        let error = |rounding: &Option<Rounding>| rounding.as_ref().map_or(0.0, Rounding::error);
        if error(&rounding) > error(&converted.rounding) {
            converted.rounding = rounding;
        }
    }
    Ok(converted)
}

/// Writes `weights` in `format` as the file `target`.
fn write(
    weights: &Weights,
    format: DType,
    target: &Path,
    progress: &dyn Fn(usize),
    stopped: &AtomicBool,
) -> Result<Option<Rounding>, ConvertError> {
    let file = File::create_new(target).map_err(ConvertError::write(target))?;
    let mut file = BufWriter::with_capacity(1 << 20, Unless { stopped, file });
    let rounding = weights.write_as(format, &mut file, progress).map_err(|error| match error {
        vecmill_model::ConvertError::Write(error) => ConvertError::write(target)(error),
        error => error.into(),
    })?;
    let whole = file.flush().and_then(|()| file.get_ref().file.sync_all());
    whole.map_err(ConvertError::write(target))?;
    Ok(rounding)
}

/// A file that is written unless it was to stop.
struct Unless<'a> {
    stopped: &'a AtomicBool,
    file: File,
}

impl Write for Unless<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped"));
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn refuse_existing(output: &Path) -> Result<(), ConvertError> {
    match output.symlink_metadata() {
        Ok(_) => Err(ConvertError::Exists { path: output.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ConvertError::write(output)(error)),
    }
}

/// `path`, whose folder is there then.
fn create_parent(path: PathBuf) -> Result<PathBuf, ConvertError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(ConvertError::write(parent))?;
    }
    Ok(path)
}
