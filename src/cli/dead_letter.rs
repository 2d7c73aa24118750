//! `tripline dlq`.

use serde_json::Value;

use super::client::{Client, encoded};
use super::failure::Failure;
use super::output::{Output, cell, table};
use super::topic::array;

#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Examples:\n  tripline dlq list slow-flights\n  tripline dlq show flights.dlq/0/12")]
pub(super) enum DlqCommand {
    /// List dead letters with their reasons.
    List {
        /// Of this trigger only.
        trigger: Option<String>,
        /// At most so many.
        #[arg(long, short = 'n', default_value_t = 100)]
        limit: u32,
    },
    /// Show one dead letter.
    Show {
        /// TOPIC/PARTITION/OFFSET, as `list` prints it.
        place: String,
    },
}

pub(super) async fn run(command: DlqCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        DlqCommand::List { trigger, limit } => {
            let trigger = trigger.map_or_else(String::new, |trigger| format!("&trigger={}", encoded(&trigger)));
            output.show(&client.get(&format!("/v1/dead-letters?limit={limit}{trigger}")).await?, list)
        }
        DlqCommand::Show { place } => {
            let parts: Vec<&str> = place.split('/').collect();
            let [topic, partition, offset] = parts.as_slice() else {
                return Err(Failure::wrong_use(format!("found {place:?}, allowed: TOPIC/PARTITION/OFFSET")));
            };
            let path = format!("/v1/dead-letters/{}/{}/{}", encoded(topic), encoded(partition), encoded(offset));
            output.show(&client.get(&path).await?, |letter| format!("{letter:#}"))
        }
    }
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
            cell(&reason["error-message"]).chars().take(60).collect(),
        ]
    };
    let rows: Vec<Vec<String>> = array(&answer["dead_letters"]).iter().map(row).collect();
    table(&["PLACE", "TRIGGER", "FROM", "ATTEMPTS", "ERROR", "MESSAGE"], &rows)
}
