//! A partition of which the disk does not give back what a start needs.

use std::path::PathBuf;

use serde_json::json;
use tripline::broker::{Broker, NoPartition, ProduceError};
use tripline::trigger::service::{ApplyTriggerError, ResetTriggerError};
use tripline::trigger::spec::TriggerSpec;
use tripline_storage::Offset;
use tripline_storage::batch::{BatchBuilder, BatchOptions, CheckedBatch, NewRecord};
use tripline_storage::fs::SimFs;

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
