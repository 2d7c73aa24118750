//! A function that always fails: its attempts come when they should, also across a kill, and then the record is a dead
//! letter.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::harness::{Broker, LogLine, Script, alone, python, until};

const CODE: &str = r#"import json


def handler(event, context):
    print("attempt", context.attempt)
    raise ValueError("no\tgood")
"#;

const RETRY: &str = "{ initial: 500ms, factor: 2, jitter: none, max_attempts: 4 }";
const WAITS_MS: [i64; 3] = [500, 1000, 2000];
/// The first attempt begins before its cold start, which is before it prints.
const COLD_START_MS: i64 = 5_000;

/// Applies all and sends the record.
fn start(python: &str) -> Broker {
    let broker = Broker::start();
    broker.apply_failing(CODE, RETRY);
    let record = ["key \u{ff}", "value \u{1}\u{fe}", "1700000000123", "trace=abc", "trace=\u{80}", "empty=", "none"];
    let arguments: Vec<&str> = [broker.kafka(), "orders"].into_iter().chain(record).collect();
    Script::start(python, "send_one.py", &arguments).finish();
    broker
}

fn texts(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

fn waits_ms(lines: &[LogLine]) -> Vec<i64> {
    lines.windows(2).map(|pair| pair[1].time_ms - pair[0].time_ms).collect()
}

/// Where the only file of that name is.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find_map(|path| if path.is_dir() { find(&path, name) } else { path.ends_with(name).then_some(path) })
}

/// A date in the one format that is promised, in milliseconds since 1970.
fn date_ms(header: &Value) -> i64 {
    let text = header[1].as_str().unwrap();
    let time: Timestamp = text.parse().unwrap_or_else(|error| panic!("{header}: {error}"));
    assert_eq!(text, format!("{time:.3}"), "UTC with milliseconds");
    time.as_millisecond()
}

/// Reads the dead letter with a Kafka client and compares it byte for byte; answers when the first and last attempt
/// were.
fn check_dead_letter(python: &str, broker: &Broker) -> (i64, i64) {
    let mut reader = Script::start(python, "receive.py", &[broker.kafka(), "orders.dlq", "1"]);
    let record = reader.json();
    reader.finish();
    println!("{record:#}");
    assert_eq!((&record["key"], &record["value"]), (&json!("key \u{ff}"), &json!("value \u{1}\u{fe}")));
    let code = find(&broker.data(), "fail.py").unwrap();
    let message = format!(
        "Traceback (most recent call last):   File \"{}\", line 6, in handler     raise ValueError(\"no\\tgood\") ValueError: no good",
        code.display()
    );
    let headers = record["headers"].as_array().unwrap();
    let expected = json!([
        ["trace", "abc"],
        ["trace", "\u{80}"],
        ["empty", ""],
        ["none", null],
        ["tripline-dlq-trigger", "pay"],
        ["tripline-dlq-function", "fail"],
        ["tripline-dlq-topic", "orders"],
        ["tripline-dlq-partition", "0"],
        ["tripline-dlq-offset", "0"],
        ["tripline-dlq-timestamp", "2023-11-14T22:13:20.123Z"],
        ["tripline-dlq-error-class", "failed"],
        ["tripline-dlq-error-code", "ValueError"],
        ["tripline-dlq-error-message", message],
        ["tripline-dlq-attempts", "4"],
        ["tripline-dlq-first-attempt", headers[14][1]],
        ["tripline-dlq-last-attempt", headers[15][1]],
        ["tripline-dlq-redrives", "0"],
        ["tripline-dlq-leader-epoch", headers[17][1]],
    ]);
    assert_eq!(&record["headers"], &expected);
    (date_ms(&headers[14]), date_ms(&headers[15]))
}

fn check_dates((first_ms, last_ms): (i64, i64), lines: &[LogLine]) {
    let printed = (lines[0].time_ms, lines[3].time_ms);
    assert!((0..COLD_START_MS).contains(&(printed.0 - first_ms)), "{first_ms} {lines:?}");
    assert!((0..COLD_START_MS).contains(&(printed.1 - last_ms)), "{last_ms} {lines:?}");
}

#[test]
fn attempts_come_at_their_times_and_then_the_record_is_a_dead_letter() {
    let Some(python) = python() else { return };
    let _alone = alone();
    let broker = start(&python);
    let lines = broker.wait_for_logs("fail", 4);
    let waits_ms = waits_ms(&lines);
    println!("waits in ms: {waits_ms:?}");
    for (found_ms, wanted_ms) in waits_ms.iter().zip(WAITS_MS) {
        assert!((found_ms - wanted_ms).abs() <= wanted_ms / 5, "{waits_ms:?} instead of {WAITS_MS:?}");
    }
    check_dates(check_dead_letter(&python, &broker), &lines);
    assert_eq!(texts(&broker.logs("fail")), ["attempt 1", "attempt 2", "attempt 3", "attempt 4"]);
}

#[test]
fn a_kill_between_two_attempts_does_not_begin_the_count_anew() {
    let Some(python) = python() else { return };
    let _alone = alone();
    let mut broker = start(&python);
    until("wait after attempt 2", || {
        let lane = broker.trigger("pay")["lanes"][0].clone();
        let waits = lane["attempts"] == 2 && lane["next_attempt_ms"].is_i64();
        if waits { Ok(()) } else { Err(lane.to_string()) }
    });
    broker.wait_for_logs("fail", 2);
    broker.kill();
    broker.restart();
    let lines = broker.wait_for_logs("fail", 4);
    let waits_ms = waits_ms(&lines);
    println!("waits in ms: {waits_ms:?}");
    // The restart and a new cold start may make the wait that it is in longer, never shorter.
    assert!(waits_ms[1] >= WAITS_MS[1] * 4 / 5, "{waits_ms:?}");
    assert!((waits_ms[2] - WAITS_MS[2]).abs() <= WAITS_MS[2] / 5, "{waits_ms:?}");
    check_dates(check_dead_letter(&python, &broker), &lines);
    assert_eq!(texts(&broker.logs("fail")), ["attempt 1", "attempt 2", "attempt 3", "attempt 4"]);
}
