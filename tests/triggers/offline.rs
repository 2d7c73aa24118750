//! A partition of which the disk does not give back what a start needs, or for which it has no room.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tripline::broker::{Broker, NoPartition, ProduceError};
use tripline::config::planned::Planned;
use tripline::trigger::run::{RangeRequest, ReplayRequest};
use tripline::trigger::service::{
    ApplyTriggerError, ChoiceError, LaneChoice, ResetTriggerError, RunError, RunPhase, TriggerError,
};
use tripline::trigger::spec::TriggerSpec;
use tripline_storage::Offset;
use tripline_storage::batch::{BatchBuilder, BatchOptions, CheckedBatch, NewRecord};
use tripline_storage::fs::{Fs, SimFs};

use crate::harness::World;
use crate::receiver::{Receiver, ok};

fn log_of(disk: &SimFs, partition: u32) -> PathBuf {
    let paths = disk.paths();
    let of_partition = |path: &&PathBuf| {
        path.starts_with("/data/topics")
            && path.parent().is_some_and(|dir| dir.ends_with(partition.to_string()))
            && path.extension().is_some_and(|it| it == "log")
    };
    paths.iter().find(of_partition).unwrap().clone()
}

fn batch() -> CheckedBatch {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    builder.push(&NewRecord { timestamp_ms: 1, key: None, value: Some(b"x"), headers: &[] }).unwrap();
    builder.finish().unwrap()
}

fn is_offline(error: &NoPartition) -> bool {
    let told = error.to_string();
    let is_told = ["in/1 is offline", "cannot be read", "os error 5", "bad sectors"].iter().all(|it| told.contains(it));
    matches!(error, NoPartition::Offline { partition: 1, .. }) && is_told
}

