//! `tripline group`.

use serde_json::Value;

use super::client::{Client, encoded};
use super::failure::Failure;
use super::output::{Output, cell, table};
use super::topic::array;

#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Examples:\n  tripline group list\n  tripline group describe trigger.slow-flights")]
pub(super) enum GroupCommand {
    /// List all groups with their lag.
    #[command(after_help = "Example:\n  tripline group list")]
    List,
    /// Show a group's committed offsets.
    #[command(after_help = "Example:\n  tripline group describe trigger.slow-flights")]
    Describe {
        /// Its id.
        group: String,
    },
}

pub(super) async fn run(command: GroupCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        GroupCommand::List => output.show(&client.get("/v1/groups").await?, |answer| {
            let row = |group: &Value| {
                vec![cell(&group["group"]), cell(&group["state"]), cell(&group["members"]), cell(&group["lag"])]
            };
            let rows: Vec<Vec<String>> = array(&answer["groups"]).iter().map(row).collect();
            table(&["GROUP", "STATE", "MEMBERS", "LAG"], &rows)
        }),
        GroupCommand::Describe { group } => {
            output.show(&client.get(&format!("/v1/groups/{}", encoded(&group))).await?, |group| {
                let names = ["topic", "partition", "committed", "tail", "lag"];
                let rows: Vec<Vec<String>> = array(&group["offsets"])
                    .iter()
                    .map(|at| names.iter().map(|name| cell(&at[*name])).collect())
                    .collect();
                table(&["TOPIC", "PARTITION", "COMMITTED", "TAIL", "LAG"], &rows)
            })
        }
    }
}
