use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tripline_storage::Partition;
use tripline_storage::batch::{BatchLimits, Batches};
use tripline_storage::fs::sim::Fault;
use tripline_storage::fs::{Fs, SimFs};

use super::*;
use crate::broker::{BrokerConfig, DeleteTopicError};
use crate::source::schedule::clock::ManualClock;
use crate::topic::name::TopicName;
use crate::topic::spec::TopicSpec;

/// 2026-12-01T07:00:00Z.
const T0_MS: i64 = 1_796_108_400_000;

struct World {
    dir: TempDir,
    clock: ManualClock,
    broker: Broker,
    schedules: ScheduleService,
}

impl World {
    async fn new() -> Self {
        Self::start(tempfile::tempdir().unwrap(), ManualClock::new(T0_MS)).await
    }

    async fn start(dir: TempDir, clock: ManualClock) -> Self {
        let (world, failed) = Self::start_with_failures(dir, clock).await;
        assert!(failed.is_empty(), "{failed:?}");
        world
    }

    async fn start_with_failures(dir: TempDir, clock: ManualClock) -> (Self, Vec<RestoreScheduleError>) {
        let (broker, _) = Broker::start(BrokerConfig::new(dir.path().join("data"))).unwrap();
        let (schedules, failed) = ScheduleService::start(broker.clone(), Clock::Manual(clock.clone())).await;
        (Self { dir, clock, broker, schedules }, failed)
    }

    /// Stops the loop without a word to the disk, as a kill would, and starts anew after `down_s`.
    async fn restart(self, down_s: i64) -> Self {
        let Self { dir, clock, broker, schedules } = self;
        schedules.shutdown().await;
        drop((schedules, broker));
        clock.jump(down_s * 1000);
        let world = Self::start(dir, clock).await;
        world.schedules.settled().await;
        world
    }

    async fn apply(&self, definition: Value) -> AppliedSchedule {
        self.schedules.apply(ScheduleSpec::from_json(&definition).unwrap()).await.unwrap()
    }

    async fn pass(&self, seconds: i64) {
        self.clock.pass(seconds * 1000);
        self.schedules.settled().await;
    }

    async fn jump(&self, seconds: i64) {
        self.clock.jump(seconds * 1000);
        self.schedules.settled().await;
    }

    /// The ids of all events in a topic, partition by partition.
    fn ids(&self, topic: &str) -> Vec<String> {
        let topic = self.broker.topic(topic).unwrap();
        topic.partitions().flat_map(|(_, log)| ids_of(log)).collect()
    }

    fn state(&self, name: &str) -> (ScheduleState, String) {
        let report = self.schedules.describe(name).unwrap();
        (report.state, report.reason)
    }
}

/// The ids of all events in a log.
fn ids_of(log: &Partition) -> Vec<String> {
    let mut ids = Vec::new();
    let mut at = log.log_start();
    while at < log.tail() {
        let outcome = log.read_blocking(at, 1 << 20).unwrap();
        for view in Batches::of(&outcome.bytes).map_while(Result::ok) {
            for record in &view.records(&BatchLimits::default()).unwrap() {
                let record = record.unwrap();
                let id = record.headers().find(|header| header.name == b"ce_id").unwrap().value.unwrap();
                ids.push(String::from_utf8(id.to_vec()).unwrap());
            }
        }
        at = outcome.next;
    }
    ids
}

fn every_minute(catch_up: &str) -> Value {
    json!({"schedule": "m", "rate": "1m", "topic": "t", "catch_up": catch_up})
}

fn at(times: &[&str]) -> Vec<String> {
    times.iter().map(|time| format!("m/2026-12-01T{time}Z")).collect()
}

#[tokio::test]
async fn ticks_become_events_in_a_topic_that_is_made_for_them() {
    let world = World::new().await;
    let applied = world.apply(every_minute("skip")).await;
    assert_eq!(applied, AppliedSchedule { created: true, changed: true, warnings: Vec::new() });
    world.schedules.settled().await;
    assert_eq!(world.ids("t"), at(&[]));
    world.pass(60).await;
    world.pass(150).await;
    assert_eq!(world.ids("t"), at(&["07:01:00", "07:02:00", "07:03:00"]));
    let report = world.schedules.describe("m").unwrap();
    assert_eq!((report.counts.fired, report.state), (3, ScheduleState::Running));
    assert_eq!(report.last.unwrap().time_text(), "2026-12-01T07:03:00Z");
    assert_eq!(report.next.unwrap().0.time_text(), "2026-12-01T07:04:00Z");
}

#[tokio::test]
async fn a_restart_repeats_no_tick_and_makes_up_for_missed_ones_as_the_policy_says() {
    let mut world = World::new().await;
    world.apply(every_minute("once")).await;
    world.apply(json!({"schedule": "s", "rate": "1m", "topic": "u", "catch_up": "skip"})).await;
    world.pass(60).await;
    world = world.restart(0).await;
    assert_eq!(world.ids("t"), at(&["07:01:00"]));
    world = world.restart(330).await;
    assert_eq!(world.ids("t"), at(&["07:01:00", "07:06:00"]));
    assert_eq!(world.ids("u"), ["s/2026-12-01T07:01:00Z"]);
    assert_eq!(world.schedules.describe("s").unwrap().counts.skipped, 1);
    world = world.restart(35).await;
    assert_eq!(world.ids("u"), ["s/2026-12-01T07:01:00Z", "s/2026-12-01T07:07:00Z"], "five seconds late are on time");
    world.pass(60).await;
    assert_eq!(world.ids("t"), at(&["07:01:00", "07:06:00", "07:07:00", "07:08:00"]));
}

