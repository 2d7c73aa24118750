//! An open loop: what is due is due, whatever became of what came before.

use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

use crate::Failure;

/// A wake-up so much late or less is this machine's timer; more is charged to the broker that held the loop up.
const TIMER_LATE_MAX: Duration = Duration::from_micros(200);

/// Moments at a fixed rate.
pub(crate) struct Pacer {
    begun: Instant,
    rate: u32,
}

impl Pacer {
    /// Begins now, `rate` times a second. From here on this thread's timers are not gathered to save wake-ups (Linux
    /// lets them be 50 us late by default).
    pub(crate) fn start(rate: u32) -> Result<Self, Failure> {
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        Ok(Self { begun: Instant::now(), rate })
    }

    /// What the moments count from.
    pub(crate) const fn begun(&self) -> Instant {
        self.begun
    }

    /// Waits for moment `n`; answers when it counts from, since the beginning.
    pub(crate) fn wait_for(&self, n: u32) -> Duration {
        let due = Duration::from_nanos(u64::from(n) * 1_000_000_000 / u64::from(self.rate));
        if let Some(early) = due.checked_sub(self.begun.elapsed()) {
            thread::sleep(early);
        }
        let now = self.begun.elapsed();
        if now.saturating_sub(due) > TIMER_LATE_MAX { due } else { now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_come_in_order_and_what_is_late_counts_from_when_it_was_due() {
        let pacer = Pacer::start(1_000).unwrap();
        assert!(pacer.wait_for(1) >= Duration::from_millis(1));
        thread::sleep(Duration::from_millis(10));
        assert_eq!(pacer.wait_for(2), Duration::from_millis(2));
    }
}
