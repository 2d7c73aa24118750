//! What threads tell each other without a lock: how far a log has come, and who flushes it next.
//!
//! `tests/loom` runs this very file under loom, in every order in which its steps can be seen.

use crate::sync::{AtomicBool, AtomicU64, Event, EventListener, Ordering};

/// How far something has come: a published length, a tail, a flushed offset. Moved by one thread at a time; whoever
/// sees it sees all that was written before it was moved.
#[derive(Debug)]
pub(crate) struct Published(AtomicU64);

impl Published {
    pub(crate) fn new(at: u64) -> Self {
        Self(AtomicU64::new(at))
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Moves it. The caller holds the lock under which it is moved.
    pub(crate) fn move_to(&self, at: u64) {
        assert!(at >= self.0.load(Ordering::Relaxed), "S1, S2: what is published only grows");
        self.0.store(at, Ordering::Release);
    }
}

/// A place in a queue that its owner has once or not at all.
#[derive(Debug)]
struct Turn(AtomicBool);

impl Turn {
    fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Whether the caller has to queue the owner. Otherwise somebody has, and what the caller wrote before this is seen
    /// after the [`Turn::begin`] that follows.
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// The owner has come to the head of the queue, and begins: whoever wants another turn has to queue it again. A
    /// swap and not a store, which would neither see what came before a `take` that answered false nor stay before the
    /// look that follows.
    fn begin(&self) {
        self.0.swap(false, Ordering::AcqRel);
    }
}

/// How far a partition is flushed, whether it waits to be, and who waits for that.
#[derive(Debug)]
pub(crate) struct FlushProgress {
    flushed: Published,
    soon: Turn,
    interval: Turn,
    ended: Event,
}

impl FlushProgress {
    pub(crate) fn new(flushed: u64) -> Self {
        Self { flushed: Published::new(flushed), soon: Turn::new(), interval: Turn::new(), ended: Event::new() }
    }

    /// All below is on stable storage.
    pub(crate) fn flushed(&self) -> u64 {
        self.flushed.get()
    }

    /// A flush came so far. The caller holds the flush lock.
    pub(crate) fn reach(&self, flushed: u64) {
        self.flushed.move_to(flushed);
        self.notify();
    }

    /// Wakes all that wait: the flushed offset has moved, or never will.
    pub(crate) fn notify(&self) {
        self.ended.notify(usize::MAX);
    }

    /// Notified when a flush ended. Listen first, look then, wait last.
    pub(crate) fn listen(&self) -> EventListener {
        self.ended.listen()
    }

    /// Somebody wants a flush: whether the caller has to queue the partition for one.
    pub(crate) fn ask(&self) -> bool {
        self.soon.take()
    }

    /// A flush thread has taken the partition from the queue, and it is its turn to flush: who asks before rides along,
    /// and takes no further thread. It looks at the tail after this: what is appended later and not seen by it asks
    /// again.
    pub(crate) fn begin(&self) {
        self.soon.begin();
    }

    /// Something was appended: whether the caller has to start the flush interval.
    pub(crate) fn ask_interval(&self) -> bool {
        self.interval.take()
    }

    /// The flush interval has passed: whether there is something to flush and the caller has to queue the partition.
    pub(crate) fn interval_over(&self, tail: impl FnOnce() -> u64) -> bool {
        self.interval.begin();
        self.flushed() < tail() && self.ask()
    }

    /// Waits until all below `offset` is flushed, or `check` fails. `ask` sees to it that a flush comes.
    pub(crate) async fn wait<E>(
        &self,
        offset: u64,
        ask: impl Fn(),
        check: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            if self.flushed() >= offset {
                return Ok(());
            }
            let listener = self.listen();
            ask();
            // Looked at between listening and waiting: an end in between is not missed.
            if self.flushed() >= offset {
                return Ok(());
            }
            check()?;
            listener.await;
        }
    }
}
