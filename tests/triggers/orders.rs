//! What may run at the same time, and what waits for what.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tripline::trigger::service::{LaneChoice, TriggerReport, TriggerState};

use crate::harness::World;
use crate::receiver::{Invoked, Receiver, ok, status};

/// A trigger `t` on topic `in` that invokes the receiver, with these fields besides.
fn trigger(receiver: &Receiver, more: Value) -> Value {
    let mut definition = json!({
        "trigger": "t", "input": {"topic": "in", "start": "earliest"},
        "function": {"http": {"url": receiver.url}},
        "retry": {"initial": "1ms", "max_interval": "1ms", "max_attempts": 3, "jitter": "none"},
        "dead_letter": {"topic": "in.dlq"},
    });
    definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    definition
}

fn offsets(invoked: &[Invoked]) -> Vec<i64> {
    invoked.iter().flat_map(|one| one.places.iter().map(|(_, offset)| *offset)).collect()
}

fn has(one: &Invoked, value: &str) -> bool {
    one.data.iter().any(|data| data == value)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_order_windows_of_one_partition_run_at_the_same_time_up_to_the_concurrency() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| ok()).await;
    let held = receiver.hold().await;
    let values: Vec<String> = (0..8).map(|n| format!("\"{n}\"")).collect();
    world.produce(&topic, 0, &values.iter().map(String::as_str).collect::<Vec<_>>()).await;
    world.apply(trigger(&receiver, json!({"order": "none", "concurrency": 4, "window": {"count": 1}}))).await;
    let four = receiver.until(|invoked| invoked.len() == 4).await;
    assert_eq!(offsets(&four).into_iter().collect::<BTreeSet<_>>(), (0..4).collect());
    assert_eq!(world.triggers.describe("t").unwrap().lanes[0].committed.get(), 0);
    drop(held);
    world.until_committed("t", 0, 8).await;
    assert_eq!(offsets(&receiver.invoked()).into_iter().collect::<BTreeSet<_>>(), (0..8).collect());
    let ids: BTreeSet<String> = receiver.invoked().into_iter().map(|one| one.id).collect();
    assert_eq!(ids, (0..8).map(|offset| format!("t/in/0/{offset}")).collect(), "each window has an id of its own");
    assert_eq!(receiver.invoked().len(), 8, "none is invoked twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_fails_waits_alone_and_holds_the_committed_offset() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|invoked| status(if has(invoked, "poison") { 500 } else { 200 })).await;
    let records =
        [("a", "\"1\""), ("b", "\"poison\""), ("a", "\"2\""), ("b", "\"behind\""), ("c", "\"3\""), ("a", "\"4\"")];
    world.produce_keyed(&topic, 0, &records).await;
    let hour = json!({"initial": "1h", "max_interval": "1h", "max_attempts": 3, "jitter": "none"});
    world.apply(trigger(&receiver, json!({"order": "key", "window": {"count": 1}, "retry": hour}))).await;
    let invoked = receiver.until(|invoked| invoked.len() == 5).await;
    let mut by_key: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for one in &invoked {
        by_key.entry(&one.keys[0]).or_default().extend(offsets(std::slice::from_ref(one)));
    }
    let expected = [("a", vec![0, 2, 5]), ("b", vec![1]), ("c", vec![4])];
    assert_eq!(by_key, BTreeMap::from(expected));
    // What is finished is written down a moment after its delivery is counted.
    let written = |report: &TriggerReport| {
        let lane = &report.lanes[0];
        (lane.attempts, lane.committed.get(), lane.in_flight_records, report.counts.delivered) == (1, 1, 1, 4)
    };
    let lane = &world.until("t", written).await.lanes[0];

    // A restart keeps the count, the time of the next attempt and what is finished.
    let next_attempt_ms = lane.next_attempt_ms;
    drop(topic);
    let world = World::start_in(world.kill().await, &[]);
    let lane = &world.until("t", |report| report.lanes[0].attempts == 1).await.lanes[0];
    assert_eq!((lane.committed.get(), lane.next_attempt_ms), (1, next_attempt_ms));
    assert_eq!(receiver.invoked().len(), 5, "nothing that was finished is invoked again");

    // Skipped, it becomes a dead letter, and what is behind it goes on.
    assert_eq!(world.triggers.skip("t", LaneChoice::ALL).await.unwrap(), 1);
    world.until_committed("t", 0, 6).await;
    assert_eq!(offsets(&receiver.invoked()[5..]), [3]);
    assert_eq!(world.records("in.dlq", 0)[0].value, "\"poison\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_window_is_halved_until_the_record_that_fails_is_alone() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|invoked| status(if has(invoked, "poison") { 500 } else { 200 })).await;
    let values = ["\"0\"", "\"1\"", "\"2\"", "\"3\"", "\"4\"", "\"poison\"", "\"6\"", "\"7\""];
    world.produce(&topic, 0, &values).await;
    world.apply(trigger(&receiver, json!({"window": {"count": 8}, "bisect": true}))).await;
    world.until_committed("t", 0, 8).await;
    let invoked = receiver.invoked();
    let sizes: Vec<(usize, u32)> = invoked.iter().map(|one| (one.places.len(), one.attempt)).collect();
    // Eight, four that succeed, four, two, one that succeeds, the one three times, the last two.
    assert_eq!(sizes, [(8, 1), (4, 1), (4, 1), (2, 1), (1, 1), (1, 1), (1, 2), (1, 3), (2, 1)]);
    let letters = world.records("in.dlq", 0);
    assert_eq!(letters.iter().map(|letter| letter.value.as_str()).collect::<Vec<_>>(), ["\"poison\""]);
    let attempts = letters[0].headers.iter().find(|(name, _)| name == "tripline-dlq-attempts").unwrap();
    assert_eq!(attempts.1.as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_window_is_given_up_at_once_and_a_throttled_one_spends_no_attempt() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|invoked| {
        let mut answer = status(if has(invoked, "refuse") {
            422
        } else if invoked.attempt == 1 {
            429
        } else {
            200
        });
        answer.headers_mut().insert("retry-after", "0".parse().unwrap());
        answer
    })
    .await;
    world.produce(&topic, 0, &["\"refuse\""]).await;
    world.apply(trigger(&receiver, json!({"window": {"count": 1}}))).await;
    world.until_committed("t", 0, 1).await;
    assert_eq!(receiver.invoked().len(), 1);
    let class = ("tripline-dlq-error-class".to_owned(), Some("rejected".to_owned()));
    assert!(world.records("in.dlq", 0)[0].headers.contains(&class));

    world.produce(&topic, 0, &["\"busy\""]).await;
    // The attempt number stays 1: throttled for ever, and nothing is given up.
    receiver.until(|invoked| invoked.len() == 4).await;
    assert!(receiver.invoked()[1..].iter().all(|one| one.attempt == 1));
    assert_eq!(world.triggers.describe("t").unwrap().lanes[0].committed.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_definition_takes_over_while_windows_are_in_flight() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| ok()).await;
    let held = receiver.hold().await;
    let values: Vec<String> = (0..20).map(|n| format!("{n}")).collect();
    world.produce(&topic, 0, &values.iter().map(String::as_str).collect::<Vec<_>>()).await;
    world.apply(trigger(&receiver, json!({"order": "none", "concurrency": 2, "window": {"count": 3}}))).await;
    receiver.until(|invoked| invoked.len() == 2).await;
    let small = json!({"data": [{"numeric": ["<", 10]}]});
    let changed = json!({"order": "partition", "window": {"count": 5}, "filter": small});
    world.apply(trigger(&receiver, changed)).await;
    drop(held);
    world.until_committed("t", 0, 20).await;
    let mut seen = offsets(&receiver.invoked());
    seen.sort_unstable();
    assert_eq!(seen, (0..10).collect::<Vec<_>>(), "each once, and only what the new filter takes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debounced_key_delivers_its_newest_record_and_a_throttled_one_takes_its_time() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| ok()).await;
    let debounce = json!({"debounce": {"period": "300ms", "max": "10s"}});
    world.apply(trigger(&receiver, json!({"order": "key", "per_key": debounce}))).await;
    world.produce_keyed(&topic, 0, &[("a", "1"), ("b", "2"), ("a", "3"), ("a", "4")]).await;
    world.until_committed("t", 0, 4).await;
    let mut seen = offsets(&receiver.invoked());
    seen.sort_unstable();
    assert_eq!((seen, world.triggers.describe("t").unwrap().counts.debounced), (vec![1, 3], 2));

    let throttle = json!({"throttle": {"limit": 1, "period": "1h"}});
    let one = json!({"order": "key", "per_key": throttle, "window": {"count": 1}});
    world.apply(trigger(&receiver, one)).await;
    world.produce_keyed(&topic, 0, &[("a", "5"), ("a", "6"), ("b", "7")]).await;
    receiver.until(|invoked| offsets(invoked).contains(&6)).await;
    // An offset is committed by the journal: a moment after its delivery is counted.
    let done = |report: &TriggerReport| (report.counts.delivered, report.lanes[0].committed.get()) == (4, 5);
    assert_eq!(world.until("t", done).await.state, TriggerState::Running);
    assert!(!offsets(&receiver.invoked()).contains(&5), "the second of the key waits for an hour");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adaptive_window_grows_under_load_and_begins_small_again_after_a_restart() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| ok()).await;
    // More than is read at a time, in each batch.
    let value = format!("\"{}\"", "x".repeat(20 << 10));
    let batch = [value.as_str(); 16];
    for _ in 0..60 {
        world.produce(&topic, 0, &batch).await;
    }
    world.apply(trigger(&receiver, json!({"window": {"count": 32, "adaptive": {"latency": "1m"}}}))).await;
    world.until_committed("t", 0, 960).await;
    let sizes = |invoked: &[Invoked]| invoked.iter().map(|one| one.places.len()).collect::<Vec<_>>();
    let grew = sizes(&receiver.invoked());
    assert_eq!((grew[0], grew.iter().max()), (4, Some(&32)), "{grew:?}");

    let held = receiver.hold().await;
    for _ in 0..10 {
        world.produce(&topic, 0, &batch).await;
    }
    let before = receiver.until(|invoked| invoked.len() > grew.len()).await;
    let interrupted = sizes(&before)[grew.len()];
    drop(topic);
    let world = World::start_in(world.kill().await, &[]);
    drop(held);
    world.until_committed("t", 0, 1120).await;
    let anew = sizes(&receiver.invoked()[before.len()..]);
    assert_eq!(anew[0], interrupted, "what was tried is as it was: {anew:?}");
    assert!((4..=5).contains(&anew[1]), "one success at most has let it grow: {anew:?}");
}