#[tokio::test]
async fn a_clock_that_goes_back_repeats_nothing_also_over_a_restart() {
    let mut world = World::new().await;
    world.apply(every_minute("once")).await;
    world.pass(900).await;
    assert_eq!(world.ids("t").len(), 15);
    world.jump(-100).await;
    world = world.restart(-600).await;
    world.pass(690).await;
    assert_eq!(world.ids("t").len(), 15);
    assert_eq!(world.state("m"), (ScheduleState::Running, String::new()));
    world.pass(120).await;
    assert_eq!(world.ids("t")[15..], at(&["07:16:00"]));
}

#[tokio::test]
async fn a_clock_far_behind_the_last_tick_is_said() {
    let world = World::new().await;
    world.apply(every_minute("skip")).await;
    world.pass(3660).await;
    world.jump(-3600).await;
    let (state, reason) = world.state("m");
    assert_eq!(state, ScheduleState::Running);
    assert!(reason.contains("3600 s behind its last tick"), "{reason}");
}

const YEAR_S: i64 = 366 * 86_400;

#[tokio::test]
async fn a_tick_of_a_clock_that_was_a_year_ahead_stops_no_schedule_also_over_restarts() {
    for is_down_when_it_is_put_right in [false, true] {
        let mut world = World::new().await;
        world.apply(every_minute("skip")).await;
        world.pass(60).await;
        world.jump(YEAR_S).await;
        world.pass(90).await;
        assert_eq!(world.ids("t")[1..], ["m/2027-12-02T07:01:00Z", "m/2027-12-02T07:02:00Z"]);
        // Both clocks are at 07:02:30 of their years.
        if is_down_when_it_is_put_right {
            world = world.restart(-YEAR_S).await;
        } else {
            world.jump(-YEAR_S).await;
        }
        assert_eq!(world.state("m"), (ScheduleState::Running, String::new()));
        assert_eq!(world.schedules.describe("m").unwrap().next.unwrap().0.time_text(), "2026-12-01T07:03:00Z");
        world.pass(60).await;
        assert_eq!(world.ids("t")[3..], at(&["07:03:00"]));
        world = world.restart(0).await;
        world.pass(60).await;
        assert_eq!(world.ids("t")[3..], at(&["07:03:00", "07:04:00"]));
        assert_eq!(world.schedules.next_ticks("m", 1).unwrap()[0].0.time_text(), "2026-12-01T07:05:00Z");
        // A quick restart costs nothing meanwhile, and that year comes at last.
        world = world.restart(33).await;
        assert_eq!(world.ids("t")[5..], at(&["07:05:00"]));
        world.jump(YEAR_S - 183).await;
        world.pass(120).await;
        let mut ids = world.ids("t");
        assert_eq!(ids[6..], ["m/2027-12-02T07:03:00Z", "m/2027-12-02T07:04:00Z"], "07:02 was done");
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 8);
    }
}

#[tokio::test]
async fn what_is_made_or_resumed_by_a_clock_that_is_a_year_ahead_is_due_when_it_is_put_right() {
    for is_down_when_it_is_put_right in [false, true] {
        let mut world = World::new().await;
        world.apply(every_minute("skip")).await;
        world.schedules.pause("m").await.unwrap();
        world.jump(YEAR_S).await;
        world.schedules.resume("m").await.unwrap();
        world.apply(json!({"schedule": "n", "rate": "1m", "topic": "u"})).await;
        world.pass(90).await;
        if is_down_when_it_is_put_right {
            world = world.restart(-YEAR_S).await;
        } else {
            world.jump(-YEAR_S).await;
        }
        world.pass(30).await;
        assert_eq!(world.ids("t"), ["m/2027-12-02T07:01:00Z", "m/2026-12-01T07:02:00Z"]);
        assert_eq!(world.ids("u"), ["n/2027-12-02T07:01:00Z", "n/2026-12-01T07:02:00Z"]);
        // What is at most 10 s late at a start is not lost, though that year has not come.
        world = world.restart(65).await;
        assert_eq!(world.ids("t")[2..], ["m/2026-12-01T07:03:00Z"]);
        assert_eq!(world.ids("u")[2..], ["n/2026-12-01T07:03:00Z"]);
    }
}

