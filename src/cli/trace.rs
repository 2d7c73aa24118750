//! `tripline trace`.

use jiff::Timestamp;
use serde_json::Value;

use super::client::{Client, encoded};
use super::failure::Failure;
use super::output::{Output, cell, gist};
use super::topic::array;
use crate::event::time_text;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tripline trace flights/0/41               the record at offset 41 of partition 0
  tripline trace 0-41 --topic flights       the same, by the id that it gets as an event
  tripline trace 7f3c-LH400                 the newest event with this id of its own")]
pub(super) struct TraceArgs {
    /// TOPIC/PARTITION/OFFSET; with --topic, PARTITION-OFFSET; else the event's own id.
    event: String,
    /// The topic of the event; all are searched otherwise.
    #[arg(long)]
    topic: Option<String>,
    /// Records that a search for an id looks at, from the newest on.
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
}

pub(super) async fn run(args: TraceArgs, client: &Client, output: Output) -> Result<(), Failure> {
    let topic = args.topic.map(|topic| format!("topic={}", encoded(&topic)));
    let limit = args.limit.map(|limit| format!("limit={limit}"));
    let query: Vec<String> = topic.into_iter().chain(limit).collect();
    let story = client.get(&format!("/v1/events/{}?{}", encoded(&args.event), query.join("&"))).await?;
    output.show(&story, tell)
}

fn tell(story: &Value) -> String {
    let mut lines = Vec::new();
    event(&story["event"], &mut lines);
    for told in array(&story["triggers"]) {
        lines.push(String::new());
        trigger(told, story["now_ms"].as_i64().unwrap_or(0), &mut lines);
    }
    if array(&story["triggers"]).is_empty() {
        lines.push("\nno trigger reads this topic".to_owned());
    }
    lines.push(String::new());
    history(story, &mut lines);
    // What functions and producers say must not steer a terminal.
    lines.iter().map(|line| clean(line) + "\n").collect()
}

fn clean(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect::<String>().trim_end().to_owned()
}

/// Name, padding, value.
fn fact(name: &str, value: &str) -> String {
    format!("  {name:<9} {value}")
}

fn event(event: &Value, lines: &mut Vec<String>) {
    lines.push(format!("event {}/{}/{}", cell(&event["topic"]), event["partition"], event["offset"]));
    if let Some(gone) = event["gone"].as_str() {
        return lines.push(fact("gone", gone));
    }
    let when = event["timestamp_ms"].as_i64().map_or_else(|| "at an unknown time".to_owned(), time);
    let key = event["key"].as_str().map_or_else(|| "no key".to_owned(), |key| format!("key {key}"));
    lines.push(fact("produced", &format!("{when}, {} bytes, {key}", event["size_bytes"])));
    let (id, source, kind) = (cell(&event["id"]), cell(&event["source"]), cell(&event["type"]));
    lines.push(fact("id", &format!("{id} of {source}, type {kind}")));
    if let Some(parent) = event["traceparent"].as_str() {
        lines.push(fact("trace", parent));
    }
}

