//! Topics, functions, triggers, and what they leave behind.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::support::Stage;

pub(crate) const ECHO: &str =
    "import json\ndef handler(event, context):\n    print('got', event.decode())\n    return json.loads(event)\n";
const FAIL: &str = "def handler(event, context):\n    raise ValueError('no good')\n";

pub(crate) fn function(code: &str) -> Value {
    json!({ "runtime": "python3", "handler": "f.handler", "code_base64": BASE64.encode(code) })
}

fn trigger() -> Value {
    json!({
        "input": { "topic": "in", "start": "earliest" }, "function": "f", "window": { "count": 1 },
        "retry": { "initial": "1ms", "max_attempts": 2, "jitter": "none" }, "dead_letter": { "topic": "dlq" },
    })
}

#[tokio::test]
async fn topics_are_made_changed_and_deleted() {
    let stage = Stage::new().await;
    let made = stage.json("POST", "/v1/topics", &json!({ "topic": "t", "partitions": 2 })).await;
    assert_eq!((made.status.as_u16(), &made.json()["partitions"]), (201, &json!(2)));
    let again = stage.json("POST", "/v1/topics", &json!({ "topic": "t" })).await;
    assert_eq!(again.problem(), (409, "topic-exists".to_owned()));
    let put = |body: Value| async { stage.json("PUT", "/v1/topics/t", &{ body }).await };
    assert_eq!(put(json!({ "partitions": 2 })).await.json()["changed"], false);
    let changed = put(json!({ "config": { "retention.ms": 60_000 } })).await.json();
    assert_eq!((&changed["changed"], &changed["config"]["retention.ms"]), (&json!(true), &json!(60_000)));
    assert_eq!(put(json!({ "partitions": 3 })).await.problem(), (409, "partitions-differ".to_owned()));
    assert_eq!(put(json!({ "topic": "other" })).await.problem(), (400, "name-differs".to_owned()));
    let wrong = put(json!({ "partition": 3 })).await;
    assert_eq!(wrong.json()["errors"][0]["suggestion"], "partitions");
    assert_eq!(stage.send("DELETE", "/v1/topics/t", &[], "").await.status, 204);
    assert_eq!(stage.get("/v1/topics/t").await.problem(), (404, "unknown-topic".to_owned()));
    let own = stage.send("DELETE", "/v1/topics/__tripline.function_logs", &[], "").await;
    assert_eq!(own.problem(), (403, "internal-topic".to_owned()));
    let typed = stage.send("POST", "/v1/topics", &[("content-type", "text/plain")], "{}").await;
    assert_eq!(typed.problem(), (415, "unsupported-media-type".to_owned()));
}

#[tokio::test]
async fn a_function_is_deployed_invoked_and_there_after_a_restart() {
    let stage = Stage::new().await;
    let deployed = stage.json("PUT", "/v1/functions/f", &function(ECHO)).await.json();
    assert_eq!(
        (&deployed["state"], &deployed["changed"], &deployed["version"]),
        (&json!("Ready"), &json!(true), &json!(1))
    );
    assert_eq!(stage.json("PUT", "/v1/functions/f", &function(ECHO)).await.json()["changed"], false);
    let answer = stage.json("POST", "/v1/functions/f/invocations", &json!([1, 2])).await;
    assert_eq!((answer.status.as_u16(), answer.json()), (200, json!([1, 2])));
    assert!(answer.headers.contains_key("tripline-invocation-id"));
    let logs = stage.until("/v1/functions/f/logs", |logs| !logs["lines"].as_array().unwrap().is_empty()).await;
    assert_eq!((&logs["lines"][0]["text"], &logs["lines"][0]["stream"]), (&json!("got [1,2]"), &json!("stdout")));
    let ndjson = stage.send("GET", "/v1/functions/f/logs", &[("accept", "application/x-ndjson")], "").await;
    assert_eq!(ndjson.headers["content-type"], "application/x-ndjson");
    let lines: Vec<Value> =
        ndjson.body.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect();
    assert_eq!((json!(lines), ndjson.body.last()), (logs["lines"].clone(), Some(&b'\n')));
    let stage = stage.restart().await;
    let answer = stage.json("POST", "/v1/functions/f/invocations", &json!("again")).await;
    assert_eq!(answer.json(), json!("again"));
    assert_eq!(stage.send("DELETE", "/v1/functions/f", &[], "").await.status, 204);
    let gone = stage.json("POST", "/v1/functions/f/invocations", &json!(1)).await;
    assert_eq!(gone.problem(), (404, "unknown-function".to_owned()));
}

