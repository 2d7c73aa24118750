//! Who is let in, and what is too much.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{PATIENCE, Stage};

#[tokio::test]
async fn foreign_hosts_and_origins_are_turned_away_on_every_path() {
    let stage = Stage::new().await;
    for path in ["/livez", "/metrics", "/v1/topics", "/nothing"] {
        let host = stage.send("GET", path, &[("host", "evil.example")], "").await;
        assert_eq!(host.problem(), (421, "host-not-allowed".to_owned()));
        let origin = stage.send("GET", path, &[("origin", "https://evil.example")], "").await;
        assert_eq!(origin.problem(), (403, "origin-not-allowed".to_owned()));
    }
    let own = stage.send("GET", "/livez", &[("origin", "http://localhost:3000")], "").await;
    assert_eq!(own.status, 200);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let stage = Stage::new().await;
    assert_eq!(stage.get("/v2/topics").await.problem(), (404, "unknown-path".to_owned()));
    let method = stage.send("PATCH", "/v1/topics", &[], "").await;
    assert_eq!(method.problem(), (405, "method-not-allowed".to_owned()));
    assert!(method.headers["allow"].to_str().unwrap().contains("GET"));
    assert_eq!(stage.get("/v1/topics/a%2Fb").await.problem(), (400, "invalid-name".to_owned()));
    assert_eq!(stage.get("/v1/topics/%ff").await.problem(), (400, "invalid-path".to_owned()));
    assert_eq!(stage.get("/v1/topics?all=1").await.problem(), (400, "invalid-query".to_owned()));
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_with_the_limit() {
    let stage = Stage::with(|limits| limits.body_bytes_max = 1_000).await;
    let raw = [("content-type", "text/plain")];
    assert_eq!(stage.send("POST", "/v1/topics/t/records", &raw, vec![b'x'; 1_000]).await.status, 200);
    let answer = stage.send("POST", "/v1/topics/t/records", &raw, vec![b'x'; 1_001]).await;
    assert_eq!(answer.problem(), (413, "body-too-large".to_owned()));
    assert_eq!(answer.json()["limit_bytes"], 1_000);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_let_go() {
    let stage = Stage::with(|limits| {
        limits.connections_max = 1;
        limits.write_timeout = Duration::from_millis(200);
    })
    .await;
    // The test's own client keeps its connection: nobody is there but the one that does not read.
    let mut deaf = TcpStream::connect(stage.server.http_address()).await.unwrap();
    let record = vec![b'x'; 1_000_000];
    let post = |n: usize| {
        format!(
            "POST /v1/topics/t/records HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\ncontent-length: {n}\r\n\r\n"
        )
    };
    for _ in 0..7 {
        deaf.write_all(post(record.len()).as_bytes()).await.unwrap();
        deaf.write_all(&record).await.unwrap();
    }
    // More than what lies in the buffers of both sides.
    for _ in 0..20 {
        let get = b"GET /v1/topics/t/records HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let _ = deaf.write_all(get).await;
    }
    assert_eq!(stage.get("/livez").await.status, 200);
}

/// What the server says to these bytes until it closes.
async fn raw(stage: &Stage, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(stage.server.http_address()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server closes");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_client_that_sends_slowly_or_too_much_is_let_go() {
    let stage = Stage::with(|limits| {
        limits.head_timeout = Duration::from_millis(200);
        limits.body_timeout = Duration::from_millis(200);
    })
    .await;
    let slow_head = raw(&stage, b"GET /livez HTTP/1.1\r\nHost: local").await;
    assert!(!slow_head.contains("200 OK"), "{slow_head}");
    let head = "POST /v1/topics/t/records HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nabc";
    let slow_body = raw(&stage, head.as_bytes()).await;
    assert!(slow_body.starts_with("HTTP/1.1 408") && slow_body.contains("body-timeout"), "{slow_body}");
    let many = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "a: b\r\n".repeat(200));
    assert!(raw(&stage, many.as_bytes()).await.starts_with("HTTP/1.1 431"));
    let long = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\na: {}\r\n\r\n", "b".repeat(100 << 10));
    // The close may overtake the answer, because the rest of the head was never read.
    let long = raw(&stage, long.as_bytes()).await;
    assert!(long.is_empty() || long.starts_with("HTTP/1.1 431"), "{long}");
}

#[tokio::test]
async fn health_metrics_cluster_and_the_description_answer() {
    let stage = Stage::new().await;
    stage.json("POST", "/v1/topics/t/records", &json!({ "records": [{ "value": 1 }, { "value": 2 }] })).await;
    let url = json!({ "http": { "url": "http://127.0.0.1:1/" } });
    stage.json("PUT", "/v1/triggers/g", &json!({ "input": { "topic": "t" }, "function": url })).await;
    for path in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(stage.get(path).await.status, 200, "{path}");
    }
    let metrics = stage.get("/metrics").await;
    let text = std::str::from_utf8(&metrics.body).unwrap().to_owned();
    for line in [
        "kafka_topic_partitions{topic=\"t\"} 1",
        "kafka_topic_partition_current_offset{topic=\"t\",partition=\"0\"} 2",
        "tripline_records_in_total{topic=\"t\",protocol=\"http\"} 2",
        "tripline_trace_facts_dropped_total 0",
        "tripline_trace_records 0",
        "tripline_trigger_records_total{trigger=\"g\",outcome=\"debounced\"} 0",
        "tripline_trigger_records_total{trigger=\"g\",outcome=\"skipped\"} 0",
        "tripline_trigger_attempts_total{trigger=\"g\",outcome=\"failed\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    let cluster = stage.get("/v1/cluster").await.json();
    assert_eq!(cluster["kafka_address"], stage.server.kafka_address().to_string());
    let paths = stage.get("/openapi.json").await.json()["paths"].as_object().unwrap().len();
    assert!(paths >= 20, "{paths} paths");
    let story = &stage.get("/openapi.json").await.json()["components"]["schemas"]["Story"];
    assert!(story["properties"]["triggers"].is_object(), "{story}");
}

#[tokio::test]
async fn no_operation_passes_over_a_parameter_that_it_does_not_have() {
    let stage = Stage::new().await;
    let document = stage.get("/openapi.json").await.json();
    let mut asked = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        if !path.starts_with("/v1/") {
            continue;
        }
        let parts = path.split('/').map(|part| if part.starts_with('{') { "1" } else { part });
        let path = parts.collect::<Vec<_>>().join("/");
        for (method, operation) in operations.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
            if parameters.iter().any(|parameter| parameter["name"] == "dry_run") {
                continue;
            }
            let answer = stage.json(&method.to_uppercase(), &format!("{path}?dry_run=true"), &json!({})).await;
            assert_eq!(answer.status, 400, "{method} {path}: {:?}", answer.body);
            assert!(
                answer.json()["detail"].as_str().unwrap().contains("dry_run"),
                "{method} {path}: {:?}",
                answer.body
            );
            asked += 1;
        }
    }
    assert!(asked > 30, "{asked}");
}

