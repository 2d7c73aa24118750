//! A thousand triggers on one topic: each gets what is its own, and while nothing comes they cost next to nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Broker, alone, until};

const TRIGGERS: usize = 1_000;
/// The aim is 16 KiB, in a release build; a little more is a debug build's.
const KIB_PER_TRIGGER_MAX: f64 = 16.0;
const SETTLE: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(3);
/// More often, in a second of idleness, that a thread of the process came to itself, than with no trigger at all.
const WAKES_PER_SECOND_MAX: u64 = 10;

type Arrived = Arc<Mutex<BTreeMap<String, BTreeSet<i64>>>>;

/// Answers every request with 200 and notes the `n` of the events of each path.
fn receiver() -> (String, Arrived) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let arrived = Arrived::default();
    let noted = Arc::clone(&arrived);
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let noted = Arc::clone(&noted);
            thread::spawn(move || answer_all(&socket, &noted));
        }
    });
    (address, arrived)
}

fn answer_all(mut socket: &TcpStream, noted: &Arrived) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    loop {
        let (mut line, mut length) = (String::new(), 0);
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap().to_owned();
        while !line.trim().is_empty() {
            line.clear();
            reader.read_line(&mut line).unwrap();
            if let Some(found) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = found.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let events: Vec<Value> = serde_json::from_slice(&body).unwrap();
        let numbers = events.iter().map(|event| event["data"]["n"].as_i64().unwrap());
        noted.lock().unwrap().entry(path).or_default().extend(numbers);
        if socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
            return;
        }
    }
}

/// What trigger `n` wants: its own number; every tenth also a range.
fn wants(trigger: i64, number: i64) -> bool {
    number == trigger || (trigger % 10 == 0 && (trigger + 500..trigger + 503).contains(&number))
}

fn definition(address: &str, n: usize) -> String {
    let range = format!(", {{ numeric: [ '>=', {}, '<', {} ] }}", n + 500, n + 503);
    let range = if n.is_multiple_of(10) { range.as_str() } else { "" };
    format!(
        "---
trigger: t{n}
input: {{ topic: many, start: earliest }}
filter: {{ data: {{ n: [ {n}{range} ], kind: [ {{ prefix: want }} ] }} }}
function: {{ http: {{ url: 'http://{address}/t{n}' }} }}
"
    )
}

fn resident_kib(broker: &Broker) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", broker.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

/// How often threads of the process have waited for something so far.
fn waits(broker: &Broker) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", broker.pid())).unwrap();
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    let count = |status: String| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
    };
    statuses.filter_map(count).sum()
}

fn wakes_per_second(broker: &Broker) -> u64 {
    let before = waits(broker);
    thread::sleep(IDLE);
    (waits(broker).saturating_sub(before)) / IDLE.as_secs()
}

#[test]
fn a_thousand_triggers_get_their_own_records_and_cost_little_while_idle() {
    let _alone = alone();
    let (address, arrived) = receiver();
    let broker = Broker::start();
    // One of them, so that what all share is there before.
    broker.apply(&format!("topic: many\n{}", definition(&address, TRIGGERS)));
    thread::sleep(SETTLE);
    let (before_kib, wakes_before) = (resident_kib(&broker), wakes_per_second(&broker));
    for half in [0..TRIGGERS / 2, TRIGGERS / 2..TRIGGERS] {
        let definitions: String = half.map(|n| definition(&address, n)).collect();
        let file = broker.file("many.yaml", &definitions);
        broker.tripline(&["apply", "-f", &file.display().to_string()]);
    }
    thread::sleep(SETTLE);
    let each_kib = (resident_kib(&broker) - before_kib) / TRIGGERS as f64;
    let wakes = wakes_per_second(&broker);
    println!("{each_kib:.1} KiB a trigger; {wakes} wake-ups a second, {wakes_before} without them");
    assert!(each_kib < KIB_PER_TRIGGER_MAX, "{each_kib} KiB a trigger");
    assert!(wakes <= wakes_before + WAKES_PER_SECOND_MAX, "{wakes} wake-ups a second, {wakes_before} without triggers");

    let mut lines = String::new();
    for n in 0..TRIGGERS {
        let kind = if n % 7 == 3 { "other" } else { "wanted" };
        writeln!(lines, "{{\"n\": {n}, \"kind\": \"{kind}\"}}").unwrap();
    }
    let records = broker.file("records.ndjson", &lines);
    broker.tripline(&["produce", "many", "--file", &records.display().to_string()]);
    let mut expected: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
    for trigger in 0..=TRIGGERS as i64 {
        let own = (0..TRIGGERS as i64).filter(|&n| n % 7 != 3 && wants(trigger, n));
        let own: BTreeSet<i64> = own.collect();
        if !own.is_empty() {
            expected.insert(format!("/t{trigger}"), own);
        }
    }
    until("all triggers at the end", || {
        let listed = broker.tripline(&["trigger", "list", "--json"]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let listed = listed["triggers"].as_array().unwrap();
        let behind = listed.iter().filter(|trigger| trigger["lag"] != 0).count();
        let at_the_end = listed.len() == TRIGGERS + 1 && behind == 0;
        if at_the_end { Ok(()) } else { Err(format!("{behind} of {} behind", listed.len())) }
    });
    assert_eq!(*arrived.lock().unwrap(), expected);
}
