//! `tripline trigger`.

use std::io::Read;
use std::path::{Path, PathBuf};

use http::Method;
use serde_json::{Value, json};

use super::client::{Client, encoded};
use super::dry_run::{self, DryRunArgs};
use super::failure::Failure;
use super::output::{Output, cell, gist, table};
use super::runs::{self, PaceArgs, RangeArgs, TopicArgs};
use super::topic::array;

#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  tripline trigger list
  tripline trigger describe slow-flights
  tripline trigger pause slow-flights
  tripline trigger explain slow-flights --partition 0 --offset 41
  echo '{\"data\": {\"delay\": 5}}' | tripline trigger explain slow-flights --event -
  tripline trigger reset slow-flights --to 2026-01-31T12:00:00Z
  tripline trigger replay slow-flights --from 2026-01-31T00:00:00Z --to latest --rate 100/s
  tripline trigger replay departures --topic trains --from 2026-01-31T00:00:00Z
  tripline trigger runs slow-flights
  tripline trigger dry-run slow-flights --pattern '{\"data\": {\"delay\": [{\"numeric\": [\">\", 120]}]}}'")]
pub(super) enum TriggerCommand {
    /// List all triggers with their states.
    #[command(after_help = "Example:\n  tripline trigger list")]
    List,
    /// Show a trigger's state, progress and counts.
    #[command(after_help = "Example:\n  tripline trigger describe slow-flights")]
    Describe {
        /// Its name.
        trigger: String,
    },
    /// Stop invoking; progress is kept.
    #[command(after_help = "Example:\n  tripline trigger pause slow-flights")]
    Pause {
        /// Its name.
        trigger: String,
    },
    /// Go on, with a trigger or with one of its runs.
    #[command(after_help = "\
Examples:
  tripline trigger resume slow-flights
  tripline trigger resume slow-flights 1f0c         a run, by the beginning of its id")]
    Resume {
        /// Its name.
        trigger: String,
        /// A run that was cancelled or waits, by the beginning of its id.
        run: Option<String>,
    },
    /// Say whether a trigger's filter takes a record or an event, and which clauses turn it away.
    #[command(after_help = "\
Examples:
  tripline trigger explain slow-flights --partition 0 --offset 41
  echo '{\"data\": {\"delay\": 5}}' | tripline trigger explain slow-flights --event -")]
    Explain(ExplainArgs),
    /// Set a paused trigger to another position.
    #[command(after_help = "\
Examples:
  tripline trigger reset slow-flights --to earliest
  tripline trigger reset slow-flights --to 2026-01-31T12:00:00Z
  tripline trigger reset slow-flights --to 41 --partition 0")]
    Reset {
        /// Its name.
        trigger: String,
        /// earliest, latest, an offset, or a time such as 2026-01-31T12:00:00Z.
        #[arg(long, value_name = "POSITION")]
        to: String,
        /// Of this topic; of all when left out.
        #[arg(long)]
        topic: Option<String>,
        /// Of this partition; of all when left out.
        #[arg(long, short)]
        partition: Option<u32>,
    },
    /// Give up what it waits to try again, and pass over damaged ranges: the records become dead letters, or are
    /// dropped.
    #[command(after_help = "\
Examples:
  tripline trigger skip slow-flights
  tripline trigger skip slow-flights --partition 0")]
    Skip {
        /// Its name.
        trigger: String,
        /// Of this topic; of all when left out.
        #[arg(long)]
        topic: Option<String>,
        /// Of this partition; of all when left out.
        #[arg(long, short)]
        partition: Option<u32>,
        /// In this run instead, by the beginning of its id.
        #[arg(long, conflicts_with_all = ["topic", "partition"])]
        run: Option<String>,
    },
    /// Have a range of its input go through it again, beside its live run.
    #[command(after_help = "\
Examples:
  tripline trigger replay slow-flights --from 5 --to 9 --wait
  tripline trigger replay slow-flights --from 2026-01-31T00:00:00Z --to latest --rate 100/s")]
    Replay {
        /// Its name.
        trigger: String,
        #[command(flatten)]
        topic: TopicArgs,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        pace: PaceArgs,
    },
    /// List its runs: replays, and redrives of dead letters.
    #[command(after_help = "Example:\n  tripline trigger runs slow-flights")]
    Runs {
        /// Its name.
        trigger: String,
    },
    /// Stop a run; what it has finished stays finished, and `resume` goes on.
    #[command(after_help = "\
Examples:
  tripline trigger cancel slow-flights
  tripline trigger cancel slow-flights 1f0c")]
    Cancel {
        /// The trigger.
        trigger: String,
        /// The run, by the beginning of its id; may be left out where only one goes on.
        run: Option<String>,
    },
    /// Show what its filter and transform would do with a range of its input, or another filter; nothing is invoked.
    #[command(after_help = "\
Examples:
  tripline trigger dry-run slow-flights --from earliest
  tripline trigger dry-run slow-flights --pattern '{\"data\": {\"delay\": [{\"numeric\": [\">\", 120]}]}}'")]
    DryRun(DryRunArgs),
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
    /// The record's topic [default: the only one that the trigger reads].
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
        TriggerCommand::Resume { trigger, run: None } => output.show(&switch(trigger, "resume").await?, state),
        TriggerCommand::Resume { trigger, run } => {
            let resumed = runs::verb((&trigger, run.as_deref()), "resume", |_| true, client).await?;
            output.show(&resumed, runs::describe)
        }
        TriggerCommand::Reset { trigger, to, topic, partition } => {
            let body = json!({ "to": runs::position(&to), "topic": topic, "partition": partition });
            let body = without_nulls(body);
            let path = format!("/v1/triggers/{}/reset", encoded(&trigger));
            output.show(&client.call(Method::POST, &path, Some(&body)).await?, reset)
        }
        TriggerCommand::Skip { trigger, run: Some(run), .. } => {
            let skipped = runs::verb((&trigger, Some(&run)), "skip", |_| true, client).await?;
            output.show(&skipped, skip)
        }
        TriggerCommand::Skip { trigger, topic, partition, run: None } => {
            let topic = topic.map(|topic| format!("topic={}", encoded(&topic)));
            let partition = partition.map(|partition| format!("partition={partition}"));
            let query = topic.into_iter().chain(partition).collect::<Vec<_>>().join("&");
            let query = if query.is_empty() { query } else { format!("?{query}") };
            let path = format!("/v1/triggers/{}/skip{query}", encoded(&trigger));
            output.show(&client.call(Method::POST, &path, None).await?, skip)
        }
        TriggerCommand::Replay { trigger, topic, range, pace } => {
            let mut body = range.body();
            topic.add_to(&mut body);
            pace.add_to(&mut body)?;
            let path = format!("/v1/triggers/{}/replays", encoded(&trigger));
            let run = client.call(Method::POST, &path, Some(&Value::Object(body))).await?;
            pace.show(run, client, output).await
        }
        TriggerCommand::Runs { trigger } => {
            output.show(&client.get(&format!("/v1/triggers/{}/runs", encoded(&trigger))).await?, runs::list)
        }
        TriggerCommand::Cancel { trigger, run } => {
            let cancelled = runs::verb((&trigger, run.as_deref()), "cancel", runs::goes_on, client).await?;
            output.show(&cancelled, runs::describe)
        }
        TriggerCommand::DryRun(args) => dry_run::run(args, client, output).await,
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
        let ends_when = runs::ends_when(trigger, &cell(&trigger["trigger"]));
        text.push_str(&format!(": {}; it ends when {ends_when}", cell(&trigger["reason"])));
    }
    text
}