fn reads(broker: &Broker) -> Vec<u32> {
    broker.topic("in").unwrap().partitions().map(|(number, _)| number).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_cannot_be_read_at_a_start_is_offline_until_the_next_and_the_others_go_on() {
    let disk = SimFs::new();
    let world = World::start_on(&disk);
    let topic = world.topic("in", 2).await;
    let receiver = Receiver::start(|_| ok()).await;
    let definition = |name| {
        let function = json!({"http": {"url": receiver.url}});
        json!({"trigger": name, "input": {"topic": "in", "start": "earliest"}, "function": function})
    };
    world.apply(definition("t")).await;
    for partition in 0..2 {
        world.produce(&topic, partition, &["1"]).await;
        world.until_committed("t", partition, 1).await;
    }
    drop(topic);
    world.kill().await;

    let disk = disk.kill();
    let log = log_of(&disk, 1);
    disk.set_unreadable(&log, Some(0..4096)).unwrap();
    let world = World::start_on(&disk);
    assert_eq!(reads(&world.broker), [0]);
    let topic = world.broker.topic("in").unwrap();
    assert_eq!(topic.partition_count(), 2);
    assert!(topic.partition(1).is_err_and(|error| is_offline(&error)));
    let refused = world.broker.append(&topic, 1, batch()).unwrap_err();
    assert!(matches!(&refused, ProduceError::Partition(error) if is_offline(error)), "{refused}");
    world.produce(&topic, 0, &["2"]).await;
    assert_eq!(world.until_committed("t", 0, 2).await.offline, ["in/1"]);
    // Where those would begin nobody knows.
    let spec = TriggerSpec::from_json(&definition("other")).unwrap();
    let refused = world.triggers.apply(spec).await.unwrap_err();
    assert!(matches!(&refused, ApplyTriggerError::Partition(error) if is_offline(error)), "{refused}");
    world.triggers.pause("t").await.unwrap();
    let at = [(topic.id(), 1, Offset::ZERO)];
    let refused = world.triggers.reset("t", &at).await.unwrap_err();
    assert!(matches!(&refused, ResetTriggerError::Partition(error) if is_offline(error)), "{refused}");
    world.triggers.resume("t").await.unwrap();
    drop(topic);
    world.kill().await;

    let disk = disk.kill();
    disk.set_unreadable(&log, None).unwrap();
    let world = World::start_on(&disk);
    assert_eq!(reads(&world.broker), [0, 1]);
    let topic = world.broker.topic("in").unwrap();
    world.produce(&topic, 1, &["2"]).await;
    world.until_committed("t", 1, 2).await;
    let mut places: Vec<(u32, i64)> = receiver.invoked().iter().flat_map(|one| one.places.clone()).collect();
    places.sort_unstable();
    assert_eq!(places, [(0, 0), (0, 1), (1, 0), (1, 1)], "its progress was kept: each record once");
    drop(topic);
    world.kill().await;
}

/// A run over both partitions ends when both are done, whichever start that needs.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_in_the_partitions_that_are_there_and_with_the_others_when_they_are() {
    let disk = SimFs::new();
    let world = World::start_on(&disk);
    let topic = world.topic("in", 2).await;
    world.topic("other", 1).await;
    for partition in 0..2 {
        world.produce(&topic, partition, &["1"]).await;
    }
    let receiver = Receiver::start(|_| ok()).await;
    let function = json!({"http": {"url": receiver.url}});
    world.apply(json!({"trigger": "x", "input": {"topics": ["in", "other"]}, "function": function})).await;
    let held = receiver.hold().await;
    let replay = |ranges| ReplayRequest { topic: Some("in".to_owned()), ranges, rate: None };
    let run = world.triggers.replay("x", replay(vec![RangeRequest::ALL])).await.unwrap();
    receiver.until(|invoked| invoked.len() == 2).await;
    drop(topic);
    world.kill().await;
    drop(held);

    let disk = disk.kill();
    let log = log_of(&disk, 1);
    disk.set_unreadable(&log, Some(0..4096)).unwrap();
    let world = World::start_on(&disk);
    let delivered = |partition| {
        let invoked = receiver.invoked();
        invoked.iter().filter(|one| one.places == [(partition, 0)]).count()
    };
    receiver.until(|invoked| invoked.len() == 3).await;
    assert_eq!((delivered(0), delivered(1)), (2, 1), "it goes on where it can");
    let report = world.triggers.describe_run("x", run).unwrap();
    assert_ne!(report.phase, RunPhase::Done);
    assert_eq!(report.reason, "partition in/1 is offline");
    // Nothing else is meant by what names the partition, and nothing is done there.
    let one = RangeRequest { partition: Some(1), ..RangeRequest::ALL };
    let refused = world.triggers.replay("x", replay(vec![one])).await.unwrap_err();
    assert!(matches!(&refused, RunError::Offline(error) if is_offline(error)), "{refused}");
    let choice = LaneChoice { topic: Some("in"), partition: Some(1) };
    let refused = world.triggers.skip("x", choice).await.unwrap_err();
    assert!(matches!(&refused, TriggerError::Choice(ChoiceError::Partition(error)) if is_offline(error)), "{refused}");
    let unnamed = LaneChoice { topic: None, partition: Some(0) };
    let refused = world.triggers.skip("x", unnamed).await.unwrap_err();
    assert!(matches!(&refused, TriggerError::Choice(ChoiceError::SeveralTopics { .. })), "{refused}");
    let topic = world.broker.topic("in").unwrap();
    let committed = world.triggers.committed("x");
    assert!(committed.iter().any(|at| (at.0, at.1, at.2.get()) == (topic.id(), 1, 1)), "{committed:?}");
    let spec =
        TriggerSpec::from_json(&json!({"trigger": "y", "input": {"topic": "in"}, "function": function})).unwrap();
    let refused = world.triggers.check(&spec, &Planned::default()).await.unwrap_err();
    assert!(matches!(&refused, ApplyTriggerError::Partition(error) if is_offline(error)), "{refused}");
    drop(topic);
    world.kill().await;

    let disk = disk.kill();
    disk.set_unreadable(&log, None).unwrap();
    let world = World::start_on(&disk);
    receiver.until(|invoked| invoked.iter().filter(|one| one.places == [(1, 0)]).count() == 2).await;
    let deadline = tokio::time::Instant::now() + crate::harness::PATIENCE;
    while world.triggers.describe_run("x", run).unwrap().phase != RunPhase::Done {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    world.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_has_nothing_but_offline_partitions_left_says_so_until_the_start_that_finds_them() {
    let disk = SimFs::new();
    let world = World::start_on(&disk);
    let topic = world.topic("in", 3).await;
    for partition in 0..3 {
        world.produce(&topic, partition, &["1"]).await;
    }
    drop(topic);
    let receiver = Receiver::start(|_| ok()).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "in"}, "function": {"http": {"url": receiver.url}}})).await;
    let held = receiver.hold().await;
    let range = |partition| RangeRequest { partition: Some(partition), ..RangeRequest::ALL };
    let replay = |ranges| ReplayRequest { topic: None, ranges, rate: None };
    let one = world.triggers.replay("x", replay(vec![range(1)])).await.unwrap();
    let two = world.triggers.replay("x", replay(vec![range(1), range(2)])).await.unwrap();
    receiver.until(|invoked| invoked.len() == 3).await;
    world.kill().await;
    drop(held);

    let disk = disk.kill();
    let logs = [log_of(&disk, 1), log_of(&disk, 2)];
    for log in &logs {
        disk.set_unreadable(log, Some(0..4096)).unwrap();
    }
    let world = World::start_on(&disk);
    for (run, told) in [(one, "partition in/1 is offline"), (two, "partitions in/1, in/2 are offline")] {
        let report = world.triggers.describe_run("x", run).unwrap();
        let ends_when = "the broker starts again and can read what a start needs";
        assert_eq!((report.reason.as_str(), report.ends_when), (told, ends_when), "{:?}", report.phase);
        // A person's word comes first.
        world.triggers.cancel_run("x", run).await.unwrap();
        assert_eq!(world.triggers.describe_run("x", run).unwrap().reason, "cancelled by a person");
        world.triggers.resume_run("x", run).await.unwrap();
    }
    world.kill().await;

    let disk = disk.kill();
    for log in &logs {
        disk.set_unreadable(log, None).unwrap();
    }
    let world = World::start_on(&disk);
    let deadline = tokio::time::Instant::now() + crate::harness::PATIENCE;
    for run in [one, two] {
        while world.triggers.describe_run("x", run).unwrap().phase != RunPhase::Done {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(world.triggers.describe_run("x", run).unwrap().reason, "");
    }
    world.kill().await;
}

