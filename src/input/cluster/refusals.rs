//! Refusals of a password are remembered for a while: a wrong one that is tried again and again locks accounts, and
//! each try costs the broker thousands of hashes.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};
use tokio::time::Instant;

/// How long nothing is tried after the first refusal; twice as long after each more.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What became of a password, for all connections to one cluster. Until a broker has taken it, one connection at a time
/// tries it: however many are begun together, a wrong one is refused once.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    last: Mutex<Last>,
    turn: AsyncMutex<()>,
}

#[derive(Clone, Debug, Default)]
enum Last {
    #[default]
    Untried,
    Accepted,
    Refused {
        reason: String,
        pause: Duration,
        until: Instant,
    },
}

impl Refusals {
    /// Why it was refused the last time, while it is not to be tried again.
    pub(super) fn holding(&self, now: Instant) -> Option<String> {
        match &*self.last.lock() {
            Last::Refused { reason, until, .. } if now < *until => Some(reason.clone()),
            _ => None,
        }
    }

    /// Waits for the turn to try it, while it is not known to be right. `Err`: it was refused meanwhile, and why.
    pub(super) async fn turn(&self) -> Result<Option<MutexGuard<'_, ()>>, String> {
        if self.is_accepted() {
            return Ok(None);
        }
        let turn = self.turn.lock().await;
        match self.holding(Instant::now()) {
            Some(reason) => Err(reason),
            None if self.is_accepted() => Ok(None),
            None => Ok(Some(turn)),
        }
    }

    fn is_accepted(&self) -> bool {
        matches!(*self.last.lock(), Last::Accepted)
    }

    /// A broker has refused it.
    pub(super) fn refused(&self, reason: &str, now: Instant) {
        let mut last = self.last.lock();
        let pause = match &*last {
            Last::Refused { until, .. } if now < *until => return,
            Last::Refused { pause, .. } => (*pause * 2).min(PAUSE_MAX),
            Last::Untried | Last::Accepted => PAUSE_MIN,
        };
        // Several processes with the same password need not come at once.
        let until = now + pause.mul_f64(1.0 + fastrand::f64() / 4.0);
        *last = Last::Refused { reason: reason.to_owned(), pause, until };
    }

    /// A broker has taken it.
    pub(super) fn accepted(&self) {
        *self.last.lock() = Last::Accepted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_tried_again_later_and_later_until_it_is_taken() {
        let refusals = Refusals::default();
        let mut now = Instant::now();
        let begin = now;
        for tries in 1..=20 {
            assert_eq!(refusals.holding(now), None);
            refusals.refused(&format!("no {tries}"), now);
            refusals.refused("at the same time", now);
            while let Some(reason) = refusals.holding(now) {
                assert_eq!(reason, format!("no {tries}"));
                now += Duration::from_millis(100);
            }
        }
        let took = now - begin;
        assert!((Duration::from_secs(14 * 60)..Duration::from_secs(19 * 60)).contains(&took), "{took:?}");
        refusals.accepted();
        refusals.refused("once more", now);
        assert!(refusals.holding(now + PAUSE_MIN / 2).is_some() && refusals.holding(now + 2 * PAUSE_MIN).is_none());
    }

    #[tokio::test]
    async fn whoever_waited_for_the_turn_needs_none_when_the_password_was_taken() {
        let refusals = Refusals::default();
        let turn = refusals.turn().await.unwrap();
        assert!(turn.is_some());
        let wait = || async { refusals.turn().await.map(|turn| turn.is_some()) };
        let first = async {
            tokio::task::yield_now().await;
            refusals.accepted();
            drop(turn);
        };
        // All of them at once: none holds a turn that another waits for.
        let ((), one, other) = tokio::join!(first, wait(), wait());
        assert_eq!((one, other), (Ok(false), Ok(false)));
    }

    #[tokio::test]
    async fn whoever_waited_for_the_turn_hears_that_the_password_was_refused() {
        let refusals = Refusals::default();
        let turn = refusals.turn().await.unwrap();
        let first = async {
            tokio::task::yield_now().await;
            refusals.refused("no", Instant::now());
            drop(turn);
        };
        let ((), one, other) = tokio::join!(first, refusals.turn(), refusals.turn());
        assert_eq!((one.unwrap_err(), other.unwrap_err()), ("no".to_owned(), "no".to_owned()));
    }
}
