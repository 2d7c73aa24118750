//! Records in and out.

use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::{PATIENCE, Stage};

const STRUCTURED: &str = "application/cloudevents+json";

#[tokio::test]
async fn json_records_come_back_as_they_were_sent() {
    let stage = Stage::new().await;
    let records = json!({ "records": [
        { "key": "a", "value": { "delay": 95 }, "headers": { "h": "1", "m": ["x", null] }, "timestamp": 1_700_000_000_000_i64 },
        { "key_base64": "/w==", "value_base64": "AP8=" },
        { "key": "gone" },
    ]});
    let answer = stage.json("POST", "/v1/topics/t/records", &records).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    let places: Vec<Value> = (0..3).map(|offset| json!({ "partition": 0, "offset": offset })).collect();
    assert_eq!(answer.json(), json!({ "records": places }));
    let read = stage.records("t").await;
    assert_eq!(
        read[0],
        json!({ "partition": 0, "offset": 0, "timestamp": 1_700_000_000_000_i64, "key": "a", "value": { "delay": 95 }, "headers": { "h": "1", "m": ["x", null] } })
    );
    assert_eq!((&read[1]["key_base64"], &read[1]["value_base64"]), (&json!("/w=="), &json!("AP8=")));
    assert_eq!((&read[2]["key"], read[2].get("value")), (&json!("gone"), None));
}

#[tokio::test]
async fn records_with_a_key_share_a_partition_and_named_partitions_are_kept() {
    let stage = Stage::new().await;
    stage.json("POST", "/v1/topics", &json!({ "topic": "t", "partitions": 8 })).await;
    let same: Vec<Value> = (0..5).map(|n| json!({ "key": "k", "value": n })).collect();
    let answer = stage.json("POST", "/v1/topics/t/records", &json!({ "records": same })).await.json();
    let partitions: Vec<&Value> =
        answer["records"].as_array().unwrap().iter().map(|place| &place["partition"]).collect();
    assert!(partitions.windows(2).all(|pair| pair[0] == pair[1]), "{partitions:?}");
    let answer =
        stage.json("POST", "/v1/topics/t/records?acks=1&partition=7", &json!({ "records": [{ "value": 1 }] })).await;
    assert_eq!(answer.json()["records"][0]["partition"], 7);
    let missing = stage.get("/v1/topics/t/records").await;
    assert_eq!(missing.problem(), (400, "partition-missing".to_owned()));
    let beyond = stage.json("POST", "/v1/topics/t/records?partition=8", &json!({ "records": [{ "value": 1 }] })).await;
    assert_eq!(beyond.problem(), (404, "unknown-partition".to_owned()));
}

#[tokio::test]
async fn other_types_are_one_raw_record() {
    let stage = Stage::new().await;
    let answer = stage.send("POST", "/v1/topics/t/records?key=k", &[("content-type", "text/csv")], "a,b\n").await;
    assert_eq!(answer.status, 200);
    let read = stage.records("t").await;
    assert_eq!((&read[0]["key"], &read[0]["value"]), (&json!("k"), &json!("a,b\n")));
    assert_eq!(read[0]["headers"], json!({ "content-type": "text/csv" }));
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let guessed = stage.send("POST", "/v1/topics/t/records", &form, "{\"records\": []}").await;
    assert_eq!(guessed.problem(), (415, "unsupported-media-type".to_owned()));
    assert!(guessed.json()["detail"].as_str().unwrap().contains("-H 'content-type: application/json'"));
    let without = stage.send("POST", "/v1/topics/t/records", &[], "x").await;
    assert_eq!(without.problem(), (415, "unsupported-media-type".to_owned()));
}

