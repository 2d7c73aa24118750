//! What invocations leave behind in topics.

use axum::response::IntoResponse;
use serde_json::{Value, json};
use tripline::topic::name::TopicName;
use tripline::topic::spec::{CleanupPolicy, TopicConfig, TopicSpec};
use tripline::trigger::service::TriggerState;
use tripline::trigger::spec::TriggerSpec;

use crate::harness::World;
use crate::receiver::{Receiver, status};

fn trigger(receiver: &Receiver) -> Value {
    json!({
        "trigger": "t", "input": {"topic": "in", "start": "earliest"},
        "function": {"http": {"url": receiver.url}}, "window": {"count": 2},
        "retry": {"initial": "1ms", "max_attempts": 2},
        "destinations": {
            "results": {"topic": "results"}, "on_success": {"topic": "done"}, "on_failure": {"topic": "failed"},
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn results_become_records_and_every_window_is_told_about() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|invoked| match invoked.data[0].as_i64() {
        Some(1) => r#"[{"late": true}, "text"]"#.into_response(),
        Some(3) => "plain".into_response(),
        _ => status(500),
    })
    .await;
    world.produce(&topic, 0, &["1", "2", "3", "4", "5"]).await;
    world.apply(trigger(&receiver)).await;
    world.until_committed("t", 0, 5).await;

    let values = |topic: &str| world.records(topic, 0).into_iter().map(|record| record.value).collect::<Vec<_>>();
    assert_eq!(values("results"), [r#"{"late": true}"#, "\"text\"", "plain"]);

    let told: Vec<Value> = values("done").iter().map(|value| serde_json::from_str(value).unwrap()).collect();
    assert_eq!(told.len(), 2);
    assert_eq!(told[0]["requestContext"]["requestId"], "t/in/0/0");
    assert_eq!(told[0]["requestContext"]["condition"], "Success");
    assert_eq!(told[0]["requestPayload"], json!({"topic": "in", "partition": 0, "offsets": [0, 1]}));
    assert_eq!(
        (&told[0]["responsePayload"], &told[1]["responsePayload"]),
        (&json!([{"late": true}, "text"]), &json!("plain"))
    );

    let failed: Value = serde_json::from_str(&values("failed")[0]).unwrap();
    assert_eq!(failed["requestContext"]["condition"], "RetriesExhausted");
    assert_eq!(failed["requestContext"]["approximateInvokeCount"], 2);
    assert_eq!(failed["responseContext"], json!({"statusCode": 500, "functionError": "failed", "errorType": "500"}));
    assert_eq!(values("failed").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_its_topic_does_not_take_fails_the_window_and_says_so() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| format!("\"{}\"", "x".repeat(2 << 20)).into_response()).await;
    world.produce(&topic, 0, &["1"]).await;
    world.apply(trigger(&receiver)).await;
    world.until_committed("t", 0, 1).await;
    assert!(world.records("results", 0).is_empty());
    let failed: Value = serde_json::from_str(&world.records("failed", 0)[0].value).unwrap();
    assert_eq!(failed["responseContext"]["errorType"], "result-too-large");
    let told = failed["responsePayload"].as_str().unwrap();
    assert!(told.contains("topic results takes 1048588"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_without_a_key_fails_its_window_where_the_topic_is_compacted_and_holds_up_nothing() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let config = TopicConfig { cleanup_policy: CleanupPolicy::Compact, ..TopicConfig::default() };
    let compacted = TopicSpec { name: TopicName::new("results").unwrap(), partitions: 1, config };
    world.broker.create_topic(compacted).await.unwrap();
    let event = json!({"specversion": "1.0", "id": "1", "source": "s", "type": "t", "partitionkey": "k"});
    let receiver = Receiver::start(move |invoked| match invoked.data[0].as_i64() {
        Some(1) => json!([event, "keyless"]).to_string().into_response(),
        _ => json!([event]).to_string().into_response(),
    })
    .await;
    world.produce(&topic, 0, &["1", "2"]).await;
    let mut definition = trigger(&receiver);
    definition["window"]["count"] = json!(1);
    let applied = world.triggers.apply(TriggerSpec::from_json(&definition).unwrap()).await.unwrap();
    assert!(applied.warnings.iter().any(|warning| warning.contains("results is compacted")), "{applied:?}");
    world.until_committed("t", 0, 2).await;
    assert_eq!(receiver.invoked().len(), 3, "two attempts on the first record, and the other went on");
    let results = world.records("results", 0);
    assert_eq!(results.iter().map(|record| record.key.as_deref()).collect::<Vec<_>>(), [Some("k")]);
    let failed: Value = serde_json::from_str(&world.records("failed", 0)[0].value).unwrap();
    assert_eq!(failed["responseContext"]["errorType"], "result-without-key");
    let told = failed["responsePayload"].as_str().unwrap();
    assert!(told.starts_with("result 2 has no key") && told.contains("topic results is compacted"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_whose_topic_went_goes_where_the_definition_says_now() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| "\"late\"".into_response()).await;
    let held = receiver.hold().await;
    world.produce(&topic, 0, &["1"]).await;
    world.apply(trigger(&receiver)).await;
    receiver.until(|invoked| !invoked.is_empty()).await;
    let mut other = trigger(&receiver);
    other["destinations"] = json!({"results": {"topic": "others"}});
    world.apply(other).await;
    world.broker.delete_topic("results").await.unwrap();
    drop(held);
    world.until_committed("t", 0, 1).await;
    assert_eq!(world.records("others", 0)[0].value, "\"late\"");
    assert_eq!(receiver.invoked().len(), 1, "it is not invoked again for that");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_all_fit_leaves_nothing_behind() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    // Each result fits; the record of the invocation has all of them.
    let answer = json!(vec!["x".repeat(400 << 10); 4]).to_string();
    let receiver = Receiver::start(move |_| answer.clone().into_response()).await;
    world.produce(&topic, 0, &["1"]).await;
    world.apply(trigger(&receiver)).await;
    world.until_committed("t", 0, 1).await;
    assert_eq!(receiver.invoked().len(), 2);
    assert_eq!((world.records("results", 0).len(), world.records("done", 0).len()), (0, 0));
    let failed: Value = serde_json::from_str(&world.records("failed", 0)[0].value).unwrap();
    let told = failed["responsePayload"].as_str().unwrap();
    assert!(told.contains("topic done takes 1048588"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_is_given_up_is_told_about_by_the_id_that_its_function_saw() {
    for restarts in [false, true] {
        let mut world = World::start();
        let topic = world.topic("in", 1).await;
        // The first record of the window succeeds.
        let receiver = Receiver::start(|invoked| {
            let events = invoked.body_json();
            let failed = events.as_array().unwrap().iter().filter(|event| event["data"] != 1);
            let failed: Vec<Value> = failed.map(|event| json!({"itemIdentifier": event["id"]})).collect();
            json!({"batchItemFailures": failed}).to_string().into_response()
        })
        .await;
        let mut definition = trigger(&receiver);
        definition["window"]["count"] = json!(3);
        definition["dead_letter"] = json!({"topic": "in.dlq"});
        world.apply(definition).await;
        world.broker.delete_topic("in.dlq").await.unwrap();
        world.produce(&topic, 0, &["1", "2", "3"]).await;
        drop(topic);
        world.until_state("t", TriggerState::Blocked).await;
        if restarts {
            world = World::start_in(world.kill().await, &[]);
        }
        world.topic("in.dlq", 1).await;
        world.until_committed("t", 0, 3).await;
        let seen: Vec<String> = receiver.invoked().into_iter().map(|invoked| invoked.id).collect();
        assert_eq!(seen, ["t/in/0/0", "t/in/0/0"]);
        let told = world.records("failed", 0);
        let failed: Value = serde_json::from_str(&told[0].value).unwrap();
        assert_eq!(failed["requestContext"]["requestId"], seen[1], "restarts: {restarts}");
        assert_eq!((failed["requestPayload"]["offsets"].clone(), told.len()), (json!([1, 2]), 1));
    }
}
