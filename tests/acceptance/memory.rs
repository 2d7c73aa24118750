//! What waits for a slow function waits on disk, not in memory.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::harness::{Broker, Script, alone, python};

const CODE: &str = "import time


def handler(event, context):
    print('asleep', flush=True)
    time.sleep(3600)
";

const APP: &str = "
topic: backlog
---
function: sleep
runtime: python3
code: sleep.py
handler: sleep.handler
timeout: 24h
---
trigger: sleep
input: { topic: backlog, start: earliest }
window: { count: 100 }
function: sleep
";

const MORE_KIB_MAX: i64 = 8 << 10;
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

/// The memory of a broker with a backlog of `count` records behind a function that does not come back.
fn with_backlog(python: &str, count: u32) -> Memory {
    let broker = Broker::start();
    broker.file("sleep.py", CODE);
    broker.apply(APP);
    Script::start(python, "send_many.py", &[&broker.kafka, "backlog", &count.to_string()]).finish();
    broker.wait_for_logs("sleep", 1);
    assert_eq!(broker.trigger("sleep")["lag"], count, "nothing is finished");
    thread::sleep(SETTLE);
    let memory = Memory::of(broker.pid());
    println!("{count} records: {memory:?}");
    memory
}

#[test]
fn a_million_waiting_records_need_no_more_memory_than_ten_thousand() {
    let Some(python) = python() else { return };
    let _alone = alone();
    let few = with_backlog(&python, 10_000);
    let many = with_backlog(&python, 1_000_000);
    let more_kib = many.resident_kib - few.resident_kib;
    println!("more: {more_kib} KiB, of it {} KiB of files", many.file_kib - few.file_kib);
    assert!(many.anonymous_kib - few.anonymous_kib <= MORE_KIB_MAX, "{few:?} {many:?}");
    assert!(more_kib <= MORE_KIB_MAX, "{few:?} {many:?}");
}
