//! From exec to the first acknowledged produce.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::broker::Broker;
use crate::client::Client;
use crate::{Failure, load, process};

/// How long an idle broker settles before its memory is read.
const SETTLE: Duration = Duration::from_secs(2);

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
    let broker = Broker::start(binary, data)?;
    let mut client = Client::connect(broker.address)?;
    client.create_topic("first", 1, &[])?;
    load::produce_once(&mut client, "first")?;
    let time = begun.elapsed();
    drop(client);
    std::thread::sleep(SETTLE);
    Ok((time, process::resident_bytes(broker.pid())?))
}

/// Smallest, middle and largest.
pub(crate) fn spread(values: &mut [f64]) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}
