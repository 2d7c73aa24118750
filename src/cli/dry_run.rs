//! `tripline trigger dry-run`.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use http::Method;
use serde_json::{Map, Value, json};

use super::client::{Client, encoded};
use super::failure::Failure;
use super::output::{Output, cell, table};
use super::runs::{RangeArgs, TopicArgs, pattern};
use super::topic::array;

/// How long the broker looks before it says how far it is.
const STEP: &str = "1s";
/// Clauses that people are shown.
const CLAUSES_SHOWN: usize = 10;

#[derive(Debug, clap::Args)]
pub(super) struct DryRunArgs {
    /// The trigger.
    trigger: String,
    #[command(flatten)]
    topic: TopicArgs,
    #[command(flatten)]
    range: RangeArgs,
    /// Another filter to try: a file with an event pattern in JSON, or the pattern itself.
    #[arg(long, value_name = "FILE")]
    pattern: Option<String>,
    /// So many samples of events that match, and of events that do not.
    #[arg(long, short = 'n', default_value_t = 5)]
    samples: u32,
}

/// What several answers say together.
#[derive(Default)]
struct Total {
    counts: Map<String, Value>,
    clauses: BTreeMap<(String, String), u64>,
    samples: BTreeMap<&'static str, Vec<Value>>,
}

const COUNTS: [&str; 3] = ["matched", "turned_away", "transform_failed"];
const SAMPLES: [&str; 3] = ["matched_samples", "turned_away_samples", "transform_failures"];

impl Total {
    fn add(&mut self, answer: &Value, samples: usize) {
        for name in COUNTS {
            let before = self.counts.get(name).and_then(Value::as_u64).unwrap_or(0);
            self.counts.insert(name.to_owned(), json!(before + answer[name].as_u64().unwrap_or(0)));
        }
        for clause in array(&answer["clauses"]) {
            let name = (cell(&clause["path"]), cell(&clause["expected"]));
            *self.clauses.entry(name).or_default() += clause["events"].as_u64().unwrap_or(0);
        }
        for name in SAMPLES {
            let kept = self.samples.entry(name).or_default();
            let left = samples.saturating_sub(kept.len());
            kept.extend(array(&answer[name]).iter().take(left).cloned());
        }
    }

    fn finish(self, trigger: &str) -> Value {
        let mut clauses: Vec<_> = self.clauses.into_iter().collect();
        clauses.sort_by_key(|(_, events)| std::cmp::Reverse(*events));
        let clause = |((path, expected), events): ((String, String), u64)| json!({ "path": path, "expected": expected, "events": events });
        let mut all = json!({ "trigger": trigger, "clauses": clauses.into_iter().map(clause).collect::<Vec<_>>() });
        for (name, value) in self.counts {
            all[name] = value;
        }
        for (name, samples) in self.samples {
            all[name] = json!(samples);
        }
        all
    }
}

pub(super) async fn run(args: DryRunArgs, client: &Client, output: Output) -> Result<(), Failure> {
    let is_watched = !output.json && std::io::stderr().is_terminal();
    let path = format!("/v1/triggers/{}/dry-run", encoded(&args.trigger));
    let mut body = args.range.body();
    args.topic.add_to(&mut body);
    if let Some(text) = &args.pattern {
        body.insert("pattern".to_owned(), pattern("--pattern", text)?);
    }
    body.insert("samples".to_owned(), json!(args.samples));
    body.insert("time".to_owned(), json!(STEP));
    let mut total = Total::default();
    loop {
        let answer = client.call(Method::POST, &path, Some(&Value::Object(body.clone()))).await?;
        total.add(&answer, args.samples as usize);
        let left: Vec<&Value> = array(&answer["ranges"]).iter().filter(|range| range["next"] != range["to"]).collect();
        if is_watched && (!left.is_empty() || body.contains_key("ranges")) {
            let records: i64 =
                left.iter().map(|range| range["to"].as_i64().unwrap_or(0) - range["next"].as_i64().unwrap_or(0)).sum();
            let _ = write!(std::io::stderr(), "\r\x1b[K{records} records left");
        }
        if left.is_empty() {
            break;
        }
        let rest =
            |range: &&Value| json!({ "partition": range["partition"], "from": range["next"], "to": range["to"] });
        body.insert("ranges".to_owned(), left.iter().map(rest).collect());
        ["from", "to", "partition"].iter().for_each(|name| drop(body.remove(*name)));
    }
    if is_watched && body.contains_key("ranges") {
        let _ = writeln!(std::io::stderr());
    }
    let mut all = total.finish(&args.trigger);
    let trigger = client.get(&format!("/v1/triggers/{}", encoded(&args.trigger))).await?;
    if let Some(function) = first_function(&trigger["definition"]["transform"]) {
        all["not_invoked"] = function.into();
    }
    output.show(&all, describe)
}

