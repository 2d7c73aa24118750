//! `tripline trigger`.

use std::io::Read;
use std::path::{Path, PathBuf};

use http::Method;
use serde_json::{Value, json};

use super::client::{Client, encoded};
use super::failure::Failure;
use super::output::{Output, cell, table};
use super::topic::array;

#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  tripline trigger list
  tripline trigger describe slow-flights
  tripline trigger pause slow-flights
  tripline trigger explain slow-flights --partition 0 --offset 41
  echo '{\"data\": {\"delay\": 5}}' | tripline trigger explain slow-flights --event -")]
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
    /// Say whether a trigger's filter takes a record or an event, and which clauses turn it away.
    Explain(ExplainArgs),
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("subject").args(["offset", "event"]).required(true)))]
pub(super) struct ExplainArgs {
    /// The trigger's name.
    trigger: String,
    /// The record's partition.
    #[arg(long, short, default_value_t = 0, conflicts_with = "event")]
    partition: u32,
    /// The record's offset.
    #[arg(long)]
    offset: Option<u64>,
    /// The record's topic [default: the trigger's].
    #[arg(long, conflicts_with = "event")]
    topic: Option<String>,
    /// A file with an event in JSON, `-` for standard input.
    #[arg(long, value_name = "FILE")]
    event: Option<PathBuf>,
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
        TriggerCommand::Explain(args) => {
            let path = format!("/v1/triggers/{}/explain", encoded(&args.trigger));
            let answer = client.call(Method::POST, &path, Some(&subject(&args)?)).await?;
            output.show(&answer, explained)
        }
    }
}

/// What is to be explained, as the broker is asked.
fn subject(args: &ExplainArgs) -> Result<Value, Failure> {
    if let Some(file) = &args.event {
        return Ok(json!({ "event": read_event(file)? }));
    }
    let mut record = json!({ "partition": args.partition, "offset": args.offset });
    if let Some(topic) = &args.topic {
        record["topic"] = topic.as_str().into();
    }
    Ok(record)
}

fn read_event(file: &Path) -> Result<Value, Failure> {
    let name = if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    let mut bytes = Vec::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().read_to_end(&mut bytes).map(|_| ()),
        _ => std::fs::read(file).map(|found| bytes = found),
    };
    read.map_err(|error| Failure::new(format!("{name}: {error}")))?;
    serde_json::from_slice(&bytes).map_err(|error| Failure::new(format!("{name}: the event is not JSON: {error}")))
}

fn explained(answer: &Value) -> String {
    let trigger = cell(&answer["trigger"]);
    if answer["matches"] == true {
        return format!("trigger {trigger} takes it");
    }
    let reasons = array(&answer["explain"]);
    let several = reasons.iter().any(|reason| reason["alternative"] != 0);
    let row = |reason: &Value| {
        let choice = several.then(|| cell(&reason["alternative"]));
        choice.into_iter().chain(["path", "expected", "found"].map(|name| cell(&reason[name]))).collect()
    };
    let rows: Vec<Vec<String>> = reasons.iter().map(row).collect();
    let head = ["CHOICE OF $OR", "PATH", "EXPECTED", "FOUND"];
    format!("trigger {trigger} turns it away:\n{}", table(&head[usize::from(!several)..], &rows))
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
