//! Another process that uses the same GPU without asking anybody.

use std::io::Read;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use vecmill_backend_cuda::{Gpu, PlainSource};
use vecmill_memory::Source;

use crate::Outcome;

const GIB: usize = 1 << 30;

/// Arguments of `vecmill-bench neighbour`.
#[derive(Debug, Args)]
pub(crate) struct NeighbourArguments {
    /// The GPU's number
    #[arg(long, default_value_t = 0)]
    device: usize,
}

/// The neighbour as its parent sees it; dropping it ends it.
pub(super) struct Neighbour {
    child: Child,
    input: Option<ChildStdin>,
}

/// Starts this program as a neighbour.
pub(super) fn start(device: usize) -> std::io::Result<Neighbour> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["neighbour", "--device", &device.to_string()])
        .stdin(Stdio::piped())
        .spawn()?;
    let input = child.stdin.take();
    Ok(Neighbour { child, input })
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait(); // it has ended, or never began
    }
}

/// Takes memory at random until nothing is left, gives some of it back, and starts over, until
/// standard input ends.
pub(crate) fn be_neighbour(arguments: &NeighbourArguments) -> Outcome {
    let device = Gpu::open(arguments.device)?;
    let source = PlainSource::new(&device);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Whatever ends it: the parent is gone.
            let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
            ended.store(true, Ordering::Release);
        });
        let mut random = fastrand::Rng::with_seed(11);
        let mut blocks = Vec::new();
        while !ended.load(Ordering::Acquire) {
            match source.allocate(random.usize(1..=16) * GIB / 2) {
                Ok(block) => blocks.push(block),
                // The rest of the card is taken: let go of some of it.
                Err(_) => {
                    let keep = random.usize(0..=blocks.len());
                    blocks.truncate(keep);
                }
            }
            super::wait(Duration::from_millis(random.u64(10..300)));
        }
    });
    Ok(())
}