#[tokio::test]
async fn cloudevents_are_stored_as_the_kafka_binding_has_them() {
    let stage = Stage::new().await;
    let binary = [
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/s"),
        ("ce-type", "t"),
        ("ce-partitionkey", "pk"),
    ];
    assert_eq!(stage.send("POST", "/v1/topics/t/records", &binary, "{\"a\":1}").await.status, 200);
    let event = r#"{"specversion":"1.0","id":"2","source":"/s","type":"t","data":{"a":2}}"#;
    assert_eq!(stage.send("POST", "/v1/topics/t/records", &[("content-type", STRUCTURED)], event).await.status, 200);
    let batch = format!("[{event},{event}]");
    let batch_type = [("content-type", "application/cloudevents-batch+json")];
    assert_eq!(stage.send("POST", "/v1/topics/t/records", &batch_type, batch).await.status, 200);
    let read = stage.records("t").await;
    assert_eq!(read.len(), 4);
    let headers = json!({ "ce_specversion": "1.0", "ce_id": "1", "ce_source": "/s", "ce_type": "t", "ce_partitionkey": "pk", "content-type": "application/json" });
    assert_eq!((&read[0]["headers"], &read[0]["key"], &read[0]["value"]), (&headers, &json!("pk"), &json!({ "a": 1 })));
    for record in &read[1..] {
        assert_eq!(record["headers"], json!({ "content-type": STRUCTURED }));
        assert_eq!(record["value"], serde_json::from_str::<Value>(event).unwrap());
    }
    let incomplete = stage.send("POST", "/v1/topics/t/records", &binary[..3], "").await;
    assert_eq!(incomplete.problem(), (400, "invalid-cloudevent".to_owned()));
    assert_eq!(stage.records("t").await.len(), 4);
}

#[tokio::test]
async fn wrong_records_are_refused_whole() {
    let stage = Stage::new().await;
    stage.json("POST", "/v1/topics", &json!({ "topic": "t", "config": { "max.message.bytes": 1000 } })).await;
    for (body, status, code) in [
        (json!({ "records": [] }), 400, "invalid-records"),
        (json!({ "records": [{ "vlaue": 1 }] }), 400, "invalid-json"),
        (json!({ "record": [] }), 400, "invalid-json"),
        (json!({ "records": [{ "value": 1, "value_base64": "" }] }), 400, "invalid-records"),
        (json!({ "records": [{ "value": 1 }, { "value": "x".repeat(1000) }] }), 413, "records-too-large"),
        (json!({ "records": [{ "value": 1 }, { "value": 1, "partition": 1 }] }), 404, "unknown-partition"),
    ] {
        let answer = stage.json("POST", "/v1/topics/t/records", &body).await;
        assert_eq!(answer.problem(), (status, code.to_owned()), "{body}");
    }
    let not_json = stage.send("POST", "/v1/topics/t/records", &[("content-type", "application/json")], "{").await;
    assert_eq!(not_json.problem(), (400, "invalid-json".to_owned()));
    assert_eq!(stage.records("t").await.len(), 0, "nothing of a refused request is appended");
    let own = stage.json("POST", "/v1/topics/__tripline.function_logs/records", &json!({ "records": [{}] })).await;
    assert_eq!(own.problem(), (403, "internal-topic".to_owned()));
}

#[tokio::test]
async fn wrong_types_are_told_in_words_that_are_not_of_the_code() {
    let stage = Stage::new().await;
    let detail = async |body: Value| {
        let answer = stage.json("POST", "/v1/topics/t/records", &body).await;
        assert_eq!(answer.status, 400, "{body}");
        answer.json()["detail"].as_str().unwrap().to_owned()
    };
    for (body, expected) in [
        (json!([]), "expected an object such as {\"records\": []}"),
        (json!({ "records": [{ "partition": "x" }] }), "expected a whole number from 0 to 4294967295"),
        (json!({ "records": [{ "timestamp": "x" }] }), "expected a whole number"),
        (json!({ "records": [3] }), "expected an object such as {\"key\""),
        (json!({ "records": [{ "headers": { "a": 3 } }] }), "expected a text, null,"),
    ] {
        let found = detail(body).await;
        assert!(found.contains(expected), "{found}");
        assert!(!found.contains("struct") && !found.contains("enum") && !found.contains("u32"), "{found}");
    }
    let path = stage.get("/v1/dead-letters/t/x/0").await;
    assert_eq!(path.json()["detail"], "the path: found \"x\", allowed: a whole number from 0 to 4294967295");
    let path = stage.get("/v1/dead-letters/t/0/x").await;
    assert_eq!(path.json()["detail"], "the path: found \"x\", allowed: a whole number");
}

