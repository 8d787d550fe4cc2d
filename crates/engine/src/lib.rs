//! The vecmill embedding engine as a library: text in, vectors out.
//!
//! The path of a request: [`Engine::embed`] checks it and makes room for it (`engine`), tokenising
//! threads turn text into ids (`tokenize`), the queue of `vecmill-scheduler` forms batches, a
//! device's thread runs them on its encoder (`worker`), and the last input's vector completes the
//! answer (`answer`). Several devices (`devices`) share the queue (`queue`).
//!
//! - [`Builder`] fetches models (a [`ModelRef`] names one), loads them and starts the threads.
//! - [`capacity`] says beforehand what fits a memory budget; [`convert`] writes a model in another number
//!   format.
//! - [`Request`] and [`Reply`] are what goes in and comes out; [`RequestError`] and [`StartError`]
//!   say whose fault it was.
//!
//! The choice behind it: the engine brings its own threads and none of an async runtime, so it runs
//! under any, or without.
//!
//! ```no_run
//! use vecmill_engine::{Engine, Request};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder().start()?; // all-MiniLM-L6-v2, fetched once
//! let reply = engine.embed_blocking(Request::new(["a quick brown fox", "jumps"]))?;
//! for embedding in &reply.embeddings {
//!     println!("{} tokens: {:?}", embedding.tokens, &embedding.vector[..4]);
//! }
//! # Ok(())
//! # }
//! ```

mod answer;
mod aside;
mod ask;
mod builder;
pub mod capacity;
pub mod convert;
mod devices;
mod early;
mod engine;
mod error;
mod experiment;
mod info;
pub mod machine;
mod metrics;
mod models;
mod practice;
mod queue;
mod recording;
mod request;
mod score;
mod sensors;
mod settings;
mod speed_cache;
mod stage;
mod sweep;
mod tokenize;
mod worker;

pub use builder::Builder;
pub use devices::{DeviceSpec, DeviceSpecError, inventory};
pub use engine::Engine;
pub use error::{Fault, RequestError, StartError};
pub use info::{DeviceSummary, Info, Task};
pub use models::{ModelState, ModelStatus};
pub use request::{Embedding, Input, Keep, Priority, Prompt, Reply, Request, Timings, Truncation};
pub use score::{Score, ScoreInput, ScoreReply, ScoreRequest};
pub use settings::MemoryBudget;
pub use stage::Stage;
pub use tokenize::{TOKENS_LIMIT, Token, TokenizeRequest, Tokenized, Tokenizer};
pub use vecmill_backend_cuda::{GpuState, MemoryUse, Throttling, XidErrors};
pub use vecmill_hub::{Attempt, FetchError, ModelRef};
pub use vecmill_memory::recording::Recording;
pub use vecmill_memory::{GiveBack, Statistics as MemoryStatistics};
pub use vecmill_model::{Pooling, ScoreActivation};
pub use vecmill_scheduler::policy::{PolicyName, UnknownPolicy};
pub use vecmill_scheduler::{Coefficients, DeviceStatistics, Health};