/// What it selected before it reads already: it starts nowhere but in what is new.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_trigger_is_refused_what_it_would_start_in_and_nothing_else_and_a_trial_says_the_same() {
    let disk = SimFs::new();
    let world = World::start_on(&disk);
    world.topic("other", 1).await;
    let receiver = Receiver::start(|_| ok()).await;
    let definition = |name, input| {
        let function = json!({"http": {"url": receiver.url}});
        TriggerSpec::from_json(&json!({"trigger": name, "input": input, "function": function})).unwrap()
    };
    for (name, pattern) in [("narrower", "in*"), ("wider", "other*")] {
        world.triggers.apply(definition(name, json!({"pattern": pattern}))).await.unwrap();
    }
    // Nothing is remembered of it in a topic that comes then.
    world.triggers.pause("narrower").await.unwrap();
    let topic = world.topic("in", 2).await;
    world.produce(&topic, 1, &["1"]).await;
    drop(topic);
    world.kill().await;

    let disk = disk.kill();
    disk.set_unreadable(&log_of(&disk, 1), Some(0..4096)).unwrap();
    let world = World::start_on(&disk);
    let (triggers, planned) = (&world.triggers, Planned::default());
    let spec = definition("narrower", json!({"topic": "in"}));
    assert!(triggers.check(&spec, &planned).await.unwrap().changed);
    assert!(triggers.apply(spec).await.unwrap().changed);
    assert_eq!(triggers.describe("narrower").unwrap().offline, ["in/1"]);
    for input in [json!({"pattern": "*"}), json!({"topics": ["other", "in"]})] {
        let spec = definition("wider", input);
        for refused in [triggers.check(&spec, &planned).await, triggers.apply(spec).await] {
            let refused = refused.unwrap_err();
            assert!(matches!(&refused, ApplyTriggerError::Partition(error) if is_offline(error)), "{refused}");
        }
    }
    world.kill().await;
}

const MIB: u64 = 1 << 20;

fn fill(disk: &SimFs, free_bytes: u64) {
    disk.set_capacity(1 << 40);
    let used_bytes = (1 << 40) - disk.free_bytes(Path::new("/")).unwrap();
    disk.set_capacity(used_bytes + free_bytes);
}

/// A disk so small that little of it is kept back.
fn small_disk() -> SimFs {
    let disk = SimFs::new();
    fill(&disk, 16 * MIB);
    disk
}

/// Of partition 1 a power cut left the first record, which says of itself how long it is, and no room to keep what
/// stands behind that: no record, and more than the reserve has room for.
fn tear(disk: &SimFs) {
    let log = log_of(disk, 1);
    let whole = disk.read_image(&log).unwrap();
    let first_bytes = 12 + u32::from_be_bytes(whole[8..12].try_into().unwrap()) as usize;
    disk.set_capacity(1 << 40);
    disk.write_image(&log, &[&whole[..first_bytes], &vec![1; 8 * MIB as usize]].concat()).unwrap();
    disk.write_image(&log.with_file_name("flushed"), b"").unwrap();
    fill(disk, MIB);
}

