//! What has happened on a connection, as its parts have to know: the stream below hyper, the exchanges
//! above it, and the task that drives both.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::app::App;

/// What has happened on a connection.
#[derive(Debug)]
pub(super) struct Talk {
    pub(super) app: Arc<App>,
    /// Requests whose head was read.
    begun: AtomicUsize,
    /// Those of them whose reply is not written yet.
    open: AtomicUsize,
    /// Part of a head was read.
    head_begun: AtomicBool,
    /// A request was answered whose body was not read to its end.
    unread: AtomicBool,
    next: Notify,
}

impl Talk {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self {
            app,
            begun: 0.into(),
            open: 0.into(),
            head_begun: false.into(),
            unread: false.into(),
            next: Notify::new(),
        }
    }

    /// The number of the current request, or of the last one.
    pub(super) fn number(&self) -> usize {
        self.begun.load(Ordering::Acquire)
    }

    /// Whether a request is being answered.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    /// Whether the client has its reply and has sent nothing more.
    pub(super) fn is_idle(&self) -> bool {
        self.number() > 0 && !self.is_open() && !self.head_begun.load(Ordering::Acquire)
    }

    /// Whether the client may be sending what nobody reads.
    pub(super) fn has_unread(&self) -> bool {
        self.unread.load(Ordering::Acquire) || self.head_begun.load(Ordering::Acquire)
    }

    /// Notes that a request is answered whose body was not read to its end.
    pub(super) fn leaves_unread(&self) {
        self.unread.store(true, Ordering::Release);
    }

    /// Notes that bytes have come.
    pub(super) fn received(&self) {
        if !self.is_open() {
            self.head_begun.store(true, Ordering::Release);
        }
    }

    /// Notes that the client took its reply too slowly.
    pub(super) fn reader_was_slow(&self) {
        self.app.metrics.slow_reader();
    }

    /// Returns when the request after that of this number begins.
    pub(super) async fn begins_after(&self, number: usize) {
        while self.number() == number {
            self.next.notified().await;
        }
    }

    /// A request begins: its head was read.
    pub(super) fn begin(self: &Arc<Self>) -> Exchange {
        self.head_begun.store(false, Ordering::Release);
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.open.fetch_add(1, Ordering::AcqRel);
        self.next.notify_one();
        Exchange { talk: Arc::clone(self), accepted: false.into() }
    }
}

/// A request that is being answered, until its reply is written or its connection is gone.
#[derive(Debug)]
pub(super) struct Exchange {
    talk: Arc<Talk>,
    /// The whole request has come.
    accepted: AtomicBool,
}

impl Exchange {
    /// Notes that the whole request has come: from now on it is owed its reply.
    pub(super) fn accept(&self) {
        if !self.accepted.swap(true, Ordering::AcqRel) {
            self.talk.app.accepted.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.talk.open.fetch_sub(1, Ordering::AcqRel);
        if *self.accepted.get_mut() {
            self.talk.app.accepted.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