#[tokio::test]
async fn new_times_are_not_held_by_what_a_clock_that_was_ahead_did_by_the_old_ones() {
    let mut world = World::new().await;
    world.apply(json!({"schedule": "m", "at": "2027-11-30T00:00:00", "topic": "t", "catch_up": "once"})).await;
    world.jump(YEAR_S).await;
    world.jump(-YEAR_S).await;
    assert_eq!(world.ids("t"), ["m/2027-11-30T00:00:00Z"]);
    assert_eq!(world.state("m").0, ScheduleState::Finished);
    world.apply(every_minute("skip")).await;
    world.pass(60).await;
    assert_eq!(world.ids("t")[1..], at(&["07:01:00"]));
    world = world.restart(0).await;
    world.pass(60).await;
    assert_eq!(world.ids("t")[1..], at(&["07:01:00", "07:02:00"]));
}

/// What the journal says after a death between intent and done, with the event in the topic or not.
async fn after_death(event_is_there: bool) -> World {
    let world = World::new().await;
    world.apply(every_minute("skip")).await;
    world.pass(60).await;
    let entry = world.broker.journal().look(|state| state.schedule_named("m").cloned().unwrap());
    let id = entry.defined.id;
    let tick_s = entry.fired_s.unwrap();
    // As if the process had died before it could say that it is done: the tick before is the last one that is.
    let from = if event_is_there { 0 } else { 1 };
    let firing = ScheduleFiring { id, tick_s, topic: entry.defined.topic, partition: 0, from };
    let records = [ScheduleFired { id, tick_s: tick_s - 60 }.into(), JournalRecord::from(firing)];
    world.broker.journal().append(&records, T0_MS).unwrap();
    world.restart(20).await
}

#[tokio::test]
async fn a_tick_that_was_appended_before_the_death_is_found_and_not_appended_again() {
    let world = after_death(true).await;
    assert_eq!(world.ids("t"), at(&["07:01:00"]));
    world.pass(60).await;
    assert_eq!(world.ids("t"), at(&["07:01:00", "07:02:00"]));
}

#[tokio::test]
async fn a_tick_that_was_begun_and_not_appended_is_appended_after_the_death_also_by_skip() {
    // The search begins behind the event: as if it were not there.
    let world = after_death(false).await;
    assert_eq!(world.ids("t"), at(&["07:01:00", "07:01:00"]));
    world.pass(60).await;
    let entry = world.broker.journal().look(|state| state.schedule_named("m").cloned().unwrap());
    assert_eq!((entry.firing, entry.fired_s), (None, Some(T0_MS / 1000 + 120)));
}

#[tokio::test]
async fn a_begun_tick_is_told_from_others_with_its_id_by_its_source() {
    let world = World::new().await;
    world.apply(every_minute("skip")).await;
    let topic = world.broker.topic("t").unwrap();
    let mut builder = tripline_storage::batch::BatchBuilder::new(Default::default());
    let headers: [(&[u8], Option<&[u8]>); 2] =
        [(b"ce_id", Some(b"m/2026-12-01T07:01:00Z")), (b"ce_source", Some(b"/somebody"))];
    builder.push(&tripline_storage::batch::NewRecord { headers: &headers, ..Default::default() }).unwrap();
    world.broker.append(&topic, 0, builder.finish().unwrap()).unwrap();
    let entry = world.broker.journal().look(|state| state.schedule_named("m").cloned().unwrap());
    let (id, tick_s) = (entry.defined.id, T0_MS / 1000 + 60);
    let firing = ScheduleFiring { id, tick_s, topic: topic.id(), partition: 0, from: 0 };
    world.broker.journal().append(&[firing.into()], T0_MS).unwrap();
    drop(topic);
    let world = world.restart(60).await;
    assert_eq!(world.ids("t"), at(&["07:01:00", "07:01:00"]));
}

#[tokio::test]
async fn pausing_ends_ticks_and_resuming_makes_up_for_none() {
    let world = World::new().await;
    world.apply(every_minute("once")).await;
    world.schedules.pause("m").await.unwrap();
    world.pass(300).await;
    assert_eq!(world.ids("t"), at(&[]));
    assert_eq!(world.state("m").0, ScheduleState::Paused);
    assert_eq!(world.schedules.next_ticks("m", 2).unwrap()[0].0.time_text(), "2026-12-01T07:06:00Z");
    let world = world.restart(300).await;
    assert_eq!(world.state("m").0, ScheduleState::Paused);
    world.schedules.resume("m").await.unwrap();
    world.pass(60).await;
    assert_eq!(world.ids("t"), at(&["07:11:00"]));
    let unknown = world.schedules.pause("x").await.unwrap_err();
    assert_eq!(unknown.to_string(), "schedule x does not exist");
}

#[tokio::test]
async fn a_disabled_definition_rests_until_another_is_applied() {
    let world = World::new().await;
    let mut definition = every_minute("once");
    definition["enabled"] = json!(false);
    world.apply(definition).await;
    world.pass(90).await;
    assert!(matches!(world.schedules.resume("m").await, Err(ScheduleError::Disabled(_))));
    world.apply(every_minute("once")).await;
    world.pass(60).await;
    assert_eq!(world.ids("t"), at(&["07:02:00"]));
}