/// Optional fields that are left out.
fn without_nulls(mut body: Value) -> Value {
    if let Value::Object(fields) = &mut body {
        fields.retain(|_, value| !value.is_null());
    }
    body
}

fn reset(answer: &Value) -> String {
    let row = |at: &Value| vec![cell(&at["topic"]), cell(&at["partition"]), cell(&at["offset"])];
    let rows: Vec<Vec<String>> = array(&answer["offsets"]).iter().map(row).collect();
    table(&["TOPIC", "PARTITION", "OFFSET"], &rows)
}

fn skip(answer: &Value) -> String {
    format!("{} record(s) given up", answer["skipped"])
}

fn list(answer: &Value) -> String {
    let row = |trigger: &Value| {
        let definition = &trigger["definition"];
        vec![
            cell(&trigger["trigger"]),
            cell(&trigger["state"]),
            topics(&definition["input"]),
            function(definition),
            order(definition),
            cell(&trigger["lag"]),
            cell(&trigger["counts"]["delivered"]),
        ]
    };
    let rows: Vec<Vec<String>> = array(&answer["triggers"]).iter().map(row).collect();
    table(&["TRIGGER", "STATE", "TOPIC", "FUNCTION", "ORDER", "LAG", "DELIVERED"], &rows)
}

/// What a trigger reads: a topic, several, or all that match a pattern.
fn topics(input: &Value) -> String {
    let one = input["topic"].as_str().or_else(|| input["pattern"].as_str());
    let several = || array(&input["topics"]).iter().map(cell).collect::<Vec<_>>().join(", ");
    one.map_or_else(several, str::to_owned)
}

/// The name of a function, or the URL that is one.
fn function(definition: &Value) -> String {
    let url = definition["function"]["http"]["url"].as_str();
    url.map_or_else(|| cell(&definition["function"]), str::to_owned)
}

/// What may run at the same time, also where the definition leaves it out.
fn order(definition: &Value) -> String {
    definition["order"].as_str().unwrap_or("partition").to_owned()
}

/// What a partition says of itself; of the last error, which may be a whole traceback, the line that says most.
fn lane_cell(lane: &Value, name: &str) -> String {
    let shown = cell(&lane[name]);
    if name == "last_error" { gist(&shown).to_owned() } else { shown }
}

fn describe(trigger: &Value) -> String {
    let mut text = state(trigger) + "\n";
    text.push_str(&format!("order: {}\n", order(&trigger["definition"])));
    let counts = trigger["counts"].as_object().into_iter().flatten();
    let counts: Vec<String> = counts.map(|(name, count)| format!("{} {count}", name.replace('_', " "))).collect();
    text.push_str(&format!("since the start: {}\n", counts.join(", ")));
    let names = [
        "topic",
        "partition",
        "committed",
        "tail",
        "lag",
        "in_flight_records",
        "blocked_keys",
        "attempts",
        "last_error",
    ];
    let rows: Vec<Vec<String>> =
        array(&trigger["lanes"]).iter().map(|lane| names.iter().map(|name| lane_cell(lane, name)).collect()).collect();
    text.push_str(&table(
        &["TOPIC", "PARTITION", "COMMITTED", "TAIL", "LAG", "HELD", "BLOCKED KEYS", "ATTEMPTS", "LAST ERROR"],
        &rows,
    ));
    for place in array(&trigger["offline"]) {
        text.push_str(&format!("partition {} is offline, see `tripline topic describe`\n", cell(place)));
    }
    for lane in array(&trigger["lanes"]).iter().filter(|lane| lane["full"] == true) {
        let (topic, partition) = (cell(&lane["topic"]), cell(&lane["partition"]));
        text.push_str(&format!(
            "partition {topic}/{partition} reads or begins nothing more until some of what is held is finished\n"
        ));
    }
    for run in array(&trigger["runs"]) {
        text.push_str(&runs::describe(run));
    }
    text
}
