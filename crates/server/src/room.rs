//! The memory that requests hold, counted against one limit.
//!
//! [`RequestMemory`] is the limit. Each request has a [`Room`], which holds as much of it as the
//! request makes the server hold: of a body the bytes that have arrived, then what its work may
//! take at most (as its contract says, and [`PER_INPUT`]), then its reply. Whatever works for the
//! request keeps a clone of the room, the bytes of its reply too; the last one to go gives the memory
//! back. So a slow reader's reply counts until it is written, and so does what a client that left has
//! begun.
//!
//! The choice behind it: room is taken before the memory is, and a request that gets none is
//! refused at once. Nothing waits for room while it holds some, so nothing waits for ever.
//! `docs/requests.md` says how the factors were measured.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{FromRequestParts, MatchedPath};
use axum::http::request::Parts;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::Failure;
use crate::{Settings, TokenInputs};

/// Bytes that one byte of a body holds at most, beside the rest, where ids stand for text: bytes of
/// text that one byte of ids stands for, with room to grow it. All of it together is no more than two
/// bodies.
const PER_BYTE_OF_IDS: usize = 44;

/// Bytes that each input holds beside its text and its vector: its place in the request, in the
/// queue, in a batch and in the reply.
pub(crate) const PER_INPUT: usize = 1024;

/// What a connection may hold by itself: its state, and buffers for a head, for the next part of a
/// body, and for a reply of [`SMALL_REPLY`].
pub(crate) const PER_CONNECTION: usize = 96 << 10;

/// Replies up to here are covered by their connection's share.
const SMALL_REPLY: usize = 4 << 10;

/// The part of the memory that connections may take, as a divisor.
const CONNECTIONS_PART: usize = 2;

/// The part of what requests may hold that is kept for what looks after the server, such as
/// `/metrics`, as a divisor.
const WATCHING_PART: usize = 16;

/// The limit on what requests hold together.
#[derive(Debug)]
pub(crate) struct RequestMemory {
    limit: usize,
    connections: usize,
    held: AtomicUsize,
    peak: AtomicUsize,
    /// One permit for each request that may be at work, of so many.
    places: Arc<Semaphore>,
    most_at_work: usize,
    /// The most bytes of text that the ids of one request may stand for while it is read.
    decoded: usize,
}

impl RequestMemory {
    /// Shares out what the settings give between connections and requests.
    pub(crate) fn new(settings: &Settings) -> Self {
        let limit = settings.max_request_memory;
        let share = limit / CONNECTIONS_PART / PER_CONNECTION;
        // More permits than a semaphore has would be no limit at all.
        let places = settings.max_concurrent_requests.min(Semaphore::MAX_PERMITS);
        let decoded = match settings.token_inputs {
            TokenInputs::Cl100kBase => settings.payload_limit.saturating_mul(2),
            TokenInputs::Model | TokenInputs::Refuse => 0,
        };
        Self {
            limit,
            connections: settings.max_connections.min(share.max(1)),
            held: 0.into(),
            peak: 0.into(),
            places: Arc::new(Semaphore::new(places)),
            most_at_work: settings.max_concurrent_requests,
            decoded,
        }
    }

    /// The most connections for which there is memory.
    pub(crate) fn connections(&self) -> usize {
        self.connections
    }

    /// The most that requests may hold together, in bytes.
    pub(crate) fn for_requests(&self) -> usize {
        self.limit.saturating_sub(self.connections * PER_CONNECTION)
    }

    /// The most that requests for work may hold together, in bytes.
    fn for_work(&self) -> usize {
        self.for_requests() - self.for_requests() / WATCHING_PART
    }

