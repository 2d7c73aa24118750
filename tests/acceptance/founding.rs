//! The story that Tripline is for: two records at once, or what is there after the interval.

use std::thread;
use std::time::Duration;

use crate::harness::{Broker, Script, alone, python};

const INTERVAL_MS: i64 = 10_000;
const TOLERANCE_MS: i64 = 500;
/// A cold start on a busy machine is in it.
const AT_ONCE_MS: i64 = 3_000;

#[test]
fn three_quick_messages_are_two_records_at_once_and_one_after_ten_seconds() {
    let Some(python) = python() else { return };
    let _alone = alone();
    let broker = Broker::start();
    let app = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/hello/app.yaml");
    println!("{}", broker.tripline(&["apply", "-f", app]));

    let mut producer = Script::start(&python, "send.py", &[broker.kafka(), "greetings", "one", "two", "three"]);
    let sent_ms = producer.json()["acknowledged_ms"].as_i64().unwrap();
    producer.finish();

    let lines = broker.wait_for_logs("hello", 2);
    let (first_ms, second_ms) = (lines[0].time_ms - sent_ms, lines[1].time_ms - sent_ms);
    println!("two records after {first_ms} ms, one after {second_ms} ms");
    assert!(lines[0].text.contains("2 record(s): ['one', 'two']"), "{lines:?}");
    assert!(lines[1].text.contains("1 record(s): ['three']"), "{lines:?}");
    assert!(first_ms < AT_ONCE_MS, "{first_ms} ms");
    assert!((second_ms - INTERVAL_MS).abs() <= TOLERANCE_MS, "{second_ms} ms");

    // Another interval brings nothing: there is no invocation without records.
    thread::sleep(Duration::from_millis((INTERVAL_MS + TOLERANCE_MS).unsigned_abs()));
    let lines = broker.logs("hello");
    assert_eq!(lines.len(), 2, "{lines:?}");
    let trigger = broker.trigger("greet");
    assert_eq!((trigger["lag"].as_i64(), trigger["counts"]["delivered"].as_i64()), (Some(0), Some(3)), "{trigger}");
}
