use serde_json::{Value, json};

use super::*;

mod simulation;

const T0_MS: i64 = 1_796_108_400_000;

fn spec(definition: Value) -> Arc<ScheduleSpec> {
    let mut whole = json!({"schedule": "s", "topic": "t"});
    whole.as_object_mut().unwrap().extend(definition.as_object().unwrap().clone());
    Arc::new(ScheduleSpec::from_json(&whole).unwrap())
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

/// A planner with its clocks and one schedule, made at [`T0_MS`], which is on the minute.
struct Bench {
    planner: Planner,
    now: Reading,
}

impl Bench {
    fn new(definition: Value) -> Self {
        let now = Reading { wall_ms: T0_MS, monotonic_ms: 0 };
        let mut planner = Planner::start(now);
        planner.put(id(1), spec(definition), Position { since_ms: T0_MS, ..Position::default() }, now);
        Self { planner, now }
    }

    fn pass(&mut self, seconds: i64) -> &mut Self {
        self.now.wall_ms += seconds * 1000;
        self.now.monotonic_ms += seconds * 1000;
        self
    }

    fn jump(&mut self, seconds: i64) -> &mut Self {
        self.now.wall_ms += seconds * 1000;
        self
    }

    /// Does all that is due; answers the ticks in seconds after [`T0_MS`].
    fn due(&mut self) -> Vec<i64> {
        let mut done = Vec::new();
        loop {
            let due = self.planner.look(self.now, 100);
            if due.is_empty() {
                return done;
            }
            for due in due {
                done.push(due.tick.unix_s() - T0_MS / 1000);
                self.planner.fired(due);
            }
        }
    }
}

#[test]
fn ticks_come_one_by_one_and_also_late_ones_all() {
    let mut bench = Bench::new(json!({"rate": "60s"}));
    assert_eq!(bench.due(), [] as [i64; 0], "the moment it was made is not its own");
    assert_eq!(bench.planner.wait_ms(bench.now), Some(60_000));
    assert_eq!(bench.pass(59).due(), [] as [i64; 0]);
    assert_eq!(bench.pass(1).due(), [60]);
    assert_eq!(bench.pass(600).due(), (2..=11).map(|n| n * 60).collect::<Vec<_>>(), "a busy machine looks late");
}

#[test]
fn a_jump_forward_skips_or_makes_up_the_last_one() {
    let mut skip = Bench::new(json!({"rate": "60s"}));
    assert_eq!(skip.pass(60).due(), [60]);
    assert_eq!(skip.jump(3600 + 30).due(), [] as [i64; 0]);
    assert_eq!(skip.planner.take_skipped(), [id(1)]);
    assert_eq!(skip.pass(30).due(), [3720]);
    let mut once = Bench::new(json!({"rate": "60s", "catch_up": "once"}));
    assert_eq!(once.jump(3600 + 30).due(), [3600]);
    assert_eq!(once.pass(30).due(), [3660]);
}

#[test]
fn a_missed_tick_within_ten_seconds_is_on_time() {
    let mut skip = Bench::new(json!({"rate": "60s"}));
    assert_eq!(skip.jump(3600 + 10).due(), [3600]);
    let mut late = Bench::new(json!({"rate": "60s"}));
    assert_eq!(late.jump(3600 + 11).due(), [] as [i64; 0]);
    let mut small = Bench::new(json!({"rate": "2s"}));
    assert_eq!(small.jump(10).due(), [2, 4, 6, 8, 10], "so small a step is a clock that runs");
}

#[test]
fn a_clock_that_goes_back_repeats_nothing() {
    let mut bench = Bench::new(json!({"rate": "60s"}));
    assert_eq!(bench.pass(120).due(), [60, 120]);
    assert_eq!(bench.jump(-90).due(), [] as [i64; 0]);
    assert_eq!(bench.pass(90).due(), [] as [i64; 0]);
    assert_eq!(bench.pass(60).due(), [180]);
}

#[test]
fn a_clock_that_was_a_year_ahead_for_a_while_stops_no_schedule() {
    let mut bench = Bench::new(json!({"rate": "60s"}));
    assert_eq!(bench.pass(60).due(), [60]);
    bench.jump(366 * 86_400 + 30);
    assert_eq!(bench.due(), [] as [i64; 0]);
    assert_eq!(bench.jump(-366 * 86_400 - 30).pass(60).due(), [120]);
}

#[test]
fn ticks_of_a_clock_that_was_ahead_are_not_done_again_and_keep_no_others_back() {
    let ahead_s = 3600;
    let mut bench = Bench::new(json!({"rate": "60s"}));
    assert_eq!(bench.pass(60).due(), [60]);
    assert_eq!(bench.jump(ahead_s + 30).due(), [] as [i64; 0]);
    assert_eq!(bench.pass(90).due(), [ahead_s + 120, ahead_s + 180]);
    assert_eq!(bench.jump(-ahead_s - 30).due(), [] as [i64; 0]);
    assert_eq!(bench.pass(60).due(), [180], "120 passed while the clock was ahead");
    let coming = |from: i64, to: i64| (from..=to).map(|n| n * 60).collect::<Vec<_>>();
    assert_eq!(bench.pass(ahead_s - 120).due(), coming(4, 61), "all that are not done");
    assert_eq!(bench.pass(180).due(), [ahead_s + 240], "those that are come no second time");
    assert_eq!(bench.jump(-120).pass(120).due(), [] as [i64; 0]);
    assert_eq!(bench.jump(-2 * ahead_s).due(), [] as [i64; 0]);
    assert_eq!(bench.pass(60).due(), [-3300], "the clock that the schedule was made by was ahead");
}

#[test]
fn a_clock_that_was_ahead_more_than_once_by_more_and_by_less_stops_no_schedule() {
    let (year_s, mut tick_s) = (366 * 86_400, 60);
    let mut bench = Bench::new(json!({"rate": "60s"}));
    assert_eq!(bench.pass(60).due(), [60]);
    for ahead_s in [year_s, 10 * year_s, 600, year_s / 2, 10 * year_s] {
        assert!(bench.jump(ahead_s).due().len() <= 1);
        assert!(bench.pass(60).due().len() <= 1);
        bench.jump(-ahead_s).due();
        tick_s += 120;
        assert_eq!(bench.pass(60).due(), [tick_s], "{ahead_s}");
    }
}

#[test]
fn what_a_clock_that_was_ahead_made_or_resumed_is_due_when_it_is_right_again() {
    let year_s = 366 * 86_400;
    let mut bench = Bench::new(json!({"rate": "60s"}));
    assert_eq!(bench.pass(60).due(), [60]);
    bench.jump(year_s).due();
    let resumed = Position { since_ms: bench.now.wall_ms, ..bench.planner.position(id(1)).unwrap() };
    bench.planner.put(id(1), spec(json!({"rate": "60s"})), resumed.clone(), bench.now);
    assert_eq!(bench.jump(-year_s).due(), [] as [i64; 0]);
    assert_eq!(bench.pass(60).due(), [120]);
    let resumed = Position { since_ms: resumed.since_ms, ..bench.planner.position(id(1)).unwrap() };
    // As a start that has it from the journal.
    let mut bench = Bench { planner: Planner::start(bench.now), now: bench.now };
    bench.planner.put(id(1), spec(json!({"rate": "60s"})), resumed, bench.now);
    assert_eq!(bench.due(), [] as [i64; 0]);
    assert_eq!(bench.pass(60).due(), [180]);
}

#[test]
fn the_clock_is_looked_at_every_minute_while_there_are_schedules_and_never_without() {
    let mut bench = Bench::new(json!({"rate": "24h"}));
    assert_eq!(bench.planner.wait_ms(bench.now), Some(LOOK_MAX_MS));
    bench.planner.remove(id(1));
    assert_eq!(bench.planner.wait_ms(bench.now), None);
    let mut done = Bench::new(json!({"at": "2020-01-01T00:00:00"}));
    assert_eq!(done.planner.wait_ms(done.now), Some(LOOK_MAX_MS), "one that is over may come again");
}

#[test]
fn one_moment_that_a_clock_left_out_comes_when_it_is_put_right() {
    let mut bench = Bench::new(json!({"at": "2026-12-02T00:00:00"}));
    let year_s = 366 * 86_400;
    assert_eq!(bench.jump(year_s).due(), [] as [i64; 0]);
    assert_eq!(bench.planner.take_skipped(), [id(1)]);
    assert_eq!(bench.planner.wait_ms(bench.now), Some(LOOK_MAX_MS), "or nobody would see that it is put right");
    assert_eq!(bench.jump(-year_s).due(), [] as [i64; 0]);
    let tick_s = 1_796_169_600 - T0_MS / 1000;
    assert_eq!(bench.pass(tick_s).due(), [tick_s]);
}

#[test]
fn ticks_of_a_pause_are_not_done_by_a_clock_that_is_set_back_a_little() {
    let definition = json!({"rate": "1s", "catch_up": "once"});
    for (after_ms, back_ms) in [(0, 50), (0, 9_900), (59_000, 60_000), (59_000, 68_000)] {
        let mut bench = Bench::new(definition.clone());
        bench.pass(100).due();
        let mut position = bench.planner.position(id(1)).unwrap();
        bench.planner.remove(id(1));
        bench.pass(1000);
        position.since_ms = bench.now.wall_ms;
        bench.planner.put(id(1), spec(definition.clone()), position.clone(), bench.now);
        bench.now.wall_ms += after_ms - back_ms;
        bench.now.monotonic_ms += after_ms;
        assert_eq!(bench.due(), [] as [i64; 0], "{after_ms} {back_ms}");
        // And at a start.
        let mut bench = Bench { planner: Planner::start(bench.now), now: bench.now };
        bench.planner.put(id(1), spec(definition.clone()), position, bench.now);
        assert_eq!(bench.due(), [] as [i64; 0], "{after_ms} {back_ms} at a start");
        assert_eq!(bench.pass(12).due()[..2], [1101, 1102]);
    }
}

#[test]
fn a_clock_that_was_not_set_yet_has_no_ticks() {
    let now = Reading { wall_ms: 3_000, monotonic_ms: 0 };
    let mut bench = Bench { planner: Planner::start(now), now };
    let position = Position { since_ms: T0_MS, ..Position::default() };
    bench.planner.put(id(1), spec(json!({"rate": "10s"})), position, now);
    assert_eq!(bench.pass(60).due(), [] as [i64; 0]);
    bench.now.wall_ms = T0_MS + 5_000;
    assert_eq!(bench.due(), [] as [i64; 0]);
    assert_eq!(bench.pass(5).due(), [10]);
}

#[test]
fn ticks_that_come_while_a_schedule_is_made_are_done_and_those_of_one_that_stood_still_were_missed() {
    let made = |put: fn(&mut Planner, Uuid, Arc<ScheduleSpec>, Position, Reading)| {
        let now = Reading { wall_ms: T0_MS, monotonic_ms: 0 };
        let mut bench = Bench { planner: Planner::start(now), now };
        let now = bench.pass(15).now;
        let position = Position { since_ms: T0_MS, ..Position::default() };
        put(&mut bench.planner, id(1), spec(json!({"rate": "1s", "catch_up": "once"})), position, now);
        bench.due()
    };
    assert_eq!(made(Planner::put), (1..=15).collect::<Vec<i64>>());
    assert_eq!(made(Planner::put_late), [15]);
}

#[test]
fn what_is_made_up_for_and_delayed_stays_so_when_its_schedule_is_put_again() {
    let definition = json!({"rate": "1h", "jitter": "50m"});
    let mut bench = Bench::new(definition.clone());
    assert_eq!(bench.jump(5 * 3600 + 1).due(), [] as [i64; 0]);
    let planned = bench.planner.next(id(1)).unwrap();
    assert_eq!(planned.0.unix_s(), T0_MS / 1000 + 5 * 3600);
    assert!(planned.1 > bench.now.wall_ms, "delayed");
    let position = bench.planner.position(id(1)).unwrap();
    bench.planner.put(id(1), spec(definition), position, bench.now);
    assert_eq!(bench.planner.next(id(1)), Some(planned));
    assert_eq!(bench.planner.take_skipped(), [id(1)], "once");
    assert_eq!(bench.pass(3000).due(), [5 * 3600]);
}

#[test]
fn nights_of_sleep_while_the_clock_is_a_year_ahead_do_not_make_that_year_be_done() {
    let year_s = 366 * 86_400;
    let mut bench = Bench::new(json!({"rate": "1h"}));
    bench.jump(year_s).due();
    assert_eq!(bench.planner.take_skipped(), [id(1)]);
    for _ in 0..40 {
        bench.pass(16 * 3600).due();
        assert!(bench.jump(8 * 3600).due().len() <= 1);
        assert_eq!(bench.planner.take_skipped(), [id(1)], "once for each night");
    }
    bench.jump(-year_s).due();
    let now_s = (bench.now.wall_ms - T0_MS) / 1000;
    let next_s = (now_s / 3600 + 1) * 3600;
    assert_eq!(bench.pass(3600).due(), [next_s]);
}

#[test]
fn a_tick_whose_topic_takes_nothing_comes_again_and_those_behind_it_were_missed() {
    let mut bench = Bench::new(json!({"rate": "60s", "catch_up": "once"}));
    bench.pass(60);
    for wait_s in [1, 2, 4, 8, 16, 32, 60, 60] {
        let due = bench.planner.look(bench.now, 100);
        assert_eq!(due.len(), 1);
        bench.planner.failed(due[0]);
        assert_eq!(bench.planner.wait_ms(bench.now), Some(wait_s * 1000));
        bench.pass(wait_s as i64);
    }
    // 60 + 183 s: the one that failed, and the last of those behind it.
    assert_eq!(bench.due(), [60, 240]);
}

#[test]
fn a_look_takes_no_more_than_it_is_told_and_the_longest_due_first() {
    let now = Reading { wall_ms: T0_MS, monotonic_ms: 0 };
    let mut planner = Planner::start(now);
    for number in 0..10_000 {
        let every = format!("{}s", 1 + number % 60);
        planner.put(id(number), spec(json!({"rate": every})), Position { since_ms: T0_MS, ..Position::default() }, now);
    }
    let now = Reading { wall_ms: T0_MS + 60_000, monotonic_ms: 60_000 };
    let mut ticks = Vec::new();
    loop {
        let due = planner.look(now, 1000);
        if due.is_empty() {
            break;
        }
        assert!(due.len() <= 1000);
        for one in due {
            ticks.push((one.id, one.tick));
            planner.fired(one);
        }
    }
    let ticks_until = |unix_s: i64, number: i64| unix_s / (1 + number % 60);
    let in_a_minute = |number| ticks_until(T0_MS / 1000 + 60, number) - ticks_until(T0_MS / 1000, number);
    assert_eq!(ticks.len() as i64, (0..10_000).map(in_a_minute).sum::<i64>());
    assert!(planner.heap.len() <= 2 * planner.len() + 64);
    for _ in 0..100_000 {
        planner.put(id(1), spec(json!({"rate": "1h"})), Position::default(), now);
    }
    assert!(planner.heap.len() <= 2 * planner.len() + 65, "what is planned anew leaves nothing behind");
}