#[tokio::test]
async fn pages_begin_where_they_are_told_and_say_where_to_go_on() {
    let stage = Stage::new().await;
    let records: Vec<Value> = (0..10).map(|n| json!({ "value": n, "timestamp": 1_000 * n })).collect();
    stage.json("POST", "/v1/topics/t/records", &json!({ "records": records })).await;
    let page = stage.get("/v1/topics/t/records?from=3&limit=2").await.json();
    let values: Vec<&Value> = page["records"].as_array().unwrap().iter().map(|record| &record["value"]).collect();
    assert_eq!((values, &page["next"], &page["tail"]), (vec![&json!(3), &json!(4)], &json!(5), &json!(10)));
    let time = stage.get("/v1/topics/t/records?from=1970-01-01T00:00:07Z").await.json();
    assert_eq!(time["records"][0]["value"], 7);
    assert_eq!(stage.get("/v1/topics/t/records?from=latest").await.json()["records"], json!([]));
    let lines = stage.send("GET", "/v1/topics/t/records", &[("accept", "application/x-ndjson")], "").await;
    assert_eq!(lines.body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count(), 10);
    for (query, status, code) in [
        ("from=11", 416, "offset-out-of-range"),
        ("from=-1", 400, "invalid-query"),
        ("from=yesterday", 400, "invalid-query"),
        ("limit=0", 400, "invalid-query"),
        ("wait=10", 400, "invalid-query"),
        ("encoding=hex", 400, "invalid-query"),
        ("partion=0", 400, "invalid-query"),
    ] {
        let answer = stage.get(&format!("/v1/topics/t/records?{query}")).await;
        assert_eq!(answer.problem(), (status, code.to_owned()), "{query}");
    }
    let image = stage.send("GET", "/v1/topics/t/records", &[("accept", "image/png")], "").await;
    assert_eq!(image.problem(), (406, "not-acceptable".to_owned()));
}

#[tokio::test]
async fn a_reader_that_waits_gets_the_record_when_it_comes() {
    let stage = Stage::new().await;
    stage.json("POST", "/v1/topics", &json!({ "topic": "t" })).await;
    let waiting = stage.get("/v1/topics/t/records?wait=30s");
    let sending = async {
        tokio::task::yield_now().await;
        stage.json("POST", "/v1/topics/t/records", &json!({ "records": [{ "value": "now" }] })).await
    };
    let (read, _) = tokio::join!(waiting, sending);
    assert_eq!(read.json()["records"][0]["value"], "now");
}

