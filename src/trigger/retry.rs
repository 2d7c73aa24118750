//! When a failed attempt is made again, and when no more.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Retries of [`RetryPolicy::BackoffRetry`].
pub const BACKOFF_RETRIES: u32 = 3;
/// The shortest and longest wait of [`RetryPolicy::BackoffRetry`], in milliseconds.
pub const BACKOFF_WAIT_MS: (u64, u64) = (10_000, 20_000);
/// Retries of [`RetryPolicy::ExponentialDecayRetry`].
pub const EXPONENTIAL_DECAY_RETRIES: u32 = 176;
/// The longest wait of [`RetryPolicy::ExponentialDecayRetry`], in seconds.
pub const EXPONENTIAL_DECAY_WAIT_SECONDS_MAX: u64 = 512;

/// How the wait of a free policy is spread, so that many failures do not come back at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Jitter {
    /// Anywhere from 0 to the wait.
    Full,
    /// Half of the wait, and anywhere up to the other half.
    Equal,
    /// Exactly the wait.
    None,
}

/// A retry policy in free form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeRetry {
    /// The wait before the first retry. 1 ms–24 h, default 200 ms.
    pub initial: Duration,
    /// By how much each wait is longer than the one before, in thousandths. 1,000–100,000, default 2,000.
    pub factor_thousandths: u32,
    /// The longest wait. `initial`–24 h, default 60 s.
    pub max_interval: Duration,
    /// Attempts in all, the first included. 1–10,000, default 10.
    pub max_attempts: u32,
    /// How waits are spread. Default full.
    pub jitter: Jitter,
    /// No attempt starts later than this after the first one. 1 s–30 days, default 24 h.
    pub max_age: Duration,
}

impl Default for FreeRetry {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(200),
            factor_thousandths: 2000,
            max_interval: Duration::from_secs(60),
            max_attempts: 10,
            jitter: Jitter::Full,
            max_age: Duration::from_secs(24 * 3600),
        }
    }
}

/// What happens after an attempt that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetryPolicy {
    /// 3 retries, each after a random 10–20 s.
    #[default]
    BackoffRetry,
    /// 176 retries after 1, 2, 4 … 256 s, then 512 s each: 86,015 s in all.
    ExponentialDecayRetry,
    /// As written.
    Free(FreeRetry),
}

/// What a policy answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again after this long.
    After(Duration),
    /// Do not.
    Exhausted(RetriesExhausted),
}

/// Which of a policy's limits was reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetriesExhausted {
    /// All attempts were made.
    Attempts,
    /// The next attempt would start after `max_age`.
    Age,
}

impl RetryPolicy {
    /// Attempts in all, the first included.
    #[must_use]
    pub const fn max_attempts(&self) -> u32 {
        match self {
            Self::BackoffRetry => BACKOFF_RETRIES + 1,
            Self::ExponentialDecayRetry => EXPONENTIAL_DECAY_RETRIES + 1,
            Self::Free(free) => free.max_attempts,
        }
    }

    /// The latest start of an attempt after the first one; the presets have none.
    #[must_use]
    pub const fn max_age(&self) -> Option<Duration> {
        match self {
            Self::Free(free) => Some(free.max_age),
            Self::BackoffRetry | Self::ExponentialDecayRetry => None,
        }
    }

    /// The longest wait: how often a blocked trigger tries again.
    #[must_use]
    pub const fn max_interval(&self) -> Duration {
        match self {
            Self::BackoffRetry => Duration::from_millis(BACKOFF_WAIT_MS.1),
            Self::ExponentialDecayRetry => Duration::from_secs(EXPONENTIAL_DECAY_WAIT_SECONDS_MAX),
            Self::Free(free) => free.max_interval,
        }
    }

    /// What follows when `attempts_made` attempts have failed, the first of them `first_attempt_age` ago. `random` is
    /// any uniform number; the same numbers give the same answer.
    #[must_use]
    pub fn next(&self, attempts_made: u32, first_attempt_age: Duration, random: u64) -> Next {
        if attempts_made >= self.max_attempts() {
            return Next::Exhausted(RetriesExhausted::Attempts);
        }
        let wait = self.wait(attempts_made.max(1), random);
        match self.max_age() {
            Some(max_age) if first_attempt_age.saturating_add(wait) > max_age => Next::Exhausted(RetriesExhausted::Age),
            _ => Next::After(wait),
        }
    }

    /// The wait before retry `retry`, counted from 1.
    fn wait(&self, retry: u32, random: u64) -> Duration {
        match self {
            Self::BackoffRetry => {
                let (shortest, longest) = BACKOFF_WAIT_MS;
                Duration::from_millis(shortest + random % (longest - shortest + 1))
            }
            Self::ExponentialDecayRetry => {
                let doubled = 1u64.checked_shl(retry - 1).unwrap_or(u64::MAX);
                Duration::from_secs(doubled.min(EXPONENTIAL_DECAY_WAIT_SECONDS_MAX))
            }
            Self::Free(free) => free.wait(retry, random),
        }
    }
}

