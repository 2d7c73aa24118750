//! From exec to the first acknowledged produce.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::{Failure, load, process};

/// How long an idle broker settles before its memory is read.
const SETTLE: Duration = Duration::from_secs(2);

/// Ends the broker whatever happens.
struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn run(binary: &Path, runs: u32) -> Result<String, Failure> {
    let mut times_ms = Vec::new();
    let mut memory_mib = Vec::new();
    for n in 0..runs {
        let data = std::env::temp_dir().join(format!("tripline-bench-{}-{n}", std::process::id()));
        let measured = one(binary, &data);
        std::fs::remove_dir_all(&data)?;
        let (time, memory) = measured?;
        times_ms.push(time.as_secs_f64() * 1e3);
        memory_mib.push(memory as f64 / f64::from(1 << 20));
    }
    let [low, middle, high] = spread(&mut times_ms);
    let [memory_low, memory, memory_high] = spread(&mut memory_mib);
    Ok(format!(
        "exec to first acknowledged produce: {middle:.1} ms ({low:.1}-{high:.1}); idle memory: {memory:.1} MiB ({memory_low:.1}-{memory_high:.1}); {runs} runs"
    ))
}

fn one(binary: &Path, data: &Path) -> Result<(Duration, u64), Failure> {
    let begun = Instant::now();
    let mut command = Command::new(binary);
    command.args(["serve", "--kafka", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"]).arg(data);
    let mut broker = Broker(command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?);
    let output = broker.0.stdout.take().ok_or("the broker has no output")?;
    let mut lines = BufReader::new(output).lines();
    let address = loop {
        let line = lines.next().ok_or("the broker ended before it listened")??;
        if let Some(address) = line.trim().strip_prefix("Kafka") {
            break address.trim().parse::<SocketAddr>()?;
        }
    };
    let mut client = Client::connect(address)?;
    load::create_topic(&mut client, "first")?;
    load::produce_once(&mut client, "first")?;
    let time = begun.elapsed();
    drop(client);
    std::thread::sleep(SETTLE);
    Ok((time, process::resident_bytes(broker.0.id())?))
}

/// Smallest, middle and largest.
fn spread(values: &mut [f64]) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}
