//! Where a lane has one record, for people.

use tripline_storage::Offset;

use super::queue::QueueKey;
use super::{Held, Lane, Phase};
use crate::trigger::attempt::{AttemptState, ExhaustedReason};
use crate::trigger::spec::Order;

/// Where a lane has a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The lane has not read it yet; it reads at `at`.
    Unread {
        /// Where it reads next.
        at: Offset,
    },
    /// It was read and is read again, after a restart or a change of the definition.
    ReadAgain,
    /// In a window that takes more records.
    Filling {
        /// When it closes at the latest, ms since 1970; `None` when it closes as soon as an invocation is free.
        closes_ms: Option<i64>,
    },
    /// In a closed window behind others.
    Queued {
        /// How many of them.
        ahead: usize,
        /// The first of those.
        front: Before,
    },
    /// Its window waits for nothing but a free invocation.
    Ready(Box<AttemptState>),
    /// Its window may start at a time.
    Waiting {
        /// When, ms since 1970.
        until_ms: i64,
        /// Its attempts.
        state: Box<AttemptState>,
    },
    /// The function has it.
    InFlight(Box<AttemptState>),
    /// It is given up, and becomes a dead letter or is dropped.
    GivenUp {
        /// Why.
        reason: ExhaustedReason,
        /// Its attempts.
        state: Box<AttemptState>,
    },
    /// It waits in the log behind its key, which fails or floods.
    KeyBlocked {
        /// The first window of the key, where it is in hand.
        front: Option<Before>,
    },
    /// It is finished, or never matched.
    Finished,
}

/// A window that another one waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// The first offset that it had.
    pub name: Offset,
    /// Attempts spent on it.
    pub attempts: u32,
    /// When it may start, ms since 1970; `None` when it may now, or has.
    pub until_ms: Option<i64>,
    /// Its last error.
    pub last_error: Option<String>,
}

impl Lane {
    /// Where the record at `offset` stands, whose key has the hash `key`. Looks through all that is in hand.
    #[must_use]
    pub fn stands(&self, offset: Offset, key: u64) -> Standing {
        let holds = |held: &&Held| held.places.binary_search_by_key(&offset, |place| place.offset).is_ok();
        if let Some(held) = self.windows.values().find(holds) {
            return self.window_stands(held);
        }
        let is_open = |queue: &super::Queue| queue.places.iter().any(|place| place.offset == offset);
        if let Some(queue) = self.queues.values().find(|queue| is_open(queue)) {
            return match queue.windows.front().and_then(|id| self.windows.get(id)) {
                Some(front) => Standing::Queued { ahead: queue.windows.len(), front: front.before() },
                None => Standing::Filling { closes_ms: queue.deadline_ms() },
            };
        }
        if self.restoring.as_ref().is_some_and(|restoring| restoring.awaits(offset, key, self.at)) {
            return Standing::ReadAgain;
        }
        if self.spec.order == Order::Key
            && offset < self.reading_point()
            && self.markers.get(&key).is_some_and(|marker| marker.at <= offset)
        {
            let front = self.queues.get(&QueueKey::Key(key)).and_then(|queue| queue.windows.front());
            return Standing::KeyBlocked { front: front.and_then(|id| self.windows.get(id)).map(Held::before) };
        }
        if offset >= self.reading_point() { Standing::Unread { at: self.at } } else { Standing::Finished }
    }

    fn window_stands(&self, held: &Held) -> Standing {
        let state = || Box::new(held.state.clone());
        match held.phase {
            Phase::Ready => Standing::Ready(state()),
            Phase::Waiting(until_ms) => Standing::Waiting { until_ms, state: state() },
            Phase::InFlight => Standing::InFlight(state()),
            Phase::GivenUp(reason) | Phase::Settling(reason) => Standing::GivenUp { reason, state: state() },
            Phase::Queued => {
                let queue = self.queues.get(&held.queue).map(|queue| &queue.windows);
                let front = queue.and_then(|queue| queue.front()).and_then(|id| self.windows.get(id)).unwrap_or(held);
                let is_it = |id: &super::WindowId| self.windows.get(id).is_some_and(|other| std::ptr::eq(other, held));
                let ahead = queue.and_then(|queue| queue.iter().position(is_it)).unwrap_or(0);
                Standing::Queued { ahead, front: front.before() }
            }
        }
    }
}

