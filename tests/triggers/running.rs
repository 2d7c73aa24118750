//! What a trigger does while its function works.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tripline::broker::Topic;
use tripline::trigger::service::TriggerState;

use crate::harness::{World, python_definition};
use crate::receiver::{Receiver, ok};

const PRINT_VALUES: &str = "
import json
def handler(event, context):
    print(len(json.loads(event)), [e['data'] for e in json.loads(event)])
";

#[tokio::test(flavor = "multi_thread")]
async fn a_window_closes_at_its_count_at_once_and_at_its_interval_for_the_rest() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", PRINT_VALUES).await;
    world
        .apply(
            json!({"trigger": "x", "input": {"topic": "t"}, "function": "f", "window": {"count": 2, "interval": "1s"}}),
        )
        .await;
    let begun = Instant::now();
    world.produce(&topic, 0, &["1", "2", "3"]).await;
    assert_eq!(world.printed.wait_for(1).await, ["2 [1, 2]"]);
    let first = begun.elapsed();
    assert_eq!(world.printed.wait_for(2).await[1], "1 [3]");
    let second = begun.elapsed();
    assert!(first.as_millis() < 900, "the full window went after {first:?}");
    assert!((900..3_000).contains(&second.as_millis()), "the rest went after {second:?}");
    let report = world.until_committed("x", 0, 3).await;
    assert_eq!((report.counts.delivered, report.counts.attempts_succeeded), (3, 2));
    assert_eq!(report.state, TriggerState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_matching_records_reach_the_function_and_progress_passes_the_others() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", PRINT_VALUES).await;
    let filter = json!({"data": {"delay": [{"numeric": [">", 60]}]}});
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f", "filter": filter})).await;
    world.produce(&topic, 0, &[r#"{"delay": 5}"#, r#"{"delay": 61}"#, "no json", r#"{"delay": 7}"#]).await;
    assert_eq!(world.printed.wait_for(1).await, ["1 [{'delay': 61}]"]);
    let report = world.until_committed("x", 0, 4).await;
    assert_eq!((report.counts.delivered, report.counts.filtered), (1, 3));
}

/// A trigger that has read all there is, and that few records concern.
async fn rare(more: Value) -> (World, Receiver, Arc<Topic>) {
    let world = World::start();
    let receiver = Receiver::start(|_| ok()).await;
    let topic = world.topic("in", 1).await;
    let mut definition = json!({
        "trigger": "t", "input": {"topic": "in", "start": "earliest"},
        "function": {"http": {"url": receiver.url}}, "filter": {"data": ["rare"]},
    });
    definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    world.produce_keyed(&topic, 0, &[("k", "\"first\"")]).await;
    world.apply(definition).await;
    world.until_committed("t", 0, 1).await;
    (world, receiver, topic)
}

/// More than is read in a turn.
fn many() -> String {
    format!("\"{}\"", "x".repeat(300 << 10))
}

const RARE: [(&str, &str); 1] = [("k", "\"rare\"")];

/// On one thread, so that nothing is read before all is there.
#[tokio::test]
async fn a_record_is_delivered_when_everything_behind_it_was_read_though_none_of_that_matches() {
    let (world, receiver, topic) = rare(json!({})).await;
    world.produce_keyed(&topic, 0, &RARE).await;
    for _ in 0..4 {
        world.produce_keyed(&topic, 0, &[("k", &many())]).await;
    }
    receiver.until(|invoked| invoked.len() == 1).await;
    world.until_committed("t", 0, 6).await;
}

#[tokio::test]
async fn a_record_does_not_wait_for_the_end_of_what_comes_faster_than_it_is_read() {
    let (world, receiver, topic) = rare(json!({})).await;
    world.produce_keyed(&topic, 0, &RARE).await;
    let many = many();
    for _ in 0..300 {
        // One turn of the reader, two chunks for it.
        for _ in 0..2 {
            world.produce_keyed(&topic, 0, &[("k", &many)]).await;
        }
        tokio::task::yield_now().await;
        if receiver.invoked().len() == 1 {
            return;
        }
    }
    panic!("it waits: {:?}", world.triggers.describe("t"));
}

#[tokio::test]
async fn a_throttled_key_whose_turn_comes_while_there_is_more_to_read_has_it_at_the_end_of_that() {
    let period = Duration::from_millis(300);
    let throttle = json!({"throttle": {"limit": 1, "period": format!("{}ms", period.as_millis())}});
    let (world, receiver, topic) = rare(json!({"order": "key", "per_key": throttle})).await;
    world.produce_keyed(&topic, 0, &RARE).await;
    receiver.until(|invoked| invoked.len() == 1).await;
    world.until_committed("t", 0, 2).await;
    world.produce_keyed(&topic, 0, &RARE).await;
    // It is read, and waits for the key's turn.
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    // The only thread stands still meanwhile: the turn has come when the reader finds what is more than it reads at
    // once.
    std::thread::sleep(period);
    for _ in 0..4 {
        world.produce_keyed(&topic, 0, &[("k", &many())]).await;
    }
    receiver.until(|invoked| invoked.len() == 2).await;
    world.until_committed("t", 0, 7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_run_in_parallel_and_each_in_order() {
    let world = World::start();
    let topic = world.topic("t", 4).await;
    world.python("f", PRINT_VALUES).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": "f", "window": {"count": 1}})).await;
    for n in 0..10 {
        for partition in 0..4 {
            world.produce(&topic, partition, &[&format!("{}", partition * 100 + n)]).await;
        }
    }
    let lines = world.printed.wait_for(40).await;
    for partition in 0..4 {
        let seen: Vec<u32> = lines
            .iter()
            .map(|line| line[3..line.len() - 1].parse::<u32>().unwrap())
            .filter(|value| value / 100 == partition)
            .collect();
        let expected: Vec<u32> = (0..10).map(|n| partition * 100 + n).collect();
        assert_eq!(seen, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn start_positions_are_resolved_when_the_trigger_is_made() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", PRINT_VALUES).await;
    world.produce(&topic, 0, &["0", "1", "2", "3"]).await;
    for (name, start, expected) in [
        ("early", json!("earliest"), 0),
        ("late", json!("latest"), 4),
        ("at", json!({"offset": 2}), 2),
        ("beyond", json!({"offset": 99}), 4),
        ("old", json!({"time": "2020-01-01T00:00:00Z"}), 0),
        ("new", json!({"time": "2030-01-01T00:00:00Z"}), 4),
    ] {
        world.broker.append(&topic, 0, marker()).unwrap();
        let tail = topic.partition(0).unwrap().tail().get();
        // Paused at once would race with reading: a window that cannot fill keeps the committed offset where it began.
        world.apply(json!({"trigger": name, "input": {"topic": "t", "start": start}, "function": "f", "window": {"count": 10_000, "interval": "300s"}})).await;
        let committed = world.triggers.describe(name).unwrap().lanes[0].committed.get();
        let expected = if expected == 4 { tail } else { expected };
        assert_eq!(committed, expected, "{name}");
    }
}

fn marker() -> tripline_storage::batch::CheckedBatch {
    use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};
    let mut builder = BatchBuilder::new(BatchOptions::default());
    builder.push(&NewRecord { timestamp_ms: 1_700_000_000_000, value: Some(b"9"), ..NewRecord::default() }).unwrap();
    builder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_trigger_reads_nothing_keeps_that_over_a_restart_and_goes_on_when_resumed() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    let version = world.python("f", PRINT_VALUES).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f"})).await;
    world.triggers.pause("x").await.unwrap();
    assert_eq!(world.triggers.describe("x").unwrap().state, TriggerState::Paused);
    world.produce(&topic, 0, &["1"]).await;
    drop(topic);
    let dir = world.kill().await;
    let world = World::start_in(dir, &[(python_definition("f"), version)]);
    let report = world.triggers.describe("x").unwrap();
    assert_eq!((report.state, report.lanes[0].lag()), (TriggerState::Paused, 1));
    assert!(!report.reason.is_empty() && !report.ends_when.is_empty());
    world.triggers.resume("x").await.unwrap();
    assert_eq!(world.printed.wait_for(1).await, ["1 [1]"]);
    world.until_committed("x", 0, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_definition_keeps_progress_and_a_removed_trigger_forgets_it() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", PRINT_VALUES).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": "f"})).await;
    world.produce(&topic, 0, &["1"]).await;
    world.until_committed("x", 0, 1).await;
    // A window that never fills, then one of a single record: what was taken is read again under the new definition.
    world.apply(json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": "f", "window": {"count": 50, "interval": "300s"}})).await;
    world.produce(&topic, 0, &["2"]).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": "f", "window": {"count": 1}})).await;
    assert_eq!(world.printed.wait_for(2).await, ["1 [1]", "1 [2]"]);
    assert!(world.broker.delete_topic("t").await.is_err(), "a trigger reads it");
    assert!(world.triggers.remove("x").await.unwrap());
    assert!(!world.triggers.remove("x").await.unwrap());
    world.apply(json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": "f"})).await;
    assert_eq!(world.printed.wait_for(3).await[2], "2 [1, 2]");
    world.triggers.remove("x").await.unwrap();
    world.broker.delete_topic("t").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_references_are_refused_by_name() {
    let world = World::start();
    let spec = |definition| tripline::trigger::spec::TriggerSpec::from_json(&definition).unwrap();
    let refused =
        world.triggers.apply(spec(json!({"trigger": "x", "input": {"topic": "t"}, "function": "nobody"}))).await;
    assert!(refused.unwrap_err().to_string().contains("nobody"));
    world.python("f", PRINT_VALUES).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f"})).await;
    let other = world.triggers.apply(spec(json!({"trigger": "x", "input": {"topic": "u"}, "function": "f"}))).await;
    assert!(other.unwrap_err().to_string().contains("trigger.input.topic"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_paused_trigger_is_set_to_other_offsets_and_reads_from_there() {
    use tripline::trigger::service::ResetTriggerError;
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", PRINT_VALUES).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f"})).await;
    world.produce(&topic, 0, &["1", "2", "3"]).await;
    world.until_committed("x", 0, 3).await;
    let at = |offset| [(topic.id(), 0, tripline_storage::Offset::new(offset).unwrap())];
    let running = world.triggers.reset("x", &at(1)).await.unwrap_err();
    assert!(matches!(running, ResetTriggerError::NotPaused(_)), "{running}");
    world.triggers.pause("x").await.unwrap();
    let beyond = world.triggers.reset("x", &at(4)).await.unwrap_err();
    assert!(beyond.to_string().contains("offsets 0 to 3, found 4"), "{beyond}");
    world.triggers.reset("x", &at(1)).await.unwrap();
    let report = world.triggers.describe("x").unwrap();
    assert_eq!((report.state, report.lanes[0].lag()), (TriggerState::Paused, 2));
    world.triggers.resume("x").await.unwrap();
    assert_eq!(world.printed.wait_for(2).await.last().unwrap(), "2 [2, 3]");
    world.until_committed("x", 0, 3).await;
}
