//! This program once more, in a process of its own, as what the bench speaks to: its CPU time is not in what is
//! measured.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Says where it listens in its first line, and is ended with this.
pub(crate) struct Counterpart {
    process: Child,
    pub(crate) address: String,
}

impl Counterpart {
    /// Started with `arguments`, which tell it from the bench.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut process = Command::new(program).args(arguments).stdout(Stdio::piped()).spawn().expect("started");
        let mut address = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut address).expect("its address");
        Self { process, address: address.trim().to_owned() }
    }
}

impl Drop for Counterpart {
    fn drop(&mut self) {
        self.process.kill().expect("ended");
        self.process.wait().expect("ended");
    }
}
