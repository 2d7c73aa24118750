//! Where the time comes from: this machine, or a test.

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_listener::Event;
use parking_lot::Mutex;

use super::planner::Reading;
use crate::broker;

/// A wall clock and a monotonic clock.
#[derive(Clone, Debug)]
pub enum Clock {
    /// Those of this machine; monotonic time counts from the instant.
    System(Instant),
    /// Those that a test sets.
    Manual(ManualClock),
}

impl Default for Clock {
    fn default() -> Self {
        Self::System(Instant::now())
    }
}

impl Clock {
    /// Both clocks now.
    #[must_use]
    pub fn read(&self) -> Reading {
        match self {
            Self::System(started) => Reading {
                wall_ms: broker::now_ms(),
                monotonic_ms: i64::try_from(started.elapsed().as_millis()).unwrap_or(i64::MAX),
            },
            Self::Manual(clock) => *clock.inner.now.lock(),
        }
    }

    /// Waits until `wait_ms` after `since`, or until a test has set the clock.
    pub(super) async fn wait(&self, since: Reading, wait_ms: u64) {
        match self {
            Self::System(_) => tokio::time::sleep(Duration::from_millis(wait_ms)).await,
            Self::Manual(clock) => clock.changed(since).await,
        }
    }
}

/// Clocks that stand still until a test sets them.
#[derive(Clone, Debug)]
pub struct ManualClock {
    inner: Arc<Hands>,
}

#[derive(Debug)]
struct Hands {
    now: Mutex<Reading>,
    moved: Event,
}

impl ManualClock {
    /// A wall clock at `wall_ms` since 1970.
    #[must_use]
    pub fn new(wall_ms: i64) -> Self {
        let now = Mutex::new(Reading { wall_ms, monotonic_ms: 0 });
        Self { inner: Arc::new(Hands { now, moved: Event::new() }) }
    }

    /// Both clocks go on by `passed_ms`.
    pub fn pass(&self, passed_ms: i64) {
        self.set(passed_ms, passed_ms);
    }

    /// The wall clock jumps, forward or back.
    pub fn jump(&self, jump_ms: i64) {
        self.set(jump_ms, 0);
    }

    fn set(&self, wall_ms: i64, monotonic_ms: i64) {
        {
            let mut now = self.inner.now.lock();
            now.wall_ms += wall_ms;
            now.monotonic_ms += monotonic_ms;
        }
        self.inner.moved.notify(usize::MAX);
    }

    async fn changed(&self, since: Reading) {
        loop {
            let moved = self.inner.moved.listen();
            if *self.inner.now.lock() != since {
                return;
            }
            moved.await;
        }
    }
}
