//! `tripline dlq`.

use http::Method;
use serde_json::{Value, json};

use super::client::{Client, encoded};
use super::failure::Failure;
use super::output::{Output, cell, table};
use super::runs::{self, PaceArgs, RangeArgs, pattern};
use super::topic::array;

/// How much of a message a list shows.
const MESSAGE_CHARS: usize = 80;

#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  tripline dlq list slow-flights
  tripline dlq show flights.dlq/0/12
  tripline dlq redrive slow-flights --dry-run
  tripline dlq redrive slow-flights --filter '{\"headers\": {\"tripline-dlq-error-code\": [\"timeout\"]}}' --rate 100/s --wait
  tripline dlq discard slow-flights --to latest")]
pub(super) enum DlqCommand {
    /// List dead letters that nobody has redriven or discarded, with their reasons.
    #[command(after_help = "\
Examples:
  tripline dlq list
  tripline dlq list slow-flights --all -n 20")]
    List {
        /// Of this trigger only.
        trigger: Option<String>,
        /// At most so many.
        #[arg(long, short = 'n', default_value_t = 100)]
        limit: u32,
        /// Also those that were redriven or discarded, while their topic has them.
        #[arg(long, short)]
        all: bool,
    },
    /// Show one dead letter.
    #[command(after_help = "\
Examples:
  tripline dlq show flights.dlq/0/12
  tripline dlq show flights.dlq/0/12 --trigger slow-flights")]
    Show {
        /// TOPIC/PARTITION/OFFSET, as `list` prints it.
        place: String,
        /// Whose letter it is: needed where a cluster and this broker, or two clusters, have a topic of that name.
        #[arg(long, short)]
        trigger: Option<String>,
    },
    /// Put dead letters of a trigger back through it; `tripline trigger runs|cancel|resume` shows and steers that.
    #[command(after_help = "\
Examples:
  tripline dlq redrive slow-flights --dry-run
  tripline dlq redrive slow-flights --filter '{\"headers\": {\"tripline-dlq-error-code\": [\"timeout\"]}}' --rate 100/s --wait")]
    Redrive(RedriveArgs),
    /// Let dead letters of a trigger go: all below a position.
    #[command(after_help = "Example:\n  tripline dlq discard slow-flights --to latest")]
    Discard {
        /// The trigger.
        trigger: String,
        /// The first that is kept: latest for none, an offset, or a time such as 2026-01-31T12:00:00Z.
        #[arg(long, value_name = "POSITION")]
        to: String,
        /// Of this partition of the dead-letter topic; of all when left out.
        #[arg(long, short)]
        partition: Option<u32>,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct RedriveArgs {
    /// The trigger.
    trigger: String,
    #[command(flatten)]
    range: RangeArgs,
    /// Which letters: an event pattern in JSON, or a file with it. It sees the records as they were, and the reasons
    /// among their headers.
    #[arg(long, value_name = "PATTERN")]
    filter: Option<String>,
    /// At most so many letters, the oldest first.
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// Letters that were redriven so often are passed over.
    #[arg(long, value_name = "N", default_value_t = 10)]
    max_redrives: u32,
    /// Take them all the same.
    #[arg(long, conflicts_with = "max_redrives")]
    force: bool,
    /// Take also those that an earlier redrive took.
    #[arg(long)]
    again: bool,
    /// Only tell what it would do.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pace: PaceArgs,
}

pub(super) async fn run(command: DlqCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        DlqCommand::List { trigger, limit, all } => {
            let trigger = trigger.map_or_else(String::new, |trigger| format!("&trigger={}", encoded(&trigger)));
            output.show(&client.get(&format!("/v1/dead-letters?limit={limit}&all={all}{trigger}")).await?, list)
        }
        DlqCommand::Show { place, trigger } => {
            let parts: Vec<&str> = place.split('/').collect();
            let [topic, partition, offset] = parts.as_slice() else {
                return Err(Failure::wrong_use(format!("found {place:?}, allowed: TOPIC/PARTITION/OFFSET")));
            };
            let of = trigger.map_or_else(String::new, |trigger| format!("?trigger={}", encoded(&trigger)));
            let path = format!("/v1/dead-letters/{}/{}/{}{of}", encoded(topic), encoded(partition), encoded(offset));
            output.show(&client.get(&path).await?, |letter| format!("{letter:#}"))
        }
        DlqCommand::Redrive(args) => redrive(args, client, output).await,
        DlqCommand::Discard { trigger, to, partition } => {
            let mut body = json!({ "to": runs::position(&to) });
            if let Some(partition) = partition {
                body["partition"] = json!(partition);
            }
            let path = format!("/v1/triggers/{}/discards", encoded(&trigger));
            output.show(&client.call(Method::POST, &path, Some(&body)).await?, discarded)
        }
    }
}

async fn redrive(args: RedriveArgs, client: &Client, output: Output) -> Result<(), Failure> {
    let mut body = args.range.body();
    args.pace.add_to(&mut body)?;
    if let Some(text) = &args.filter {
        body.insert("filter".to_owned(), pattern("--filter", text)?);
    }
    if let Some(max) = args.max {
        body.insert("max".to_owned(), json!(max));
    }
    body.insert("max_redrives".to_owned(), json!(args.max_redrives));
    for (name, flag) in [("force", args.force), ("again", args.again), ("dry_run", args.dry_run)] {
        body.insert(name.to_owned(), json!(flag));
    }
    let path = format!("/v1/triggers/{}/redrives", encoded(&args.trigger));
    let answer = client.call(Method::POST, &path, Some(&Value::Object(body))).await?;
    if args.dry_run { output.show(&answer, preview) } else { args.pace.show(answer, client, output).await }
}

fn preview(answer: &Value) -> String {
    let counts = &answer["counts"];
    let mut text = format!("{} letter(s) of {} would be redriven\n", counts["taken"], cell(&answer["topic"]));
    let others = [
        ("filtered", "that the filter turns away"),
        ("passed_over", "passed over: redriven too often (--force takes them)"),
        ("redriven", "redriven before (--again takes them)"),
        ("discarded", "discarded"),
        ("not_ours", "of others"),
    ];
    for (name, what) in others.iter().filter(|(name, _)| counts[*name] != 0) {
        text.push_str(&format!("{} {what}\n", counts[*name]));
    }
    if answer["complete"] == false {
        text.push_str("there are more: not everything was looked at in the time that there was\n");
    }
    for place in array(&answer["first"]) {
        text.push_str(&format!("{}/{}/{}\n", cell(&place["topic"]), place["partition"], place["offset"]));
    }
    text
}

fn discarded(answer: &Value) -> String {
    let mut text = format!("{} letter(s) of trigger {} discarded\n", answer["letters"], cell(&answer["trigger"]));
    for partition in array(&answer["partitions"]) {
        let what = if partition["deleted"] == true { "deleted" } else { "kept in the topic, not listed or redriven" };
        let (number, below) = (&partition["partition"], &partition["below"]);
        text.push_str(&format!("partition {number} below offset {below}: {what}\n"));
    }
    text
}

/// The part of a message that says most. A traceback stands in one line in a header: what counts begins with the
/// exception's type, which is the error's code.
fn message(text: &str, code: &str) -> String {
    let is_traceback = text.starts_with("Traceback");
    let begin = text.rfind(&format!(" {code}: ")).filter(|_| is_traceback).map_or(0, |at| at + 1);
    text[begin..].chars().take(MESSAGE_CHARS).collect()
}

fn list(answer: &Value) -> String {
    let row = |letter: &Value| {
        let reason = &letter["reason"];
        vec![
            format!("{}/{}/{}", cell(&letter["topic"]), letter["partition"], letter["offset"]),
            cell(&reason["trigger"]),
            format!("{}/{}/{}", cell(&reason["topic"]), cell(&reason["partition"]), cell(&reason["offset"])),
            cell(&reason["attempts"]),
            format!("{} {}", cell(&reason["error-class"]), cell(&reason["error-code"])),
            message(&cell(&reason["error-message"]), &cell(&reason["error-code"])),
        ]
    };
    let rows: Vec<Vec<String>> = array(&answer["dead_letters"]).iter().map(row).collect();
    let mut text = table(&["PLACE", "TRIGGER", "FROM", "ATTEMPTS", "ERROR", "MESSAGE"], &rows);
    for unknown in array(&answer["unknown"]) {
        text.push_str(&format!("not known of trigger {}: {}\n", cell(&unknown["trigger"]), cell(&unknown["reason"])));
    }
    if answer["complete"] == false {
        text.push_str(&format!("the first {}; there may be more\n", rows.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceback_is_listed_from_the_exception_on() {
        let traceback = "Traceback (most recent call last):   File \"f.py\", line 3, in handler     raise ValueError('no') ValueError: no";
        assert_eq!(message(traceback, "ValueError"), "ValueError: no");
        assert_eq!(message("the target answered 500", "500"), "the target answered 500");
        assert!(message(traceback, "KeyError").starts_with("Traceback"));
        assert_eq!(message(&"é".repeat(200), "x").chars().count(), MESSAGE_CHARS);
    }
}
