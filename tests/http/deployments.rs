//! Functions that are deployed and deleted beside each other, and while the broker stops.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::definitions::{ECHO, function};
use crate::support::{PATIENCE, Stage};

/// A function whose first start goes on until the file `gate` is there.
fn slow(gate: &std::path::Path) -> Value {
    let source = format!(
        "import os, time\ndef initialize(context):\n    while not os.path.exists({gate:?}): time.sleep(0.01)\n{ECHO}"
    );
    let mut slow = function(&source);
    slow["initializer"] = json!("f.initialize");
    slow
}

#[tokio::test]
async fn while_one_function_starts_others_are_deployed_and_deleted() {
    let stage = Stage::new().await;
    let gate = stage.directory.path().join("gate");
    let slow = slow(&gate);
    let deployed = stage.json("PUT", "/v1/functions/slow", &slow);
    let again = async {
        stage.until("/v1/functions/slow", |function| function["version"] == 1).await;
        stage.json("PUT", "/v1/functions/slow", &slow).await
    };
    let meanwhile = async {
        stage.until("/v1/functions/slow", |function| function["state"] == "Starting").await;
        let other = stage.json("PUT", "/v1/functions/other", &function(ECHO)).await;
        assert_eq!((other.status.as_u16(), &other.json()["state"]), (201, &json!("Ready")));
        assert_eq!(stage.send("DELETE", "/v1/functions/other", &[], "").await.status, 204);
        assert_eq!(stage.get("/v1/functions/slow").await.json()["state"], "Starting");
        std::fs::write(&gate, "").unwrap();
    };
    let (deployed, again, ()) = tokio::join!(deployed, again, meanwhile);
    let (deployed, again) = (deployed.json(), again.json());
    assert_eq!((&deployed["state"], &deployed["changed"]), (&json!("Ready"), &json!(true)), "it was waited for");
    assert_eq!((&again["state"], &again["changed"]), (&json!("Ready"), &json!(false)), "it came after the first");
    let stage = stage.restart().await;
    assert_eq!(stage.get("/v1/functions/slow").await.json()["version"], 1);
    assert_eq!(stage.get("/v1/functions/other").await.problem(), (404, "unknown-function".to_owned()));
}

#[tokio::test]
async fn a_function_is_deleted_while_it_starts() {
    let stage = Stage::new().await;
    let slow = slow(&stage.directory.path().join("never"));
    let deleted = async {
        stage.until("/v1/functions/slow", |function| function["state"] == "Starting").await;
        stage.send("DELETE", "/v1/functions/slow", &[], "").await.status
    };
    let (deployed, deleted) = tokio::join!(stage.json("PUT", "/v1/functions/slow", &slow), deleted);
    assert_eq!((deployed.status.as_u16(), &deployed.json()["state"]), (201, &json!("Starting")));
    assert_eq!(deleted, 204);
    assert_eq!(stage.restart().await.get("/v1/functions/slow").await.problem().0, 404);
}

