//! Functions that are deployed and deleted beside each other.

use serde_json::{Value, json};

use crate::definitions::{ECHO, function};
use crate::support::Stage;

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