#[tokio::test]
async fn the_function_behind_the_url_of_a_trigger_changes_with_its_trigger_alone() {
    let stage = Stage::new().await;
    stage.json("PUT", "/v1/topics/in", &json!({})).await;
    let url = "http://127.0.0.1:9/";
    let direct = json!({ "input": { "topic": "in" }, "function": { "http": { "url": url } } });
    assert_eq!(stage.json("PUT", "/v1/triggers/t", &direct).await.status, 201);
    stage.json("PUT", "/v1/functions/f", &function(ECHO)).await;
    let refused = (403, "internal-function".to_owned());
    let path = "/v1/functions/__trigger.t";
    assert_eq!(stage.send("DELETE", path, &[], "").await.problem(), refused);
    assert_eq!(stage.json("PUT", path, &function(ECHO)).await.problem(), refused);
    assert_eq!(stage.json("PUT", &format!("{path}?dry_run=true"), &function(ECHO)).await.problem(), refused);
    let shown = stage.get(path).await.json();
    assert_eq!((&shown["internal"], &shown["definition"]["url"]), (&json!(true), &json!(url)));
    assert_eq!(stage.get("/v1/functions/f").await.json()["internal"], false);
    assert_eq!(stage.send("DELETE", "/v1/triggers/t", &[], "").await.status, 204);
    assert_eq!(stage.get(path).await.problem(), (404, "unknown-function".to_owned()));
}

#[tokio::test]
async fn a_client_that_hangs_up_while_code_is_loaded_leaves_no_deployment_half_done() {
    let stage = Stage::new().await;
    stage.json("PUT", "/v1/functions/f", &function("raise ValueError('broken')\n")).await;
    stage.json("PUT", "/v1/triggers/g", &trigger()).await;
    stage.json("POST", "/v1/topics/in/records", &json!({ "records": [{ "value": 1 }] })).await;
    stage.until("/v1/triggers/g", |trigger| trigger["state"] == "Failed").await;
    let slow = function(&format!("import time\ntime.sleep(1)\n{ECHO}"));
    tokio::select! {
        _ = stage.json("PUT", "/v1/functions/f", &slow) => panic!("loading takes longer than that"),
        _ = stage.until("/v1/functions/f", |function| function["version"] == 2) => {}
    }
    stage.until("/v1/triggers/g", |trigger| trigger["counts"]["delivered"] == 1).await;
    let stage = stage.restart().await;
    assert_eq!(stage.get("/v1/functions/f").await.json()["version"], 2);
}

