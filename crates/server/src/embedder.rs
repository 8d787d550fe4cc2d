//! What the server needs of an engine.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use vecmill_engine::{
    DeviceState, DeviceStatistics, Engine, Info, MemoryStatistics, Recording, Reply, Request,
    RequestError, TokenizeRequest, Tokenized,
};

/// The future of a reply. Dropping it gives the request up.
pub type ReplyFuture = Pin<Box<dyn Future<Output = Result<Reply, RequestError>> + Send>>;

/// The future of tokens. Dropping it ends the work.
pub type TokenizedFuture = Pin<Box<dyn Future<Output = Result<Tokenized, RequestError>> + Send>>;

/// Something that turns texts into vectors: an [`Engine`], or a stand-in for one in tests.
pub trait Embedder: Send + Sync + 'static {
    /// Embeds the inputs.
    fn embed(&self, request: Request) -> ReplyFuture;

    /// Tokenises without truncation.
    fn tokenize(&self, request: TokenizeRequest) -> TokenizedFuture;

    /// About the model and its limits.
    fn info(&self) -> &Info;

    /// Whether requests would be accepted now, as far as that is not their own doing. Does not block.
    ///
    /// # Errors
    /// [`RequestError`]: what each of them would hear.
    fn readiness(&self) -> Result<(), RequestError>;

    /// Appends metrics in OpenMetrics text format, without the closing `# EOF`. This and the next three
    /// may take a while; never called on an async thread.
    ///
    /// # Errors
    /// [`fmt::Error`] when a metric can't be written.
    fn write_metrics(&self, out: &mut String) -> fmt::Result;

    /// The state of each device's memory, by the device's name.
    fn memory(&self) -> Vec<(String, MemoryStatistics)>;

    /// Gives unused memory back now; says how many bytes each device gave.
    fn trim_memory(&self) -> Vec<(String, usize)>;

    /// The leases that each device remembers.
    fn memory_trace(&self) -> Vec<(String, Recording)>;

    /// How each device stands with the scheduler.
    fn scheduling(&self) -> Vec<(String, DeviceStatistics)>;

    /// What devices say of themselves, those that do.
    fn device_states(&self) -> Vec<(String, DeviceState)>;

    /// Has a device finish what it has begun and gives it nothing more; `false` if there is none of
    /// that name.
    fn drain(&self, device: &str) -> bool;

    /// Gives a device work again; `false` if there is none of that name.
    fn restore(&self, device: &str) -> bool;
}

impl Embedder for Engine {
    fn embed(&self, request: Request) -> ReplyFuture {
        Box::pin(Self::embed(self, request))
    }

    fn tokenize(&self, request: TokenizeRequest) -> TokenizedFuture {
        Box::pin(Self::tokenize(self, request))
    }

    fn info(&self) -> &Info {
        Self::info(self)
    }

    fn readiness(&self) -> Result<(), RequestError> {
        Self::readiness(self)
    }

    fn write_metrics(&self, out: &mut String) -> fmt::Result {
        Self::write_metrics(self, out)
    }

    fn memory(&self) -> Vec<(String, MemoryStatistics)> {
        Self::memory(self)
    }

    fn trim_memory(&self) -> Vec<(String, usize)> {
        Self::trim_memory(self)
    }

    fn memory_trace(&self) -> Vec<(String, Recording)> {
        Self::memory_trace(self)
    }

    fn scheduling(&self) -> Vec<(String, DeviceStatistics)> {
        Self::scheduling(self)
    }

    fn device_states(&self) -> Vec<(String, DeviceState)> {
        Self::device_states(self)
    }

    fn drain(&self, device: &str) -> bool {
        Self::drain(self, device)
    }

    fn restore(&self, device: &str) -> bool {
        Self::restore(self, device)
    }
}