#[tokio::test]
async fn a_change_keeps_ticks_that_are_done_and_new_times_begin_when_it_is_made() {
    let world = World::new().await;
    world.apply(every_minute("once")).await;
    world.pass(90).await;
    let same = world.apply(every_minute("once")).await;
    assert_eq!((same.created, same.changed), (false, false));
    let mut changed = every_minute("once");
    changed["data"] = json!([1]);
    let applied = world.apply(changed.clone()).await;
    assert_eq!((applied.created, applied.changed), (false, true));
    world.pass(30).await;
    changed["rate"] = json!("45s");
    world.apply(changed).await;
    world.pass(45).await;
    // 45 s are counted from 1970: 07:02:15 is one of theirs.
    assert_eq!(world.ids("t"), at(&["07:01:00", "07:02:00", "07:02:15"]));
    assert!(world.schedules.remove("m").await.unwrap());
    assert!(!world.schedules.remove("m").await.unwrap());
    world.pass(600).await;
    assert_eq!(world.ids("t").len(), 3);
    assert!(world.schedules.list().is_empty());
}

#[tokio::test]
async fn a_topic_that_a_schedule_writes_to_is_not_deleted() {
    let world = World::new().await;
    world.apply(every_minute("skip")).await;
    let refused = world.broker.delete_topic("t").await.unwrap_err();
    assert!(matches!(refused, DeleteTopicError::InUse { kind: "schedule", .. }), "{refused}");
    assert_eq!(refused.to_string(), "topic t is used by schedule m; delete the schedule first");
    world.schedules.remove("m").await.unwrap();
    world.broker.delete_topic("t").await.unwrap();
}

#[tokio::test]
async fn a_compacted_topic_wants_a_key() {
    let world = World::new().await;
    let definition = json!({"topic": "c", "config": {"cleanup.policy": "compact"}});
    world.broker.create_topic(TopicSpec::from_json(&definition).unwrap()).await.unwrap();
    let spec = |key: Option<&str>| {
        let mut definition = json!({"schedule": "m", "rate": "1m", "topic": "c"});
        if let Some(key) = key {
            definition["key"] = key.into();
        }
        ScheduleSpec::from_json(&definition).unwrap()
    };
    let refused = world.schedules.apply(spec(None)).await.unwrap_err();
    assert!(matches!(refused, ApplyScheduleError::KeyMissing(_)));
    world.schedules.apply(spec(Some("k"))).await.unwrap();
    world.pass(60).await;
    assert_eq!(world.ids("c"), at(&["07:01:00"]));
}

#[tokio::test]
async fn a_schedule_without_a_key_keeps_no_other_from_a_topic_that_has_become_compacted() {
    let world = World::new().await;
    // All are due at one moment, and so go into one batch, those with a key between and behind those without.
    for (name, key) in [("a", None), ("b", Some("k")), ("c", None), ("d", Some("k"))] {
        let mut definition = json!({"schedule": name, "rate": "60s", "topic": "t"});
        if let Some(key) = key {
            definition["key"] = key.into();
        }
        world.apply(definition).await;
    }
    world.pass(60).await;
    assert_eq!(world.ids("t").len(), 4);
    let topic = world.broker.topic("t").unwrap();
    let compacted = TopicSpec::from_json(&json!({"topic": "t", "config": {"cleanup.policy": "compact"}})).unwrap();
    world.broker.configure_topic(&topic, compacted.config).await.unwrap();
    world.pass(60).await;
    for wait_s in [1, 2, 4, 8] {
        world.pass(wait_s).await;
    }
    for name in ["a", "c"] {
        let (state, reason) = world.state(name);
        assert_eq!(state, ScheduleState::Blocked, "{name}");
        assert!(reason.contains("record 0 of the batch has no key; topic t is compacted"), "{reason}");
        assert_eq!(world.schedules.describe(name).unwrap().counts.fired, 1, "{name}");
    }
    for name in ["b", "d"] {
        assert_eq!(world.state(name), (ScheduleState::Running, String::new()), "{name}");
        let counts = world.schedules.describe(name).unwrap().counts;
        assert_eq!((counts.fired, counts.failed), (2, 0), "{name}");
    }
    world.broker.configure_topic(&topic, Default::default()).await.unwrap();
    world.pass(16).await;
    assert_eq!(world.ids("t").len(), 8, "what waited comes when the topic takes it again");
}

#[tokio::test]
async fn a_topic_that_takes_nothing_blocks_its_schedule_until_it_does() {
    let world = World::new().await;
    let mut definition = every_minute("skip");
    definition["data"] = json!("x".repeat(4000));
    world.apply(definition).await;
    let topic = world.broker.topic("t").unwrap();
    let small = TopicSpec::from_json(&json!({"topic": "t", "config": {"max.message.bytes": 2000}})).unwrap();
    world.broker.configure_topic(&topic, small.config).await.unwrap();
    world.pass(60).await;
    let (state, reason) = world.state("m");
    assert_eq!(state, ScheduleState::Blocked);
    assert!(reason.contains("topic t does not take tick 2026-12-01T07:01:00Z") && reason.contains("2000"), "{reason}");
    drop(topic);
    let world = world.restart(5).await;
    assert_eq!(world.state("m").0, ScheduleState::Blocked);
    let topic = world.broker.topic("t").unwrap();
    world.broker.configure_topic(&topic, Default::default()).await.unwrap();
    world.pass(300).await;
    assert_eq!(world.ids("t"), at(&["07:01:00", "07:06:00"]), "those behind it were missed but for the last, 5 s late");
    assert_eq!(world.state("m").0, ScheduleState::Running);
}

