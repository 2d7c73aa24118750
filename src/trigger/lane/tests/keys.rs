//! Keys beside each other: one that fails does not stop the others, whatever room there is.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::*;
use crate::function::InvocationError;
use crate::trigger::attempt::ErrorsTolerance;
use crate::trigger::flow::Throttle;
use crate::trigger::retry::{FreeRetry, Jitter, RetryPolicy};
use crate::trigger::window::RecordFacts;

fn offset(at: u64) -> Offset {
    Offset::ZERO.checked_add(at).unwrap()
}

/// Order key; a failed window waits a minute, for ever.
fn spec(count: u32, limits: LaneLimits) -> LaneSpec {
    let wait = Duration::from_secs(60);
    let retry = FreeRetry {
        initial: wait,
        factor_thousandths: 1000,
        max_interval: wait,
        max_attempts: 1,
        jitter: Jitter::None,
        max_age: Duration::from_secs(86_400),
    };
    LaneSpec {
        order: Order::Key,
        window: WindowSpec { count, ..WindowSpec::default() },
        policies: Policies { retry: RetryPolicy::Free(retry), errors_tolerance: ErrorsTolerance::None },
        bisect: false,
        per_key: PerKey::default(),
        filter: 0,
        limits,
    }
}

/// A lane, its log (the key of each record), and what was delivered of it.
struct Scene {
    lane: Lane,
    keys: Vec<u64>,
    delivered: BTreeMap<u64, Vec<i64>>,
    now_ms: i64,
    /// How many records are read at once.
    chunk: u64,
}

impl Scene {
    fn new(spec: LaneSpec, keys: Vec<u64>) -> Self {
        let lane = Lane::restore(spec, &Progress::start(Offset::ZERO), Vec::new());
        Self { lane, keys, delivered: BTreeMap::new(), now_ms: 0, chunk: 500 }
    }

    fn tail(&self) -> Offset {
        offset(self.keys.len() as u64)
    }

    fn facts(&self, from: Offset, next: Offset) -> Vec<RecordFacts> {
        let at = |at: i64| RecordFacts {
            offset: offset(at.unsigned_abs()),
            key: self.keys[at as usize],
            size_bytes: 1,
            age: Duration::ZERO,
            spot: Spot::UNKNOWN,
        };
        (from.get()..next.get()).map(at).collect()
    }

    fn chunk(&self, from: Offset) -> Offset {
        from.checked_add(self.chunk).unwrap().min(self.tail())
    }

    /// One turn: reads, starts what may start, up to 8, and ends it. Answers whether anything happened, and the
    /// windows.
    fn turn(&mut self, fails: impl Fn(u64) -> bool) -> (bool, usize) {
        let mut read = false;
        if let Some(from) = self.lane.catch_up_at() {
            let next = self.chunk(from);
            self.lane.take_spilled(&self.facts(from, next), from, next, self.now_ms);
            read = true;
        }
        if let Some(from) = self.lane.read_at().filter(|at| *at < self.tail()) {
            let next = self.chunk(from);
            self.lane.take(&self.facts(from, next), next, self.now_ms);
            read = true;
        }
        let more = self.lane.read_at().is_some_and(|at| at < self.tail());
        let mut started = Vec::new();
        while started.len() < 8
            && let Some(id) = self.lane.start_next(more, usize::MAX, self.now_ms)
        {
            started.push(id);
        }
        for &id in &started {
            let offsets = self.lane.offsets(id);
            let key = self.keys[offsets[0].get() as usize];
            let outcome = if fails(key) {
                Outcome::failed(offsets, InvocationError::new(ErrorClass::Failed, "500", "no good"))
            } else {
                self.delivered.entry(key).or_default().extend(offsets.iter().map(|offset| offset.get()));
                Outcome::done()
            };
            self.lane.end(id, outcome, self.now_ms, 0);
        }
        let bytes = self.lane.encoded_progress();
        assert!(!self.lane.is_written_coarsely());
        assert!(bytes.len() <= self.lane.spec.limits.progress_bytes);
        assert!(self.lane.held_records() <= self.lane.spec.limits.records + 500, "T3");
        (read || !started.is_empty(), started.len())
    }

    fn expected(&self, key: u64) -> Vec<i64> {
        (0..).zip(&self.keys).filter(|(_, other)| **other == key).map(|(at, _)| at).collect()
    }
}

/// Keys in no pattern; every tenth record has key 0.
fn scattered(records: u64, keys: u64, seed: u64) -> Vec<u64> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..records).map(|at| if at % 10 == 0 { 0 } else { random.u64(1..keys) }).collect()
}

