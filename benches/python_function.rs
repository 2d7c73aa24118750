//! From the log to a Python function: what windows do for it, and how long a first invocation takes.
//!
//! `cargo bench --bench python_function` delivers JSON records of about 200 bytes in windows of 1 to 1,000 to one
//! instance of a function that does nothing, and of one that decodes its events. The medians of several runs are
//! printed with their spread and the CPU time that a record took in the broker (Python's is not in it). Then the
//! function is made again and again, for an invocation each: its code is written down, an instance started and invoked.
//! `-- --test` runs each once with few records.

use std::time::{Duration, Instant};

use serde_json::json;
use tripline::function::{Invocation, Launcher};

use crate::support::{at_once, embed};
use crate::world::{Took, World, spread};

mod support;
#[path = "support/world.rs"]
mod world;

const NOTHING: &str = "def handler(event, context):\n    pass\n";
const DECODES: &str = "import json\n\n\ndef handler(event, context):\n    json.loads(event)\n";

/// Of the function `target`, with one instance.
async fn deploy(world: &World, code: &'static str) {
    let definition = json!({
        "function": "target", "runtime": "python3", "code": "target.py", "handler": "target.handler",
        "instances": {"max": 1},
    });
    world.deploy(&definition, Some(code)).await;
}

async fn windows(world: &World, what: &str, code: &'static str, records: usize, runs: usize) {
    deploy(world, code).await;
    for window in [1, 10, 100, 1_000] {
        // Small windows are slow: a run takes a second or two.
        let count = (records / 20 * window).min(records);
        let mut took: Vec<Took> = Vec::new();
        for _ in 0..runs {
            // The next window is at hand when the instance has finished with one.
            took.push(world.run(count, window, &json!({"order": "none", "concurrency": 2})).await);
        }
        let (low, rate, high) = spread(took.iter().map(|took| took.per_s / 1e3).collect());
        let (_, cpu, _) = spread(took.iter().map(|took| took.cpu_us).collect());
        println!("{what}, windows of {window}: {rate:.1} k records/s ({low:.1}-{high:.1}), {cpu:.2} us of CPU each");
    }
}

async fn cold_starts(world: &World, runs: usize) {
    let mut took_ms = Vec::new();
    for _ in 0..runs {
        world.functions.remove("target", Duration::from_secs(5)).await.expect("removed");
        let begun = Instant::now();
        deploy(world, NOTHING).await;
        let invocation = Invocation {
            id: "cold".to_owned(),
            attempt: 1,
            payload: "[]".into(),
            content_type: "application/json",
            record_count: 0,
            trace: None,
        };
        world.functions.invoke("target", invocation).await.expect("it answers");
        took_ms.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let (low, median, high) = spread(took_ms);
    println!("deployed, started and invoked: {median:.1} ms ({low:.1}-{high:.1})");
}

fn main() {
    let test = std::env::args().any(|argument| argument == "--test");
    let (records, runs) = if test { (1_000, 1) } else { (400_000, 5) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let launcher = Launcher::Program(env!("CARGO_BIN_EXE_tripline").into());
        let world = World::new(records, |options| options.launcher = launcher).await;
        windows(&world, "a function that does nothing", NOTHING, records, runs).await;
        windows(&world, "a function that decodes its events", DECODES, records, runs).await;
        cold_starts(&world, if test { 1 } else { 15 }).await;
        // What the broker's part of it is.
        world.functions.remove("target", Duration::from_secs(5)).await.expect("removed");
        embed(&world.functions, "target", |_| at_once());
        let took = world.run(records, 100, &json!({"order": "none", "concurrency": 2})).await;
        println!("a function of this process, windows of 100: {:.2} us of CPU each", took.cpu_us);
        world.close().await;
    });
}
