//! What is metered per function.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::outcome::ErrorClass;

/// Upper bounds of the buckets of every duration, in milliseconds; one more bucket holds the rest.
pub const DURATION_BOUNDS_MS: [u64; 15] =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000];

const CLASSES: [ErrorClass; 7] = [
    ErrorClass::Failed,
    ErrorClass::Rejected,
    ErrorClass::Throttled,
    ErrorClass::Unavailable,
    ErrorClass::BrokenCode,
    ErrorClass::Crashed,
    ErrorClass::Interrupted,
];

/// How often something took how long.
#[derive(Debug, Default)]
pub(super) struct Durations {
    buckets: [AtomicU64; DURATION_BOUNDS_MS.len() + 1],
    sum_us: AtomicU64,
}

/// The state of a duration at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DurationsSnapshot {
    /// Observations per bucket of [`DURATION_BOUNDS_MS`], the last one for all that took longer.
    pub buckets: [u64; DURATION_BOUNDS_MS.len() + 1],
    /// All observations together, in microseconds.
    pub sum_us: u64,
}

impl DurationsSnapshot {
    /// The number of observations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl Durations {
    pub(super) fn observe(&self, duration: Duration) {
        let bucket = DURATION_BOUNDS_MS.partition_point(|&bound| Duration::from_millis(bound) < duration);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    fn snapshot(&self) -> DurationsSnapshot {
        DurationsSnapshot {
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].load(Relaxed)),
            sum_us: self.sum_us.load(Relaxed),
        }
    }
}

/// The counters of one function; they start at zero with the broker.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) succeeded: AtomicU64,
    errors: [AtomicU64; CLASSES.len()],
    pub(super) run: Durations,
    pub(super) queue_wait: Durations,
    pub(super) cold_start: Durations,
    pub(super) initializer: Durations,
    pub(super) starts_failed: AtomicU64,
}

/// The counters of one function at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Invocations that succeeded.
    pub succeeded: u64,
    /// Invocations that did not, per class in the order of [`StatsSnapshot::errors_by_class`].
    errors: [u64; CLASSES.len()],
    /// From the hand-over to an instance (or the start of the request) to the outcome.
    pub run: DurationsSnapshot,
    /// From the call to the hand-over.
    pub queue_wait: DurationsSnapshot,
    /// From the decision to start an instance until its initializer returned; its count is the number of cold starts.
    pub cold_start: DurationsSnapshot,
    /// The initializer alone.
    pub initializer: DurationsSnapshot,
    /// Starts that came to nothing.
    pub starts_failed: u64,
}

impl StatsSnapshot {
    /// How many invocations ended with an error of each class.
    pub fn errors_by_class(&self) -> impl Iterator<Item = (ErrorClass, u64)> {
        CLASSES.into_iter().zip(self.errors)
    }

    /// Invocations with an outcome.
    #[must_use]
    pub fn invocations(&self) -> u64 {
        self.succeeded + self.errors.iter().sum::<u64>()
    }
}

impl Stats {
    /// Counts an outcome.
    pub(super) fn count(&self, error: Option<ErrorClass>) {
        match error {
            None => &self.succeeded,
            Some(class) => &self.errors[class as usize],
        }
        .fetch_add(1, Relaxed);
    }

    pub(super) fn snapshot(&self) -> StatsSnapshot {
        StatsSnapshot {
            succeeded: self.succeeded.load(Relaxed),
            errors: std::array::from_fn(|class| self.errors[class].load(Relaxed)),
            run: self.run.snapshot(),
            queue_wait: self.queue_wait.snapshot(),
            cold_start: self.cold_start.snapshot(),
            initializer: self.initializer.snapshot(),
            starts_failed: self.starts_failed.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_own_counter() {
        let stats = Stats::default();
        for (times, class) in CLASSES.into_iter().enumerate() {
            (0..=times).for_each(|_| stats.count(Some(class)));
        }
        stats.count(None);
        let snapshot = stats.snapshot();
        let counts: Vec<_> = snapshot.errors_by_class().collect();
        assert_eq!(counts, CLASSES.into_iter().zip(1..).collect::<Vec<_>>());
        assert_eq!(snapshot.invocations(), 1 + (1..=7).sum::<u64>());
    }

    #[test]
    fn a_duration_falls_into_the_bucket_that_bounds_it() {
        let durations = Durations::default();
        for ms in [0, 1, 2, 3, 60_000, 60_001] {
            durations.observe(Duration::from_millis(ms));
        }
        let snapshot = durations.snapshot();
        assert_eq!(snapshot.buckets[..3], [2, 1, 1]);
        assert_eq!(snapshot.buckets[14..], [1, 1]);
        assert_eq!((snapshot.count(), snapshot.sum_us), (6, 120_007_000));
    }
}