fn healthy_keys_go_on(limits: LaneLimits, count: u32, keys: u64, failing: u64) {
    healthy_keys_go_on_in_chunks(500, limits, count, keys, failing);
}

fn healthy_keys_go_on_in_chunks(chunk: u64, limits: LaneLimits, count: u32, keys: u64, failing: u64) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut scene = Scene::new(spec(count, limits), scattered(20_000, keys, seed));
    scene.chunk = chunk;
    while scene.turn(|key| key < failing).0 {}
    for key in failing..keys {
        assert_eq!(scene.delivered.get(&key).map_or(&[][..], Vec::as_slice), scene.expected(key), "key {key}");
    }
    assert!(scene.delivered.range(..failing).next().is_none());
    // It is over; all that waited goes on, in order.
    for _ in 0..200 {
        scene.now_ms += 60_000;
        while scene.turn(|_| false).0 {}
    }
    for key in 0..failing {
        assert_eq!(scene.delivered.get(&key).map_or(&[][..], Vec::as_slice), scene.expected(key), "key {key}");
    }
    assert_eq!(scene.lane.committed(), scene.tail());
}

#[test]
fn the_other_keys_go_on_beside_one_that_fails() {
    healthy_keys_go_on(LaneLimits::default(), 100, 1_000, 1);
}

#[test]
fn the_other_keys_go_on_beside_ten_that_fail() {
    healthy_keys_go_on(LaneLimits::default(), 10, 1_000, 10);
}

#[test]
fn the_other_keys_go_on_where_there_is_little_room() {
    healthy_keys_go_on(LaneLimits { records: 1_000, ..LaneLimits::default() }, 100, 1_000, 1);
}

#[test]
fn the_other_keys_go_on_where_a_window_may_hold_all_there_is_room_for() {
    healthy_keys_go_on(LaneLimits { records: 1_000, ..LaneLimits::default() }, 10_000, 1_000, 1);
}

#[test]
fn the_other_keys_go_on_beside_some_that_hold_nearly_all_there_is_room_for() {
    // With 14 of them, one time in a hundred, what they hold is so scattered that progress has no bytes for more.
    for failing in 5..13 {
        healthy_keys_go_on_in_chunks(20, LaneLimits { records: 1_000, ..LaneLimits::default() }, 100, 40, failing);
    }
}

#[test]
fn a_lane_whose_keys_all_fail_says_that_it_is_full_and_goes_on_later() {
    let mut scene = Scene::new(spec(1, LaneLimits::default()), scattered(20_000, 1_000, 7));
    while scene.turn(|_| true).0 {}
    assert!(scene.lane.look().full && scene.lane.position() < scene.tail());
    while scene.lane.committed() < scene.tail() {
        let before = scene.lane.committed();
        scene.now_ms += 60_000;
        while scene.turn(|_| false).0 {}
        assert!(before < scene.lane.committed(), "it stands still at {before}");
    }
    assert!(!scene.lane.look().full);
}

#[test]
fn keys_in_no_pattern_keep_the_function_busy() {
    let mut scene = Scene::new(spec(100, LaneLimits::default()), scattered(50_000, 1_000, 7));
    let (mut turns, mut windows) = (0, 0);
    loop {
        let (goes_on, started) = scene.turn(|_| false);
        if !goes_on {
            break;
        }
        turns += 1;
        windows += started;
    }
    assert_eq!(scene.lane.committed(), scene.tail());
    assert!(windows * 10 >= turns * 8 * 5, "{windows} windows in {turns} turns of 8 at most");
}

#[test]
fn a_clock_that_stood_elsewhere_holds_nothing_up() {
    let ten_years_ms = 10 * 365 * 86_400_000;
    let mut scene = Scene::new(spec(1, LaneLimits::default()), vec![1]);
    scene.now_ms = ten_years_ms;
    scene.turn(|_| true);
    let progress = scene.lane.progress();
    // The broker starts again, with the right time.
    let mut lane = Lane::restore(scene.lane.spec.clone(), &progress, Vec::new());
    lane.take(&scene.facts(Offset::ZERO, offset(1)), offset(1), 1_000);
    assert!(
        lane.start_next(false, usize::MAX, 1_000 + 3_600_000).is_some(),
        "no pause is longer than an hour: {lane:?}"
    );
}