fn trigger(told: &Value, now_ms: i64, lines: &mut Vec<String>) {
    let outcome = cell(&told["outcome"]).replace('-', " ");
    lines.push(format!("trigger {}: {outcome}: {}", cell(&told["trigger"]), cell(&told["summary"])));
    if let Some(state) = told["state"].as_str().filter(|state| *state != "Running") {
        let reason = told["state_reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
        lines.push(fact("state", &format!("{state}{reason}")));
    }
    lines.push(fact("function", &cell(&told["function"])));
    match told["matches"].as_bool() {
        Some(true) => lines.push(fact("filter", "takes it")),
        Some(false) => lines.push(fact("filter", "turns it away, by the definition in force now:")),
        None => lines.push(fact("filter", "not asked, the record or the trigger is gone")),
    }
    for why in array(&told["why_not"]) {
        let (path, expected, found) = (cell(&why["path"]), cell(&why["expected"]), cell(&why["found"]));
        lines.push(fact("", &format!("{path}: wanted {expected}, found {found}")));
    }
    let mut dated: Vec<(i64, String)> = Vec::new();
    dated.extend(array(&told["attempts"]).iter().map(|told| (told["began_ms"].as_i64().unwrap_or(0), attempt(told))));
    dated.extend(array(&told["verdicts"]).iter().map(|told| (told["at_ms"].as_i64().unwrap_or(0), verdict(told))));
    dated.sort_by_key(|(at_ms, _)| *at_ms);
    let mut windows: Vec<String> = Vec::new();
    for attempt in array(&told["attempts"]) {
        let window = format!("{} ({} record(s))", cell(&attempt["window"]), attempt["records"]);
        if windows.last() != Some(&window) {
            windows.push(window);
        }
    }
    if !windows.is_empty() {
        lines.push(fact("window", &windows.join(", then ")));
    }
    lines.extend(dated.into_iter().map(|(at_ms, text)| format!("  {}  {text}", time(at_ms))));
    if let Some(pending) = told.get("pending").filter(|pending| pending.is_object()) {
        lines.push(fact("now", &next(pending, now_ms)));
    }
}

fn attempt(told: &Value) -> String {
    let took_ms = told["took_ms"].as_f64().unwrap_or(0.0);
    let mut text = format!("attempt {}: {}", told["attempt"], cell(&told["outcome"]));
    if let Some(code) = told["code"].as_str().filter(|code| !code.is_empty()) {
        text.push_str(&format!(" {code}"));
    }
    text.push_str(&format!(" after {took_ms:.1} ms"));
    if let Some(message) = told["message"].as_str().filter(|message| !message.is_empty()) {
        text.push_str(&format!(": {}", gist(message)));
    }
    if told["partial"] == true {
        text.push_str(", others of its window came out differently");
    }
    if let Some(interrupted) = told["interrupted"].as_u64().filter(|interrupted| *interrupted > 0) {
        text.push_str(&format!("; the broker had stopped during it {interrupted} time(s)"));
    }
    let began_ms = told["began_ms"].as_i64().unwrap_or(0);
    let at = told["follows_at_ms"].as_i64().map(|at_ms| format!(" at {}", moment(at_ms, began_ms))).unwrap_or_default();
    let follows = match told["follows"].as_str() {
        None => return text,
        Some("retry") => "next attempt",
        Some("throttled") => "the target asked to slow down: again",
        Some("outage") => "the target cannot be reached: again",
        Some("broken-code") => "the code does not run: again after new code or a resume",
        Some("blocked") => "tried until it succeeds: again",
        Some(_) => "given up",
    };
    text + &format!(" → {follows}{at}")
}

fn verdict(told: &Value) -> String {
    let letter = &told["dead_letter"];
    if letter.is_null() {
        return format!("given up ({}) and dropped: there was no dead-letter topic", cell(&told["reason"]));
    }
    let place = match letter["offset"].as_i64() {
        Some(offset) => format!("{}/{}/{offset}", cell(&letter["topic"]), letter["partition"]),
        None => format!("in {}/{}, where is not known any more", cell(&letter["topic"]), letter["partition"]),
    };
    format!("given up ({}): dead letter {place}", cell(&told["reason"]))
}

fn next(pending: &Value, now_ms: i64) -> String {
    let mut parts = Vec::new();
    if let Some(attempt) = pending["attempt"].as_u64() {
        parts.push(format!("attempt {attempt}"));
    }
    if let Some(began_ms) = pending["began_ms"].as_i64() {
        parts.push(format!(
            "running since {} ({} ms)",
            moment(began_ms, now_ms),
            now_ms.saturating_sub(began_ms).max(0)
        ));
    }
    if let Some(until_ms) = pending["until_ms"].as_i64() {
        parts.push(format!("at {}, {}", moment(until_ms, now_ms), in_time(until_ms, now_ms)));
    }
    if let Some(ahead) = pending["windows_ahead"].as_u64() {
        parts.push(format!("{ahead} window(s) ahead"));
    }
    if let Some(behind) = pending.get("behind").filter(|behind| behind.is_object()) {
        let mut text = format!("behind offset {}, {} attempt(s)", behind["offset"], behind["attempts"]);
        if let Some(until_ms) = behind["until_ms"].as_i64() {
            text.push_str(&format!(", next at {}, {}", moment(until_ms, now_ms), in_time(until_ms, now_ms)));
        }
        if let Some(error) = behind["last_error"].as_str() {
            text.push_str(&format!(", last error: {}", gist(error)));
        }
        parts.push(text);
    }
    if let Some(at) = pending["reading_at"].as_i64() {
        parts.push(format!("the trigger reads at offset {at}"));
    }
    if parts.is_empty() { "waits for its turn".to_owned() } else { parts.join(", ") }
}

fn in_time(until_ms: i64, now_ms: i64) -> String {
    let left_ms = until_ms.saturating_sub(now_ms);
    match left_ms {
        i64::MIN..=0 => "due".to_owned(),
        1..=9_999 => format!("in {left_ms} ms"),
        10_000..=599_999 => format!("in {} s", left_ms / 1000),
        _ => format!("in {} min", left_ms / 60_000),
    }
}

fn history(story: &Value, lines: &mut Vec<String>) {
    let history = &story["history"];
    let since =
        history["since_ms"].as_i64().map_or_else(|| "there is none yet".to_owned(), |ms| format!("since {}", time(ms)));
    let mut text = format!("history {since}");
    if let Some(bound) = history["searched"]["bound"].as_str() {
        text.push_str(&format!("; not all of it was looked at: the bound on {bound} was reached"));
    }
    if let Some(dropped) = history["dropped"].as_u64().filter(|dropped| *dropped > 0) {
        text.push_str(&format!("; {dropped} attempt(s) and verdict(s) are missing since the broker started"));
    }
    lines.push(text);
}

fn time(unix_ms: i64) -> String {
    Timestamp::from_millisecond(unix_ms).map_or_else(|_| unix_ms.to_string(), time_text)
}

/// The time of day, in UTC, where `reference_ms` is on the same day; else the date too.
fn moment(unix_ms: i64, reference_ms: i64) -> String {
    let (moment, reference) = (time(unix_ms), time(reference_ms));
    match (moment.split_once('T'), reference.split_once('T')) {
        (Some((day, time)), Some((other, _))) if day == other => time.to_owned(),
        _ => moment,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn story() -> Value {
        json!({
            "now_ms": 1_700_000_010_000_i64,
            "event": {
                "topic": "flights", "partition": 0, "offset": 41, "timestamp_ms": 1_700_000_000_000_i64, "size_bytes": 213,
                "key": "LH400", "id": "e-17", "source": "/airport", "type": "late",
                "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            },
            "triggers": [
                {
                    "trigger": "audit", "function": "audit", "outcome": "not-matched", "summary": "the filter turns it away",
                    "state": "Running", "matches": false, "attempts": [], "verdicts": [],
                    "why_not": [{"alternative": 0, "path": "data.delay", "expected": "[{\"numeric\":[\">\",60]}]", "found": "12"}],
                },
                {
                    "trigger": "slow", "function": "http://127.0.0.1/", "outcome": "waiting", "summary": "waits for attempt 2",
                    "state": "Outage", "state_reason": "refused", "matches": true, "why_not": [], "verdicts": [],
                    "attempts": [{
                        "window": "slow/flights/0/41", "records": 1, "attempt": 1, "interrupted": 1, "began_ms": 1_700_000_000_100_i64,
                        "took_ms": 31.5, "outcome": "failed", "partial": false, "code": "500", "message": "no\u{1b}[2Jgood",
                        "follows": "retry", "follows_at_ms": 1_700_000_020_000_i64,
                    }],
                    "pending": {"until_ms": 1_700_000_020_000_i64, "attempt": 2},
                },
                {
                    "trigger": "was", "function": "f", "outcome": "dead-lettered", "summary": "dead letter flights.dlq/0/3, after 2 attempt(s)",
                    "why_not": [], "attempts": [],
                    "verdicts": [{"reason": "attempts", "attempts": 2, "at_ms": 1_700_000_005_000_i64, "error": "failed 500",
                        "dead_letter": {"topic": "flights.dlq", "partition": 0, "offset": 3}}],
                },
            ],
            "history": {"topic": "__tripline.traces", "since_ms": 1_699_999_000_000_i64, "dropped": 2, "searched": {"records": 5, "bytes": 6}},
        })
    }

    #[test]
    fn a_story_is_told_from_the_first_to_what_is_to_come() {
        let expected = "\
event flights/0/41
  produced  2023-11-14T22:13:20.000Z, 213 bytes, key LH400
  id        e-17 of /airport, type late
  trace     00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01

trigger audit: not matched: the filter turns it away
  function  audit
  filter    turns it away, by the definition in force now:
            data.delay: wanted [{\"numeric\":[\">\",60]}], found 12

trigger slow: waiting: waits for attempt 2
  state     Outage: refused
  function  http://127.0.0.1/
  filter    takes it
  window    slow/flights/0/41 (1 record(s))
  2023-11-14T22:13:20.100Z  attempt 1: failed 500 after 31.5 ms: no [2Jgood; the broker had stopped during it 1 time(s) → next attempt at 22:13:40.000Z
  now       attempt 2, at 22:13:40.000Z, in 10 s

trigger was: dead lettered: dead letter flights.dlq/0/3, after 2 attempt(s)
  function  f
  filter    not asked, the record or the trigger is gone
  2023-11-14T22:13:25.000Z  given up (attempts): dead letter flights.dlq/0/3

history since 2023-11-14T21:56:40.000Z; 2 attempt(s) and verdict(s) are missing since the broker started
";
        assert_eq!(tell(&story()), expected);
    }

    #[test]
    fn another_day_is_told_by_its_date() {
        assert_eq!(moment(86_400_000, 0), "1970-01-02T00:00:00.000Z");
    }

    #[test]
    fn a_record_that_is_gone_says_why() {
        let story = json!({
            "now_ms": 0, "triggers": [], "history": {},
            "event": {"topic": "t", "partition": 0, "offset": 1, "gone": "retention removed it"},
        });
        assert_eq!(
            tell(&story),
            "event t/0/1\n  gone      retention removed it\n\nno trigger reads this topic\n\nhistory there is none yet\n"
        );
    }
}
