//! `tripline schedule`.

use http::Method;
use serde_json::{Value, json};

use super::client::{Client, encoded};
use super::failure::Failure;
use super::output::{Output, cell, print, table};
use super::topic::array;

#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  tripline schedule list
  tripline schedule next nightly --count 10
  tripline schedule pause nightly")]
pub(super) enum ScheduleCommand {
    /// List all schedules with their states and next ticks.
    #[command(after_help = "Example:\n  tripline schedule list")]
    List,
    /// Show a schedule's state, last and next tick, and counts.
    #[command(after_help = "Example:\n  tripline schedule describe nightly")]
    Describe {
        /// Its name.
        schedule: String,
    },
    /// Show the next ticks, in UTC and by the schedule's clock.
    #[command(after_help = "Example:\n  tripline schedule next nightly --count 10")]
    Next {
        /// Its name.
        schedule: String,
        /// How many, at most 100.
        #[arg(long, short = 'n', default_value_t = 5)]
        count: u32,
    },
    /// Do no more ticks.
    #[command(after_help = "Example:\n  tripline schedule pause nightly")]
    Pause {
        /// Its name.
        schedule: String,
    },
    /// Go on with the next tick; those of the pause are not made up for.
    #[command(after_help = "Example:\n  tripline schedule resume nightly")]
    Resume {
        /// Its name.
        schedule: String,
    },
    /// End a schedule; its topic stays.
    #[command(after_help = "Example:\n  tripline schedule delete nightly")]
    Delete {
        /// Its name.
        schedule: String,
    },
}

pub(super) async fn run(command: ScheduleCommand, client: &Client, output: Output) -> Result<(), Failure> {
    let path = |name: &str| format!("/v1/schedules/{}", encoded(name));
    match command {
        ScheduleCommand::List => output.show(&client.get("/v1/schedules").await?, list),
        ScheduleCommand::Describe { schedule } => output.show(&client.get(&path(&schedule)).await?, describe),
        ScheduleCommand::Next { schedule, count } => {
            output.show(&client.get(&format!("{}/next?count={count}", path(&schedule))).await?, next)
        }
        ScheduleCommand::Pause { schedule } => {
            let paused = client.call(Method::POST, &format!("{}/pause", path(&schedule)), None).await?;
            output.show(&paused, state)
        }
        ScheduleCommand::Resume { schedule } => {
            let resumed = client.call(Method::POST, &format!("{}/resume", path(&schedule)), None).await?;
            output.show(&resumed, state)
        }
        ScheduleCommand::Delete { schedule } => {
            client.call(Method::DELETE, &path(&schedule), None).await?;
            if output.json { Ok(()) } else { print(&format!("schedule {schedule} deleted")) }
        }
    }
}

fn state(schedule: &Value) -> String {
    let mut text = format!("schedule {}: {}", cell(&schedule["schedule"]), cell(&schedule["state"]));
    if schedule["reason"].as_str().is_some_and(|reason| !reason.is_empty()) {
        text.push_str(&format!(": {}", cell(&schedule["reason"])));
    }
    text
}

/// The rule as it is written: `cron */5 * * * *`.
fn rule(definition: &Value) -> String {
    let rule = ["cron", "rate", "at"].into_iter().find(|rule| !definition[*rule].is_null()).unwrap_or("cron");
    format!("{rule} {}", cell(&definition[rule]))
}

fn list(answer: &Value) -> String {
    let row = |schedule: &Value| {
        let definition = &schedule["definition"];
        vec![
            cell(&schedule["schedule"]),
            cell(&schedule["state"]),
            rule(definition),
            cell(&definition["timezone"]),
            cell(&schedule["topic"]),
            cell(&schedule["last_tick"]),
            cell(&schedule["next_tick"]),
        ]
    };
    let rows: Vec<Vec<String>> = array(&answer["schedules"]).iter().map(row).collect();
    table(&["SCHEDULE", "STATE", "RULE", "TIMEZONE", "TOPIC", "LAST TICK", "NEXT TICK"], &rows)
}

fn describe(schedule: &Value) -> String {
    let mut text = state(schedule) + "\n";
    let definition = &schedule["definition"];
    text.push_str(&format!("{} in {}\n", rule(definition), cell(&definition["timezone"])));
    let (topic, partition) = (cell(&schedule["topic"]), cell(&schedule["partition"]));
    text.push_str(&format!("to topic {topic}, partition {partition}\n"));
    let (last, next) = (cell(&schedule["last_tick"]), cell(&schedule["next_tick"]));
    text.push_str(&format!("last tick {last}, next tick {next}\n"));
    let counts = schedule["counts"].as_object().into_iter().flatten();
    let counts: Vec<String> = counts.map(|(name, count)| format!("{} {count}", name.replace('_', " "))).collect();
    text.push_str(&format!("since the start: {}\n", counts.join(", ")));
    text
}

fn next(answer: &Value) -> String {
    let ticks = array(&answer["ticks"]);
    if ticks.is_empty() {
        return "no tick is left".to_owned();
    }
    let row = |tick: &Value| vec![cell(&tick["tick"]), cell(&tick["local"]), cell(&tick["fires"])];
    let rows: Vec<Vec<String>> = ticks.iter().map(row).collect();
    let mut text = table(&["TICK", "LOCAL", "FIRES"], &rows);
    if answer["state"] == json!("Paused") {
        text.push_str("it is paused: these are what it would do\n");
    }
    text
}
