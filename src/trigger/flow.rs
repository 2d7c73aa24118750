//! What holds invocations back although records are there.

use std::time::Duration;

/// What is held back per key; only in order `key`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerKey {
    /// At most so many attempts in a period; the rest waits.
    pub throttle: Option<Throttle>,
    /// Only the last record counts once a key has been quiet for a while.
    pub debounce: Option<Debounce>,
    /// What happens to records that come while their key is busy.
    pub singleton: Option<Singleton>,
}

/// At most `limit` attempts of one key begin within a period; of a limit above 16, some wait up to a sixteenth of the
/// period longer than they must. Counted from the start of the broker; with more than 65,536 keys of a partition in a
/// period, those that began longest ago count anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// 1–1,000.
    pub limit: u32,
    /// 1 ms–24 h, in milliseconds.
    pub period_ms: i64,
}

/// A key's newest record is delivered when none has followed it for `period_ms`, and at the latest `max_ms` after the
/// first; the others of that time are dropped, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Debounce {
    /// 1 ms–1 h, in milliseconds.
    pub period_ms: i64,
    /// From `period_ms` to 24 h, in milliseconds.
    pub max_ms: i64,
}

/// One record of a key at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Singleton {
    /// What comes while the key is busy is dropped, counted.
    Skip,
}

/// How many invocations may begin in a second, as a token bucket that holds one second's worth.
#[derive(Clone, Debug)]
pub struct RateLimit {
    per_second: u32,
    /// When the bucket was last empty, as if it filled from there; in nanoseconds of any fixed start.
    filled_from_ns: u128,
}

const SECOND_NS: u128 = 1_000_000_000;

impl RateLimit {
    /// A full bucket. `per_second` is at least 1.
    #[must_use]
    pub const fn new(per_second: u32) -> Self {
        Self { per_second, filled_from_ns: 0 }
    }

    /// Takes a token at `now`, or says how long until there is one.
    ///
    /// # Errors
    /// The time until the next token.
    pub fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let now_ns = now.as_nanos();
        let token_ns = SECOND_NS / u128::from(self.per_second.max(1));
        let filled_from_ns = self.filled_from_ns.max(now_ns.saturating_sub(SECOND_NS));
        let with_one_less = filled_from_ns + token_ns;
        if with_one_less > now_ns {
            let wait_ns = u64::try_from(with_one_less - now_ns).unwrap_or(u64::MAX);
            return Err(Duration::from_nanos(wait_ns));
        }
        self.filled_from_ns = with_one_less;
        Ok(())
    }
}

impl RateLimit {
    /// How long until something may be taken; `None` when it may be now.
    #[must_use]
    pub fn wait(&self, now: Duration) -> Option<Duration> {
        let mut next = self.clone();
        next.take(now).err()
    }

    /// Takes so many tokens at once, also more than there are: the next waits until they have come.
    pub fn spend(&mut self, tokens: u32, now: Duration) {
        let token_ns = SECOND_NS / u128::from(self.per_second.max(1));
        let filled_from_ns = self.filled_from_ns.max(now.as_nanos().saturating_sub(SECOND_NS));
        self.filled_from_ns = filled_from_ns + token_ns * u128::from(tokens);
    }
}

/// How many records a window takes when its size adapts: more while the target keeps up, half when it asks to slow
/// down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdaptiveCount {
    count: u32,
    max: u32,
    latency: Duration,
}

impl AdaptiveCount {
    /// Starts at an eighth of `max`, for attempts that should take at most `latency`.
    #[must_use]
    pub fn new(max: u32, latency: Duration) -> Self {
        Self { count: (max / 8).max(1), max, latency }
    }

    /// Records in the next window at most.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// An attempt on `records` succeeded in `took`. Only a full window says something about a larger one.
    pub fn succeeded(&mut self, records: u32, took: Duration) {
        if took > self.latency {
            self.count = (self.count - self.count / 4).max(1);
        } else if records >= self.count {
            self.count = self.count.saturating_add((self.count / 4).max(1)).min(self.max);
        }
    }

    /// The target asked to slow down, or ran out of time.
    pub fn throttled(&mut self) {
        self.count = (self.count / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_lets_a_second_pass_at_once_and_then_one_at_a_time() {
        let mut rate = RateLimit::new(4);
        let at = |ms: u64| Duration::from_millis(10_000 + ms);
        for _ in 0..4 {
            assert_eq!(rate.take(at(0)), Ok(()));
        }
        assert_eq!(rate.take(at(0)), Err(Duration::from_millis(250)));
        assert_eq!(rate.take(at(249)), Err(Duration::from_millis(1)));
        assert_eq!(rate.take(at(250)), Ok(()));
        assert_eq!(rate.take(at(250)), Err(Duration::from_millis(250)));
        // Idle time fills it again, to one second's worth and not more.
        assert_eq!((0..9).filter(|_| rate.take(at(60_000)).is_ok()).count(), 4);
    }

    #[test]
    fn what_was_spent_at_once_is_waited_for_afterwards() {
        let mut rate = RateLimit::new(10);
        let at = |ms: u64| Duration::from_millis(10_000 + ms);
        rate.spend(25, at(0));
        assert_eq!(rate.wait(at(0)), Some(Duration::from_millis(1_600)), "ten were there, and one must be");
        assert_eq!(rate.wait(at(1_599)), Some(Duration::from_millis(1)));
        assert_eq!(rate.wait(at(1_600)), None);
        rate.spend(1, at(1_600));
        assert_eq!(rate.wait(at(1_600)), Some(Duration::from_millis(100)));
    }

    #[test]
    fn a_window_grows_while_full_ones_are_quick_and_halves_when_the_target_asks() {
        let mut adaptive = AdaptiveCount::new(100, Duration::from_millis(500));
        let quick = Duration::from_millis(1);
        assert_eq!(adaptive.count(), 12);
        adaptive.succeeded(11, quick);
        assert_eq!(adaptive.count(), 12, "a window that was not full says nothing");
        adaptive.succeeded(12, quick);
        assert_eq!(adaptive.count(), 15);
        (0..20).for_each(|_| adaptive.succeeded(100, quick));
        assert_eq!(adaptive.count(), 100);
        adaptive.throttled();
        assert_eq!(adaptive.count(), 50);
        adaptive.succeeded(50, Duration::from_millis(501));
        assert_eq!(adaptive.count(), 38);
        (0..20).for_each(|_| adaptive.throttled());
        assert_eq!(adaptive.count(), 1);
        adaptive.succeeded(1, quick);
        assert_eq!(adaptive.count(), 2);
    }
}
