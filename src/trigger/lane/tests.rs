use std::time::Duration;

use super::*;
use crate::function::InvocationError;
use crate::trigger::attempt::ErrorsTolerance;
use crate::trigger::retry::RetryPolicy;
use crate::trigger::window::RecordFacts;

mod keys;

fn offset(at: usize) -> Offset {
    Offset::ZERO.checked_add(at as u64).unwrap()
}

fn spec(order: Order, count: u32) -> LaneSpec {
    LaneSpec {
        order,
        window: WindowSpec { count, ..WindowSpec::default() },
        policies: Policies { retry: RetryPolicy::BackoffRetry, errors_tolerance: ErrorsTolerance::All },
        bisect: false,
        per_key: PerKey::default(),
        limits: LaneLimits::default(),
    }
}

fn fresh(spec: LaneSpec) -> Lane {
    Lane::restore(spec, &Progress::start(Offset::ZERO), Vec::new())
}

/// The lane reads records with these keys, where it reads next.
fn read(lane: &mut Lane, keys: &[u64], now_ms: i64) {
    let from = lane.position().get() as usize;
    let record = |(index, &key): (usize, &u64)| RecordFacts {
        offset: offset(from + index),
        key,
        size_bytes: 10,
        age: Duration::ZERO,
        spot: Spot::UNKNOWN,
    };
    let records: Vec<RecordFacts> = keys.iter().enumerate().map(record).collect();
    lane.take(&records, offset(from + keys.len()), now_ms);
}

/// The offsets of the window whose turn it is; it succeeds.
fn deliver(lane: &mut Lane, now_ms: i64) -> Option<Vec<usize>> {
    let window = lane.start(false, usize::MAX, now_ms)?;
    let offsets = lane.offsets(window).iter().map(|offset| offset.get() as usize).collect();
    lane.end(window, Outcome::done(), now_ms, 0);
    Some(offsets)
}

/// The sizes of all windows, in turn.
fn sizes(lane: &mut Lane) -> Vec<usize> {
    std::iter::from_fn(|| deliver(lane, 0)).map(|offsets| offsets.len()).collect()
}

#[test]
fn a_window_that_begins_takes_the_count_that_applies_then_although_its_queue_is_never_empty() {
    for (order, key) in [(Order::Partition, 0), (Order::Key, 7), (Order::None, 0)] {
        let mut lane = fresh(spec(order, 100));
        lane.set_count(4);
        read(&mut lane, &[key; 6], 0);
        // Four are closed and two wait in the open window, which stays as it began.
        lane.set_count(8);
        read(&mut lane, &[key; 14], 0);
        assert_eq!(sizes(&mut lane), [4, 4, 8, 4], "order {order:?}");
    }
}

#[test]
fn what_waits_in_larger_windows_starts_in_smaller_ones_once_the_count_is_halved() {
    for (order, key) in [(Order::Partition, 0), (Order::Key, 7), (Order::None, 0)] {
        let mut lane = fresh(spec(order, 8));
        read(&mut lane, &[key; 20], 0);
        let tried = lane.start(false, usize::MAX, 0).unwrap();
        let error = InvocationError::new(ErrorClass::Throttled, "429", "slow down");
        lane.end(tried, Outcome::failed(lane.offsets(tried), error), 0, 0);
        lane.set_count(4);
        lane.wake(false, 0);
        let mut sizes = sizes(&mut lane);
        sizes.sort_unstable();
        assert_eq!(sizes, [4, 4, 4, 8], "order {order:?}: what was tried stays as it is");
    }
}