/// Its first tick is `Blocked`: the topic takes no events as large as its own.
async fn blocked() -> World {
    let world = World::new().await;
    let small = json!({"topic": "t", "config": {"max.message.bytes": 2000}});
    world.broker.create_topic(TopicSpec::from_json(&small).unwrap()).await.unwrap();
    world.apply(with(json!({"data": "x".repeat(4000)}))).await;
    world.pass(60).await;
    assert_eq!(world.state("m").0, ScheduleState::Blocked);
    world
}

/// [`every_minute`] but for these fields.
fn with(fields: Value) -> Value {
    let mut definition = every_minute("skip");
    definition.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    definition
}

#[tokio::test]
async fn new_times_let_go_of_a_tick_of_the_old_ones_that_waits_for_its_topic() {
    for restarts in [false, true] {
        let mut world = blocked().await;
        world.apply(with(json!({"rate": "45s"}))).await;
        assert_eq!(world.state("m"), (ScheduleState::Running, String::new()));
        if restarts {
            world = world.restart(0).await;
        }
        world.pass(45).await;
        assert_eq!(world.ids("t"), at(&["07:01:30"]), "restarts: {restarts}");
        world = world.restart(0).await;
        assert_eq!(world.ids("t"), at(&["07:01:30"]), "restarts: {restarts}");
    }
}

#[tokio::test]
async fn a_paused_schedule_stays_so_when_new_times_let_go_of_its_tick() {
    let world = blocked().await;
    world.schedules.pause("m").await.unwrap();
    world.apply(with(json!({"rate": "45s"}))).await;
    let world = world.restart(90).await;
    assert_eq!((world.state("m").0, world.ids("t")), (ScheduleState::Paused, at(&[])));
    world.schedules.resume("m").await.unwrap();
    world.pass(45).await;
    assert_eq!(world.ids("t"), at(&["07:03:00"]));
}

#[tokio::test]
async fn a_definition_with_the_same_times_keeps_a_tick_that_waits() {
    let world = blocked().await;
    world.apply(with(json!({"data": 1}))).await;
    world.schedules.settled().await;
    assert_eq!(world.ids("t"), at(&["07:01:00"]));
}

#[tokio::test]
async fn ticks_behind_one_that_waits_are_missed_also_when_another_definition_ends_the_wait() {
    let world = blocked().await;
    world.pass(330).await;
    world.apply(with(json!({"data": 1}))).await;
    world.schedules.settled().await;
    assert_eq!(world.ids("t"), at(&["07:01:00"]), "the last one is 30 s late");
    world.apply(with(json!({"data": 2}))).await;
    world.schedules.settled().await;
    assert_eq!(world.ids("t"), at(&["07:01:00"]), "what was left out stays so");
    world.pass(30).await;
    assert_eq!(world.ids("t"), at(&["07:01:00", "07:07:00"]));
}

/// A schedule that could not be started, since its topic is not there, and that had begun the tick of 07:01:00. Its
/// event is in the topic of that time; with `from` behind it, the search does not find it.
async fn not_started(from: i64) -> World {
    let world = World::new().await;
    world.apply(every_minute("skip")).await;
    world.pass(60).await;
    begin_again(&world.broker, from, Uuid::new_v4());
    let World { dir, clock, broker, schedules } = world;
    schedules.shutdown().await;
    drop((schedules, broker));
    clock.jump(150_000);
    let (world, failed) = World::start_with_failures(dir, clock).await;
    assert_eq!(failed[0].to_string(), "schedule m in the state journal: topic t does not exist");
    world
}

/// The journal says that the last tick of `m` was begun, and that its events go to `topic`.
fn begin_again(broker: &Broker, from: i64, topic: Uuid) {
    let entry = broker.journal().look(|state| state.schedule_named("m").cloned().unwrap());
    let (id, tick_s) = (entry.defined.id, entry.fired_s.unwrap());
    let firing = ScheduleFiring { id, tick_s, topic: entry.defined.topic, partition: 0, from };
    let moved = ScheduleDefined { topic, ..entry.defined };
    let records = [ScheduleFired { id, tick_s: tick_s - 60 }.into(), firing.into(), JournalRecord::from(moved)];
    broker.journal().append(&records, T0_MS).unwrap();
}

#[tokio::test]
async fn a_schedule_that_could_not_be_started_repeats_no_tick_when_it_is_applied_again() {
    let world = not_started(0).await;
    world.apply(every_minute("skip")).await;
    world.schedules.settled().await;
    assert_eq!(world.ids("t"), at(&["07:01:00"]));
    world.pass(30).await;
    let world = world.restart(0).await;
    assert_eq!(world.ids("t"), at(&["07:01:00", "07:04:00"]), "what came while it could not be started is not its own");
}

