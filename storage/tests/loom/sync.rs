//! `src/sync.rs` on loom's atomics, with an event of its own.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use loom::sync::{Arc, Mutex};

pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The contract of `event_listener::Event` and no more: a notification reaches those that listened before it, and
/// whoever listens after it sees what was written before it. The crate has fences for that, this has a lock.
#[derive(Debug, Default)]
pub(crate) struct Event(Arc<Mutex<Notified>>);

#[derive(Debug, Default)]
struct Notified {
    times: u64,
    wakers: Vec<Waker>,
}

impl Event {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn notify(&self, count: usize) {
        assert_eq!(count, usize::MAX, "all are woken");
        let mut notified = self.0.lock().unwrap();
        notified.times += 1;
        let wakers = std::mem::take(&mut notified.wakers);
        drop(notified);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn listen(&self) -> EventListener {
        let since = self.0.lock().unwrap().times;
        EventListener { event: Arc::clone(&self.0), since }
    }
}

#[derive(Debug)]
pub(crate) struct EventListener {
    event: Arc<Mutex<Notified>>,
    since: u64,
}

impl Future for EventListener {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut notified = self.event.lock().unwrap();
        if notified.times > self.since {
            return Poll::Ready(());
        }
        notified.wakers.push(context.waker().clone());
        Poll::Pending
    }
}
