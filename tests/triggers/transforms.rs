//! What a function gets instead of the record's event.

use axum::response::IntoResponse;
use serde_json::{Value, json};
use tripline::trigger::service::TriggerState;

use crate::harness::World;
use crate::receiver::{Receiver, ok, status};

fn trigger(receiver: &Receiver, transform: Value) -> Value {
    json!({
        "trigger": "t", "input": {"topic": "in", "start": "earliest"}, "transform": transform,
        "function": {"http": {"url": receiver.url}}, "dead_letter": {"topic": "in.dlq"},
        "retry": {"initial": "1ms", "max_attempts": 2},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_makes_what_the_function_gets_and_a_record_it_cannot_make_is_a_dead_letter() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| ok()).await;
    let values = [r#"{"origin": "FRA", "delay": 61}"#, r#"{"origin": "TXL"}"#, r#"{"origin": "M\"UC", "delay": 9}"#];
    world.produce(&topic, 0, &values).await;
    let template = json!({
        "template": r#"{"flight": "<origin>", "late_min": <delay>}"#, "strict": true,
        "values": {"origin": "$.data.origin", "delay": "$.data.delay"},
    });
    world.apply(trigger(&receiver, template)).await;
    world.until_committed("t", 0, 3).await;
    let invoked = receiver.invoked();
    assert_eq!(invoked.len(), 1);
    let expected = json!([{"flight": "FRA", "late_min": 61}, {"flight": "M\"UC", "late_min": 9}]);
    assert_eq!(serde_json::from_slice::<Value>(&invoked[0].body).unwrap(), expected);
    let letters = world.records("in.dlq", 0);
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].value, values[1]);
    let header = |name: &str| letters[0].headers.iter().find(|(found, _)| found == name).unwrap().1.clone().unwrap();
    assert_eq!(
        (header("tripline-dlq-error-class"), header("tripline-dlq-error-code")),
        ("rejected".into(), "transform-missing-value".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_as_a_step_makes_none_one_or_many_events_of_a_record() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let step = Receiver::start(|invoked| {
        let number = invoked.body_json()[0]["n"].as_i64().unwrap();
        match number {
            9 if invoked.attempt == 1 => axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            9 => "[]".into_response(),
            _ => Value::from((0..number).map(|index| json!({"n": number, "index": index})).collect::<Vec<_>>())
                .to_string()
                .into_response(),
        }
    })
    .await;
    let splits = json!({"function": "split", "runtime": "http", "url": step.url});
    world.http_function(&splits).await;
    let receiver = Receiver::start(|_| ok()).await;
    world.produce(&topic, 0, &["0", "2", "9", "1"]).await;
    let transform = json!([
        {"template": r#"{"n": <n>}"#, "values": {"n": "$.data"}},
        {"function": "split"},
        {"set": {"$.seen": true}},
    ]);
    world.apply(trigger(&receiver, transform)).await;
    world.until_committed("t", 0, 4).await;
    let expected = json!([{"n": 2, "index": 0, "seen": true}, {"n": 2, "index": 1, "seen": true}, {"n": 1, "index": 0, "seen": true}]);
    assert_eq!(receiver.invoked().len(), 1, "what becomes of nothing invokes nothing");
    assert_eq!(receiver.invoked()[0].body_json(), expected);
    // Only the record whose step failed was tried again.
    let tried: Vec<i64> = step.invoked().iter().map(|one| one.body_json()[0]["n"].as_i64().unwrap()).collect();
    assert_eq!(tried.iter().filter(|number| **number == 9).count(), 2);
    assert_eq!(tried.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_does_not_exist_is_refused_by_name() {
    let world = World::start();
    world.topic("in", 1).await;
    let receiver = Receiver::start(|_| ok()).await;
    let definition = trigger(&receiver, json!({"function": "nowhere"}));
    let spec = tripline::trigger::spec::TriggerSpec::from_json(&definition).unwrap();
    let refused = world.triggers.apply(spec).await.unwrap_err().to_string();
    assert_eq!(refused, "trigger.transform: function nowhere does not exist; apply it first");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_several_steps_refuse_are_all_dead_letters() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let step = Receiver::start(|invoked| match invoked.body_json()[0]["n"].as_i64() {
        Some(3) => status(400),
        _ => invoked.body.clone().into_response(),
    })
    .await;
    world.http_function(&json!({"function": "check", "runtime": "http", "url": step.url})).await;
    let receiver = Receiver::start(|_| ok()).await;
    // The function that comes second refuses the fourth record, when the template has refused the last: in the window
    // it stands before that.
    let values: Vec<String> =
        (0..8).map(|n| if n == 7 { "{}".to_owned() } else { json!({"n": n}).to_string() }).collect();
    world.produce(&topic, 0, &values.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let transform = json!([
        {"template": r#"{"n": <n>}"#, "values": {"n": "$.data.n"}, "strict": true},
        {"function": "check"},
    ]);
    world.apply(trigger(&receiver, transform)).await;
    world.until_committed("t", 0, 8).await;
    let mut letters: Vec<String> = world.records("in.dlq", 0).into_iter().map(|letter| letter.value).collect();
    // Those of different reasons are written side by side.
    letters.sort_unstable();
    assert_eq!(letters, [values[3].as_str(), values[7].as_str()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_a_step_drops_does_not_end_the_outage_of_the_target() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let step = Receiver::start(|invoked| match invoked.body_json()[0]["n"].as_i64() {
        Some(1) => "[]".into_response(),
        _ => invoked.body.clone().into_response(),
    })
    .await;
    world.http_function(&json!({"function": "clean", "runtime": "http", "url": step.url})).await;
    let receiver = Receiver::start(|_| status(401)).await;
    let steps = json!([{"template": r#"{"n": <n>}"#, "values": {"n": "$.data"}}, {"function": "clean"}]);
    let mut definition = trigger(&receiver, steps);
    (definition["order"], definition["window"]) = (json!("none"), json!({"count": 1}));
    world.apply(definition).await;
    world.produce(&topic, 0, &["0"]).await;
    let began = world.until_state("t", TriggerState::Outage).await;
    // It was not tried, and is the first to be when the target is probed.
    world.produce(&topic, 0, &["1"]).await;
    let report = world.until("t", |report| report.counts.attempts_succeeded == 1).await;
    assert_eq!((report.state, report.since_ms), (TriggerState::Outage, began.since_ms), "{report:?}");
}
