//! What a trigger has done, after the power went: on a disk in memory that keeps what was flushed and, of the rest,
//! what a seed says.

use axum::response::IntoResponse;
use serde_json::{Value, json};
use tripline_storage::fs::SimFs;

use crate::harness::World;
use crate::receiver::{Receiver, status};

/// Images of the disk that are looked at.
const SEEDS: u64 = 24;

fn trigger(receiver: &Receiver, more: &Value) -> Value {
    let mut definition = json!({
        "trigger": "t", "input": {"topic": "in", "start": "earliest"}, "function": {"http": {"url": receiver.url}},
        "retry": {"initial": "1ms", "max_attempts": 1},
    });
    definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    definition
}

/// Values of a topic that exists if anything is in it.
fn values(world: &World, topic: &str) -> Vec<String> {
    match world.broker.topic(topic) {
        Some(_) => world.records(topic, 0).into_iter().map(|record| record.value).collect(),
        None => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn durable_progress_is_never_ahead_of_what_the_function_left_behind() {
    for answers in [200, 400] {
        let disk = SimFs::new();
        let world = World::start_on(&disk);
        let topic = world.topic("in", 1).await;
        let receiver = Receiver::start(move |_| match answers {
            200 => "\"made\"".into_response(),
            code => status(code),
        })
        .await;
        let destinations = json!({"destinations": {
            "results": {"topic": "results"}, "on_success": {"topic": "done"}, "on_failure": {"topic": "failed"},
        }});
        world.apply(trigger(&receiver, &destinations)).await;
        world.produce(&topic, 0, &["1"]).await;
        world.until_committed("t", 0, 1).await;
        // Whatever is committed next takes the progress along.
        world.broker.journal().flush().unwrap();
        for seed in 0..SEEDS {
            let world = World::start_on(&disk.crash(seed));
            assert_eq!(world.triggers.describe("t").unwrap().lanes[0].committed.get(), 1);
            let left: Vec<usize> = ["results", "done", "failed"].map(|topic| values(&world, topic).len()).to_vec();
            let expected = if answers == 200 { [1, 1, 0] } else { [0, 0, 1] };
            assert_eq!(left, expected, "answer {answers}, seed {seed}");
            world.kill().await;
        }
        world.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_never_durable_before_its_verdict() {
    let disk = SimFs::new();
    let world = World::start_on(&disk);
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| status(400)).await;
    world.apply(trigger(&receiver, &json!({"dead_letter": {"topic": "in.dlq"}}))).await;
    world.produce(&topic, 0, &["1"]).await;
    world.until_committed("t", 0, 1).await;
    for seed in 0..SEEDS {
        let world = World::start_on(&disk.crash(seed));
        world.until_committed("t", 0, 1).await;
        assert_eq!(values(&world, "in.dlq"), ["1"], "seed {seed}");
        world.kill().await;
    }
    world.kill().await;
}