/// The first step of a transform that is a function.
fn first_function(transform: &Value) -> Option<&str> {
    let steps = transform.as_array().map_or_else(|| std::slice::from_ref(transform), Vec::as_slice);
    steps.iter().find_map(|step| step["function"].as_str())
}

fn describe(all: &Value) -> String {
    let mut text = format!("{} event(s) match, {} do not\n", all["matched"], all["turned_away"]);
    if all["transform_failed"] != 0 {
        text.push_str(&format!("the transform refuses {} of those that match\n", all["transform_failed"]));
    }
    if let Some(function) = all["not_invoked"].as_str() {
        text.push_str(&format!(
            "function {function} of the transform is not invoked: what is shown is what it would get\n"
        ));
    }
    let clauses: Vec<Vec<String>> = array(&all["clauses"])
        .iter()
        .take(CLAUSES_SHOWN)
        .map(|clause| vec![cell(&clause["events"]), cell(&clause["path"]), cell(&clause["expected"])])
        .collect();
    if !clauses.is_empty() {
        text.push_str(&format!("\n{}", table(&["TURNED AWAY", "WHERE", "WANTED"], &clauses)));
    }
    for (name, title) in [("matched_samples", "matches"), ("turned_away_samples", "does not match")] {
        for sample in array(&all[name]) {
            text.push_str(&format!("\npartition {} offset {} {title}\n", sample["partition"], sample["offset"]));
            let shown = if sample["event"].is_null() {
                "  (too large to show)".to_owned()
            } else {
                format!("  {}", sample["event"])
            };
            text.push_str(&format!("{shown}\n"));
            for reason in array(&sample["explain"]) {
                let (path, expected, found) =
                    (cell(&reason["path"]), cell(&reason["expected"]), cell(&reason["found"]));
                text.push_str(&format!("  {path}: wanted {expected}, found {found}\n"));
            }
            if let Some(size_bytes) = sample["transformed_bytes"].as_u64() {
                text.push_str(&format!("  becomes {size_bytes} bytes (too large to show)\n"));
            } else if !sample["transformed"].is_null() {
                text.push_str(&format!("  becomes {}\n", sample["transformed"]));
            }
            if let Some(error) = sample["transform_error"].as_str() {
                text.push_str(&format!("  is refused: {error}\n"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_to_show_is_said_to_be() {
        let large =
            json!({ "partition": 0, "offset": 7, "event": null, "transformed": null, "transformed_bytes": 70_000 });
        let text =
            describe(&json!({ "matched": 1, "turned_away": 0, "transform_failed": 0, "matched_samples": [large] }));
        assert!(
            text.ends_with("matches\n  (too large to show)\n  becomes 70000 bytes (too large to show)\n"),
            "{text}"
        );
    }

    #[test]
    fn a_step_that_is_not_invoked_is_named() {
        assert_eq!(first_function(&json!({ "function": "f" })), Some("f"));
        assert_eq!(first_function(&json!([{ "jsonpath": "$.a" }, { "function": "f" }])), Some("f"));
        assert_eq!((first_function(&json!("original")), first_function(&Value::Null)), (None, None));
        assert!(describe(&json!({ "not_invoked": "f" })).contains("function f of the transform is not invoked"));
    }
}
