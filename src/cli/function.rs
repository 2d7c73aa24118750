//! `tripline function` and `tripline logs`.

use std::io::{Read, Write};
use std::path::PathBuf;

use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::client::{Client, encoded};
use super::failure::Failure;
use super::output::{Output, cell, print, table};
use super::topic::array;

#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  tripline function list
  tripline function invoke notify --data '[{\"delay\": 95}]'
  tripline function logs -f notify")]
pub(super) enum FunctionCommand {
    /// List all functions with their states.
    #[command(after_help = "Example:\n  tripline function list")]
    List,
    /// Show a function's state, instances and counts.
    #[command(after_help = "Example:\n  tripline function describe notify")]
    Describe {
        /// Its name.
        function: String,
    },
    /// Invoke a function once and print its answer.
    #[command(after_help = "\
Examples:
  tripline function invoke notify --data '[{\"delay\": 95}]'
  tripline function invoke notify --file event.json")]
    Invoke {
        /// Its name.
        function: String,
        /// The event [default: standard input].
        #[arg(long, short, conflicts_with = "file")]
        data: Option<String>,
        /// A file with the event.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Show what a function prints.
    Logs(LogsArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tripline logs -f notify")]
pub(super) struct LogsArgs {
    /// Its name.
    function: String,
    /// Wait for more.
    #[arg(long, short)]
    follow: bool,
    /// How many of the newest lines come first.
    #[arg(long, short = 'n', default_value_t = 100)]
    lines: u32,
}

pub(super) async fn run(command: FunctionCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        FunctionCommand::List => output.show(&client.get("/v1/functions").await?, list),
        FunctionCommand::Describe { function } => {
            output.show(&client.get(&format!("/v1/functions/{}", encoded(&function))).await?, describe)
        }
        FunctionCommand::Invoke { function, data, file } => {
            let event = event(data, file)?;
            let path = format!("/v1/functions/{}/invocations", encoded(&function));
            let answer = client.call_bytes(Method::POST, &path, event, Some("application/json")).await;
            let answer = answer.map_err(|failure| failure.told(without_traceback))?;
            print(&String::from_utf8_lossy(&answer))
        }
        FunctionCommand::Logs(args) => logs(args, client, output).await,
    }
}

/// Of a traceback the line that says most; `--verbose` shows the answer as it is.
fn without_traceback(detail: &str) -> String {
    match detail.split_once("Traceback (most recent call last):") {
        Some((before, _)) => {
            format!("{before}{} (--verbose shows the traceback)", detail.lines().next_back().unwrap_or(detail).trim())
        }
        None => detail.to_owned(),
    }
}

fn event(data: Option<String>, file: Option<PathBuf>) -> Result<Bytes, Failure> {
    match (data, file) {
        (Some(text), _) => Ok(text.into()),
        (None, Some(path)) => {
            let read = std::fs::read(&path);
            Ok(read.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?.into())
        }
        (None, None) => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes)?;
            Ok(bytes.into())
        }
    }
}

pub(super) async fn logs(args: LogsArgs, client: &Client, output: Output) -> Result<(), Failure> {
    let path = format!("/v1/functions/{}/logs?limit={}", encoded(&args.function), args.lines);
    if !args.follow {
        let answer = client.get(&path).await?;
        if answer["complete"] == false {
            let _ = writeln!(std::io::stderr(), "older lines may be behind the newest 500,000 of all functions");
        }
        return array(&answer["lines"]).iter().try_for_each(|line| show_line(line, output));
    }
    let mut events = client.events(&path).await?;
    while let Some(line) = events.next().await? {
        show_line(&line, output)?;
    }
    Err(Failure::new("the broker ended the stream; it may be stopping"))
}

fn show_line(line: &Value, output: Output) -> Result<(), Failure> {
    if output.json { print(&line.to_string()) } else { print(&(log_line(line) + "\n")) }
}

/// Time, instance and text; control characters of the text are escaped.
pub(super) fn log_line(line: &Value) -> String {
    let time = line["time_ms"].as_i64().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let time = time.map_or_else(String::new, |time| format!("{time:.3} "));
    let text: String = line["text"].as_str().unwrap_or_default().chars().flat_map(escaped).collect();
    format!("{time}#{} {text}", line["instance"])
}

fn escaped(character: char) -> Vec<char> {
    if character.is_control() && character != '\t' { character.escape_default().collect() } else { vec![character] }
}

fn list(answer: &Value) -> String {
    let row = |function: &Value| {
        vec![
            cell(&function["function"]),
            cell(&function["definition"]["runtime"]),
            cell(&function["state"]),
            cell(&function["version"]),
            cell(&function["counts"]["succeeded"]),
        ]
    };
    let rows: Vec<Vec<String>> = array(&answer["functions"]).iter().map(row).collect();
    table(&["FUNCTION", "RUNTIME", "STATE", "VERSION", "SUCCEEDED"], &rows)
}

fn describe(function: &Value) -> String {
    let mut text = format!(
        "function {} version {}: {}\n",
        cell(&function["function"]),
        function["version"],
        cell(&function["state"])
    );
    if let Some(message) = function["error"]["message"].as_str() {
        text.push_str(&format!("{}\n", message.trim_end()));
    }
    let instances = &function["instances"];
    let names = ["starting", "idle", "busy", "leaving"];
    let shown: Vec<String> = names.iter().map(|name| format!("{} {name}", instances[*name])).collect();
    text.push_str(&format!("instances: {}; waiting invocations: {}\n", shown.join(", "), function["queued"]));
    let counts = &function["counts"];
    let errors = counts["errors"].as_object().into_iter().flatten().filter(|(_, count)| count.as_u64() != Some(0));
    let errors: Vec<String> = errors.map(|(class, count)| format!("{count} {class}")).collect();
    let errors = if errors.is_empty() { "no errors".to_owned() } else { errors.join(", ") };
    text.push_str(&format!(
        "since the start: {} succeeded, {errors}, {} cold starts\n",
        counts["succeeded"], counts["cold_starts"]
    ));
    text
}
