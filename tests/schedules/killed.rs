//! The real binary and the real clock: files, commands, and kill -9 at random moments.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::served::{Served, TRIPLINE};

struct Broker {
    served: Served,
}

impl Broker {
    fn start(directory: &Path) -> Self {
        let mut command = Command::new(TRIPLINE);
        command.args(["serve", "--kafka", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"]);
        Self { served: Served::start(command.arg(directory.join("data"))) }
    }

    fn run(&self, args: &[&str]) -> String {
        let output = Command::new(TRIPLINE).args(args).env("TRIPLINE_SERVER", &self.served.http).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The values of a topic's records, one a line.
    fn values(&self, topic: &str) -> Vec<String> {
        self.run(&["consume", topic, "-f", "%v\\n"]).lines().map(str::to_owned).collect()
    }

    fn kill(mut self) {
        self.served.kill();
    }
}

#[test]
fn kills_at_random_moments_neither_lose_nor_double_a_tick() {
    let seed =
        std::env::var("TRIPLINE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("TRIPLINE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("app.yaml");
    std::fs::write(&file, "schedule: s\nrate: 1s\ntopic: t\n").unwrap();
    let mut broker = Broker::start(directory.path());
    let applied = broker.run(&["apply", "-f", file.to_str().unwrap()]);
    assert_eq!(applied, "schedule s: created\n");
    for _ in 0..4 {
        // Around a tick, which comes with the second.
        std::thread::sleep(Duration::from_millis(random.u64(500..1500)));
        broker.kill();
        broker = Broker::start(directory.path());
    }
    let values = broker.values("t");
    assert!(!values.is_empty());
    let mut sorted = values.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(values, sorted, "each once, in order");
    broker.run(&["schedule", "delete", "s"]);
}

#[test]
fn the_commands_show_and_change_schedules() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(directory.path());
    let file = directory.path().join("app.yaml");
    let text = "topic: ticks\n---\nschedule: nightly\ncron: \"30 2 * * *\"\ntimezone: Europe/Berlin\ntopic: ticks\ndata: { a: 1 }\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    assert!(broker.run(&["apply", "-f", file, "--dry-run"]).contains("schedule nightly: created (dry run)"));
    assert!(broker.run(&["apply", "-f", file]).contains("schedule nightly: created"));
    assert!(broker.run(&["apply", "-f", file]).contains("schedule nightly: unchanged"));
    assert!(broker.run(&["apply", "-f", file, "--dry-run"]).contains("schedule nightly: unchanged (dry run)"));
    let list = broker.run(&["schedule", "list"]);
    assert!(list.contains("cron 30 2 * * *") && list.contains("Europe/Berlin"), "{list}");
    assert!(broker.run(&["schedule", "describe", "nightly"]).contains("to topic ticks, partition 0"));
    let next = broker.run(&["schedule", "next", "nightly", "-n", "3"]);
    assert_eq!(next.lines().count(), 4, "{next}");
    assert!(next.contains("T02:30:00+0") || next.contains("T03:00:00+02:00"), "{next}");
    assert_eq!(broker.run(&["schedule", "pause", "nightly"]), "schedule nightly: Paused: a person paused it\n");
    assert!(broker.run(&["schedule", "next", "nightly"]).ends_with("it is paused: these are what it would do\n"));
    assert_eq!(broker.run(&["schedule", "resume", "nightly"]), "schedule nightly: Running\n");
    // What is exported makes it again.
    let exported = broker.run(&["export"]);
    let copy = directory.path().join("copy.yaml");
    std::fs::write(&copy, &exported).unwrap();
    assert!(broker.run(&["apply", "-f", copy.to_str().unwrap()]).contains("schedule nightly: unchanged"), "{exported}");
    assert!(broker.run(&["get", "schedule", "nightly"]).starts_with("schedule: \"nightly\"\n"));
    assert_eq!(broker.run(&["delete", "schedule", "nightly"]), "schedule nightly deleted\n");
    assert_eq!(broker.run(&["schedule", "list"]).lines().count(), 1);
    broker.kill();
}
