//! Records that go away, or cannot be read, before their trigger has come to them.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tripline::broker::Topic;
use tripline::topic::name::TopicName;
use tripline::topic::spec::{CleanupPolicy, TopicConfig, TopicSpec};
use tripline::trigger::service::{LaneChoice, TriggerState};
use tripline_storage::Offset;
use tripline_storage::batch::{
    BatchBuilder, BatchLimits, BatchOptions, CheckedBatch, Compression, NewRecord, Validation, crc32c,
};

use crate::harness::World;
use crate::receiver::{Invoked, Receiver, ok, status};

fn trigger(receiver: &Receiver, more: Value) -> Value {
    let mut definition = json!({
        "trigger": "t", "input": {"topic": "in", "start": "earliest"}, "window": {"count": 1},
        "function": {"http": {"url": receiver.url}},
        "retry": {"initial": "20ms", "max_interval": "20ms", "max_attempts": 1000, "jitter": "none"},
        "dead_letter": {"topic": "in.dlq"},
    });
    definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    definition
}

async fn small_segments(world: &World, config: TopicConfig) -> Arc<Topic> {
    let name = TopicName::new("in").unwrap();
    let config = TopicConfig { segment_bytes: 1024, ..config };
    world.broker.create_topic(TopicSpec { name, partitions: 1, config }).await.unwrap()
}

fn offset(value: i64) -> Offset {
    Offset::new(value).unwrap()
}

