//! Holding a stream's work back until all of it is enqueued, to measure the device and not how fast
//! the host enqueues.

use std::ffi::c_void;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::DriverError;
use super::{Stream, check};

/// After this time work goes on in any case: whoever waits for the device while holding it back
/// gets wrong figures, and not a program that stands still.
const LIMIT: Duration = Duration::from_millis(200);

/// Holds work back until it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    _open: Sender<()>,
}

/// Waits until the other end is dropped. The driver calls it on a thread of its own.
unsafe extern "C" fn wait(closed: *mut c_void) {
    // SAFETY: the address of a box that `Stream::hold` gave away for one call of this function.
    let closed = unsafe { Box::from_raw(closed.cast::<Receiver<()>>()) };
    let _ = closed.recv_timeout(LIMIT);
}

impl Stream {
    /// Holds back what is enqueued from now on, while the returned value lives, but for at most a
    /// fifth of a second.
    pub(crate) fn hold(&self) -> Result<Hold, DriverError> {
        let api = self.context().bind()?;
        let (_open, closed) = channel::<()>();
        let closed = Box::into_raw(Box::new(closed));
        // SAFETY: the stream is live. On success the driver calls `wait` once, behind the work so
        // far, or never if the device is lost: then the box is lost, too.
        let result = unsafe { (api.host_launch)(self.handle(), wait, closed.cast()) };
        if let Err(error) = check("cuLaunchHostFunc", result) {
            // SAFETY: made above, and refused: nobody else has it.
            drop(unsafe { Box::from_raw(closed) });
            return Err(error);
        }
        Ok(Hold { _open })
    }
}