#[test]
fn a_key_with_few_records_has_its_turn_before_younger_windows_of_one_with_many() {
    let limits = LaneLimits::default();
    // Windows of ten of the first key are full; the one record of the other, in the middle of them, waits for no more.
    let mut keys = vec![7; 55];
    keys.insert(15, 8);
    let mut scene = Scene::new(spec(10, limits), keys);
    let (tail, facts) = (scene.tail(), scene.facts(Offset::ZERO, scene.tail()));
    let lane = &mut scene.lane;
    lane.take(&facts, tail, 0);
    let mut order = Vec::new();
    // One at a time.
    while let Some(window) = lane.start_next(false, usize::MAX, 0) {
        order.push(lane.offsets(window)[0].get());
        lane.end(window, Outcome::done(), 0, 0);
    }
    assert_eq!(order, [0, 10, 15, 21, 31, 41, 51]);
}

/// A throttled key begins one window in an hour.
fn throttled(limits: LaneLimits) -> LaneSpec {
    let throttle = Throttle { limit: 1, period_ms: 3_600_000 };
    LaneSpec { per_key: PerKey { throttle: Some(throttle), ..PerKey::default() }, ..spec(1, limits) }
}

#[test]
fn another_key_goes_on_beside_throttled_ones_that_wait_for_their_turn() {
    let limits = LaneLimits { records: 100, ..LaneLimits::default() };
    let mut keys: Vec<u64> = (0..8).flat_map(|_| 0..20).collect();
    keys.push(99);
    let mut scene = Scene::new(throttled(limits), keys);
    scene.chunk = 30;
    while scene.turn(|_| false).0 {}
    assert_eq!(scene.delivered.get(&99), Some(&vec![160]), "{:?}", scene.lane.look());
    assert!((0..20).all(|key| scene.delivered[&key].len() == 1), "{:?}", scene.delivered);
    // Over a restart none is lost and none comes twice.
    let progress = Progress::decode(&scene.lane.encoded_progress()).unwrap();
    scene.lane = Lane::restore(scene.lane.spec.clone(), &progress, Vec::new());
    for _ in 0..8 {
        while scene.turn(|_| false).0 {}
        scene.now_ms += 3_600_000;
    }
    assert_eq!(scene.lane.committed(), scene.tail());
    for key in 0..20 {
        assert_eq!(scene.delivered[&key], scene.expected(key), "key {key}");
    }
    assert!(scene.lane.is_empty());
}

#[test]
fn a_throttled_key_that_rests_comes_back_when_its_turn_is_due_and_no_earlier() {
    let limits = LaneLimits { records: 100, ..LaneLimits::default() };
    let mut scene = Scene::new(throttled(limits), (0..10).flat_map(|_| 0..20).collect());
    while scene.turn(|_| false).0 {}
    assert!(!scene.lane.resting.is_empty() && scene.lane.catch_up_at().is_none());
    let due_ms = scene.lane.deadline_ms().unwrap();
    assert_eq!(due_ms, 3_600_000);
    scene.now_ms = due_ms - 1;
    assert!(!scene.turn(|_| false).0);
    scene.now_ms = due_ms;
    while scene.turn(|_| false).0 {}
    assert!((0..20).all(|key| scene.delivered[&key].len() == 2), "{:?}", scene.delivered);
}

#[test]
fn keys_that_are_throttled_for_long_hold_up_nobody_however_much_of_them_there_is() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // Most records are of a hundred keys that may begin once; another one has one in a thousand.
    let keys: Vec<u64> = (0..100_000).map(|at| if at % 1000 == 999 { 1000 + at } else { random.u64(..100) }).collect();
    let mut scene = Scene::new(throttled(LaneLimits::default()), keys.clone());
    while scene.turn(|_| false).0 {}
    for key in keys.iter().filter(|key| **key >= 1000) {
        assert!(scene.delivered.contains_key(key), "key {key}: {:?}", scene.lane.look());
    }
    assert_eq!(scene.lane.position(), scene.tail());
}

#[test]
fn a_key_that_rests_comes_back_for_each_of_its_turns_though_others_hold_all_the_space() {
    let mut scene = Scene::new(throttled(LaneLimits::default()), (0..100).flat_map(|_| 0..1000).collect());
    scene.chunk = 5_000;
    for turn in 1..=4 {
        while scene.turn(|_| false).0 {}
        let late: Vec<_> = (0..1000).filter(|key| scene.delivered[key].len() != turn).collect();
        assert!(late.is_empty(), "in turn {turn}: {late:?}, {:?}", scene.lane.look());
        scene.now_ms += 3_600_000;
    }
    assert!(!scene.lane.markers.is_empty(), "no key was ever set aside");
}