impl FreeRetry {
    fn wait(&self, retry: u32, random: u64) -> Duration {
        let wait_ms = self.wait_without_jitter_ms(retry);
        Duration::from_millis(match self.jitter {
            Jitter::None => wait_ms,
            Jitter::Full => random % (wait_ms + 1),
            Jitter::Equal => wait_ms - random % (wait_ms / 2 + 1),
        })
    }

    fn wait_without_jitter_ms(&self, retry: u32) -> u64 {
        let longest_us = self.max_interval.as_micros();
        let mut wait_us = self.initial.as_micros();
        // Every step grows by at least a thousandth or not at all, so the walk ends at the longest wait long before
        // 10,000 steps.
        for _ in 1..retry {
            if wait_us >= longest_us || self.factor_thousandths <= 1000 {
                break;
            }
            wait_us = wait_us.saturating_mul(u128::from(self.factor_thousandths)) / 1000;
        }
        u64::try_from(wait_us.min(longest_us) / 1000).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn free(jitter: Jitter) -> RetryPolicy {
        RetryPolicy::Free(FreeRetry { jitter, ..FreeRetry::default() })
    }

    #[test]
    fn backoff_retries_three_times_after_ten_to_twenty_seconds() {
        for (random, seconds) in [(0, 10), (10_000, 20), (10_001, 10)] {
            assert_eq!(RetryPolicy::BackoffRetry.next(1, NOW, random), Next::After(Duration::from_secs(seconds)));
        }
        assert!(matches!(RetryPolicy::BackoffRetry.next(3, NOW, 7), Next::After(_)));
        assert_eq!(RetryPolicy::BackoffRetry.next(4, NOW, 7), Next::Exhausted(RetriesExhausted::Attempts));
    }

    #[test]
    fn exponential_decay_retries_176_times_within_86_015_seconds() {
        let waits: Vec<u64> = (1..)
            .map_while(|made| match RetryPolicy::ExponentialDecayRetry.next(made, Duration::MAX, 1) {
                Next::After(wait) => Some(wait.as_secs()),
                Next::Exhausted(reason) => {
                    assert_eq!(reason, RetriesExhausted::Attempts);
                    None
                }
            })
            .collect();
        assert_eq!(waits[..11], [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512]);
        assert_eq!((waits.len(), waits.iter().sum::<u64>()), (176, 86_015));
    }

    #[test]
    fn the_free_form_grows_by_its_factor_up_to_its_longest_wait() {
        let waits: Vec<Next> = (1..=11).map(|made| free(Jitter::None).next(made, NOW, 99)).collect();
        let millis = [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200];
        for (wait, expected) in waits.iter().zip(millis) {
            assert_eq!(*wait, Next::After(Duration::from_millis(expected)));
        }
        assert_eq!(waits[9..], [Next::Exhausted(RetriesExhausted::Attempts); 2]);
        let many = RetryPolicy::Free(FreeRetry { max_attempts: 10_000, jitter: Jitter::None, ..FreeRetry::default() });
        assert_eq!(many.next(9_999, NOW, 0), Next::After(Duration::from_secs(60)));
    }

    #[test]
    fn a_fraction_as_factor_does_not_lose_its_growth_to_rounding() {
        let policy = FreeRetry { initial: Duration::from_millis(1), factor_thousandths: 1500, ..FreeRetry::default() };
        let waits: Vec<u64> = (1..=5).map(|retry| policy.wait_without_jitter_ms(retry)).collect();
        assert_eq!(waits, [1, 1, 2, 3, 5]);
    }

    #[test]
    fn no_attempt_starts_after_the_greatest_age() {
        let policy = RetryPolicy::Free(FreeRetry {
            max_age: Duration::from_secs(10),
            initial: Duration::from_secs(4),
            jitter: Jitter::None,
            ..FreeRetry::default()
        });
        assert_eq!(policy.next(1, Duration::from_secs(6), 0), Next::After(Duration::from_secs(4)));
        assert_eq!(policy.next(1, Duration::from_millis(6001), 0), Next::Exhausted(RetriesExhausted::Age));
        assert_eq!(policy.next(10, Duration::from_secs(60), 0), Next::Exhausted(RetriesExhausted::Attempts));
    }

    proptest! {
        #[test]
        fn a_wait_stays_within_its_jitter_and_longest_interval(
            made in 1u32..10_000, random: u64, initial_ms in 1u64..86_400_000, factor_thousandths in 1000u32..=100_000,
        ) {
            let max_interval = Duration::from_millis(initial_ms + 1000);
            let base = FreeRetry {
                initial: Duration::from_millis(initial_ms), factor_thousandths, max_interval, max_attempts: 10_000,
                max_age: Duration::MAX, jitter: Jitter::None,
            };
            let wait_of = |jitter| match RetryPolicy::Free(FreeRetry { jitter, ..base }).next(made, NOW, random) {
                Next::After(wait) => wait,
                Next::Exhausted(reason) => panic!("{reason:?}"),
            };
            let wait = wait_of(Jitter::None);
            prop_assert!(wait >= base.initial && wait <= max_interval);
            prop_assert!(wait_of(Jitter::Full) <= wait);
            let equal = wait_of(Jitter::Equal);
            prop_assert!(equal <= wait && equal >= wait / 2);
        }
    }
}
