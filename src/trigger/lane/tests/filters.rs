//! Filters that change while records wait: what they let in or turn away now changes nothing for the others.

use std::time::Duration;

use super::super::*;
use crate::function::InvocationError;
use crate::trigger::attempt::ErrorsTolerance;
use crate::trigger::retry::RetryPolicy;
use crate::trigger::window::RecordFacts;

const ORDERS: [Order; 3] = [Order::Partition, Order::Key, Order::None];
/// When no window waits any more.
const LATER_MS: i64 = 600_000;

fn offset(at: i64) -> Offset {
    Offset::new(at).unwrap()
}

/// Windows of two.
fn spec(order: Order) -> LaneSpec {
    LaneSpec {
        order,
        window: WindowSpec { count: 2, ..WindowSpec::default() },
        policies: Policies { retry: RetryPolicy::BackoffRetry, errors_tolerance: ErrorsTolerance::All },
        bisect: false,
        per_key: PerKey::default(),
        filter: 0,
        limits: LaneLimits::default(),
    }
}

/// With another filter.
fn changed(order: Order) -> LaneSpec {
    LaneSpec { filter: 1, ..spec(order) }
}

fn restored(order: Order, progress: &Progress, carried: Vec<Carried>) -> Lane {
    Lane::restore(spec(order), progress, carried)
}

/// Reads the log up to `next`, all of one key; the filter lets these in.
fn read(lane: &mut Lane, matching: &[i64], next: i64) {
    while let Some(from) = lane.read_at().filter(|at| *at < offset(next)) {
        let found = matching.iter().copied().filter(|at| (from..offset(next)).contains(&offset(*at)));
        read_chunk(lane, &found.collect::<Vec<_>>(), next);
    }
}

fn read_chunk(lane: &mut Lane, matching: &[i64], next: i64) {
    let facts = matching.iter().map(|&at| RecordFacts {
        offset: offset(at),
        key: 7,
        size_bytes: 1,
        age: Duration::ZERO,
        spot: Spot::UNKNOWN,
    });
    lane.take(&facts.collect::<Vec<_>>(), offset(next), 0);
}

/// The window whose turn it is: its offsets, and the attempts it has had.
fn begin(lane: &mut Lane) -> Option<(WindowId, Vec<i64>, u32)> {
    let id = lane.start_next(false, usize::MAX, LATER_MS)?;
    let offsets = lane.offsets(id).iter().map(|offset| offset.get()).collect();
    Some((id, offsets, lane.state(id).attempts))
}

/// Delivers whatever there is, window by window.
fn deliver(lane: &mut Lane) -> Vec<(Vec<i64>, u32)> {
    let mut delivered = Vec::new();
    while let Some((id, offsets, attempts)) = begin(lane) {
        lane.end(id, Outcome::done(), LATER_MS, 0);
        delivered.push((offsets, attempts));
    }
    // In order none nobody waits for another.
    delivered.sort();
    delivered
}

/// What a restart goes on from.
fn written(lane: &mut Lane) -> Progress {
    Progress::decode(&lane.encoded_progress()).unwrap()
}

/// A lane whose window of the records 0 and 2 has failed once.
fn failed(order: Order) -> Lane {
    let mut lane = restored(order, &Progress::start(Offset::ZERO), Vec::new());
    read(&mut lane, &[0, 2], 3);
    let (id, offsets, _) = begin(&mut lane).unwrap();
    assert_eq!(offsets, [0, 2]);
    fail(&mut lane, id, 0);
    lane
}

fn fail(lane: &mut Lane, id: WindowId, now_ms: i64) {
    let error = InvocationError::new(ErrorClass::Failed, "", "");
    lane.end(id, Outcome::failed(lane.offsets(id), error), now_ms, 0);
}

#[test]
fn a_record_that_a_filter_lets_in_shares_nobodys_attempts() {
    for order in ORDERS {
        let mut here = failed(order).redefine(changed(order), 0);
        read(&mut here, &[0, 1, 2], 3);
        assert_eq!(deliver(&mut here), [(vec![0, 2], 1), (vec![1], 0)], "{order:?}");
        // After a restart nobody knows which of the three was tried: none of them was.
        let mut there = restored(order, &written(&mut failed(order)), Vec::new());
        read(&mut there, &[0, 1, 2], 3);
        assert_eq!(deliver(&mut there), [(vec![0, 1], 0), (vec![2], 0)], "{order:?}");
        // With one that is gone it is the same window.
        let mut there = restored(order, &written(&mut failed(order)), Vec::new());
        read(&mut there, &[0], 3);
        assert_eq!(deliver(&mut there), [(vec![0], 1)], "{order:?}");
    }
}

