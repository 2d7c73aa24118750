//! From exec to the first acknowledged produce on a directory whose broker was killed.

use std::path::Path;
use std::time::Instant;

use crate::broker::Broker;
use crate::client::Client;
use crate::load::{self, Fill};
use crate::start::spread;
use crate::{Failure, RecoverArgs, process};

/// Fills a broker, kills it, and times the next start; again and again on the same data.
pub(crate) fn run(args: &RecoverArgs) -> Result<String, Failure> {
    let data = std::env::temp_dir().join(format!("tripline-recover-{}", std::process::id()));
    let measured = measure(args, &data);
    std::fs::remove_dir_all(&data)?;
    measured
}

fn measure(args: &RecoverArgs, data: &Path) -> Result<String, Failure> {
    let mut broker = Broker::start(&args.binary, data)?;
    let fill = Fill { topic: "fill", partitions: args.partitions, bytes: args.mib << 20 };
    Client::connect(broker.address)?.create_topic(fill.topic, args.partitions, &[])?;
    let mut times_ms = Vec::new();
    let mut memory_mib = Vec::new();
    for n in 0..args.runs {
        // The first fill is all of it; the others leave something that was not flushed yet.
        let bytes = if n == 0 { fill.bytes } else { fill.bytes.min(64 << 20) };
        load::fill(&mut Client::connect(broker.address)?, &Fill { bytes, ..fill })?;
        // Killed by SIGKILL, with whatever was not flushed in the page cache.
        drop(broker);
        let begun = Instant::now();
        broker = Broker::start(&args.binary, data)?;
        let mut client = Client::connect(broker.address)?;
        load::produce_once(&mut client, fill.topic)?;
        times_ms.push(begun.elapsed().as_secs_f64() * 1e3);
        memory_mib.push(process::resident_bytes(broker.pid())? as f64 / f64::from(1 << 20));
    }
    let [low, middle, high] = spread(&mut times_ms);
    let [memory_low, memory, memory_high] = spread(&mut memory_mib);
    Ok(format!(
        "{} MiB in {} partitions, killed: exec to first acknowledged produce {middle:.1} ms ({low:.1}-{high:.1}); memory then {memory:.1} MiB ({memory_low:.1}-{memory_high:.1}); {} runs",
        args.mib, args.partitions, args.runs
    ))
}