/// As the server does when there is room.
async fn open_late(world: &World, seconds: u64) -> usize {
    let late = world.broker.open_late(Duration::from_secs(seconds));
    let count = late.len();
    for late in late {
        world.triggers.serve(late).await.unwrap();
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_reads_a_partition_that_had_no_room_at_the_start_as_soon_as_it_has_and_misses_nothing() {
    let disk = small_disk();
    let world = World::start_on(&disk);
    let topic = world.topic("in", 2).await;
    let receiver = Receiver::start(|_| ok()).await;
    let function = json!({"http": {"url": receiver.url}});
    for name in ["t", "paused"] {
        let input = json!({"topic": "in", "start": "earliest"});
        world.apply(json!({"trigger": name, "input": input, "function": function})).await;
    }
    world.triggers.pause("paused").await.unwrap();
    for record in 1..=3 {
        for partition in 0..2 {
            world.produce(&topic, partition, &["1"]).await;
            world.until_committed("t", partition, record).await;
        }
    }
    drop(topic);
    world.kill().await;

    let disk = disk.kill();
    tear(&disk);
    let world = World::start_on(&disk);
    let topic = world.broker.topic("in").unwrap();
    assert_eq!(open_late(&world, 1).await, 0);
    let told = topic.partition(1).unwrap_err().to_string();
    assert!(told.starts_with("in/1 is offline since the start, and tried again when there is room: "), "{told}");
    assert_eq!(world.triggers.describe("t").unwrap().offline, ["in/1"]);
    let held = |partition| world.triggers.holds().get(&(topic.id(), partition)).map(|offset| offset.get());
    assert_eq!((held(0), held(1)), (Some(3), Some(3)), "retention may come before its lane");

    fill(&disk, 40 * MIB);
    assert_eq!(open_late(&world, 2).await, 1);
    assert_eq!(reads(&world.broker), [0, 1]);
    let report = world.triggers.describe("t").unwrap();
    assert_eq!((report.offline.len(), report.lanes.len()), (0, 2));
    assert_eq!((held(0), held(1)), (Some(3), Some(1)), "what a power cut took is not finished");
    world.produce(&topic, 1, &["another"]).await;
    world.until_committed("t", 1, 2).await;
    let at = |place: (u32, i64)| receiver.invoked().iter().filter(|one| one.places == [place]).count();
    assert_eq!((at((1, 0)), at((1, 1)), at((1, 2))), (1, 2, 1), "the record that came in place of the lost one, too");
    world.triggers.resume("paused").await.unwrap();
    world.until_committed("paused", 1, 2).await;
    drop(topic);
    world.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_in_a_partition_that_had_no_room_at_the_start_and_ends() {
    let disk = small_disk();
    let world = World::start_on(&disk);
    let topic = world.topic("in", 2).await;
    for partition in 0..2 {
        world.produce(&topic, partition, &["1"]).await;
    }
    let receiver = Receiver::start(|_| ok()).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "in"}, "function": {"http": {"url": receiver.url}}})).await;
    let held = receiver.hold().await;
    let replay = ReplayRequest { topic: None, ranges: vec![RangeRequest::ALL], rate: None };
    let run = world.triggers.replay("x", replay).await.unwrap();
    receiver.until(|invoked| invoked.len() == 2).await;
    drop(topic);
    world.kill().await;
    drop(held);

    let disk = disk.kill();
    tear(&disk);
    let world = World::start_on(&disk);
    receiver.until(|invoked| invoked.len() == 3).await;
    let report = world.triggers.describe_run("x", run).unwrap();
    let ends_when = "the disk has room for what has to be kept before a log goes on";
    assert_eq!((report.reason.as_str(), report.ends_when), ("partition in/1 is offline", ends_when));
    fill(&disk, 40 * MIB);
    assert_eq!(open_late(&world, 1).await, 1);
    receiver.until(|invoked| invoked.len() == 4).await;
    let deadline = tokio::time::Instant::now() + crate::harness::PATIENCE;
    while world.triggers.describe_run("x", run).unwrap().phase != RunPhase::Done {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.kill().await;
}