#[tokio::test]
async fn a_stream_sends_what_is_there_and_what_comes() {
    let stage = Stage::new().await;
    let one = |value| json!({ "records": [{ "value": value }] });
    stage.json("POST", "/v1/topics/t/records", &one("first")).await;
    let client: hyper_util::client::legacy::Client<_, http_body_util::Empty<bytes::Bytes>> =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let uri = format!("http://{}/v1/topics/t/records", stage.server.http_address());
    let request = http::Request::get(uri).header("accept", "text/event-stream").body(http_body_util::Empty::new());
    let mut stream = client.request(request.unwrap()).await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    let mut sent = false;
    while !text.contains("second") {
        let frame = tokio::time::timeout(PATIENCE, stream.body_mut().frame()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        if text.contains("first") && !sent {
            stage.json("POST", "/v1/topics/t/records", &one("second")).await;
            sent = true;
        }
    }
    assert!(text.contains("id: 0-0\ndata: {") && text.contains("id: 0-1\ndata: {"), "{text}");
}

#[tokio::test]
async fn who_follows_a_topic_that_goes_is_told() {
    let stage = Stage::new().await;
    stage.json("POST", "/v1/topics", &json!({ "topic": "t" })).await;
    let client: hyper_util::client::legacy::Client<_, http_body_util::Empty<bytes::Bytes>> =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let uri = format!("http://{}/v1/topics/t/records", stage.server.http_address());
    let request = http::Request::get(uri).header("accept", "text/event-stream").body(http_body_util::Empty::new());
    let stream = client.request(request.unwrap()).await.unwrap();
    // One of the same name is another.
    assert_eq!(stage.send("DELETE", "/v1/topics/t", &[], "").await.status, 204);
    stage.json("POST", "/v1/topics", &json!({ "topic": "t" })).await;
    let all = tokio::time::timeout(PATIENCE, stream.into_body().collect()).await.unwrap().unwrap().to_bytes();
    assert!(!all.starts_with(b": still here"), "at once, and not with the next sign of life");
    let text = std::str::from_utf8(&all).unwrap();
    assert!(text.contains("event: error\ndata: {") && text.contains("unknown-topic"), "{text}");
}

#[tokio::test]
async fn a_request_with_too_many_records_is_told_how_many() {
    let stage = Stage::new().await;
    let body = format!("{{\"records\":[{}{{\"what\": 1}}]}}", "{},".repeat(100_000));
    let refused = stage.send("POST", "/v1/topics/t/records", &[("content-type", "application/json")], body).await;
    assert_eq!(refused.problem(), (400, "invalid-records".to_owned()));
    let problem = refused.json();
    assert!(problem["detail"].as_str().unwrap().starts_with("found 100001 records"), "{problem}");
    let body = format!("[{}1]", "1,".repeat(100_000));
    let batch = [("content-type", "application/cloudevents-batch+json")];
    let refused = stage.send("POST", "/v1/topics/t/records", &batch, body).await;
    assert_eq!(refused.problem(), (400, "invalid-records".to_owned()));
}

#[tokio::test]
async fn a_compacted_topic_takes_no_record_without_a_key_and_none_of_its_request() {
    let stage = Stage::new().await;
    let definition = json!({ "topic": "t", "config": { "cleanup.policy": "compact" } });
    assert_eq!(stage.json("POST", "/v1/topics", &definition).await.status, 201);
    let records = json!({ "records": [{ "key": "a", "value": 1 }, { "key": "b", "value": 2 }, { "value": 3 }] });
    let refused = stage.json("POST", "/v1/topics/t/records", &records).await;
    assert_eq!(refused.problem(), (400, "key-missing".to_owned()));
    assert_eq!(refused.json()["record"], 2);
    let raw = stage.send("POST", "/v1/topics/t/records", &[("content-type", "text/csv")], "a,b").await;
    assert_eq!(raw.problem(), (400, "key-missing".to_owned()));
    assert!(stage.records("t").await.is_empty());
    let kept = json!({ "records": [{ "key": "a", "value": 1 }, { "key": "a" }] });
    assert_eq!(stage.json("POST", "/v1/topics/t/records", &kept).await.status, 200);
    assert_eq!(stage.records("t").await.len(), 2);
}

#[tokio::test]
async fn records_below_an_offset_are_deleted_for_good() {
    let stage = Stage::new().await;
    let records: Vec<Value> = (0..5).map(|n| json!({ "value": n })).collect();
    stage.json("POST", "/v1/topics/t/records", &json!({ "records": records })).await;
    let cut = |query: &'static str| format!("/v1/topics/t/records{query}");
    let answer = stage.send("DELETE", &cut("?before_offset=3"), &[], "").await;
    assert_eq!((answer.status.as_u16(), answer.json()), (200, json!({ "partition": 0, "log_start": 3 })));
    let stage = stage.restart().await;
    let offsets: Vec<i64> = stage.records("t").await.iter().map(|record| record["offset"].as_i64().unwrap()).collect();
    assert_eq!(offsets, [3, 4]);
    let below = stage.get("/v1/topics/t/records?from=2").await;
    assert_eq!(below.problem(), (416, "offset-out-of-range".to_owned()));
    for (query, status, code) in [
        ("", 400, "invalid-query"),
        ("?before_offset=-1", 400, "invalid-query"),
        ("?before_offset=x", 400, "invalid-query"),
        ("?before_offset=6", 416, "offset-out-of-range"),
        ("?before_offset=4&partition=1", 404, "unknown-partition"),
        ("?before=4", 400, "invalid-query"),
    ] {
        let refused = stage.send("DELETE", &cut(query), &[], "").await;
        assert_eq!(refused.problem(), (status, code.to_owned()), "{query}");
    }
    let all = stage.send("DELETE", &cut("?before_offset=latest"), &[], "").await;
    assert_eq!(all.json()["log_start"], 5);
    assert!(stage.records("t").await.is_empty());
    stage.json("POST", "/v1/topics", &json!({ "topic": "c", "config": { "cleanup.policy": "compact" } })).await;
    let compacted = stage.send("DELETE", "/v1/topics/c/records?before_offset=0", &[], "").await;
    assert_eq!(compacted.problem(), (409, "topic-compacted".to_owned()));
}
