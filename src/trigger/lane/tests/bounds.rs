//! What a lane takes in hand, and what holds it back.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::*;
use crate::function::InvocationError;
use crate::trigger::attempt::ErrorsTolerance;
use crate::trigger::flow::{Debounce, Singleton, Throttle};
use crate::trigger::retry::RetryPolicy;
use crate::trigger::window::RecordFacts;

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
        filter: 0,
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
    let window = lane.start_next(false, usize::MAX, now_ms)?;
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
        let tried = lane.start_next(false, usize::MAX, 0).unwrap();
        let error = InvocationError::new(ErrorClass::Throttled, "429", "slow down");
        lane.end(tried, Outcome::failed(lane.offsets(tried), error), 0, 0);
        lane.set_count(4);
        lane.wake(false, 0);
        let mut sizes = sizes(&mut lane);
        sizes.sort_unstable();
        assert_eq!(sizes, [4, 4, 4, 8], "order {order:?}: what was tried stays as it is");
    }
}

#[test]
fn a_lane_takes_no_more_records_and_keys_than_it_may_hold_and_reads_on_once_there_is_some_room() {
    let limits = LaneLimits { records: 80, keys: 40, ..LaneLimits::default() };
    let mut lane = fresh(LaneSpec { limits, ..spec(Order::Partition, 100) });
    assert_eq!(lane.room(), 80);
    read(&mut lane, &[0; 500], 0);
    assert_eq!((lane.held_records(), lane.position(), lane.read_at()), (80, offset(80), None));
    deliver(&mut lane, 0);
    assert_eq!((lane.held_records(), lane.read_at()), (0, Some(offset(80))));

    let keys: Vec<u64> = (0..60).collect();
    let mut lane = fresh(LaneSpec { limits, ..spec(Order::Key, 100) });
    assert_eq!(lane.room(), 40);
    read(&mut lane, &keys, 0);
    assert_eq!((lane.held_records(), lane.position(), lane.read_at()), (40, offset(40), None));
    // An eighth of the keys: for each it would walk over the same batch again.
    (0..5).for_each(|_| drop(deliver(&mut lane, 0)));
    assert_eq!(lane.read_at(), None);
    deliver(&mut lane, 0);
    assert_eq!((lane.read_at(), lane.room()), (Some(offset(40)), 6));

    let lane = fresh(spec(Order::Partition, 100));
    assert_eq!(lane.room(), TAKEN_MAX, "of the default limit");
}

#[test]
fn while_the_count_adapts_few_records_wait_in_windows_that_are_closed() {
    for order in [Order::Partition, Order::None] {
        let mut lane = fresh(spec(order, 100));
        lane.set_count(12);
        assert_eq!(lane.room(), 24, "order {order:?}");
    }
}

#[test]
fn what_was_in_hand_before_a_restart_is_read_again_whatever_it_comes_to() {
    let mut lane = fresh(spec(Order::Partition, 100));
    read(&mut lane, &[0; 500], 0);
    let limits = LaneLimits { records: 80, ..LaneLimits::default() };
    let mut restored = Lane::restore(LaneSpec { limits, ..spec(Order::Partition, 1000) }, &lane.progress(), Vec::new());
    assert_eq!((restored.read_at(), restored.room()), (Some(Offset::ZERO), TAKEN_MAX));
    read(&mut restored, &[0; 700], 0);
    assert_eq!((restored.held_records(), restored.position()), (500, offset(500)));
}

const HOUR_MS: i64 = 3_600_000;

fn throttled(limits: LaneLimits) -> LaneSpec {
    let per_key = PerKey { throttle: Some(Throttle { limit: 1, period_ms: HOUR_MS }), ..PerKey::default() };
    LaneSpec { per_key, limits, ..spec(Order::Key, 1) }
}