#[tokio::test]
async fn a_body_of_very_many_values_is_refused_before_they_are_made() {
    let stage = Stage::new().await;
    let with =
        |count: usize| json!({ "pattern": { "a": [1] }, "event": { "a": vec![0; count], "b": ",[{".repeat(99_999) } });
    assert_eq!(stage.json("POST", "/v1/patterns/test", &with(99_000)).await.status, 200);
    let refused = stage.json("POST", "/v1/patterns/test", &with(100_000)).await;
    assert_eq!(refused.problem(), (413, "json-too-large".to_owned()));
}

#[tokio::test]
async fn a_pattern_is_tried_on_an_event() {
    let stage = Stage::new().await;
    let test = |pattern| json!({ "pattern": pattern, "event": { "data": { "delay": 95 } } });
    let late = json!({ "data": { "delay": [{ "numeric": [">", 60] }] } });
    let answer = stage.json("POST", "/v1/patterns/test", &test(late)).await.json();
    assert_eq!(answer, json!({ "matches": true, "explain": [] }));
    let other = stage.json("POST", "/v1/patterns/test", &test(json!({ "data": { "delay": [1] } }))).await.json();
    assert_eq!((&other["matches"], &other["explain"][0]["path"]), (&json!(false), &json!("data.delay")));
    let wrong =
        stage.json("POST", "/v1/patterns/test", &test(json!({ "data": { "delay": [{ "numric": [] }] } }))).await;
    assert_eq!(wrong.problem(), (400, "invalid-pattern".to_owned()));
    assert_eq!(
        stage.json("POST", "/v1/patterns/test", &json!({ "patern": {} })).await.problem().1,
        "invalid-definition"
    );
}

#[tokio::test]
async fn a_transform_is_tried_on_an_event() {
    let stage = Stage::new().await;
    let event = json!({ "id": "1", "data": { "delay": 95 }, "topic": "flights" });
    let test = |transform| json!({ "transform": transform, "event": event });
    let template = json!({ "template": "{\"late\": <delay>}", "values": { "delay": "$.data.delay" } });
    let answer = stage.json("POST", "/v1/transforms/test", &test(template.clone())).await.json();
    assert_eq!(answer, json!({ "events": [{ "late": 95 }] }));
    let original = stage.json("POST", "/v1/transforms/test", &test(json!("original"))).await.json();
    assert_eq!(original, json!({ "events": [{ "id": "1", "data": { "delay": 95 } }] }));
    let clean = json!([template, { "function": "clean" }, { "constant": 1 }]);
    let answer = stage.json("POST", "/v1/transforms/test", &test(clean)).await.json();
    assert_eq!(answer, json!({ "events": [{ "late": 95 }], "next": { "step": 1, "function": "clean" } }));
    let strict = json!([{ "jsonpath": "$.data" }, { "jsonpath": "$.gate", "strict": true }]);
    let failed = stage.json("POST", "/v1/transforms/test", &test(strict)).await;
    assert_eq!(failed.problem(), (422, "transform-missing-value".to_owned()));
    assert_eq!(failed.json()["step"], 1);
    let wrong = stage.json("POST", "/v1/transforms/test", &test(json!({ "jsonpath": "$[" }))).await;
    assert_eq!(wrong.problem(), (400, "invalid-definition".to_owned()));
    assert_eq!(wrong.json()["errors"][0]["path"], "test.transform.jsonpath");
    let nothing = stage.json("POST", "/v1/transforms/test", &json!({})).await;
    assert_eq!(nothing.problem().1, "invalid-definition");
}