impl Held {
    fn before(&self) -> Before {
        Before {
            name: self.name,
            attempts: self.state.attempts,
            until_ms: if let Phase::Waiting(until_ms) = self.phase { Some(until_ms) } else { None },
            last_error: self.state.last_error.as_ref().map(|error| error.message.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::{ErrorClass, InvocationError};
    use crate::trigger::attempt::{ErrorsTolerance, Policies};
    use crate::trigger::flow::PerKey;
    use crate::trigger::lane::{LaneLimits, LaneSpec, Outcome};
    use crate::trigger::progress::Progress;
    use crate::trigger::retry::{FreeRetry, Jitter, RetryPolicy};
    use crate::trigger::window::{RecordFacts, WindowSpec};

    fn offset(at: i64) -> Offset {
        Offset::new(at).unwrap()
    }

    fn spec(order: Order, count: u32) -> LaneSpec {
        let wait = std::time::Duration::from_secs(10);
        let retry = FreeRetry {
            initial: wait,
            factor_thousandths: 1000,
            max_interval: wait,
            max_attempts: 2,
            jitter: Jitter::None,
            max_age: wait * 100,
        };
        LaneSpec {
            order,
            window: WindowSpec { count, ..WindowSpec::default() },
            policies: Policies { retry: RetryPolicy::Free(retry), errors_tolerance: ErrorsTolerance::All },
            bisect: false,
            per_key: PerKey::default(),
            filter: 0,
            limits: LaneLimits { records: 100, key_records: 2, keys: 100, ..LaneLimits::default() },
        }
    }

    fn lane(order: Order, count: u32, keys: &[u64]) -> Lane {
        let mut lane = Lane::restore(spec(order, count), &Progress::start(Offset::ZERO), Vec::new());
        let record = |(at, key): (usize, &u64)| RecordFacts {
            offset: offset(at as i64),
            key: *key,
            size_bytes: 1,
            age: std::time::Duration::ZERO,
            spot: crate::trigger::window::Spot::UNKNOWN,
        };
        let records: Vec<RecordFacts> = keys.iter().enumerate().map(record).collect();
        lane.take(&records, offset(keys.len() as i64), 0);
        lane
    }

    fn fail(lane: &mut Lane, now_ms: i64) {
        let id = lane.start_next(false, usize::MAX, now_ms).unwrap();
        let error = InvocationError::new(ErrorClass::Failed, "500", "no good");
        let failed = lane.offsets(id);
        lane.end(id, Outcome::failed(failed, error), now_ms, 0);
    }

    #[test]
    fn a_record_is_unread_then_in_a_window_in_flight_waiting_given_up_and_finished() {
        let mut lane = lane(Order::Partition, 1, &[0, 0, 0]);
        let stands = |lane: &Lane, at: i64| lane.stands(offset(at), 0);
        assert_eq!(stands(&lane, 3), Standing::Unread { at: offset(3) });
        assert!(matches!(stands(&lane, 0), Standing::Ready(_)), "{:?}", stands(&lane, 0));
        let Standing::Queued { ahead: 1, front } = stands(&lane, 1) else { panic!("{:?}", stands(&lane, 1)) };
        assert_eq!((front.name, front.attempts, front.until_ms), (Offset::ZERO, 0, None));
        let id = lane.start_next(false, usize::MAX, 5).unwrap();
        assert!(matches!(stands(&lane, 0), Standing::InFlight(state) if state.last_attempt_ms == Some(5)));
        let error = InvocationError::new(ErrorClass::Failed, "500", "no good");
        lane.end(id, Outcome::failed(vec![Offset::ZERO], error), 6, 0);
        assert!(matches!(stands(&lane, 0), Standing::Waiting { until_ms: 10_006, state } if state.attempts == 1));
        let Standing::Queued { front, .. } = stands(&lane, 2) else { panic!("{:?}", stands(&lane, 2)) };
        assert_eq!((front.until_ms, front.last_error.as_deref()), (Some(10_006), Some("no good")));
        fail(&mut lane, 10_006);
        let given_up = |standing| match standing {
            Standing::GivenUp { reason, .. } => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(given_up(stands(&lane, 0)), ExhaustedReason::Attempts);
        let (id, _) = lane.next_given_up().unwrap();
        assert_eq!(given_up(stands(&lane, 0)), ExhaustedReason::Attempts, "also while that is carried out");
        lane.settle(id, 10_007);
        assert_eq!(stands(&lane, 0), Standing::Finished);
    }

    #[test]
    fn a_record_behind_a_key_that_fails_says_what_it_waits_for_and_another_key_is_free() {
        let mut lane = lane(Order::Key, 1, &[7, 7, 7, 7, 7, 8]);
        fail(&mut lane, 0);
        let Standing::KeyBlocked { front: Some(front) } = lane.stands(offset(4), 7) else {
            panic!("{:?}", lane.stands(offset(4), 7))
        };
        assert_eq!((front.name, front.attempts), (Offset::ZERO, 1));
        assert!(matches!(lane.stands(offset(5), 8), Standing::Ready(_)));
        assert_eq!(lane.stands(offset(4), 8), Standing::Finished, "another key has no marker");
    }

    #[test]
    fn an_open_window_says_when_it_closes_and_a_restart_reads_again() {
        let mut spec = spec(Order::Partition, 10);
        spec.window.interval = std::time::Duration::from_secs(1);
        let mut lane = Lane::restore(spec.clone(), &Progress::start(Offset::ZERO), Vec::new());
        let facts = RecordFacts {
            offset: Offset::ZERO,
            key: 0,
            size_bytes: 1,
            age: std::time::Duration::ZERO,
            spot: crate::trigger::window::Spot::UNKNOWN,
        };
        lane.take(&[facts], offset(1), 50);
        assert_eq!(lane.stands(Offset::ZERO, 0), Standing::Filling { closes_ms: Some(1_050) });
        let restored = Lane::restore(spec, &lane.progress(), Vec::new());
        assert_eq!(restored.stands(Offset::ZERO, 0), Standing::ReadAgain);
        assert_eq!(restored.stands(offset(1), 0), Standing::Unread { at: Offset::ZERO });
    }
}