#[test]
fn a_key_that_only_waits_for_its_throttle_to_forget_it_takes_no_room_from_others() {
    let mut lane = fresh(throttled(LaneLimits { keys: 10, ..LaneLimits::default() }));
    for key in 0..100 {
        assert!(lane.read_at().is_some(), "key {key} is read");
        read(&mut lane, &[key], key as i64);
        assert_eq!(deliver(&mut lane, key as i64), Some(vec![key as usize]));
    }
    assert!(lane.is_empty(), "nothing is in hand: {lane:?}");
    // Each of them is still held back, and what is there of it comes in its time.
    read(&mut lane, &[7, 100], 200);
    assert_eq!((deliver(&mut lane, 200), deliver(&mut lane, 200)), (Some(vec![101]), None));
    assert_eq!(lane.deadline_ms(), Some(HOUR_MS + 7));
    assert_eq!((deliver(&mut lane, HOUR_MS + 6), deliver(&mut lane, HOUR_MS + 7)), (None, Some(vec![100])));
    assert!(lane.is_empty(), "{lane:?}");
}

#[test]
fn an_open_window_of_a_throttled_key_waits_for_its_turn() {
    let mut lane = fresh(LaneSpec { window: WindowSpec::default(), ..throttled(LaneLimits::default()) });
    read(&mut lane, &[7], 0);
    assert_eq!(deliver(&mut lane, 0), Some(vec![0]));
    read(&mut lane, &[7, 7], 1);
    assert_eq!((deliver(&mut lane, HOUR_MS - 1), deliver(&mut lane, HOUR_MS)), (None, Some(vec![1, 2])));
}

#[test]
fn an_attempt_that_was_not_made_spends_no_turn_of_its_key() {
    let mut lane = fresh(throttled(LaneLimits::default()));
    read(&mut lane, &[7, 7], 0);
    let window = lane.start_next(false, usize::MAX, 0).unwrap();
    lane.postpone(window, 5);
    assert_eq!((deliver(&mut lane, 5), deliver(&mut lane, 6)), (Some(vec![0]), None));
    assert_eq!((deliver(&mut lane, HOUR_MS + 4), deliver(&mut lane, HOUR_MS + 5)), (None, Some(vec![1])));
}

#[test]
fn a_new_definition_forgets_no_start_of_a_throttled_key() {
    let mut lane = fresh(throttled(LaneLimits::default()));
    read(&mut lane, &[7], 0);
    deliver(&mut lane, 0);
    let mut lane = lane.redefine(throttled(LaneLimits::default()), 1);
    read(&mut lane, &[7], 2);
    assert_eq!((deliver(&mut lane, HOUR_MS - 1), deliver(&mut lane, HOUR_MS)), (None, Some(vec![1])));
}

#[test]
fn a_record_that_is_finished_takes_its_bytes_out_of_its_window() {
    let mut lane = fresh(spec(Order::Partition, 4));
    read(&mut lane, &[0; 4], 0);
    let window = lane.start_next(false, usize::MAX, 0).unwrap();
    assert_eq!(lane.size_bytes(window), 40);
    let refused = |at| (offset(at), InvocationError::new(ErrorClass::Rejected, at.to_string(), "refused"));
    let failed = InvocationError::new(ErrorClass::Failed, "500", "no good");
    let rejected = [refused(2), refused(3)].into_iter().collect();
    let outcome = Outcome { rejected, ..Outcome::failed([offset(1)], failed) };
    lane.end(window, outcome, 0, 0);
    assert_eq!(lane.size_bytes(window), 10, "one of four goes on");
    let refused: Vec<WindowId> = std::iter::from_fn(|| lane.next_given_up()).map(|(window, _)| window).collect();
    assert_eq!(refused.iter().map(|window| lane.size_bytes(*window)).collect::<Vec<_>>(), [10, 10]);
}

