//! Runs of a trigger over a range, as the commands about triggers and dead letters start and show them.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use http::Method;
use serde_json::{Map, Value, json};

use super::client::{Client, encoded};
use super::failure::Failure;
use super::output::{Output, cell, table};
use super::topic::array;

/// How often a run is looked at while somebody waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How much of a run's id names it.
const ID_CHARS: usize = 8;

/// Which topic of a trigger's input.
#[derive(Debug, clap::Args)]
pub(super) struct TopicArgs {
    /// Of this topic [default: the only one that the trigger reads].
    #[arg(long)]
    topic: Option<String>,
}

impl TopicArgs {
    /// Adds to the fields of a request.
    pub(super) fn add_to(&self, body: &mut Map<String, Value>) {
        if let Some(topic) = &self.topic {
            body.insert("topic".to_owned(), json!(topic));
        }
    }
}

/// A part of a topic.
#[derive(Debug, clap::Args)]
pub(super) struct RangeArgs {
    /// Of this partition; of all when left out.
    #[arg(long, short)]
    partition: Option<u32>,
    /// The first record: earliest, latest, an offset, or a time such as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "POSITION", default_value = "earliest")]
    from: String,
    /// The first record that is left out: as --from.
    #[arg(long, value_name = "POSITION", default_value = "latest")]
    to: String,
}

/// How a run goes.
#[derive(Debug, clap::Args)]
pub(super) struct PaceArgs {
    /// At most so many records in a second, such as 100/s; a rate below the trigger's window makes windows smaller.
    #[arg(long, value_name = "N/s")]
    rate: Option<String>,
    /// Wait until it is done.
    #[arg(long, short)]
    wait: bool,
}

/// What ends a state, with the command where it is one that people know less.
pub(super) fn ends_when(told: &Value, skip: &str) -> String {
    let ends_when = cell(&told["ends_when"]);
    if ends_when.contains("skips it") { format!("{ends_when} (`tripline trigger skip {skip}`)") } else { ends_when }
}

/// As [`ends_when`], of a run.
fn run_ends_when(run: &Value) -> String {
    let id: String = cell(&run["run"]).chars().take(ID_CHARS).collect();
    ends_when(run, &format!("{} --run {id}", cell(&run["trigger"])))
}

/// A position as the broker takes it.
pub(super) fn position(text: &str) -> Value {
    text.parse::<u64>().map_or_else(|_| json!(text), |offset| json!(offset))
}

impl RangeArgs {
    /// The fields of a request.
    pub(super) fn body(&self) -> Map<String, Value> {
        let mut body = Map::new();
        body.insert("from".to_owned(), position(&self.from));
        body.insert("to".to_owned(), position(&self.to));
        if let Some(partition) = self.partition {
            body.insert("partition".to_owned(), json!(partition));
        }
        body
    }
}

impl PaceArgs {
    /// Adds to the fields of a request.
    pub(super) fn add_to(&self, body: &mut Map<String, Value>) -> Result<(), Failure> {
        let Some(rate) = &self.rate else { return Ok(()) };
        let number = rate.strip_suffix("/s").unwrap_or(rate).parse::<u32>().ok().filter(|rate| *rate > 0);
        let wrong =
            || Failure::wrong_use(format!("--rate: found {rate:?}, allowed: records in a second, such as 100/s"));
        body.insert("rate".to_owned(), json!(number.ok_or_else(wrong)?));
        Ok(())
    }

    /// Shows a run that was started, at once or when it is done.
    pub(super) async fn show(&self, run: Value, client: &Client, output: Output) -> Result<(), Failure> {
        if !self.wait {
            return output.show(&run, started);
        }
        let run = wait(run, client, output).await?;
        output.show(&run, describe)
    }
}

/// An event pattern: the pattern itself, or a file with it.
pub(super) fn pattern(option: &str, text: &str) -> Result<Value, Failure> {
    let (place, text) = if text.trim_start().starts_with('{') {
        (option.to_owned(), text.to_owned())
    } else {
        let read = std::fs::read_to_string(Path::new(text));
        (text.to_owned(), read.map_err(|error| Failure::new(format!("{option}: {text}: {error}")))?)
    };
    serde_json::from_str(&text).map_err(|error| Failure::new(format!("{place}: not JSON: {error}")))
}