fn arrived(invoked: &[Invoked]) -> Vec<i64> {
    invoked.iter().flat_map(|one| one.places.iter().map(|(_, offset)| *offset)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_order_trigger_with_spilled_keys_goes_on_behind_records_that_were_deleted() {
    let world = World::start();
    let topic = small_segments(&world, TopicConfig::default()).await;
    let fails = Arc::new(AtomicBool::new(true));
    let says = Arc::clone(&fails);
    let bad = move |one: &Invoked| one.keys.iter().any(|key| key == "bad") && says.load(Ordering::SeqCst);
    let receiver = Receiver::start(move |one| status(if bad(one) { 500 } else { 200 })).await;
    world.apply(trigger(&receiver, json!({"order": "key", "window": {"count": 100}}))).await;
    // More of one key than a lane keeps; between them another key.
    let records: Vec<(&str, &str)> = (0..100).map(|n| (if n % 50 == 49 { "good" } else { "bad" }, "1")).collect();
    for _ in 0..40 {
        world.produce_keyed(&topic, 0, &records).await;
    }
    let good = |report: &tripline::trigger::service::TriggerReport| {
        report.counts.delivered == 80 && report.lanes[0].blocked_keys == 1
    };
    let report = world.until("t", good).await;
    assert_eq!(report.lanes[0].committed.get(), 0);
    // Into what is spilled, behind what is held.
    world.broker.delete_records(&topic, 0, Some(offset(3500))).await.unwrap();
    fails.store(false, Ordering::SeqCst);
    let report = world.until_committed("t", 0, 4000).await;
    assert_eq!(report.lanes[0].blocked_keys, 0);
    // 70 of the 3,500 were of the other key. What the key's marker passes over may be anyone's: counted is what it is
    // at most.
    assert!((3430..=3500).contains(&report.counts.expired), "{:?}", report.counts);
    assert_eq!(report.counts.delivered, 80 + 490, "what is left of the key arrives, once");
    let late: BTreeSet<i64> = arrived(&receiver.invoked()).into_iter().filter(|at| *at >= 3500).collect();
    assert_eq!(late, (3500..4000).collect());
    world.produce_keyed(&topic, 0, &[("bad", "2")]).await;
    world.until_committed("t", 0, 4001).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_whose_records_are_deleted_ends_and_the_next_goes_on() {
    for order in ["partition", "key", "none"] {
        let world = World::start();
        let topic = small_segments(&world, TopicConfig::default()).await;
        let fails = Arc::new(AtomicBool::new(true));
        let says = Arc::clone(&fails);
        let receiver = Receiver::start(move |_| status(if says.load(Ordering::SeqCst) { 500 } else { 200 })).await;
        for _ in 0..30 {
            world.produce(&topic, 0, &["\"x\"", "\"y\""]).await;
        }
        world.apply(trigger(&receiver, json!({"order": order, "window": {"count": 4}}))).await;
        receiver.until(|invoked| invoked.len() > 5).await;
        world.broker.delete_records(&topic, 0, Some(offset(30))).await.unwrap();
        // Records that are there still fail; those that are gone do not come any more.
        let before = receiver.invoked().len();
        receiver.until(|invoked| invoked.len() > before + 20).await;
        let now = &receiver.invoked()[before + 10..];
        assert!(arrived(now).iter().all(|at| *at >= 30), "order {order}: {:?}", arrived(now));
        fails.store(false, Ordering::SeqCst);
        let report = world.until_committed("t", 0, 60).await;
        assert_eq!(report.counts.delivered, 30, "order {order}");
        assert_eq!(report.counts.expired, 30, "order {order}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_is_delivered_as_it_is_now() {
    let world = World::start();
    let config =
        TopicConfig { cleanup_policy: CleanupPolicy::Compact, dirty_millionths_min: 100_000, ..TopicConfig::default() };
    let topic = small_segments(&world, config).await;
    for round in 0..60 {
        let value = format!("\"{round} {}\"", "x".repeat(50));
        world.produce_keyed(&topic, 0, &[("a", &value), ("b", &value)]).await;
    }
    // Durable, as compaction wants it.
    world.produce(&topic, 0, &["\"last\""]).await;
    let receiver = Receiver::start(|_| ok()).await;
    let held = receiver.hold().await;
    world.apply(trigger(&receiver, json!({"order": "key", "concurrency": 1, "window": {"count": 5}}))).await;
    receiver.until(|invoked| invoked.len() == 1).await;
    let tail = topic.partition(0).unwrap().tail();
    // As when the hold of the trigger has come to its limit.
    world.broker.compact(&HashMap::new());
    let (removed, _) = world.broker.compacted();
    assert!(removed > 50, "{removed} records removed");
    drop(held);
    let report = world.until_committed("t", 0, tail.get()).await;
    assert_eq!(report.state, TriggerState::Running);
    let seen = arrived(&receiver.invoked());
    assert!(seen.contains(&(tail.get() - 1)) && seen.contains(&(tail.get() - 2)), "{seen:?}");
}

/// The segment files of the only partition of `in`, by base offset.
fn segments(world: &World, topic: &Topic) -> Vec<PathBuf> {
    let dir = world.dir.path().join(format!("data/topics/{}/0", topic.id()));
    let mut logs: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.sort();
    logs
}

/// Spoils the middle of a file.
fn spoil(path: &PathBuf) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8].iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_range_blocks_its_partition_until_it_is_skipped_and_costs_nothing_else() {
    Box::pin(skip_damage(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_is_not_full_does_not_wait_for_what_is_damaged() {
    Box::pin(skip_damage(100)).await;
}

async fn skip_damage(count: u32) {
    let world = World::start();
    let topic = small_segments(&world, TopicConfig::default()).await;
    for n in 0..30 {
        world.produce(&topic, 0, &[&format!("\"{n} {}\"", "x".repeat(200))]).await;
    }
    world.broker.housekeeping(&world.triggers.holds());
    let spoiled = segments(&world, &topic)[2].clone();
    drop(topic);
    let dir = world.kill().await;
    spoil(&spoiled);
    let world = World::start_in(dir, &[]);
    let receiver = Receiver::start(|_| ok()).await;
    world.apply(trigger(&receiver, json!({"order": "partition", "window": {"count": count}}))).await;
    let report = world.until_state("t", TriggerState::Blocked).await;
    assert!(report.reason.contains("damaged"), "{report:?}");
    // What is ahead of it is delivered and noted all the same.
    let report =
        world.until("t", |report| report.lanes[0].committed.get() > 4 && report.lanes[0].in_flight_records == 0).await;
    let at = report.lanes[0].committed.get();
    assert_eq!(arrived(&receiver.invoked()), (0..at).collect::<Vec<_>>());
    let skipped = world.triggers.skip("t", LaneChoice::ALL).await.unwrap();
    assert!((1..=5).contains(&skipped), "{skipped} records of one segment at most");
    world.until_committed("t", 0, 30).await;
    world.until_state("t", TriggerState::Running).await;
    let rest: Vec<i64> = (0..30).filter(|n| !(at..at + skipped as i64).contains(n)).collect();
    assert_eq!(arrived(&receiver.invoked()), rest);
}

/// Three records whose batch is whole, and whose content does not unpack.
fn garbled() -> CheckedBatch {
    let mut builder = BatchBuilder::new(BatchOptions { compression: Compression::Zstd, ..BatchOptions::default() });
    for _ in 0..3 {
        builder.push(&NewRecord { timestamp_ms: 5, value: Some(b"0"), ..NewRecord::default() }).unwrap();
    }
    let mut bytes = builder.finish().unwrap().bytes().to_vec();
    bytes[61..].fill(0x55);
    let crc = crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    CheckedBatch::check(bytes.into(), &BatchLimits::default(), Validation::Header).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_does_not_unpack_blocks_its_partition_until_it_is_skipped_and_costs_nothing_else() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| ok()).await;
    world.produce(&topic, 0, &["0", "1"]).await;
    world.broker.append(&topic, 0, garbled()).unwrap();
    world.produce(&topic, 0, &["5"]).await;
    world.apply(trigger(&receiver, json!({"order": "partition"}))).await;
    let report = world.until_state("t", TriggerState::Blocked).await;
    assert!(report.reason.contains("offset 2 does not unpack"), "{report:?}");
    world.until_committed("t", 0, 2).await;
    assert_eq!(arrived(&receiver.invoked()), [0, 1]);
    assert_eq!(world.triggers.skip("t", LaneChoice::ALL).await.unwrap(), 3);
    world.until_committed("t", 0, 6).await;
    world.until_state("t", TriggerState::Running).await;
    assert_eq!(arrived(&receiver.invoked()), [0, 1, 5]);
    // At the head as well.
    world.broker.append(&topic, 0, garbled()).unwrap();
    world.until_state("t", TriggerState::Blocked).await;
    assert_eq!(world.triggers.skip("t", LaneChoice::ALL).await.unwrap(), 3);
    world.until_committed("t", 0, 9).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_whose_letters_find_no_topic_is_skipped_by_a_person() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| status(400)).await;
    world.apply(trigger(&receiver, json!({"dead_letter": {"topic": "in.dlq"}}))).await;
    world.broker.delete_topic("in.dlq").await.unwrap();
    world.produce(&topic, 0, &["1"]).await;
    let report = world.until_state("t", TriggerState::Blocked).await;
    assert!(report.reason.contains("in.dlq does not exist"), "{report:?}");
    assert_eq!(world.triggers.skip("t", LaneChoice::ALL).await.unwrap(), 1);
    let report = world.until_committed("t", 0, 1).await;
    assert_eq!((report.counts.dead_lettered, report.counts.dropped), (0, 1));
    world.until_state("t", TriggerState::Running).await;
}
