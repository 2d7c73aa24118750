//! A disk that fails a sync under the running broker: the partition stops and says so wherever a user looks, until a
//! restart.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{Broker, alone};

/// Everything that is synced from now on by the process fails with EIO, until this goes.
struct FailingSyncs(std::process::Child);

impl FailingSyncs {
    /// `None` where strace is missing or may not attach.
    fn of(pid: u32) -> Option<Self> {
        let mut strace = Command::new("strace")
            .args(["-f", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO", "-p", &pid.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        let mut lines = BufReader::new(strace.stderr.take().unwrap()).lines();
        let attached =
            lines.find_map(|line| line.ok().filter(|line| line.contains("attached") || line.contains("not")));
        // What it prints later is read and forgotten, so that it is never held up.
        std::thread::spawn(move || lines.for_each(drop));
        let failing = Self(strace);
        attached.is_some_and(|line| line.contains("attached")).then_some(failing)
    }
}

impl Drop for FailingSyncs {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0.id().cast_signed()).unwrap();
        // SIGINT lets strace detach first; the broker goes on without it.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.0.wait();
    }
}

#[test]
fn a_partition_whose_sync_failed_takes_no_writes_and_says_so_until_a_restart() {
    let _alone = alone();
    let mut broker = Broker::start();
    broker.apply("topic: t\n");
    broker.produce("t", "\"x\"\n").unwrap();
    let Some(failing) = FailingSyncs::of(broker.pid()) else {
        println!("SKIP: a failed sync: strace is not installed or may not attach");
        return;
    };
    let refused = broker.produce("t", "\"x\"\n").unwrap_err();
    assert!(refused.contains("not known to be on disk") && refused.contains("restart"), "{refused}");
    drop(failing);
    // The disk is well again. A sync that answers well now would prove nothing.
    let refused = broker.produce("t", "\"x\"\n").unwrap_err();
    assert!(refused.contains("nothing was appended") && refused.contains("Input/output error"), "{refused}");
    let topic: Value = serde_json::from_str(&broker.tripline(&["topic", "describe", "t", "--json"])).unwrap();
    let stopped = topic["offsets"][0]["stopped"].as_str().unwrap();
    assert!(stopped.contains("while flushing"), "{stopped}");
    let metrics = broker.get("/metrics");
    assert!(metrics.contains("tripline_partition_stopped{topic=\"t\",partition=\"0\"} 1"), "{metrics}");
    assert!(broker.tripline(&["consume", "t", "-n", "1"]).contains('x'), "it is served for reading");
    broker.kill();
    broker.restart();
    broker.produce("t", "\"x\"\n").unwrap();
    let metrics = broker.get("/metrics");
    assert!(metrics.contains("tripline_partition_stopped{topic=\"t\",partition=\"0\"} 0"), "{metrics}");
}
