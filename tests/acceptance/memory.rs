//! What waits for a slow function waits on disk, not in memory.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::harness::{Broker, Script, alone, python};

const CODE: &str = "import time


def sleep(event, context):
    print('asleep', flush=True)
    time.sleep(3600)


def fail(event, context):
    print('failed', flush=True)
    raise ValueError('no good')
";

/// A function that does not come back.
const ASLEEP: &str = "
topic: backlog
---
function: sleep
runtime: python3
code: functions.py
handler: functions.sleep
timeout: 24h
---
trigger: partition
input: { topic: backlog, start: earliest }
order: partition
function: sleep
---
trigger: none
input: { topic: backlog, start: earliest }
order: none
function: sleep
";

/// One that fails: its triggers read on for keys that it might take.
const FAILING: &str = "
topic: backlog
---
function: fail
runtime: python3
code: functions.py
handler: functions.fail
---
trigger: key
input: { topic: backlog, start: earliest }
order: key
function: fail
retry: { initial: 200ms, factor: 2, max_interval: 60s, max_attempts: 1000 }
errors_tolerance: none
";

/// More keys than a lane keeps at a time.
const MANY_KEYS: u32 = 100_000;

const MORE_KIB_MAX: i64 = 8 << 10;
/// What 10,000 keys, which is what a lane keeps, their windows and what trying them left behind may need.
const KEYS_KIB_MAX: i64 = 24 << 10;
/// What the last requests needed is given back in this time.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Memory {
    resident_kib: i64,
    anonymous_kib: i64,
    file_kib: i64,
}

impl Memory {
    fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_end_matches("kB").trim().parse().unwrap()
        };
        Self { resident_kib: field("VmRSS:"), anonymous_kib: field("RssAnon:"), file_kib: field("RssFile:") }
    }
}

/// The memory of a broker with a backlog of `count` records of so many keys, none of which is finished.
fn with_backlog(python: &str, app: &str, count: u32, keys: u32) -> Memory {
    let broker = Broker::start();
    broker.file("functions.py", CODE);
    broker.apply(app);
    let (records, keys) = (count.to_string(), keys.to_string());
    Script::start(python, "send_many.py", &[broker.kafka(), "backlog", &records, &keys]).finish();
    let (function, triggers) =
        if app == ASLEEP { ("sleep", ["partition", "none"].as_slice()) } else { ("fail", ["key"].as_slice()) };
    broker.wait_for_logs(function, triggers.len());
    thread::sleep(SETTLE);
    for trigger in triggers {
        assert_eq!(broker.trigger(trigger)["lag"], count, "{trigger}: nothing is finished");
    }
    let memory = Memory::of(broker.pid());
    println!("{count} records of {keys} keys: {memory:?}");
    memory
}

#[test]
fn a_million_waiting_records_need_no_more_memory_than_ten_thousand() {
    let Some(python) = python() else { return };
    let _alone = alone();
    let few = with_backlog(&python, ASLEEP, 10_000, 0);
    let many = with_backlog(&python, ASLEEP, 1_000_000, 0);
    let more_kib = many.resident_kib - few.resident_kib;
    println!("more: {more_kib} KiB, of it {} KiB of files", many.file_kib - few.file_kib);
    assert!(many.anonymous_kib - few.anonymous_kib <= MORE_KIB_MAX, "{few:?} {many:?}");
    assert!(more_kib <= MORE_KIB_MAX, "{few:?} {many:?}");
}

/// In order `key` what is behind a key that fails is read for the sake of the others: of the log's pages, which the
/// kernel has anyway, more are mapped then; nothing else grows.
#[test]
fn a_million_records_behind_one_key_that_fails_or_behind_many_need_little_memory() {
    let Some(python) = python() else { return };
    let _alone = alone();
    for keys in [0, MANY_KEYS] {
        let few = with_backlog(&python, FAILING, 10_000, keys);
        let many = with_backlog(&python, FAILING, 1_000_000, keys);
        let more_kib = many.anonymous_kib - few.anonymous_kib;
        println!("{keys} keys, more: {more_kib} KiB, and {} KiB of files", many.file_kib - few.file_kib);
        let max_kib = if keys == 0 { MORE_KIB_MAX } else { KEYS_KIB_MAX };
        assert!(more_kib <= max_kib, "{keys} keys: {few:?} {many:?}");
    }
}
