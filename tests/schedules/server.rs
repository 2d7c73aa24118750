//! The API of schedules, with a clock that the test sets.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tripline::server::{Server, ServerConfig};
use tripline::source::schedule::clock::{Clock, ManualClock};

/// 2026-12-01T07:00:00Z.
const T0_MS: i64 = 1_796_108_400_000;

struct Stage {
    server: Server,
    clock: ManualClock,
    directory: tempfile::TempDir,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Stage {
    async fn new() -> Self {
        Self::start(tempfile::tempdir().unwrap(), ManualClock::new(T0_MS)).await
    }

    async fn start(directory: tempfile::TempDir, clock: ManualClock) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = ServerConfig {
            kafka: any_port,
            http: any_port,
            launcher: Some(env!("CARGO_BIN_EXE_tripline").into()),
            schedule_clock: Clock::Manual(clock.clone()),
            ..ServerConfig::new(directory.path().join("data"))
        };
        let server = Server::start(config).await.unwrap();
        assert!(server.report().schedules_failed.is_empty());
        Self { server, clock, directory, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    async fn restart(self, down_s: i64) -> Self {
        let Self { server, clock, directory, .. } = self;
        server.stop().await;
        clock.jump(down_s * 1000);
        let stage = Self::start(directory, clock).await;
        stage.pass(0).await;
        stage
    }

    async fn pass(&self, seconds: i64) {
        self.clock.pass(seconds * 1000);
        self.server.rooms().schedules.settled().await;
    }

    async fn text(&self, method: &str, path: &str, body: Option<&Value>) -> (StatusCode, String) {
        let uri = format!("http://{}{path}", self.server.http_address());
        let request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let answer = self.client.request(request.body(Full::new(body)).unwrap()).await.unwrap();
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let (status, text) = self.text(method, path, body).await;
        (status.as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    async fn records(&self, topic: &str) -> Vec<Value> {
        let (status, answer) = self.send("GET", &format!("/v1/topics/{topic}/records"), None).await;
        assert_eq!(status, 200, "{answer}");
        answer["records"].as_array().unwrap().clone()
    }
}

fn minutely() -> Value {
    json!({"schedule": "m", "cron": "* * * * *", "timezone": "Europe/Berlin", "topic": "ticks", "key": "k", "data": {"a": 1}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_made_looked_at_paused_resumed_and_deleted() {
    let stage = Stage::new().await;
    let (status, made) = stage.send("PUT", "/v1/schedules/m", Some(&minutely())).await;
    assert_eq!((status, &made["created"], &made["warnings"]), (201, &json!(true), &json!([])));
    let (status, same) = stage.send("PUT", "/v1/schedules/m", Some(&minutely())).await;
    assert_eq!((status, &same["changed"]), (200, &json!(false)));
    stage.pass(60).await;
    let records = stage.records("ticks").await;
    assert_eq!(records.len(), 1);
    assert_eq!((&records[0]["key"], &records[0]["value"]), (&json!("k"), &json!({"a": 1})));
    let headers = records[0]["headers"].to_string();
    assert!(headers.contains("m/2026-12-01T07:01:00Z") && headers.contains("tripline.schedule.tick"), "{headers}");
    let (_, described) = stage.send("GET", "/v1/schedules/m", None).await;
    assert_eq!(described["state"], "Running");
    assert_eq!(described["last_tick"], "2026-12-01T07:01:00Z");
    assert_eq!(described["next_tick"], "2026-12-01T07:02:00Z");
    let (status, answer) = stage.send("PUT", "/v1/schedules/m", Some(&described["definition"])).await;
    assert_eq!((status, &answer["changed"]), (200, &json!(false)), "what is shown can be applied");
    let (_, next) = stage.send("GET", "/v1/schedules/m/next?count=2", None).await;
    let first = json!({"tick": "2026-12-01T07:02:00Z", "local": "2026-12-01T08:02:00+01:00", "fires": "2026-12-01T07:02:00.000Z"});
    assert_eq!((&next["ticks"][0], next["ticks"].as_array().unwrap().len()), (&first, 2));
    let (_, list) = stage.send("GET", "/v1/schedules", None).await;
    assert_eq!(list["schedules"][0], described);
    let (status, paused) = stage.send("POST", "/v1/schedules/m/pause", None).await;
    assert_eq!((status, &paused["state"], &paused["next_tick"]), (200, &json!("Paused"), &json!(null)));
    stage.pass(120).await;
    assert_eq!(stage.records("ticks").await.len(), 1);
    stage.send("POST", "/v1/schedules/m/resume", None).await;
    stage.pass(60).await;
    assert_eq!(stage.records("ticks").await.len(), 2);
    let (status, problem) = stage.send("DELETE", "/v1/topics/ticks", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("topic-in-use")), "{problem}");
    assert_eq!(stage.text("DELETE", "/v1/schedules/m", None).await.0, 204);
    assert_eq!(stage.text("DELETE", "/v1/topics/ticks", None).await.0, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_say_what_is_wrong() {
    let stage = Stage::new().await;
    for (method, path, body, status, code) in [
        ("GET", "/v1/schedules/x", None, 404, "unknown-schedule"),
        ("DELETE", "/v1/schedules/x", None, 404, "unknown-schedule"),
        ("POST", "/v1/schedules/x/pause", None, 404, "unknown-schedule"),
        ("POST", "/v1/schedules/x/resume", None, 404, "unknown-schedule"),
        ("GET", "/v1/schedules/x/next", None, 404, "unknown-schedule"),
        ("GET", "/v1/schedules/a%20b", None, 400, "invalid-name"),
        ("PUT", "/v1/schedules/y", Some(minutely()), 400, "name-differs"),
        ("PUT", "/v1/schedules/m", Some(json!({"cron": "0 0 30 2 *", "topic": "t"})), 400, "invalid-definition"),
    ] {
        let (found, problem) = stage.send(method, path, body.as_ref()).await;
        assert_eq!((found, problem["code"].as_str()), (status, Some(code)), "{method} {path}: {problem}");
    }
    stage.send("PUT", "/v1/schedules/m", Some(&minutely())).await;
    for count in ["0", "101", "x"] {
        assert_eq!(stage.send("GET", &format!("/v1/schedules/m/next?count={count}"), None).await.0, 400);
    }
    let mut disabled = minutely();
    disabled["enabled"] = json!(false);
    stage.send("PUT", "/v1/schedules/m", Some(&disabled)).await;
    let (status, problem) = stage.send("POST", "/v1/schedules/m/resume", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("schedule-disabled")));
    let compacted = json!({"topic": "c", "config": {"cleanup.policy": "compact"}});
    stage.send("PUT", "/v1/topics/c", Some(&compacted)).await;
    let (status, problem) = stage.send("PUT", "/v1/schedules/c", Some(&json!({"rate": "1s", "topic": "c"}))).await;
    assert_eq!((status, &problem["code"]), (400, &json!("key-missing")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_where_it_was() {
    let mut stage = Stage::new().await;
    stage.send("PUT", "/v1/schedules/m", Some(&minutely())).await;
    let mut once = minutely();
    (once["schedule"], once["topic"], once["catch_up"]) = (json!("o"), json!("made-up"), json!("once"));
    stage.send("PUT", "/v1/schedules/o", Some(&once)).await;
    stage.pass(120).await;
    stage = stage.restart(0).await;
    assert_eq!(stage.records("ticks").await.len(), 2);
    stage = stage.restart(210).await;
    assert_eq!(stage.records("ticks").await.len(), 2, "skip");
    assert_eq!(stage.records("made-up").await.len(), 3, "once");
    stage.pass(60).await;
    assert_eq!((stage.records("ticks").await.len(), stage.records("made-up").await.len()), (3, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_state_ticks_and_times() {
    let stage = Stage::new().await;
    stage.send("PUT", "/v1/schedules/m", Some(&minutely())).await;
    stage.pass(63).await;
    let text = stage.text("GET", "/metrics", None).await.1;
    for line in [
        "tripline_schedule_state{schedule=\"m\",state=\"Running\"} 1",
        "tripline_schedule_state{schedule=\"m\",state=\"Blocked\"} 0",
        "tripline_schedule_ticks_total{schedule=\"m\"} 1",
        "tripline_schedule_skips_total{schedule=\"m\"} 0",
        "tripline_schedule_failures_total{schedule=\"m\"} 0",
        "tripline_schedule_lateness_seconds{schedule=\"m\"} 3",
        "tripline_schedule_last_tick_timestamp_seconds{schedule=\"m\"} 1796108460",
        "tripline_schedule_next_tick_timestamp_seconds{schedule=\"m\"} 1796108520",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}
