//! A disk that fails a sync under the running broker: the partition stops and says so wherever a user looks, until a restart.

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

fn get(broker: &Broker, path: &str) -> String {
    let address = broker.http.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    std::io::read_to_string(stream).unwrap()
}

fn produce(broker: &Broker) -> Result<String, String> {
    let file = broker.file("record.json", "\"x\"\n");
    let ran = broker.command(&["produce", "t", "--file", &file.display().to_string()]);
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if ran.status.success() { Ok(said(&ran.stdout)) } else { Err(said(&ran.stderr)) }
}

#[test]
fn a_partition_whose_sync_failed_takes_no_writes_and_says_so_until_a_restart() {
    let _alone = alone();
    let mut broker = Broker::start();
    broker.apply("topic: t\n");
    produce(&broker).unwrap();
    let Some(failing) = FailingSyncs::of(broker.pid()) else {
        println!("SKIP: a failed sync: strace is not installed or may not attach");
        return;
    };
    let refused = produce(&broker).unwrap_err();
    assert!(refused.contains("not known to be on disk") && refused.contains("restart"), "{refused}");
    drop(failing);
    // The disk is well again. A sync that answers well now would prove nothing.
    let refused = produce(&broker).unwrap_err();
    assert!(refused.contains("nothing was appended") && refused.contains("Input/output error"), "{refused}");
    let topic: Value = serde_json::from_str(&broker.tripline(&["topic", "describe", "t", "--json"])).unwrap();
    let stopped = topic["offsets"][0]["stopped"].as_str().unwrap();
    assert!(stopped.contains("while flushing"), "{stopped}");
    let metrics = get(&broker, "/metrics");
    assert!(metrics.contains("tripline_partition_stopped{topic=\"t\",partition=\"0\"} 1"), "{metrics}");
    assert!(broker.tripline(&["consume", "t", "-n", "1"]).contains('x'), "it is served for reading");
    broker.kill();
    broker.restart();
    produce(&broker).unwrap();
    let metrics = get(&broker, "/metrics");
    assert!(metrics.contains("tripline_partition_stopped{topic=\"t\",partition=\"0\"} 0"), "{metrics}");
}
