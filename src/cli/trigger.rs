//! `tripline trigger`.

use http::Method;
use serde_json::Value;

use super::client::{Client, encoded};
use super::failure::Failure;
use super::output::{Output, cell, table};
use super::topic::array;

#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  tripline trigger list
  tripline trigger describe slow-flights
  tripline trigger pause slow-flights")]
pub(super) enum TriggerCommand {
    /// List all triggers with their states.
    List,
    /// Show a trigger's state, progress and counts.
    Describe {
        /// Its name.
        trigger: String,
    },
    /// Stop invoking; progress is kept.
    Pause {
        /// Its name.
        trigger: String,
    },
    /// Go on.
    Resume {
        /// Its name.
        trigger: String,
    },
}

pub(super) async fn run(command: TriggerCommand, client: &Client, output: Output) -> Result<(), Failure> {
    let switch = |name: String, verb: &'static str| async move {
        client.call(Method::POST, &format!("/v1/triggers/{}/{verb}", encoded(&name)), None).await
    };
    match command {
        TriggerCommand::List => output.show(&client.get("/v1/triggers").await?, list),
        TriggerCommand::Describe { trigger } => {
            output.show(&client.get(&format!("/v1/triggers/{}", encoded(&trigger))).await?, describe)
        }
        TriggerCommand::Pause { trigger } => output.show(&switch(trigger, "pause").await?, state),
        TriggerCommand::Resume { trigger } => output.show(&switch(trigger, "resume").await?, state),
    }
}

fn state(trigger: &Value) -> String {
    let mut text = format!("trigger {}: {}", cell(&trigger["trigger"]), cell(&trigger["state"]));
    if trigger["reason"].as_str().is_some_and(|reason| !reason.is_empty()) {
        text.push_str(&format!(": {}; it ends when {}", cell(&trigger["reason"]), cell(&trigger["ends_when"])));
    }
    text
}

fn list(answer: &Value) -> String {
    let row = |trigger: &Value| {
        let definition = &trigger["definition"];
        vec![
            cell(&trigger["trigger"]),
            cell(&trigger["state"]),
            cell(&definition["input"]["topic"]),
            cell(&definition["function"]),
            cell(&trigger["lag"]),
            cell(&trigger["counts"]["delivered"]),
        ]
    };
    let rows: Vec<Vec<String>> = array(&answer["triggers"]).iter().map(row).collect();
    table(&["TRIGGER", "STATE", "TOPIC", "FUNCTION", "LAG", "DELIVERED"], &rows)
}

fn describe(trigger: &Value) -> String {
    let mut text = state(trigger) + "\n";
    let counts = trigger["counts"].as_object().into_iter().flatten();
    let counts: Vec<String> = counts.map(|(name, count)| format!("{} {count}", name.replace('_', " "))).collect();
    text.push_str(&format!("since the start: {}\n", counts.join(", ")));
    let names = ["partition", "committed", "tail", "lag", "in_flight_records", "attempts", "last_error"];
    let rows: Vec<Vec<String>> =
        array(&trigger["lanes"]).iter().map(|lane| names.iter().map(|name| cell(&lane[*name])).collect()).collect();
    text.push_str(&table(&["PARTITION", "COMMITTED", "TAIL", "LAG", "IN FLIGHT", "ATTEMPTS", "LAST ERROR"], &rows));
    text
}
