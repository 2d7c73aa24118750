//! Which clause of a trigger's filter turned a record or an event away.

use serde_json::{Value, json};

use crate::support::{Answer, Stage};

/// A broker with a trigger that takes late flights, and two records, the second late.
async fn stage() -> Stage {
    let stage = Stage::new().await;
    for topic in ["flights", "other"] {
        stage.json("POST", "/v1/topics", &json!({ "topic": topic })).await;
    }
    let trigger = json!({
        "input": { "topic": "flights" }, "function": { "http": { "url": "http://127.0.0.1:1/" } },
        "filter": { "data": { "delay": [{ "numeric": [">", 60] }] }, "key": [{ "exists": true }] },
    });
    let made = stage.json("PUT", "/v1/triggers/late", &trigger).await;
    assert_eq!(made.status, 201, "{:?}", made.body);
    for value in [json!({ "delay": 5 }), json!({ "delay": 61 })] {
        let records = json!({ "records": [{ "key": "LH400", "value": value }] });
        assert!(stage.json("POST", "/v1/topics/flights/records", &records).await.status.is_success());
    }
    stage
}

async fn explain(stage: &Stage, body: Value) -> Answer {
    stage.json("POST", "/v1/triggers/late/explain", &body).await
}

#[tokio::test]
async fn a_record_is_explained_with_the_clause_that_turned_it_away_and_the_event_that_filters_see() {
    let stage = stage().await;
    let turned_away = explain(&stage, json!({ "partition": 0, "offset": 0 })).await.json();
    let why =
        json!([{ "alternative": 0, "path": "data.delay", "expected": "[{\"numeric\":[\">\",60]}]", "found": "5" }]);
    assert_eq!((&turned_away["trigger"], &turned_away["matches"]), (&json!("late"), &json!(false)));
    assert_eq!(turned_away["explain"], why);
    let event = &turned_away["event"];
    assert_eq!((&event["id"], &event["key"], &event["topic"]), (&json!("0-0"), &json!("LH400"), &json!("flights")));
    let taken = explain(&stage, json!({ "partition": 0, "offset": 1 })).await.json();
    assert_eq!((&taken["matches"], &taken["explain"]), (&json!(true), &json!([])));
    assert_eq!(taken["event"]["data"], json!({ "delay": 61 }));
}

#[tokio::test]
async fn an_event_that_is_sent_along_is_explained_too() {
    let stage = stage().await;
    let taken = explain(&stage, json!({ "event": { "data": { "delay": 61 }, "key": "x" } })).await.json();
    assert_eq!(taken, json!({ "trigger": "late", "matches": true, "explain": [] }));
    let away = explain(&stage, json!({ "event": null })).await.json();
    let paths: Vec<&Value> = away["explain"].as_array().unwrap().iter().map(|reason| &reason["path"]).collect();
    assert_eq!((&away["matches"], paths), (&json!(false), vec![&json!("data.delay"), &json!("key")]));
}

#[tokio::test]
async fn what_cannot_be_explained_is_refused_with_the_reason() {
    let stage = stage().await;
    let unknown = stage.json("POST", "/v1/triggers/nobody/explain", &json!({ "event": 1 })).await;
    assert_eq!(unknown.problem(), (404, "unknown-trigger".to_owned()));
    for (body, expected) in [
        (json!({ "partition": 0, "offset": 2 }), (416, "offset-out-of-range")),
        (json!({ "partition": 1, "offset": 0 }), (404, "unknown-partition")),
        (json!({ "topic": "none", "partition": 0, "offset": 0 }), (404, "unknown-topic")),
        (json!({ "topic": "other", "partition": 0, "offset": 0 }), (416, "offset-out-of-range")),
    ] {
        let (status, code) = explain(&stage, body.clone()).await.problem();
        assert_eq!((status, code.as_str()), expected, "{body}");
    }
    for (body, path, allowed) in [
        (json!({ "offset": 0 }), "explain.partition", "or `event`"),
        (json!({ "partition": 0, "offset": -1 }), "explain.offset", "from 0 on"),
        (json!({ "partition": 0, "offset": 0, "event": {} }), "explain.event", "either an event"),
        (json!({ "partition": 0, "offset": 0, "ofset": 1 }), "explain.ofset", "offset"),
    ] {
        let refused = explain(&stage, body.clone()).await;
        assert_eq!(refused.status, 400, "{body}");
        let error = refused.json()["errors"][0].clone();
        assert_eq!(error["path"], path, "{error}");
        assert!(error["allowed"].as_str().unwrap().contains(allowed), "{error}");
    }
}
