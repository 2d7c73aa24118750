//! The broker in a process of its own.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;

/// The binary.
pub(crate) const TRIPLINE: &str = env!("CARGO_BIN_EXE_tripline");

/// A broker that is ready. It is killed when this is dropped.
pub(crate) struct Served {
    pub(crate) child: Child,
    /// Where Kafka clients connect.
    pub(crate) kafka: String,
    /// The URL of the HTTP API.
    pub(crate) http: String,
}

impl Served {
    /// Runs `command`, which serves, and waits until the broker says that it is ready.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut kafka, mut http) = (None, None);
        for line in lines.by_ref().map_while(Result::ok) {
            let after = |word: &str| line.trim_start().strip_prefix(word).map(|rest| rest.trim().to_owned());
            kafka = kafka.or_else(|| after("Kafka "));
            http = http.or_else(|| after("HTTP "));
            if line.starts_with("ready.") {
                break;
            }
        }
        // Whatever it prints later must not fill the pipe.
        thread::spawn(move || lines.for_each(drop));
        let kafka = kafka.expect("the broker says where Kafka is");
        Self { child, kafka, http: http.expect("the broker says where HTTP is") }
    }

    /// As `kill -9` does; answers when it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
