//! A broker of our own, on free ports and a directory of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::Failure;

/// A running broker; killed when this goes.
pub(crate) struct Broker {
    process: Child,
    /// Where Kafka clients connect.
    pub(crate) address: SocketAddr,
    /// Kept open: a broker whose output nobody takes would notice.
    _output: BufReader<ChildStdout>,
}

impl Broker {
    /// Starts it and returns as soon as it listens.
    pub(crate) fn start(binary: &Path, data: &Path) -> Result<Self, Failure> {
        let mut command = Command::new(binary);
        command.args(["serve", "--kafka", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"]).arg(data);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let output = process.stdout.take().ok_or("the broker has no output")?;
        let mut output = BufReader::new(output);
        match listening(&mut output) {
            Ok(address) => Ok(Self { process, address, _output: output }),
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(error)
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn listening(output: &mut impl BufRead) -> Result<SocketAddr, Failure> {
    let mut line = String::new();
    loop {
        line.clear();
        if output.read_line(&mut line)? == 0 {
            return Err("the broker ended before it listened".into());
        }
        if let Some(address) = line.trim().strip_prefix("Kafka") {
            return Ok(address.trim().parse()?);
        }
    }
}