    /// Bytes that requests hold now.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The most that they held at one time.
    pub(crate) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Takes `bytes`, unless that would make more than `most`.
    fn take(&self, bytes: usize, most: usize) -> bool {
        let fits = |held: usize| held.checked_add(bytes).filter(|&sum| sum <= most);
        let taken = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        if let Ok(before) = taken {
            self.peak.fetch_max(before + bytes, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What one request holds; see the module. Clones are of the same room.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    held: Arc<Held>,
    /// The place among those that are at work, once it has one.
    place: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

#[derive(Debug)]
struct Held {
    memory: Arc<RequestMemory>,
    /// The most that all requests of this one's kind may hold together.
    most: usize,
    bytes: AtomicUsize,
}

impl Room {
    /// An empty one, for a request to `route`.
    pub(crate) fn new(memory: &Arc<RequestMemory>, route: Option<&MatchedPath>) -> Self {
        let route = route.map_or("", MatchedPath::as_str);
        let watching = route == "/metrics" || route.starts_with("/admin/");
        let held = Held {
            memory: Arc::clone(memory),
            most: if watching { memory.for_requests() } else { memory.for_work() },
            bytes: 0.into(),
        };
        Self { held: Arc::new(held), place: Arc::default() }
    }

    /// Keeps the memory counted, without the place: for who works on it unseen.
    pub(crate) fn memory(&self) -> impl Send + Sync + use<> {
        Arc::clone(&self.held)
    }

    /// Holds `bytes` in all, if it holds less now.
    ///
    /// # Errors
    /// [`Failure::MemoryTaken`] when others hold too much, [`Failure::TooMuchMemory`] when it would
    /// not fit even alone.
    pub(crate) fn hold(&self, bytes: usize) -> Result<(), Failure> {
        let now = self.held.bytes.load(Ordering::Relaxed);
        self.hold_more(bytes.saturating_sub(now))
    }

    /// Holds `bytes` beside what it holds already.
    ///
    /// # Errors
    /// As for [`hold`](Self::hold).
    pub(crate) fn hold_more(&self, bytes: usize) -> Result<(), Failure> {
        let held = &self.held;
        if held.memory.take(bytes, held.most) {
            held.bytes.fetch_add(bytes, Ordering::Relaxed);
            return Ok(());
        }
        let needed = held.bytes.load(Ordering::Relaxed).saturating_add(bytes);
        Err(if needed > held.most {
            Failure::TooMuchMemory { needed, limit: held.most }
        } else {
            Failure::MemoryTaken
        })
    }

    /// Admits the request to work, once its body of `body` bytes is there: takes a place, and what
    /// the work may hold, `per_byte` for each byte of the body.
    ///
    /// # Errors
    /// As for [`hold`](Self::hold); [`Failure::AtCapacity`] when all places are taken.
    pub(crate) fn admit(&self, body: usize, per_byte: usize) -> Result<(), Failure> {
        let memory = &self.held.memory;
        let permit = Arc::clone(&memory.places).try_acquire_owned();
        let permit = permit.map_err(|_| Failure::AtCapacity { limit: memory.most_at_work })?;
        let decoded = body.saturating_mul(PER_BYTE_OF_IDS).min(memory.decoded);
        self.hold(body.saturating_mul(per_byte).saturating_add(decoded))?;
        *self.place() = Some(permit);
        Ok(())
    }

    /// Holds what a reply of `bytes` takes, in place of everything else. A reply that its connection
    /// has memory for keeps no place either.
    ///
    /// # Errors
    /// As for [`hold`](Self::hold); never for a reply that takes no more than was held.
    pub(crate) fn settle(&self, bytes: usize) -> Result<(), Failure> {
        let wanted = if bytes > SMALL_REPLY { bytes } else { 0 };
        self.hold(wanted)?;
        let before = self.held.bytes.swap(wanted, Ordering::Relaxed);
        self.held.memory.give_back(before - wanted);
        if wanted == 0 {
            *self.place() = None;
        }
        Ok(())
    }

    fn place(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.give_back(*self.bytes.get_mut());
    }
}

/// A handler gets the room of its request, which [`account`](crate::routes) made.
impl<S: Sync> FromRequestParts<S> for Room {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        parts.extensions.get().cloned().ok_or(Failure::Internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(limit: usize, max_connections: usize) -> Arc<RequestMemory> {
        let settings =
            Settings { max_request_memory: limit, max_connections, ..Settings::default() };
        Arc::new(RequestMemory::new(&settings))
    }

    #[test]
    fn what_is_held_is_given_back_by_the_last_clone() {
        let memory = memory(64 << 20, 8192);
        let room = Room::new(&memory, None);
        room.hold(1000).unwrap();
        room.hold(800).unwrap(); // it has that much
        room.hold_more(24).unwrap();
        let reply = room.clone();
        drop(room);
        assert_eq!(memory.held(), 1024);
        reply.settle(SMALL_REPLY + 1).unwrap();
        assert_eq!(memory.held(), SMALL_REPLY + 1);
        reply.settle(SMALL_REPLY).unwrap();
        assert_eq!(memory.held(), 0);
        reply.hold(7).unwrap();
        drop(reply);
        assert_eq!((memory.held(), memory.peak()), (0, SMALL_REPLY + 1));
    }

    #[test]
    fn what_others_hold_is_busy_and_what_never_fits_is_too_much() {
        let memory = memory(64 << 20, 8192);
        let most = memory.for_work();
        let (one, other) = (Room::new(&memory, None), Room::new(&memory, None));
        one.hold(most - 9).unwrap();
        assert_eq!(other.hold(10), Err(Failure::MemoryTaken));
        other.hold(9).unwrap();
        let needed = most + 1;
        assert_eq!(one.hold(needed), Err(Failure::TooMuchMemory { needed, limit: most }));
        let endless = Err(Failure::TooMuchMemory { needed: usize::MAX, limit: most });
        assert_eq!(one.hold_more(usize::MAX), endless);
        drop(one);
        other.hold(10).unwrap();
        assert_eq!(memory.held(), 10);
    }

    #[test]
    fn connections_take_a_part_and_watching_has_one_of_its_own() {
        let shared = memory(1 << 30, 8192);
        assert_eq!(shared.connections(), 5461);
        assert!(shared.for_work() < shared.for_requests());
        assert!(shared.for_requests() + shared.connections() * PER_CONNECTION <= 1 << 30);
        assert_eq!(memory(1 << 30, 100).connections(), 100);
        assert_eq!(memory(1, 100).connections(), 1);
        assert_eq!(memory(1, 100).for_requests(), 0);
    }

    #[test]
    fn a_place_is_taken_with_the_body_and_not_before() {
        let settings = Settings { max_concurrent_requests: 1, ..Settings::default() };
        let memory = Arc::new(RequestMemory::new(&settings));
        let (one, other) = (Room::new(&memory, None), Room::new(&memory, None));
        one.hold(1).unwrap();
        other.hold(1).unwrap();
        one.admit(100, 5).unwrap();
        assert_eq!(other.admit(100, 5), Err(Failure::AtCapacity { limit: 1 }));
        assert_eq!(memory.held(), 100 * 5 + 1);
        let (reply, unseen) = (one.clone(), one.memory());
        drop(one);
        assert_eq!(other.admit(100, 5), Err(Failure::AtCapacity { limit: 1 }));
        // Who works unseen keeps the memory, not the place.
        drop(reply);
        other.admit(100, 5).unwrap();
        assert_eq!(memory.held(), 2 * 100 * 5);
        drop(unseen);
        assert_eq!(memory.held(), 100 * 5);
        // Nor does a small reply keep either.
        other.settle(SMALL_REPLY).unwrap();
        assert_eq!(memory.held(), 0);
        Room::new(&memory, None).admit(1, 5).unwrap();
    }
}
