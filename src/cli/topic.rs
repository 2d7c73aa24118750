//! `tripline topic`.

use http::Method;
use serde_json::{Map, Value, json};

use super::client::{Client, encoded};
use super::failure::Failure;
use super::output::{Output, cell, print, table};

#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  tripline topic create flights --partitions 3 --config retention.ms=7d
  tripline topic list
  tripline topic describe flights
  tripline topic delete flights")]
pub(super) enum TopicCommand {
    /// Make a topic.
    #[command(after_help = "Example:\n  tripline topic create flights -p 3 --config retention.ms=7d")]
    Create {
        /// Its name.
        topic: String,
        /// How many partitions, 1 to 1,000.
        #[arg(long, short, default_value_t = 1)]
        partitions: u32,
        /// A setting by Kafka's name. May be repeated.
        #[arg(long, short, value_name = "KEY=VALUE")]
        config: Vec<String>,
    },
    /// List all topics.
    #[command(after_help = "Example:\n  tripline topic list --json")]
    List,
    /// Show a topic's settings and offsets.
    #[command(after_help = "Example:\n  tripline topic describe flights")]
    Describe {
        /// Its name.
        topic: String,
    },
    /// Delete a topic with all its records.
    #[command(after_help = "Example:\n  tripline topic delete flights")]
    Delete {
        /// Its name.
        topic: String,
    },
}

pub(super) async fn run(command: TopicCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        TopicCommand::Create { topic, partitions, config } => {
            let config = settings(&config)?;
            let body = json!({ "topic": topic, "partitions": partitions, "config": config });
            let made = client.call(Method::POST, "/v1/topics", Some(&body)).await?;
            output.show(&made, |_| format!("topic {topic} made with {partitions} partition(s)"))
        }
        TopicCommand::List => output.show(&client.get("/v1/topics").await?, list),
        TopicCommand::Describe { topic } => {
            output.show(&client.get(&format!("/v1/topics/{}", encoded(&topic))).await?, describe)
        }
        TopicCommand::Delete { topic } => {
            client.call(Method::DELETE, &format!("/v1/topics/{}", encoded(&topic)), None).await?;
            if output.json { Ok(()) } else { print(&format!("topic {topic} deleted")) }
        }
    }
}

fn settings(pairs: &[String]) -> Result<Map<String, Value>, Failure> {
    let pair = |pair: &String| {
        let (key, value) = pair.split_once('=')?;
        Some((key.to_owned(), Value::from(value)))
    };
    let mut settings = Map::new();
    for text in pairs {
        let wrong = || Failure::wrong_use(format!("--config: found {text:?}, allowed: KEY=VALUE"));
        let (key, value) = pair(text).ok_or_else(wrong)?;
        if settings.insert(key.clone(), value).is_some() {
            return Err(Failure::wrong_use(format!("--config: {key} is there twice")));
        }
    }
    Ok(settings)
}

fn list(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = array(&answer["topics"])
        .iter()
        .map(|topic| {
            let partitions = array(&topic["offsets"]);
            let records: i64 = partitions.iter().map(records_of).sum();
            let offline = partitions.iter().filter(|partition| partition["offline"].is_string()).count();
            let unknown = if offline > 0 { format!(", {offline} partitions offline") } else { String::new() };
            vec![cell(&topic["topic"]), cell(&topic["partitions"]), format!("{records}{unknown}")]
        })
        .collect();
    table(&["TOPIC", "PARTITIONS", "RECORDS"], &rows)
}

fn describe(topic: &Value) -> String {
    let mut text = format!("topic {}\nid    {}\n", cell(&topic["topic"]), cell(&topic["id"]));
    for (key, value) in topic["config"].as_object().into_iter().flatten() {
        text.push_str(&format!("{key} = {}\n", cell(value)));
    }
    let rows: Vec<Vec<String>> = array(&topic["offsets"])
        .iter()
        .map(|partition| {
            ["partition", "log_start", "tail", "flushed"].iter().map(|name| cell(&partition[*name])).collect()
        })
        .collect();
    text.push_str(&table(&["PARTITION", "LOG START", "TAIL", "FLUSHED"], &rows));
    for partition in array(&topic["offsets"]) {
        for why in [&partition["stopped"], &partition["offline"]].into_iter().filter_map(Value::as_str) {
            text.push_str(&format!("{why}\n"));
        }
        for range in array(&partition["damaged"]) {
            let (number, from, to) = (cell(&partition["partition"]), cell(&range["from"]), cell(&range["to"]));
            text.push_str(&format!("partition {number}: offsets {from}..{to} are damaged on disk\n"));
        }
    }
    text
}

fn records_of(partition: &Value) -> i64 {
    partition["tail"].as_i64().unwrap_or(0) - partition["log_start"].as_i64().unwrap_or(0)
}

/// The elements of a list; none if it is no list.
pub(super) fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