#[tokio::test]
async fn a_begun_tick_of_a_schedule_that_could_not_be_started_is_done_if_its_times_are_the_same() {
    let world = not_started(1).await;
    world.apply(with(json!({"data": 1}))).await;
    world.schedules.settled().await;
    assert_eq!(world.ids("t"), at(&["07:01:00", "07:01:00"]), "the search does not see the first");
    let world = not_started(1).await;
    world.apply(with(json!({"rate": "45s"}))).await;
    world.schedules.settled().await;
    assert_eq!(world.ids("t"), at(&["07:01:00"]));
}

#[tokio::test]
async fn a_schedule_whose_partition_cannot_be_read_is_applied_again_when_it_can() {
    let disk = Arc::new(SimFs::new());
    let (broker, _) = Broker::start_on(disk.clone(), BrokerConfig::new("/data")).unwrap();
    let clock = ManualClock::new(T0_MS);
    let spec = || ScheduleSpec::from_json(&every_minute("skip")).unwrap();
    let (schedules, _) = ScheduleService::start(broker.clone(), Clock::Manual(clock.clone())).await;
    schedules.apply(spec()).await.unwrap();
    clock.pass(60_000);
    schedules.settled().await;
    schedules.shutdown().await;
    let topic = broker.topic("t").unwrap();
    begin_again(&broker, 0, topic.id());
    let log = topic.partition(0).unwrap();
    log.flush().unwrap();
    broker.journal().flush().unwrap();

    disk.fail_from(disk.operations() + 1, Fault::Eio);
    let (schedules, failed) = ScheduleService::start(broker.clone(), Clock::Manual(clock)).await;
    assert!(failed[0].to_string().starts_with("schedule m in the state journal: reading failed"), "{}", failed[0]);
    let unclear = schedules.apply(spec()).await.unwrap_err().to_string();
    assert!(unclear.starts_with("schedule m has begun tick 2026-12-01T07:01:00Z, and whether"), "{unclear}");
    let report = schedules.describe("m").unwrap();
    assert_eq!(report.state, ScheduleState::Blocked);
    assert!(report.reason.starts_with("reading failed"), "{}", report.reason);
    disk.heal();
    schedules.apply(spec()).await.unwrap();
    schedules.settled().await;
    assert_eq!(log.tail().get(), 1);
    assert_eq!(schedules.describe("m").unwrap().last.unwrap().time_text(), "2026-12-01T07:01:00Z");
}

async fn start_on(disk: &SimFs, clock: &ManualClock) -> (Broker, ScheduleService, Vec<RestoreScheduleError>) {
    let (broker, _) = Broker::start_on(Arc::new(disk.clone()), BrokerConfig::new("/data")).unwrap();
    let (schedules, failed) = ScheduleService::start(broker.clone(), Clock::Manual(clock.clone())).await;
    (broker, schedules, failed)
}

/// A disk with a schedule that has done the tick of 07:01:00, or begun it, and the log of its topic, which is not read.
async fn with_offline_topic(has_begun: bool, clock: &ManualClock) -> (SimFs, PathBuf) {
    let disk = SimFs::new();
    let (broker, schedules, _) = start_on(&disk, clock).await;
    schedules.apply(ScheduleSpec::from_json(&every_minute("skip")).unwrap()).await.unwrap();
    clock.pass(60_000);
    schedules.settled().await;
    schedules.shutdown().await;
    let topic = broker.topic("t").unwrap();
    if has_begun {
        begin_again(&broker, 0, topic.id());
    }
    let log = PathBuf::from(format!("/data/topics/{}/0/{:020}.log", topic.id(), 0));
    drop((topic, schedules, broker));
    let disk = disk.kill();
    disk.set_unreadable(&log, Some(0..4096)).unwrap();
    (disk, log)
}

#[tokio::test]
async fn a_schedule_whose_partition_is_offline_says_so_and_waits_for_the_start_that_finds_it() {
    for has_begun in [false, true] {
        let clock = ManualClock::new(T0_MS);
        let (disk, log) = with_offline_topic(has_begun, &clock).await;
        let spec = || ScheduleSpec::from_json(&every_minute("skip")).unwrap();
        let (broker, schedules, failed) = start_on(&disk, &clock).await;
        let told = failed[0].to_string();
        assert!(told.starts_with("schedule m in the state journal: t/0 is offline"), "{told}");
        let checked = schedules.check(&spec(), &Planned::default()).unwrap();
        let applied = schedules.apply(spec()).await.unwrap();
        assert_eq!(applied, checked);
        assert!(!applied.created && !applied.changed);
        assert!(applied.warnings[0].starts_with("schedule m: t/0 is offline since the start"), "{applied:?}");
        let other = || ScheduleSpec::from_json(&with(json!({"rate": "2m"}))).unwrap();
        let refused = schedules.apply(other()).await.unwrap_err().to_string();
        assert!(refused.starts_with("schedule.topic: t/0 is offline"), "{refused}");
        assert_eq!(schedules.check(&other(), &Planned::default()).unwrap_err().to_string(), refused);
        clock.pass(630_000);
        schedules.settled().await;
        let [report] = schedules.list().try_into().unwrap();
        assert_eq!((report.state, report.next, report.counts), (ScheduleState::Blocked, None, Default::default()));
        assert!(report.reason.starts_with("t/0 is offline since the start"), "{}", report.reason);
        schedules.shutdown().await;
        drop((schedules, broker));

        let disk = disk.kill();
        disk.set_unreadable(&log, None).unwrap();
        let (broker, schedules, failed) = start_on(&disk, &clock).await;
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(schedules.describe("m").unwrap().state, ScheduleState::Running);
        clock.pass(60_000);
        schedules.settled().await;
        let tail = broker.topic("t").unwrap().partition(0).unwrap().tail().get();
        assert_eq!(tail, 2, "its first tick once, and the one that came now");
        schedules.shutdown().await;
    }
}