#[test]
fn a_record_that_a_filter_lets_in_is_not_given_up_with_others() {
    for order in ORDERS {
        let mut lane = failed(order);
        lane.skip();
        let (id, reason) = lane.next_given_up().unwrap();
        let verdict = || Carried::verdict(lane.name(id), &lane.offsets(id), lane.state(id).clone(), reason);
        let given_up = Progress::decode(&lane.progress().encode().unwrap()).unwrap();
        for carried in [vec![verdict()], Vec::new()] {
            let is_known = !carried.is_empty();
            let mut there = restored(order, &given_up, carried);
            read(&mut there, &[0, 1, 2], 3);
            let mut settled = Vec::new();
            while let Some((id, _)) = there.next_given_up() {
                settled.extend(there.offsets(id).iter().map(|offset| offset.get()));
                there.settle(id, 0);
            }
            let delivered = deliver(&mut there);
            if is_known {
                assert_eq!((settled, delivered), (vec![0, 2], vec![(vec![1], 0)]), "{order:?}");
            } else {
                // Nothing was done of it yet: all are tried.
                assert_eq!((settled, delivered), (vec![], vec![(vec![0, 1], 0), (vec![2], 0)]), "{order:?}");
            }
            assert_eq!(written(&mut there), Progress::start(offset(3)), "{order:?}");
        }
    }
}

/// What lies between the records of a window that goes on must not be taken for its own, nor the other way round.
#[test]
fn a_window_of_records_that_a_filter_lets_in_crosses_none_that_was_tried() {
    for order in ORDERS {
        let mut here = failed(order).redefine(changed(order), 0);
        read(&mut here, &[0, 1, 2, 3], 4);
        let mut begun: Vec<Vec<i64>> = std::iter::from_fn(|| begin(&mut here)).map(|(_, offsets, _)| offsets).collect();
        begun.sort();
        // In the other orders they wait.
        let expected = if order == Order::None { vec![vec![0, 2], vec![1], vec![3]] } else { vec![vec![0, 2]] };
        assert_eq!(begun, expected, "{order:?}");
    }
}

/// Nothing is delivered twice because a filter did not let it in for a while.
#[test]
fn what_is_finished_stays_so_whatever_filters_let_in() {
    for order in ORDERS {
        // Of 0, 1 and 2 the middle one is finished, and read is up to 5.
        let progress = Progress::new(
            offset(5),
            vec![Span::new(offset(0), offset(1)).unwrap(), Span::new(offset(2), offset(3)).unwrap()],
            Vec::new(),
            Vec::new(),
        );
        for (narrow, next) in [(&[0, 2][..], 5), (&[0], 5), (&[0, 6], 7)] {
            let mut lane = restored(order, &progress, Vec::new());
            read(&mut lane, narrow, next);
            let mut lane = lane.redefine(changed(order), 0);
            read(&mut lane, &[0, 1, 2, 3, 4, 5, 6], next);
            let delivered: Vec<i64> = deliver(&mut lane).into_iter().flat_map(|(offsets, _)| offsets).collect();
            let expected: Vec<i64> = narrow.to_vec();
            assert_eq!(delivered, expected, "{order:?}, {narrow:?}");
        }
    }
}

#[test]
fn attempts_go_on_after_a_restart_where_the_same_records_are_found() {
    for order in ORDERS {
        // Another filter, which takes the same two, or one of them and one between.
        for (found, expected) in [(&[0, 2][..], (vec![0, 2], 1)), (&[1, 2], (vec![1, 2], 0)), (&[2], (vec![2], 0))] {
            let mut here = failed(order).redefine(changed(order), 0);
            let mut there = Lane::restore(changed(order), &written(&mut here), Vec::new());
            read(&mut there, found, 3);
            assert_eq!(deliver(&mut there), [expected], "{order:?}, {found:?}");
        }
    }
}

/// A kill before the first progress under a new filter, or a group of which another process has another one.
#[test]
fn attempts_go_on_under_another_filter_where_the_same_records_are_found_and_begin_anew_elsewhere() {
    for order in ORDERS {
        for (found, attempts) in [(&[0, 2][..], 1), (&[0, 1], 0), (&[2], 0)] {
            let mut there = Lane::restore(changed(order), &written(&mut failed(order)), Vec::new());
            read(&mut there, found, 3);
            assert_eq!(deliver(&mut there), [(found.to_vec(), attempts)], "{order:?}");
        }
        // Nor is any other record given up, also where somebody has begun to write letters: some of them may be there.
        for (found, has_letters) in [(&[0, 2][..], false), (&[0, 2], true), (&[0, 1, 2], true), (&[1, 2], true)] {
            let mut there = Lane::restore(changed(order), &given_up(order, has_letters), Vec::new());
            read(&mut there, found, 3);
            let given_up = there.next_given_up().map(|(id, _)| there.offsets(id));
            let is_same = *found == [0, 2];
            assert_eq!(given_up, is_same.then(|| vec![offset(0), offset(2)]), "{order:?}, {found:?}");
            let again: usize = deliver(&mut there).into_iter().map(|(offsets, _)| offsets.len()).sum();
            assert_eq!(again, if is_same { 0 } else { found.len() }, "{order:?}, {found:?}");
        }
        // Under the same filter letters may have been begun of fewer: what had succeeded is found as well.
        let mut there = restored(order, &given_up(order, true), Vec::new());
        read(&mut there, &[1, 2], 3);
        let (id, _) = there.next_given_up().unwrap();
        let begun = Letters { producer_id: 7, records: 2, is_whole: false };
        assert_eq!((there.offsets(id).len(), there.letters(id)), (2, Some(begun)), "{order:?}");
        // Whoever takes over then knows it as well.
        let mut next = restored(order, &written(&mut there), Vec::new());
        read(&mut next, &[1, 2], 3);
        let (id, _) = next.next_given_up().unwrap();
        assert_eq!(next.letters(id), Some(begun), "{order:?}");
    }
}

