//! When all lanes of a run have come to the end of their ranges.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Told by the lanes of a run, awaited by one who ends it.
#[derive(Debug)]
pub(in crate::trigger) struct Completion {
    lanes_left: AtomicUsize,
    done: Notify,
}

impl Completion {
    pub(in crate::trigger) fn of(lanes: usize) -> Self {
        Self { lanes_left: AtomicUsize::new(lanes), done: Notify::new() }
    }

    /// A lane has come to its end; each says so once.
    pub(in crate::trigger) fn lane_done(&self) {
        let before = self.lanes_left.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "each lane of a run ends once");
        if before == 1 {
            self.done.notify_one();
        }
    }

    /// Returns when all have.
    pub(in crate::trigger) async fn wait(&self) {
        while self.lanes_left.load(Ordering::Acquire) > 0 {
            self.done.notified().await;
        }
    }
}