/// Follows a run to its end; how far it is shows on a terminal.
async fn wait(mut run: Value, client: &Client, output: Output) -> Result<Value, Failure> {
    let is_watched = !output.json && std::io::stderr().is_terminal();
    let path = path_of(&cell(&run["trigger"]), &cell(&run["run"]));
    let mut told = String::new();
    loop {
        let state = cell(&run["state"]);
        let progress = format!("{} of {} records left, {}", run["lag"], run["total"], outcome(&run["counts"]));
        if is_watched {
            let _ = write!(std::io::stderr(), "\r\x1b[K{state}: {progress}");
        }
        if matches!(state.as_str(), "Done" | "Cancelled" | "Replaced") {
            break;
        }
        // What needs a person is told also where nobody watches.
        let reason = cell(&run["reason"]);
        if !reason.is_empty() && reason != told && !output.json {
            let line = if is_watched { "\n" } else { "" };
            let _ = writeln!(std::io::stderr(), "{line}{state}: {reason}; it ends when {}", run_ends_when(&run));
            told = reason;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        run = client.get(&path).await?;
    }
    if is_watched {
        let _ = writeln!(std::io::stderr());
    }
    Ok(run)
}

fn path_of(trigger: &str, run: &str) -> String {
    format!("/v1/triggers/{}/runs/{}", encoded(trigger), encoded(run))
}

/// Does something to a run: the one that `wanted` begins the id of, or the only one in one of these states.
pub(super) async fn verb(
    (trigger, wanted): (&str, Option<&str>),
    verb: &str,
    states: impl Fn(&str) -> bool,
    client: &Client,
) -> Result<Value, Failure> {
    let runs = client.get(&format!("/v1/triggers/{}/runs", encoded(trigger))).await?;
    let fits = |run: &&Value| match wanted {
        Some(wanted) => cell(&run["run"]).starts_with(wanted),
        None => states(&cell(&run["state"])),
    };
    let found: Vec<&Value> = array(&runs["runs"]).iter().filter(fits).collect();
    let [run] = found.as_slice() else {
        let which = wanted.map_or_else(|| format!("to {verb}"), |wanted| format!("whose id begins with {wanted:?}"));
        let trigger_runs = format!("tripline trigger runs {trigger}");
        return Err(Failure::new(match found.len() {
            0 => format!("trigger {trigger} has no run {which}; `{trigger_runs}` lists them"),
            several => {
                format!("trigger {trigger} has {several} runs {which}: name one, as `{trigger_runs}` lists them")
            }
        }));
    };
    client.call(Method::POST, &format!("{}/{verb}", path_of(trigger, &cell(&run["run"]))), None).await
}

/// Whether a run in this state can be cancelled.
pub(super) fn goes_on(state: &str) -> bool {
    !matches!(state, "Done" | "Cancelled" | "Replaced")
}

fn started(run: &Value) -> String {
    let (kind, trigger, id) = (cell(&run["kind"]), cell(&run["trigger"]), cell(&run["run"]));
    format!(
        "{kind} {id} of trigger {trigger} started: {} record(s) of {} to look at; `tripline trigger runs {trigger}` shows how far it is",
        run["total"],
        cell(&run["topic"])
    )
}

/// A line about a run.
pub(super) fn describe(run: &Value) -> String {
    let mut text = format!("{} {}: {}", cell(&run["kind"]), cell(&run["run"]), cell(&run["state"]));
    let reason = cell(&run["reason"]);
    if !reason.is_empty() {
        text.push_str(&format!(": {reason}; it ends when {}", run_ends_when(run)));
    }
    let left =
        if run["lag"] == 0 { String::new() } else { format!(", {} of {} record(s) left", run["lag"], run["total"]) };
    format!("{text}{left}, {}\n", outcome(&run["counts"]))
}

fn outcome(counts: &Value) -> String {
    let names = ["delivered", "filtered", "passed_over", "dead_lettered", "dropped", "expired", "attempts_failed"];
    let shown = names.iter().filter(|name| **name == "delivered" || counts[**name] != 0);
    shown.map(|name| format!("{} {}", name.replace('_', " "), counts[*name])).collect::<Vec<_>>().join(", ")
}

/// The runs of a trigger.
pub(super) fn list(answer: &Value) -> String {
    let row = |run: &Value| {
        let created = run["created_ms"].as_i64().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        vec![
            cell(&run["run"]),
            cell(&run["kind"]),
            cell(&run["state"]),
            created.map_or_else(String::new, |time| format!("{time:.0}")),
            format!("{} of {}", run["lag"], run["total"]),
            outcome(&run["counts"]),
        ]
    };
    let rows: Vec<Vec<String>> = array(&answer["runs"]).iter().map(row).collect();
    table(&["RUN", "KIND", "STATE", "STARTED", "LEFT", "OUTCOME"], &rows)
}
