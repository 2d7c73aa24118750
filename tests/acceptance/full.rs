//! A disk that fills up under the running broker, or is full when it starts: what goes on from the reserve, what waits
//! when it is spent, and how all of it goes on by itself when there is room again.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Broker, Script, alone, python, until};

/// An eighth of it is the reserve.
const DISK_BYTES: u64 = 64 << 20;
/// Together more than the reserve, so that it cannot hold all dead letters.
const RECORDS: u64 = 150;
const RECORD_BYTES: usize = 100_000;

const CODE: &str = "def handler(event, context):\n    raise ValueError(event[0]['data']['n'])\n";

fn record(number: u64) -> String {
    format!("{{\"n\": {number}, \"fill\": \"{}\"}}\n", "x".repeat(RECORD_BYTES))
}

/// Whatever space is left is somebody else's now; the file that holds it.
fn fill(broker: &Broker) -> PathBuf {
    let path = broker.data().join("of somebody else");
    let mut file = File::create(&path).unwrap();
    let block = [7; 4096];
    loop {
        match file.write_all(&block) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull);
                return path;
            }
        }
    }
}

/// A broker with a trigger that has all its work before it, on a disk that is full.
fn start() -> Option<(Broker, PathBuf)> {
    let broker = Broker::start_on_small_disk(DISK_BYTES)?;
    broker.apply("topic: other");
    broker.apply_failing(CODE, "{ max_attempts: 1 }");
    broker.tripline(&["trigger", "pause", "pay"]);
    for first in (0..RECORDS).step_by(10) {
        broker.produce("orders", &(first..first + 10).map(record).collect::<String>()).unwrap();
    }
    let filler = fill(&broker);
    // Each log has some space reserved ahead of its tail.
    let refused = until("refusal", || broker.produce("other", &record(0)).map_or_else(Ok, Err));
    assert!(refused.contains("full"), "{refused}");
    assert_eq!(broker.metric("tripline_disk_full"), 1);
    Some((broker, filler))
}

fn is(trigger: &Value, state: &str) -> bool {
    trigger["state"].as_str().unwrap().eq_ignore_ascii_case(state)
}

fn tail(broker: &Broker, topic: &str) -> u64 {
    let topic: Value = serde_json::from_str(&broker.tripline(&["topic", "describe", topic, "--json"])).unwrap();
    topic["offsets"][0]["tail"].as_u64().unwrap()
}

/// Of each dead letter the number that its record has, in the order of the log.
fn dead_letters(broker: &Broker) -> Vec<u64> {
    let count = tail(broker, "orders.dlq").to_string();
    let printed = broker.tripline(&["consume", "orders.dlq", "-n", &count, "--json"]);
    let number = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        record["value"]["n"].as_u64().unwrap_or_else(|| panic!("{line:.300}"))
    };
    printed.lines().map(number).collect()
}

/// Until the trigger can write no dead letter because nothing is left; how many there are.
fn until_spent(broker: &Broker) -> u64 {
    until("trigger that waits for room", || {
        let trigger = broker.trigger("pay");
        let blocked = is(&trigger, "blocked") && trigger["reason"].as_str().unwrap().contains("full");
        if blocked { Ok(()) } else { Err(trigger.to_string()) }
    });
    assert_eq!(broker.metric("tripline_disk_reserve_bytes"), 0);
    tail(broker, "orders.dlq")
}

#[test]
fn commits_and_dead_letters_go_on_until_the_reserve_is_spent_and_then_nothing_is_dropped() {
    let Some(python) = python() else { return };
    let _alone = alone();
    let Some((mut broker, filler)) = start() else { return };
    let reserve_bytes = broker.metric("tripline_disk_reserve_bytes");
    assert!(reserve_bytes > 0, "nothing is kept back");

    let mut committer = Script::start(&python, "commit.py", &[broker.kafka(), "readers", "orders"]);
    for offset in 1..=50 {
        committer.tell(&offset.to_string());
        let said = committer.json();
        assert_eq!((&said["error"], said["committed"].as_u64()), (&Value::Null, Some(offset)), "on a full disk");
    }

    broker.tripline(&["trigger", "resume", "pay"]);
    let written = until_spent(&broker);
    println!("{written} dead letters and 50 commits from a reserve of {reserve_bytes} bytes");
    // Some may have stood in space that the log had before.
    assert!(written * RECORD_BYTES as u64 > reserve_bytes / 2, "{written} dead letters");
    assert!(written < RECORDS, "the reserve was never spent");
    assert_eq!(dead_letters(&broker), (0..written).collect::<Vec<_>>());
    assert!(broker.produce("other", &record(0)).is_err(), "nobody else takes what the reserve gave");
    assert!(broker.tripline(&["consume", "orders", "-n", "1"]).contains("\"n\""), "it is served for reading");

    fs::remove_file(filler).unwrap();
    until("trigger that has done all", || {
        let trigger = broker.trigger("pay");
        if trigger["lag"] == 0 && is(&trigger, "running") { Ok(()) } else { Err(trigger.to_string()) }
    });
    assert_eq!(dead_letters(&broker), (0..RECORDS).collect::<Vec<_>>(), "each once, in order");
    until("record that is taken again", || broker.produce("other", &record(0)));
    assert_eq!(broker.metric("tripline_disk_reserve_bytes"), reserve_bytes, "it is whole again");
    committer.tell("51");
    assert_eq!(committer.json()["committed"], 51);

    broker.kill();
    broker.restart();
    let readers: Value = serde_json::from_str(&broker.tripline(&["group", "describe", "readers", "--json"])).unwrap();
    assert_eq!(readers["offsets"][0]["committed"], 51, "{readers}");
    assert_eq!((tail(&broker, "orders.dlq"), broker.trigger("pay")["lag"].as_u64()), (RECORDS, Some(0)));
}

/// The log files below a directory.
fn logs(dir: &Path) -> Vec<PathBuf> {
    let entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let (dirs, files): (Vec<_>, Vec<_>) = entries.into_iter().partition(|path| path.is_dir());
    let found = files.into_iter().filter(|path| path.extension().is_some_and(|it| it == "log"));
    found.chain(dirs.iter().flat_map(|dir| logs(dir))).collect()
}

#[test]
fn a_partition_without_room_at_the_start_is_served_when_there_is_some_without_another_start() {
    let _alone = alone();
    let Some(mut broker) = Broker::start_on_small_disk(DISK_BYTES) else { return };
    broker.apply("topic: orders");
    broker.produce("orders", &record(0)).unwrap();
    broker.kill();
    // As a power cut leaves it: what is no batch has to be kept, and the reserve has no room for so much.
    let log = logs(&broker.data().join("topics")).remove(0);
    File::options().append(true).open(log).unwrap().write_all(&vec![1; 20 << 20]).unwrap();
    let filler = fill(&broker);
    broker.restart();
    let offline = r#"tripline_partition_offline{topic="orders",partition="0"}"#;
    assert_eq!((broker.metric(offline), broker.metric("tripline_disk_full")), (1, 1));
    let described = broker.tripline(&["topic", "describe", "orders"]);
    assert!(described.contains("tried again when there is room"), "{described}");

    fs::remove_file(filler).unwrap();
    until("partition that is there", || if broker.metric(offline) == 0 { Ok(()) } else { Err("offline".to_owned()) });
    broker.produce("orders", &record(1)).unwrap();
    assert_eq!(tail(&broker, "orders"), 2);
    assert_eq!(broker.tripline(&["consume", "orders", "-n", "2"]).lines().count(), 2);
}