#[tokio::test]
async fn a_function_that_a_trigger_takes_up_while_it_is_about_to_be_deleted_stays() {
    let stage = Stage::new().await;
    stage.json("PUT", "/v1/functions/f", &function(ECHO)).await;
    stage.json("PUT", "/v1/topics/in", &json!({})).await;
    let rooms = stage.server.rooms();
    let (begin, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (triggers, may_ask, asks) = (rooms.triggers.clone(), Arc::clone(&begin), Arc::clone(&begun));
    let unused = async move {
        asks.notify_one();
        may_ask.notified().await;
        triggers.keep_unused("f").await
    };
    let applied = async {
        begun.notified().await;
        let made = stage.json("PUT", "/v1/triggers/g", &json!({ "input": { "topic": "in" }, "function": "f" })).await;
        begin.notify_one();
        made.status
    };
    let (removed, made) = tokio::join!(rooms.functions.remove("f", PATIENCE, unused), applied);
    assert_eq!(made, 201);
    assert_eq!(removed.unwrap_err().to_string(), "function f is invoked by trigger g, which must be deleted first");
    let deleted = stage.send("DELETE", "/v1/functions/f", &[], "").await;
    assert_eq!(deleted.problem(), (409, "function-in-use".to_owned()));
    let stage = stage.restart().await;
    assert_eq!(stage.get("/v1/functions/f").await.json()["state"], "Ready", "it is still remembered");
}

#[tokio::test]
async fn a_trigger_that_comes_while_its_function_is_deleted_finds_none() {
    let stage = Stage::new().await;
    let gate = stage.directory.path().join("gate");
    let source = format!(
        "import os, time\ndef pre_stop(context):\n    while not os.path.exists({gate:?}): time.sleep(0.01)\n{ECHO}"
    );
    stage.json("PUT", "/v1/functions/f", &function(&source)).await;
    stage.json("PUT", "/v1/topics/in", &json!({})).await;
    let rooms = stage.server.rooms();
    let (begun, triggers) = (Arc::new(Notify::new()), rooms.triggers.clone());
    let asked = Arc::clone(&begun);
    let unused = async move {
        let unused = triggers.keep_unused("f").await;
        asked.notify_one();
        unused
    };
    let applied = async {
        begun.notified().await;
        let refused =
            stage.json("PUT", "/v1/triggers/g", &json!({ "input": { "topic": "in" }, "function": "f" })).await;
        // Instances that are still there keep nobody waiting.
        std::fs::write(&gate, "").unwrap();
        refused.problem()
    };
    let (removed, refused) = tokio::join!(rooms.functions.remove("f", PATIENCE, unused), applied);
    assert!(removed.unwrap());
    assert_eq!(refused, (409, "unknown-function".to_owned()));
}

#[tokio::test]
async fn of_a_function_deleted_and_a_trigger_on_it_made_at_the_same_time_one_is_refused() {
    let stage = Stage::new().await;
    let trigger = json!({ "input": { "topic": "in" }, "function": "f" });
    let target = json!({ "runtime": "http", "url": "http://127.0.0.1:9/" });
    stage.json("PUT", "/v1/topics/in", &json!({})).await;
    for _ in 0..20 {
        stage.json("PUT", "/v1/functions/f", &target).await;
        let (made, deleted) = tokio::join!(
            stage.json("PUT", "/v1/triggers/g", &trigger),
            stage.send("DELETE", "/v1/functions/f", &[], "")
        );
        match (made.status.as_u16(), deleted.status.as_u16()) {
            (201, 409) | (409, 204) => {}
            both => panic!("{both:?}"),
        }
        stage.send("DELETE", "/v1/triggers/g", &[], "").await;
    }
}

#[tokio::test]
async fn functions_of_a_broker_that_stops_are_neither_unknown_nor_changed() {
    let stage = Stage::new().await;
    let gate = stage.directory.path().join("gate");
    let source = format!(
        "import os, time\ndef pre_stop(context):\n    while not os.path.exists({gate:?}): time.sleep(0.01)\n{ECHO}"
    );
    stage.json("PUT", "/v1/functions/f", &function(&source)).await;
    let invoke = async || stage.json("POST", "/v1/functions/f/invocations", &json!(1)).await;
    let delete = async || stage.send("DELETE", "/v1/functions/f", &[], "").await;
    let put = async |path: &str| stage.json("PUT", path, &function(ECHO)).await;
    let refused = (503, "stopping".to_owned());
    let functions = &stage.server.rooms().functions;

    functions.end_changes();
    assert_eq!(invoke().await.status, 200, "triggers that stop still invoke it");
    assert_eq!(delete().await.problem(), refused);
    assert_eq!(put("/v1/functions/f").await.problem(), refused);

    let mut status = functions.service().watch("f").unwrap();
    let stopped = functions.shutdown(PATIENCE);
    let meanwhile = async {
        status.wait_for(|status| status.instances.leaving == 1).await.unwrap();
        let invoked = invoke().await;
        assert_eq!(invoked.problem(), (503, "invocation-failed".to_owned()));
        assert_eq!(invoked.json()["error_class"], "interrupted");
        assert_eq!(delete().await.problem(), refused);
        for path in ["/v1/functions/f", "/v1/functions/new", "/v1/functions/f?dry_run=true"] {
            assert_eq!(put(path).await.problem(), refused, "{path}");
        }
        for path in ["/v1/functions", "/v1/functions/f", "/v1/functions/new/logs"] {
            assert_eq!(stage.get(path).await.problem(), refused, "{path}");
        }
        let trigger = json!({ "input": { "topic": "in" }, "function": "f" });
        assert_eq!(stage.json("PUT", "/v1/triggers/g", &trigger).await.problem(), refused);
        std::fs::write(&gate, "").unwrap();
    };
    tokio::join!(stopped, meanwhile);

    let stage = stage.restart().await;
    assert_eq!(stage.json("POST", "/v1/functions/f/invocations", &json!(1)).await.json(), json!(1));
    assert_eq!(stage.get("/v1/functions/new").await.problem(), (404, "unknown-function".to_owned()));
}