#[tokio::test]
async fn a_schedule_whose_partition_had_no_room_goes_on_when_it_is_opened_late() {
    for has_begun in [false, true] {
        let clock = ManualClock::new(T0_MS);
        let (disk, log) = with_offline_topic(has_begun, &clock).await;
        disk.set_unreadable(&log, None).unwrap();
        // What is no batch and has to be kept is more than there is room for.
        let torn = [disk.read_image(&log).unwrap(), vec![1; 8 << 20]].concat();
        disk.write_image(&log, &torn).unwrap();
        disk.remove_file(Path::new("/data/reserve")).unwrap();
        disk.set_capacity(1 << 40);
        let used_bytes = (1 << 40) - disk.free_bytes(Path::new("/data")).unwrap();
        disk.set_capacity(used_bytes + (1 << 20));
        let (broker, schedules, failed) = start_on(&disk, &clock).await;
        let told = failed[0].to_string();
        assert!(told.contains("t/0 is offline since the start, and tried again when there is room"), "{told}");
        clock.pass(90_000);
        schedules.settled().await;
        schedules.start_waiting().await;
        let report = schedules.describe("m").unwrap();
        assert_eq!((report.state, report.next), (ScheduleState::Blocked, None), "{}", report.reason);

        disk.set_capacity(1 << 40);
        let [late] = broker.open_late(std::time::Duration::from_secs(1)).try_into().unwrap();
        assert!(broker.serve(&late).await.unwrap());
        schedules.start_waiting().await;
        schedules.settled().await;
        assert_eq!(schedules.describe("m").unwrap().state, ScheduleState::Running);
        clock.pass(60_000);
        schedules.settled().await;
        let report = schedules.describe("m").unwrap();
        assert_eq!(report.last.unwrap().time_text(), "2026-12-01T07:03:00Z");
        let tail = broker.topic("t").unwrap().partition(0).unwrap().tail().get();
        assert_eq!(tail, 2, "its first tick once, and the one that came now");
        schedules.shutdown().await;
    }
}

/// Ids of the events in partition 0 of `t`.
fn ids_in(broker: &Broker) -> Vec<String> {
    let topic = broker.topic("t").unwrap();
    ids_of(topic.partition(0).unwrap())
}

#[tokio::test]
async fn what_the_journal_does_not_take_of_a_tick_that_is_done_it_takes_before_the_next_one() {
    // Each tick of these leaves others out: what is done is a range of its own.
    let jump_to = async |clock: &ManualClock, schedules: &ScheduleService, seconds: i64| {
        clock.jump(T0_MS + seconds * 1000 - Clock::Manual(clock.clone()).read().wall_ms);
        schedules.settled().await;
    };
    let (mut number, mut was_refused) = (0, false);
    loop {
        number += 1;
        let (disk, clock) = (SimFs::new(), ManualClock::new(T0_MS));
        let (broker, schedules, _) = start_on(&disk, &clock).await;
        schedules.apply(ScheduleSpec::from_json(&every_minute("skip")).unwrap()).await.unwrap();
        jump_to(&clock, &schedules, 60).await;
        let before = disk.operations();
        disk.fail_from(before + number, Fault::Enospc);
        jump_to(&clock, &schedules, 660).await;
        let is_over = disk.operations() < before + number;
        let fired = broker.journal().look(|state| state.schedule_named("m").unwrap().fired_s);
        let is_refused = ids_in(&broker).len() == 2 && fired == Some(T0_MS / 1000 + 60);
        disk.heal();
        broker.look_for_room();
        clock.pass(5_000);
        schedules.settled().await;
        jump_to(&clock, &schedules, 1260).await;
        clock.pass(5_000);
        schedules.settled().await;
        schedules.shutdown().await;
        drop((schedules, broker));

        clock.jump(-635_000);
        let (broker, schedules, failed) = start_on(&disk.kill(), &clock).await;
        assert!(failed.is_empty(), "{failed:?}");
        schedules.settled().await;
        clock.pass(90_000);
        schedules.settled().await;
        let done = ids_in(&broker);
        // A journal whose flush failed takes nothing before the restart, which comes before that tick.
        let is_late = !done.contains(&at(&["07:21:00"])[0]);
        was_refused |= is_refused && !is_late;
        let mut expected = at(&["07:01:00", "07:11:00", "07:21:00", "07:12:00"]);
        expected.retain(|id| !(is_late && id.contains("07:21")));
        assert_eq!(done, expected, "with no room from operation {number} on");
        schedules.shutdown().await;
        if is_over {
            break;
        }
    }
    assert!(was_refused, "the journal refused nothing that was done");
}