/// The progress of a failed lane whose window was given up, and of which somebody has perhaps begun to write letters.
fn given_up(order: Order, has_letters: bool) -> Progress {
    let mut lane = failed(order);
    lane.skip();
    let (id, _) = lane.next_given_up().unwrap();
    assert!(!has_letters || lane.begin_letters(id, 7));
    written(&mut lane)
}

/// What was read before a window that goes on goes before it.
#[test]
fn a_window_that_goes_on_overtakes_nothing_of_its_key() {
    let mut lane = restored(Order::Key, &Progress::start(Offset::ZERO), Vec::new());
    read(&mut lane, &[0, 3], 4);
    let (id, ..) = begin(&mut lane).unwrap();
    fail(&mut lane, id, 0);
    let first = lane.progress().windows()[0];
    let second = TriedWindow {
        span: Span::new(offset(4), offset(6)).unwrap(),
        fingerprint: crate::trigger::progress::fingerprint([offset(4), offset(5)]),
        ..first
    };
    let hole = Span::new(offset(0), offset(6)).unwrap();
    let progress = Progress::new(offset(6), vec![hole], vec![first, second], Vec::new());
    // With 1 and 2 the first one cannot be what it was; that is known before 3 is read.
    let mut there = Lane::restore(changed(Order::Key), &progress, Vec::new());
    read(&mut there, &[0, 1, 2, 3, 4, 5], 6);
    let mut delivered = Vec::new();
    while let Some((id, offsets, attempts)) = begin(&mut there) {
        there.end(id, Outcome::done(), LATER_MS, 0);
        delivered.push((offsets, attempts));
    }
    assert_eq!(delivered, [(vec![0, 1], 0), (vec![2], 0), (vec![3], 0), (vec![4, 5], 1)]);
}

/// Of the same number and the same sum.
#[test]
fn records_are_told_from_others_that_lie_around_them() {
    let mut lane = restored(Order::Partition, &Progress::start(Offset::ZERO), Vec::new());
    read(&mut lane, &[0, 3], 4);
    let (id, ..) = begin(&mut lane).unwrap();
    fail(&mut lane, id, 0);
    let mut lane = lane.redefine(changed(Order::Partition), 0);
    let mut there = Lane::restore(changed(Order::Partition), &written(&mut lane), Vec::new());
    read(&mut there, &[1, 2], 4);
    assert_eq!(deliver(&mut there), [(vec![1, 2], 0)]);
}

/// Its letters may be quicker than reading.
#[test]
fn what_lies_between_the_records_of_a_verdict_is_tried_also_once_that_is_settled() {
    for order in ORDERS {
        let mut lane = failed(order);
        lane.skip();
        let (id, reason) = lane.next_given_up().unwrap();
        let verdict = Carried::verdict(lane.name(id), &lane.offsets(id), lane.state(id).clone(), reason);
        let progress = Progress::decode(&lane.progress().encode().unwrap()).unwrap();
        let mut there = restored(order, &progress, vec![verdict]);
        let (id, _) = there.next_given_up().unwrap();
        there.settle(id, 0);
        // And another change before anything is read.
        let mut there = there.redefine(changed(order), 0).redefine(changed(order), 0);
        read(&mut there, &[0, 1, 2], 3);
        assert_eq!(there.next_given_up(), None, "{order:?}");
        assert_eq!(deliver(&mut there), [(vec![1], 0)], "{order:?}");
    }
}

#[test]
fn a_lane_holds_no_more_whatever_a_filter_lets_in_between_what_was_tried() {
    const FAR: i64 = 200_000;
    for order in ORDERS {
        let mut lane = restored(order, &Progress::start(Offset::ZERO), Vec::new());
        read(&mut lane, &[0, FAR], FAR + 1);
        let (id, ..) = begin(&mut lane).unwrap();
        fail(&mut lane, id, 0);
        let mut there = restored(order, &written(&mut lane), Vec::new());
        for _ in 0..2 * FAR / 1000 {
            let Some(from) = there.read_at().map(Offset::get).filter(|from| *from <= FAR) else { break };
            let next = (from + 1000).min(FAR + 1);
            let chunk: Vec<i64> = (from..next).collect();
            read_chunk(&mut there, &chunk, next);
        }
        let most = spec(order).limits.records + 1000;
        assert!(there.held_records() <= most, "{order:?}: {}", there.held_records());
    }
}
