//! Who is let in, and what is too much.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
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
async fn bodies_of_all_requests_have_a_limit_that_small_ones_do_not_feel() {
    const KIB: usize = 1 << 10;
    let stage = Stage::with(|limits| limits.bodies_bytes_max = 170 * KIB).await;
    let post = async |bytes: usize| {
        stage.send("POST", "/v1/topics/t/records", &[("content-type", "text/plain")], vec![b'x'; bytes]).await
    };
    let until = async |status: u16| {
        let asked = async {
            loop {
                let answer = post(164 * KIB).await;
                if answer.status == status {
                    return answer;
                }
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.unwrap()
    };
    assert_eq!(post(164 * KIB).await.status, 200);
    let mut slow = TcpStream::connect(stage.server.http_address()).await.unwrap();
    let head = b"POST /v1/topics/t/records HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\ncontent-length: 200000\r\n\r\n";
    slow.write_all(head).await.unwrap();
    slow.write_all(&vec![b'x'; 150 * KIB]).await.unwrap();
    // What the server has not read yet takes nothing.
    let refused = until(503).await;
    assert_eq!(refused.problem(), (503, "bodies-too-large".to_owned()));
    assert_eq!(
        (refused.json()["limit_bytes"].as_u64(), &refused.headers["retry-after"]),
        (Some(174_080), &"1".parse().unwrap())
    );
    assert_eq!(post(64 * KIB).await.status, 200);
    drop(slow);
    until(200).await;
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

/// An operation of the description of the API.
struct Operation {
    method: String,
    /// With something in the place of each parameter.
    path: String,
    described: Value,
}

impl Operation {
    async fn all(stage: &Stage) -> (Value, Vec<Self>) {
        let document = stage.get("/openapi.json").await.json();
        let mut all = Vec::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            let parts = path.split('/').map(|part| if part.starts_with('{') { "1" } else { part });
            let path = parts.collect::<Vec<_>>().join("/");
            for (method, described) in operations.as_object().unwrap() {
                all.push(Self { method: method.to_uppercase(), path: path.clone(), described: described.clone() });
            }
        }
        (document, all)
    }

    fn has_parameter(&self, name: &str) -> bool {
        let parameters = self.described["parameters"].as_array().map_or(&[][..], Vec::as_slice);
        parameters.iter().any(|parameter| parameter["name"] == name)
    }

    /// What is said of answers with this status, or with its hundred.
    fn answer(&self, status: u16) -> Option<&Value> {
        let answers = &self.described["responses"];
        answers.get(status.to_string()).or_else(|| answers.get(format!("{}XX", status / 100)))
    }

    /// What is said of its body, by media type.
    fn bodies(&self) -> Option<&serde_json::Map<String, Value>> {
        self.described.get("requestBody").map(|body| body["content"].as_object().unwrap())
    }
}

/// A schema, looked up where it is a reference.
fn schema<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/components/schemas/"));
    name.map_or(schema, |name| &document["components"]["schemas"][name])
}

#[tokio::test]
async fn no_operation_passes_over_a_parameter_that_it_does_not_have() {
    let stage = Stage::new().await;
    let (_, operations) = Operation::all(&stage).await;
    let without = |operation: &&Operation| operation.path.starts_with("/v1/") && !operation.has_parameter("dry_run");
    let without: Vec<&Operation> = operations.iter().filter(without).collect();
    for Operation { method, path, .. } in &without {
        let answer = stage.json(method, &format!("{path}?dry_run=true"), &json!({})).await;
        assert_eq!(answer.status, 400, "{method} {path}: {:?}", answer.body);
        assert!(answer.json()["detail"].as_str().unwrap().contains("dry_run"), "{method} {path}: {:?}", answer.body);
    }
    assert!(without.len() > 30, "{}", without.len());
}

#[tokio::test]
async fn every_path_is_described_with_all_that_it_answers() {
    let stage = Stage::new().await;
    let (document, operations) = Operation::all(&stage).await;
    for path in ["/livez", "/readyz", "/healthz", "/metrics", "/openapi.json"] {
        let operation = operations.iter().find(|operation| operation.path == path);
        let described = operation.and_then(|operation| operation.answer(200)).unwrap_or(&Value::Null);
        let media_type = stage.get(path).await.headers["content-type"].to_str().unwrap().to_owned();
        let media_type = media_type.split(';').next().unwrap();
        assert!(described["content"][media_type].is_object(), "{path}, {media_type}: {described}");
    }
    for operation in operations.iter().filter(|operation| operation.path.starts_with("/v1/")) {
        let Operation { method, path, .. } = operation;
        for status in [400, 413, 429, 500, 503, 507] {
            let answer = operation.answer(status).unwrap_or(&Value::Null);
            let problem = schema(&document, &answer["content"]["application/problem+json"]["schema"]);
            assert!(problem["properties"]["code"].is_object(), "{method} {path}, {status}: {answer}");
        }
        for (status, answer) in operation.described["responses"].as_object().unwrap() {
            assert_eq!(answer.get("content").is_none(), status == "204", "{method} {path}, {status}: {answer}");
        }
        let sent = stage.json(method, path, &json!({})).await;
        let answer = operation.answer(sent.status.as_u16()).unwrap_or(&Value::Null);
        let media_type = sent.headers.get("content-type").map(|media_type| media_type.to_str().unwrap());
        let is_told = media_type.map_or(sent.status == 204, |media_type| answer["content"][media_type].is_object());
        assert!(is_told, "{method} {path}, {} with {media_type:?}: {answer}", sent.status);
    }
}

/// Names that a reader of definitions or requests knows, as it says where it finds another one.
fn known_names(problem: &Value) -> Vec<String> {
    let errors = problem["errors"].as_array().map_or(&[][..], Vec::as_slice);
    let unknown = errors.iter().find(|error| error["path"].as_str().unwrap().ends_with(".no_such_name"));
    let unknown = unknown.unwrap_or_else(|| panic!("{problem}"));
    assert_eq!(unknown["found"], "an unknown name");
    unknown["allowed"].as_str().unwrap().split(", ").map(str::to_owned).collect()
}

#[tokio::test]
async fn every_body_is_described_by_the_names_that_are_known_in_it_and_no_other_is_taken() {
    let stage = Stage::new().await;
    let (document, operations) = Operation::all(&stage).await;
    let mut described = 0;
    for operation in operations.iter().filter(|operation| operation.path.starts_with("/v1/")) {
        let Operation { method, path, .. } = operation;
        let body = json!({ "no_such_name": 1 });
        let Some(bodies) = operation.bodies() else {
            // With GET a body means nothing to anybody.
            if method != "GET" {
                let refused = stage.json(method, path, &body).await;
                let query = refused.json()["code"] == "invalid-query";
                assert!(query || refused.problem() == (400, "body-not-wanted".to_owned()), "{method} {path}");
            }
            continue;
        };
        described += 1;
        assert!(!bodies.is_empty() && method != "GET", "{method} {path}");
        let is_needed = operation.described["requestBody"]["required"] == true;
        assert_eq!(is_needed, !path.ends_with("/invocations"), "{method} {path}");
        for (media_type, body) in bodies {
            assert!(schema(&document, &body["schema"]).is_object(), "{method} {path}, {media_type}: {body}");
        }
        let other = stage.send(method, path, &[("content-type", "text/csv")], "a,b").await;
        let takes_all = bodies.contains_key("*/*");
        assert_eq!(other.status != 415, takes_all, "{method} {path}: {:?}", other.body);
        if takes_all {
            continue;
        }
        let schema = schema(&document, &bodies["application/json"]["schema"]);
        let names: BTreeSet<String> = schema["properties"].as_object().unwrap().keys().cloned().collect();
        let mut known = BTreeSet::new();
        for body in [body, json!({ "no_such_name": 1, "runtime": "http" })] {
            known.extend(known_names(&stage.json(method, path, &body).await.json()));
        }
        if path.starts_with("/v1/functions/") {
            // The path of a file means something to the command line alone, which sends its bytes.
            assert!(known.remove("code") && known.insert("code_base64".to_owned()));
        }
        assert_eq!(names, known, "{method} {path}");
    }
    assert_eq!(described, 15);
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