#[tokio::test]
async fn functions_that_cannot_run_say_why() {
    let stage = Stage::new().await;
    let broken = stage.json("PUT", "/v1/functions/f", &function("def handler(:\n")).await.json();
    assert_eq!(broken["state"], "Failed");
    assert!(broken["error"]["message"].as_str().unwrap().contains("SyntaxError"), "{broken}");
    stage.json("PUT", "/v1/functions/f", &function(FAIL)).await;
    let failed = stage.json("POST", "/v1/functions/f/invocations", &json!(1)).await;
    assert_eq!(failed.problem(), (502, "invocation-failed".to_owned()));
    let problem = failed.json();
    assert_eq!((&problem["error_class"], &problem["error_code"]), (&json!("failed"), &json!("ValueError")));
    for (body, code) in [
        (json!({ "runtime": "python3", "handler": "f.handler" }), "code-missing"),
        (json!({ "runtime": "python3", "handler": "f.handler", "code": "./f.py" }), "code-path"),
        (json!({ "runtime": "python3", "handler": "f.handler", "code_base64": "%" }), "invalid-code"),
        (json!({ "runtime": "python3", "handler": "f" }), "invalid-definition"),
        (json!({ "runtime": "http", "url": "http://169.254.169.254/" }), "target-refused"),
    ] {
        let answer = stage.json("PUT", "/v1/functions/new", &body).await;
        assert_eq!(answer.problem(), (400, code.to_owned()), "{body}");
    }
}

#[tokio::test]
async fn a_trigger_delivers_gives_up_and_is_switched() {
    let stage = Stage::new().await;
    let early = stage.json("PUT", "/v1/triggers/g", &trigger()).await;
    assert_eq!(early.problem(), (409, "unknown-function".to_owned()));
    stage.json("PUT", "/v1/functions/f", &function(FAIL)).await;
    let made = stage.json("PUT", "/v1/triggers/g", &trigger()).await;
    assert_eq!((made.status.as_u16(), &made.json()["created"]), (201, &json!(true)));
    assert_eq!(stage.json("PUT", "/v1/triggers/g", &trigger()).await.json()["changed"], false);
    stage.json("POST", "/v1/topics/in/records", &json!({ "records": [{ "key": "k", "value": { "n": 1 } }] })).await;
    stage.until("/v1/triggers/g", |trigger| trigger["counts"]["dead_lettered"] == 1).await;
    let letters = stage.get("/v1/dead-letters?trigger=g").await.json();
    let letter = &letters["dead_letters"][0];
    assert_eq!((&letter["record"]["key"], &letter["record"]["value"]), (&json!("k"), &json!({ "n": 1 })));
    let reason = &letter["reason"];
    assert_eq!(
        (&reason["error-code"], &reason["attempts"], &reason["topic"]),
        (&json!("ValueError"), &json!("2"), &json!("in"))
    );
    let one = stage.get("/v1/dead-letters/dlq/0/0").await.json();
    assert_eq!(one, *letter);
    assert_eq!(stage.get("/v1/dead-letters/in/0/0").await.problem(), (404, "unknown-dead-letter".to_owned()));
    let paused = stage.send("POST", "/v1/triggers/g/pause", &[], "").await.json();
    assert_eq!(paused["state"], "Paused");
    stage.send("POST", "/v1/triggers/g/resume", &[], "").await;
    stage.until("/v1/triggers/g", |trigger| trigger["state"] == "Running").await;
    assert_eq!(stage.get("/v1/groups/trigger.g").await.json()["lag"], 0);
    for (path, code) in
        [("/v1/topics/in", "topic-in-use"), ("/v1/topics/dlq", "topic-in-use"), ("/v1/functions/f", "function-in-use")]
    {
        assert_eq!(stage.send("DELETE", path, &[], "").await.problem(), (409, code.to_owned()));
    }
    let stage = stage.restart().await;
    let report = stage.get("/v1/triggers/g").await.json();
    assert_eq!((&report["lag"], &report["lanes"][0]["committed"]), (&json!(0), &json!(1)), "{report}");
    assert_eq!(stage.send("DELETE", "/v1/triggers/g", &[], "").await.status, 204);
    assert_eq!(stage.get("/v1/triggers/g").await.problem(), (404, "unknown-trigger".to_owned()));
    assert_eq!(
        stage.send("POST", "/v1/triggers/g/pause", &[], "").await.problem(),
        (404, "unknown-trigger".to_owned())
    );
}