#[tokio::test]
async fn a_schedule_whose_partition_is_offline_can_be_paused_moved_and_deleted() {
    for has_begun in [false, true] {
        let clock = ManualClock::new(T0_MS);
        let (disk, _) = with_offline_topic(has_begun, &clock).await;
        let (broker, schedules, _) = start_on(&disk, &clock).await;
        let state = || schedules.describe("m").unwrap().state;
        schedules.pause("m").await.unwrap();
        assert_eq!(state(), ScheduleState::Paused);
        schedules.resume("m").await.unwrap();
        clock.pass(60_000);
        schedules.settled().await;
        assert_eq!(state(), ScheduleState::Blocked);
        let moved = schedules.apply(ScheduleSpec::from_json(&with(json!({"topic": "u"}))).unwrap()).await;
        clock.pass(60_000);
        schedules.settled().await;
        let tail = broker.topic("u").unwrap().partition(0).unwrap().tail().get();
        if has_begun {
            let unclear = moved.unwrap_err().to_string();
            assert!(unclear.starts_with("schedule m has begun tick 2026-12-01T07:01:00Z, and whether"), "{unclear}");
            assert_eq!((state(), tail), (ScheduleState::Blocked, 0));
        } else {
            let moved = moved.unwrap();
            assert!(!moved.created && moved.changed);
            assert_eq!((state(), tail), (ScheduleState::Running, 1), "from now on");
        }
        assert!(schedules.remove("m").await.unwrap());
        assert!(schedules.list().is_empty());
        schedules.shutdown().await;
    }
}

#[tokio::test]
async fn hundreds_of_schedules_of_one_moment_come_together_and_once_each() {
    let world = World::new().await;
    let topic = TopicSpec { name: TopicName::new("t").unwrap(), partitions: 4, config: Default::default() };
    world.broker.create_topic(topic).await.unwrap();
    for number in 0..300 {
        world.apply(json!({"schedule": format!("s{number}"), "rate": "1h", "topic": "t"})).await;
    }
    world.pass(3600).await;
    let mut ids = world.ids("t");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 300);
    let world = world.restart(3600).await;
    assert_eq!(world.ids("t").len(), 600, "not a second late");
}

#[tokio::test]
async fn one_moment_comes_once_and_then_nothing() {
    let world = World::new().await;
    let definition = json!({"schedule": "m", "at": "2026-12-01T08:01:00", "timezone": "Europe/Berlin", "topic": "t"});
    world.apply(definition.clone()).await;
    world.pass(3600).await;
    assert_eq!(world.ids("t"), at(&["07:01:00"]));
    assert_eq!(world.state("m").0, ScheduleState::Finished);
    let again = world.apply(definition).await;
    assert!(!again.changed && again.warnings[0].contains("in the past"), "{again:?}");
    assert_eq!(world.schedules.next_ticks("m", 5).unwrap(), []);
}

#[tokio::test]
async fn an_unreadable_definition_stops_no_other() {
    let world = World::new().await;
    world.apply(every_minute("skip")).await;
    let entry = world.broker.journal().look(|state| state.schedule_named("m").cloned().unwrap());
    let broken =
        ScheduleDefined { id: Uuid::new_v4(), name: "b".to_owned(), definition: "{}".to_owned(), ..entry.defined };
    world.broker.journal().append(&[broken.into()], T0_MS).unwrap();
    let World { dir, clock, broker, schedules } = world;
    schedules.shutdown().await;
    drop((schedules, broker));
    let (world, failed) = World::start_with_failures(dir, clock).await;
    assert_eq!(failed.len(), 1);
    assert!(failed[0].to_string().starts_with("schedule b in the state journal: "), "{}", failed[0]);
    world.pass(60).await;
    assert_eq!(world.ids("t"), at(&["07:01:00"]));
    assert!(world.schedules.remove("b").await.unwrap(), "it can be deleted");
    assert!(Path::new(world.dir.path()).exists());
}

#[tokio::test]
async fn a_tick_that_jitter_delays_is_the_next_one_until_it_comes() {
    let world = World::new().await;
    world.apply(json!({"schedule": "m", "rate": "1h", "topic": "t", "jitter": "1h"})).await;
    let (tick, fire_ms) = world.schedules.next_ticks("m", 1).unwrap()[0];
    let delay_s = (fire_ms - tick.unix_ms()) / 1000;
    assert!(delay_s > 1, "the name is chosen so: {delay_s}");
    world.pass(3600 + delay_s - 1).await;
    assert_eq!((world.ids("t").len(), world.schedules.describe("m").unwrap().next), (0, Some((tick, fire_ms))));
    world.pass(2).await;
    assert_eq!(world.ids("t"), at(&["08:00:00"]));
    assert!(world.schedules.describe("m").unwrap().next.unwrap().0 > tick);
}
