//! The broker is killed again and again under load, and nothing that it acknowledged is lost, doubled or out of order.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::{Broker, Script, alone, python, setting};

const CYCLES: u64 = 50;
/// How long a broker lives.
const LIFE_MS: (u64, u64) = (20, 800);
const PARTITIONS: &str = "3";

/// `TRIPLINE_KILL_CYCLES` says how often, `TRIPLINE_KILL_SEED` when.
#[test]
fn what_is_acknowledged_survives_kills_in_order_and_once() {
    let Some(python) = python() else { return };
    let _alone = alone();
    let cycles = setting("TRIPLINE_KILL_CYCLES").unwrap_or(CYCLES);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = setting("TRIPLINE_KILL_SEED").unwrap_or_else(|| u64::from(now.subsec_nanos()));
    println!("TRIPLINE_KILL_SEED={seed} TRIPLINE_KILL_CYCLES={cycles}");
    let mut random = fastrand::Rng::with_seed(seed);

    let begin = Instant::now();
    let mut broker = Broker::start();
    broker.apply(&format!("topic: kills\npartitions: {PARTITIONS}\n"));
    let mut load = Script::start(&python, "kills.py", &[broker.kafka(), "kills", PARTITIONS]);
    assert_eq!(load.line(), "producing");
    let mut slowest = Duration::ZERO;
    for _ in 0..cycles {
        thread::sleep(Duration::from_millis(random.u64(LIFE_MS.0..=LIFE_MS.1)));
        broker.kill();
        let started = Instant::now();
        broker.restart();
        slowest = slowest.max(started.elapsed());
    }
    load.tell("stop");
    let counts = load.json();
    load.finish();
    println!("{cycles} kills in {:?}, slowest start {slowest:?}: {counts}", begin.elapsed());
    let acknowledged = counts["acknowledged"].as_u64().unwrap();
    assert!(acknowledged > cycles * 10, "too little load to show anything: {counts}");
    assert_eq!(counts["found"], counts["acknowledged"], "each record was sent until it was acknowledged");
    // The offline check agrees, on the directory as the last kill left it.
    broker.kill();
    println!("{}", broker.tripline(&["verify", &broker.data().display().to_string()]));
}
