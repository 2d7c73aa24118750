//! Functions that are deployed and deleted beside each other, and while the broker stops.

use serde_json::{Value, json};

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