#[test]
fn a_debounced_key_that_takes_one_at_a_time_delivers_the_newest_record() {
    let debounce = Some(Debounce { period_ms: 100, max_ms: 1000 });
    let per_key = PerKey { debounce, singleton: Some(Singleton::Skip), ..PerKey::default() };
    let mut lane = fresh(LaneSpec { per_key, ..spec(Order::Key, 100) });
    (0..3).for_each(|at| read(&mut lane, &[7], at));
    let window = lane.start_next(false, usize::MAX, 102).unwrap();
    assert_eq!(lane.offsets(window), [offset(2)]);
    assert_eq!(lane.take_withheld(), Withheld { debounced: 2, skipped: 0 });
    // Now it is busy.
    read(&mut lane, &[7], 103);
    assert_eq!(lane.take_withheld(), Withheld { debounced: 0, skipped: 1 });
    lane.end(window, Outcome::done(), 104, 0);
    read(&mut lane, &[7], 105);
    assert_eq!(deliver(&mut lane, 205), Some(vec![4]));
    assert!(lane.is_empty());
}

#[test]
fn a_debounced_key_stays_quiet_also_when_its_newest_record_comes_from_behind_its_marker() {
    let debounce = Debounce { period_ms: 100, max_ms: 1000 };
    let per_key = PerKey { debounce: Some(debounce), ..PerKey::default() };
    let limits = LaneLimits { key_records: 4, ..LaneLimits::default() };
    let mut lane = fresh(LaneSpec { per_key, limits, ..spec(Order::Key, 1) });
    let window = |lane: &mut Lane, now_ms| lane.start_next(false, usize::MAX, now_ms);
    // Three windows wait; a fourth record is open, and the next is behind the marker.
    for at_ms in [0, 200, 400] {
        read(&mut lane, &[7], at_ms);
        lane.is_startable(false, at_ms + 100);
    }
    read(&mut lane, &[7], 600);
    read(&mut lane, &[7], 601);
    let done = |lane: &mut Lane, now_ms| {
        let id = window(lane, now_ms).unwrap();
        lane.end(id, Outcome::done(), now_ms, 0);
    };
    (0..3).for_each(|_| done(&mut lane, 602));
    let at = lane.catch_up_at().unwrap();
    let fact = RecordFacts { offset: at, key: 7, size_bytes: 10, age: Duration::ZERO, spot: Spot::UNKNOWN };
    lane.take_spilled(&[fact], at, lane.position(), 650);
    assert_eq!(lane.take_withheld().debounced, 1, "the newer one has replaced it");
    assert_eq!(window(&mut lane, 749), None, "the key is not quiet yet");
    let last = window(&mut lane, 750).unwrap();
    assert_eq!(lane.offsets(last), [offset(4)]);
    lane.end(last, Outcome::done(), 750, 0);
    assert!(lane.is_empty(), "{lane:?}");
    assert_eq!(lane.committed(), offset(5));
}

#[test]
fn windows_that_cannot_be_written_down_whole_are_not_cut_ever_smaller() {
    // Every other stretch of 60 records matches; a thousand keys in turn, so that each window lies in many ranges.
    const TAIL: usize = 60_000;
    let matching = |from: usize, to: usize| (from..to).filter(|at| at % 120 >= 60);
    let mut lane = fresh(spec(Order::Key, 100));
    let (mut in_flight, mut windows) = (VecDeque::new(), 0);
    loop {
        while let Some(from) = lane.read_at().map(|at| at.get() as usize).filter(|&from| from < TAIL) {
            let to = (from + 2_500).min(TAIL);
            let record = |at: usize| RecordFacts {
                offset: offset(at),
                key: (at % 1_000) as u64,
                size_bytes: 200,
                age: Duration::ZERO,
                spot: Spot::UNKNOWN,
            };
            let records: Vec<RecordFacts> = matching(from, to).map(record).collect();
            lane.take(&records, offset(to), 0);
        }
        let more = lane.read_at().is_some_and(|at| at < offset(TAIL));
        while in_flight.len() < 8
            && let Some(window) = lane.start_next(more, usize::MAX, 0)
        {
            windows += 1;
            in_flight.push_back(window);
        }
        let Some(window) = in_flight.pop_front() else { break };
        lane.end(window, Outcome::done(), 0, 0);
    }
    assert_eq!(lane.committed(), offset(TAIL), "{lane:?}");
    let records = matching(0, TAIL).count();
    assert!(records / windows >= 10, "{records} records in {windows} windows");
}
