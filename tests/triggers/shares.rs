//! What shares a trigger's invocations gets its part of them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::World;
use crate::receiver::{Receiver, ok};

fn trigger(receiver: &Receiver, more: Value) -> Value {
    let mut definition = json!({
        "trigger": "t", "input": {"topic": "in", "start": "earliest"}, "window": {"count": 1},
        "function": {"http": {"url": receiver.url}},
    });
    definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    definition
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_share_one_invocation_take_turns() {
    for order in ["partition", "key", "none"] {
        let world = World::start();
        let topic = world.topic("in", 4).await;
        for partition in 0..4 {
            world.produce(&topic, partition, &["1"; 40]).await;
        }
        let receiver = Receiver::start(|_| ok()).await;
        world.apply(trigger(&receiver, json!({"order": order, "concurrency": 1}))).await;
        let invoked = receiver.until(|invoked| invoked.len() == 160).await;
        // From when all have come until the first one has finished, nobody gets far ahead.
        let mut counts = BTreeMap::from([(0, 0), (1, 0), (2, 0), (3, 0)]);
        let partitions = invoked.iter().map(|one| one.places[0].0).skip_while({
            let mut missing = vec![0, 1, 2, 3];
            move |partition| {
                missing.retain(|other| other != partition);
                !missing.is_empty()
            }
        });
        for partition in partitions.take(80) {
            *counts.entry(partition).or_insert(0) += 1;
        }
        assert!(counts.values().all(|count| (15..=25).contains(count)), "order {order}: {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_floods_does_not_hold_up_the_others() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    // Far more than a lane keeps of one key, then one record each of others.
    for _ in 0..50 {
        world.produce_keyed(&topic, 0, &[("flood", "1"); 100]).await;
    }
    let others: Vec<String> = (0..50).map(|n| format!("other-{n}")).collect();
    let records: Vec<(&str, &str)> = others.iter().map(|key| (key.as_str(), "1")).collect();
    world.produce_keyed(&topic, 0, &records).await;
    let receiver = Receiver::start(|_| ok()).await;
    let definition = trigger(&receiver, json!({"order": "key", "concurrency": 4, "window": {"count": 10}}));
    world.apply(definition).await;
    world.until_committed("t", 0, 5050).await;
    let invoked = receiver.invoked();
    let last_other = invoked.iter().rposition(|one| one.keys[0] != "flood").unwrap();
    let pending: usize = invoked[last_other..].iter().map(|one| one.places.len()).sum();
    assert!(pending > 2000, "{pending} of the flood were pending when the last of the others came");
    let flood = invoked.iter().filter(|one| one.keys[0] == "flood").flat_map(|one| one.places.iter().map(|at| at.1));
    assert_eq!(flood.collect::<Vec<_>>(), (0..5000).collect::<Vec<_>>(), "the flood comes in order, once");
}