#[tokio::test]
async fn a_trigger_on_several_topics_says_where_it_stands_in_each() {
    let stage = Stage::new().await;
    stage.json("PUT", "/v1/functions/f", &function(ECHO)).await;
    for topic in ["t.a", "t.b"] {
        stage.json("PUT", &format!("/v1/topics/{topic}"), &json!({})).await;
    }
    let both = json!({ "input": { "topics": ["t.a", "t.b"], "pattern": "t.*" }, "function": "f" });
    let refused = stage.json("PUT", "/v1/triggers/g", &both).await;
    assert!(refused.json()["detail"].as_str().unwrap().contains("input.pattern"), "{}", refused.json());
    let made = stage.json("PUT", "/v1/triggers/g", &json!({ "input": { "pattern": "t.*" }, "function": "f" })).await;
    assert_eq!(made.status, 201);
    for topic in ["t.b", "t.c"] {
        stage.json("PUT", &format!("/v1/topics/{topic}"), &json!({})).await;
        stage.json("POST", &format!("/v1/topics/{topic}/records"), &json!({ "records": [{ "value": 1 }] })).await;
    }
    let report = stage.until("/v1/triggers/g", |trigger| trigger["counts"]["delivered"] == 2).await;
    assert_eq!(report["definition"]["input"], json!({ "pattern": "t.*", "start": "latest" }));
    let group = stage.until("/v1/groups/trigger.g", |group| group["lag"] == 0).await;
    let offset =
        |topic: &str, at: i64| json!({ "topic": topic, "partition": 0, "committed": at, "tail": at, "lag": 0 });
    assert_eq!(group["offsets"], json!([offset("t.a", 0), offset("t.b", 1), offset("t.c", 1)]));
    let post = async |path: &str, body: Value| stage.json("POST", &format!("/v1/triggers/g/{path}"), &body).await;
    for path in ["replays", "dry-run", "explain"] {
        let body = if path == "explain" { json!({ "partition": 0, "offset": 0 }) } else { json!({}) };
        assert_eq!(post(path, body).await.problem(), (400, "topic-missing".to_owned()), "{path}");
    }
    let skip = stage.send("POST", "/v1/triggers/g/skip?topic=t.z", &[], "").await;
    assert_eq!(skip.problem(), (400, "other-topic".to_owned()));
    assert_eq!(post("replays", json!({ "topic": "t.b" })).await.status, 201);
    assert_eq!(post("dry-run", json!({ "topic": "t.b" })).await.json()["matched"], 1);
    assert_eq!(post("explain", json!({ "topic": "t.b", "partition": 0, "offset": 0 })).await.json()["matches"], true);
    stage.until("/v1/triggers/g", |trigger| trigger["runs"][0]["state"] == "Done").await;
    post("pause", json!({})).await;
    let reset = post("reset", json!({ "to": 0, "topic": "t.c", "partition": 0 })).await.json();
    assert_eq!(reset["offsets"], json!([{ "topic": "t.c", "partition": 0, "offset": 0 }]));
    assert_eq!(stage.send("DELETE", "/v1/topics/t.b", &[], "").await.status, 204);
    let stage = stage.restart().await;
    let report = stage.get("/v1/triggers/g").await.json();
    let places: Vec<_> = report["lanes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|lane| (lane["topic"].clone(), lane["committed"].clone()))
        .collect();
    assert_eq!(places, [(json!("t.a"), json!(0)), (json!("t.c"), json!(0))], "{report}");
}

#[tokio::test]
async fn a_trial_answers_and_refuses_what_a_put_would_and_does_nothing() {
    let stage = Stage::new().await;
    let put = async |path: &str, body: &Value| stage.json("PUT", &format!("/v1/{path}"), body).await;
    let schedule = json!({ "rate": "1h", "topic": "in" });
    let function = function(ECHO);
    let early = put("triggers/g?dry_run=true", &trigger()).await;
    assert_eq!(early.problem(), (409, "unknown-function".to_owned()));
    for (path, body) in [
        ("topics/in?dry_run=true", &json!({ "partitions": 2 })),
        ("functions/f?dry_run=true", &function),
        ("triggers/g?dry_run=true&planned=function/f,topic/in", &trigger()),
        ("schedules/s?dry_run=true", &schedule),
    ] {
        let tried = put(path, body).await;
        assert_eq!(tried.status, 200, "{path}: {:?}", tried.body);
        let tried = tried.json();
        assert_eq!(
            (&tried["created"], &tried["changed"], &tried["changes"], &tried["dry_run"]),
            (&json!(true), &json!(true), &json!([]), &json!(true)),
            "{path}"
        );
        let (there, _) = path.split_once('?').unwrap();
        assert_eq!(stage.get(&format!("/v1/{there}")).await.status, 404, "{path}");
    }
    assert_eq!(
        put("functions/f?dry_run=true", &json!({ "runtime": "python3", "handler": "f.h" })).await.problem().1,
        "code-missing"
    );
    put("topics/in", &json!({})).await;
    put("functions/f", &function).await;
    put("triggers/g", &trigger()).await;
    put("schedules/s", &schedule).await;
    let mut other = trigger();
    (other["retry"]["max_attempts"], other["bisect"]) = (json!(5), json!(true));
    let changes = json!([
        { "path": "bisect", "from": false, "to": true },
        { "path": "retry.max_attempts", "from": 2, "to": 5 },
    ]);
    let tried = put("triggers/g?dry_run=true", &other).await.json();
    assert_eq!((&tried["changed"], &tried["changes"]), (&json!(true), &changes));
    assert_eq!(put("triggers/g?dry_run=true", &trigger()).await.json()["changed"], false);
    let done = put("triggers/g", &other).await.json();
    assert_eq!((&done["changed"], &done["changes"], &done["dry_run"]), (&json!(true), &changes, &json!(false)));
    let topic = put("topics/in?dry_run=true", &json!({ "config": { "retention.ms": 60_000 } })).await.json();
    assert_eq!(topic["changes"], json!([{ "path": "config", "from": null, "to": { "retention.ms": 60_000 } }]));
    assert_eq!(stage.get("/v1/topics/in").await.json().get("config"), None);
    other["input"]["topic"] = json!("elsewhere");
    assert_eq!(put("triggers/g?dry_run=true", &other).await.problem(), (409, "other-topic".to_owned()));
    assert_eq!(put("topics/in?dry_run=true", &json!({ "partitions": 3 })).await.problem().1, "partitions-differ");
    assert_eq!(put("triggers/g?planned=function/f", &trigger()).await.problem(), (400, "invalid-query".to_owned()));
}

#[tokio::test]
async fn what_a_verb_does_not_understand_is_refused_and_changes_nothing() {
    let stage = Stage::new().await;
    stage.json("PUT", "/v1/functions/f", &function(ECHO)).await;
    stage.json("PUT", "/v1/topics/in", &json!({ "partitions": 2 })).await;
    stage.json("PUT", "/v1/triggers/g", &trigger()).await;
    for verb in ["pause", "resume", "skip"] {
        let told = stage.json("POST", &format!("/v1/triggers/g/{verb}"), &json!({ "partition": 1 })).await;
        assert_eq!(told.problem(), (400, "body-not-wanted".to_owned()), "{verb}");
    }
    assert_eq!(stage.get("/v1/triggers/g").await.json()["state"], "Running");
    assert_eq!(stage.json("POST", "/v1/triggers/g/pause", &json!({})).await.json()["state"], "Paused");
    let problem = async |path: &str, body: Value| {
        let answer = stage.json("POST", &format!("/v1/triggers/g/{path}"), &body).await;
        (answer.problem(), answer.json()["detail"].as_str().unwrap().to_owned())
    };
    let unknown =
        ((400, "unknown-partition".to_owned()), "partition: found 9, trigger g reads 0 to 1 of topic in".to_owned());
    assert_eq!(problem("skip?partition=9", json!({})).await, unknown);
    assert_eq!(problem("reset", json!({ "to": "earliest", "partition": 9 })).await, unknown);
    let (beyond, detail) = problem("reset", json!({ "to": 5 })).await;
    assert_eq!(beyond, (416, "offset-out-of-range".to_owned()));
    assert_eq!(detail, "to: found 5, no partition that trigger g reads goes beyond 0");
    let (empty, _) = problem("replays", json!({ "from": 3, "to": 1 })).await;
    assert_eq!(empty, (416, "empty-range".to_owned()));
    assert_eq!(stage.get("/v1/triggers/g").await.json()["runs"], json!([]));
    assert_eq!(stage.get("/v1/functions/nope/logs").await.problem(), (404, "unknown-function".to_owned()));
    assert_eq!(stage.get("/v1/functions/f/logs").await.json(), json!({ "lines": [], "complete": true }));
}

#[tokio::test]
async fn a_list_of_large_dead_letters_ends_after_so_many_bytes_and_says_so() {
    let stage = Stage::new().await;
    stage.json("PUT", "/v1/functions/f", &function(FAIL)).await;
    stage.json("PUT", "/v1/triggers/g", &trigger()).await;
    let value = "x".repeat(1_000_000);
    for _ in 0..10 {
        let appended = stage.send("POST", "/v1/topics/in/records", &[("content-type", "text/plain")], value.clone());
        assert_eq!(appended.await.status, 200);
    }
    stage.until("/v1/triggers/g", |trigger| trigger["counts"]["dead_lettered"] == 10).await;
    let list = async |query: &str| {
        let list = stage.get(&format!("/v1/dead-letters?{query}")).await.json();
        let letters = list["dead_letters"].as_array().unwrap();
        assert!(letters.iter().all(|letter| letter["record"]["value"].as_str() == Some(&value)), "letters are whole");
        (letters.iter().map(|letter| letter["offset"].as_i64().unwrap()).collect::<Vec<_>>(), list["complete"] == true)
    };
    // The ninth goes beyond 8 MiB.
    for query in ["", "trigger=g", "all=true", "limit=10000"] {
        assert_eq!(list(query).await, ((0..9).collect(), false), "{query}");
    }
    assert_eq!(list("limit=3").await, (vec![0, 1, 2], false));
    stage.json("POST", "/v1/triggers/g/discards", &json!({ "to": 4 })).await;
    assert_eq!(list("").await, ((4..10).collect(), true));
}

#[tokio::test]
async fn runs_are_started_looked_at_cancelled_and_refused_with_a_reason() {
    let stage = Stage::new().await;
    stage.json("PUT", "/v1/functions/f", &function(FAIL)).await;
    stage.json("PUT", "/v1/topics/in", &json!({})).await;
    stage.json("PUT", "/v1/triggers/g", &trigger()).await;
    let records = json!({ "records": [{ "value": 1 }, { "value": 2 }, { "value": 3 }] });
    stage.json("POST", "/v1/topics/in/records", &records).await;
    stage.until("/v1/dead-letters?trigger=g", |letters| letters["dead_letters"].as_array().unwrap().len() == 3).await;
    let post = |path: &'static str, body: Value| {
        let stage = &stage;
        async move { stage.json("POST", &format!("/v1/triggers/{path}"), &body).await }
    };
    let preview = post("g/redrives", json!({ "dry_run": true, "max": 2 })).await;
    assert_eq!((preview.status.as_u16(), &preview.json()["counts"]["taken"]), (200, &json!(2)));
    stage.json("PUT", "/v1/functions/f", &function(ECHO)).await;
    let started = post("g/redrives", json!({ "max": 2 })).await;
    assert_eq!(started.status, 201);
    let run = started.json()["run"].as_str().unwrap().to_owned();
    let path = format!("/v1/triggers/g/runs/{run}");
    let done = stage.until(&path, |run| run["state"] == "Done").await;
    assert_eq!((&done["counts"]["delivered"], &done["lag"], &done["total"]), (&json!(2), &json!(0), &json!(2)));
    assert_eq!(done["lanes"][0]["to"], 2);
    let left = stage.get("/v1/dead-letters").await.json();
    assert_eq!(left["dead_letters"].as_array().unwrap().len(), 1);
    assert_eq!(stage.get("/v1/dead-letters?all=true").await.json()["dead_letters"].as_array().unwrap().len(), 3);
    let replay =
        post("g/replays", json!({ "ranges": [{ "partition": 0, "from": 0, "to": 3 }], "rate": 1 })).await.json();
    let replay = format!("/v1/triggers/g/runs/{}", replay["run"].as_str().unwrap());
    // One record a second: it is not over yet.
    let metrics = stage.get("/metrics").await;
    let metrics = std::str::from_utf8(&metrics.body).unwrap();
    for (line, ends) in [
        ("tripline_trigger_runs{trigger=\"g\",kind=\"replay\"}", ["1", "1"]),
        ("tripline_trigger_runs{trigger=\"g\",kind=\"redrive\"}", ["0", "0"]),
        ("tripline_trigger_run_lag_records{trigger=\"g\",kind=\"replay\"}", ["2", "3"]),
    ] {
        let found = metrics.lines().find_map(|found| found.strip_prefix(line)).map(str::trim);
        assert!(found.is_some_and(|found| ends.contains(&found)), "{line}: {found:?}");
    }
    assert_eq!(stage.send("POST", &format!("{replay}/cancel"), &[], "").await.json()["state"], "Cancelled");
    let described = stage.get("/v1/triggers/g").await.json();
    assert_eq!(
        (&described["runs"][1]["kind"], &described["runs"][1]["state"]),
        (&json!("replay"), &json!("Cancelled"))
    );
    let stage = stage.restart().await;
    assert_eq!(stage.get(&replay).await.json()["state"], "Cancelled");
    stage.send("POST", &format!("{replay}/resume"), &[], "").await;
    stage.until(&replay, |run| run["state"] == "Done" && run["counts"]["delivered"] == 3).await;
    assert_eq!(stage.get("/v1/triggers/g/runs").await.json()["runs"].as_array().unwrap().len(), 2);
    let post = |path: &'static str, body: Value| {
        let stage = &stage;
        async move { stage.json("POST", &format!("/v1/triggers/{path}"), &body).await.problem() }
    };
    let no_letters = json!({ "input": { "topic": "in" }, "function": "f" });
    stage.json("PUT", "/v1/triggers/bare", &no_letters).await;
    assert_eq!(post("bare/redrives", json!({})).await, (409, "no-dead-letter-topic".to_owned()));
    assert_eq!(post("none/replays", json!({})).await, (404, "unknown-trigger".to_owned()));
    assert_eq!(post("g/replays", json!({ "partition": 7 })).await, (400, "unknown-partition".to_owned()));
    assert_eq!(post("g/replays", json!({ "form": 7 })).await, (400, "invalid-definition".to_owned()));
    assert_eq!(post("g/redrives", json!({ "filter": { "a": 1 } })).await, (400, "invalid-pattern".to_owned()));
    assert_eq!(post("g/reset", json!({ "to": "earliest" })).await, (409, "not-paused".to_owned()));
    let unknown = stage.get("/v1/triggers/g/runs/6e1f0a3c-0000-4000-8000-000000000000").await;
    assert_eq!(unknown.problem(), (404, "unknown-run".to_owned()));
    let again = stage.send("POST", &format!("{path}/resume"), &[], "").await;
    assert_eq!(again.problem(), (409, "run-state".to_owned()));
}
