//! Definitions and switches that change at the worst moments, by seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tripline::broker::Topic;
use tripline::trigger::service::LaneChoice;
use tripline_storage::Offset;

use crate::harness::World;
use crate::receiver::{Receiver, ok, status};

const PARTITIONS: u32 = 3;
const KEYS: u32 = 5;
const CHANGES: usize = 60;

fn definition(url: &str, random: &mut fastrand::Rng) -> Value {
    let order = ["partition", "key", "none"][random.usize(..3)];
    let interval = ["0ms", "3ms", "20ms"][random.usize(..3)];
    json!({
        "trigger": "t", "input": {"topic": "in", "start": "earliest"},
        "window": {"count": random.u32(1..8), "interval": interval},
        "order": order, "concurrency": random.u32(1..9), "bisect": random.bool(),
        "function": {"http": {"url": url}},
        "retry": {"initial": "2ms", "max_interval": "20ms", "max_attempts": 4, "jitter": "full"},
        "dead_letter": {"topic": "in.dlq"},
    })
}

async fn produce_some(world: &World, topic: &Topic, random: &mut fastrand::Rng) {
    let records: Vec<String> = (0..random.u32(1..20)).map(|_| format!("k{}", random.u32(..KEYS))).collect();
    let value = |random: &mut fastrand::Rng| if random.u32(..40) == 0 { "\"poison\"" } else { "\"good\"" };
    let records: Vec<(&str, &str)> = records.iter().map(|key| (key.as_str(), value(random))).collect();
    world.produce_keyed(topic, random.u32(..PARTITIONS), &records).await;
}

/// Which records became dead letters.
fn dead(world: &World) -> BTreeMap<(u32, i64), usize> {
    let mut dead = BTreeMap::new();
    for partition in 0..PARTITIONS {
        for letter in world.records("in.dlq", partition) {
            let header = |name: &str| {
                let found = letter.headers.iter().find(|(header, _)| header == name);
                found.and_then(|(_, value)| value.clone()).unwrap().parse::<i64>().unwrap()
            };
            let place = (header("tripline-dlq-partition") as u32, header("tripline-dlq-offset"));
            *dead.entry(place).or_insert(0) += 1;
        }
    }
    dead
}

/// Pauses, resumes, redefines, kills and ends while records flow; with `resets`, also begins anew.
async fn storm(seed: u64, resets: bool) {
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut world = World::start();
    let mut topic = world.topic("in", PARTITIONS).await;
    let chance = std::sync::Mutex::new(random.fork());
    let receiver = Receiver::start(move |invoked| {
        let poison = invoked.data.iter().any(|data| data == "poison");
        let draw = chance.lock().unwrap().u32(..20);
        if poison || draw == 0 {
            status(500)
        } else if draw == 1 {
            status(400)
        } else {
            ok()
        }
    })
    .await;
    world.apply(definition(&receiver.url, &mut random)).await;
    for _ in 0..CHANGES {
        produce_some(&world, &topic, &mut random).await;
        match random.u32(..if resets { 9 } else { 7 }) {
            0 => world.triggers.pause("t").await.unwrap(),
            1 | 2 => world.triggers.resume("t").await.unwrap(),
            3 | 4 => world.apply(definition(&receiver.url, &mut random)).await,
            5 => drop(world.triggers.skip("t", LaneChoice::ALL).await.unwrap()),
            6 if random.u32(..3) == 0 => {
                drop(topic);
                world = World::start_in(world.kill().await, &[]);
                topic = world.broker.topic("in").unwrap();
            }
            7 => {
                world.triggers.pause("t").await.unwrap();
                let partition = random.u32(..PARTITIONS);
                let tail = topic.partition(partition).unwrap().tail().get();
                let to = Offset::new(random.i64(0..=tail)).unwrap();
                world.triggers.reset("t", &[(topic.id(), partition, to)]).await.unwrap();
            }
            8 => {
                assert!(world.triggers.remove("t").await.unwrap());
                world.apply(definition(&receiver.url, &mut random)).await;
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_micros(random.u64(..15_000))).await;
    }
    world.triggers.resume("t").await.unwrap();
    world.until("t", |report| report.lanes.iter().all(|lane| lane.lag() == 0)).await;
    let dead = dead(&world);
    let mut arrived: BTreeMap<(u32, i64), usize> = BTreeMap::new();
    for one in receiver.invoked() {
        one.places.iter().for_each(|place| *arrived.entry(*place).or_insert(0) += 1);
    }
    for partition in 0..PARTITIONS {
        let tail = topic.partition(partition).unwrap().tail().get();
        for at in 0..tail {
            let place = (partition, at);
            // A reset to behind it passes it over.
            assert!(
                resets || arrived.contains_key(&place) || dead.contains_key(&place),
                "seed {seed}: {place:?} is lost"
            );
        }
    }
    if !resets {
        assert!(dead.values().all(|letters| *letters == 1), "seed {seed}: {dead:?}");
    }
    assert_eq!(world.triggers.describe("t").unwrap().state.as_str(), "Running", "seed {seed}");
    ends_quickly(world, topic, seed).await;
}

/// Nothing of the triggers holds on to the broker when they have ended.
async fn ends_quickly(world: World, topic: Arc<Topic>, seed: u64) {
    let log = Arc::downgrade(topic.partition(0).unwrap());
    drop(topic);
    let begun = Instant::now();
    let World { dir, broker, functions, triggers, .. } = world;
    triggers.shutdown(Duration::from_secs(5)).await;
    functions.shutdown(Duration::from_secs(2)).await;
    drop((triggers, functions, broker));
    while log.upgrade().is_some() {
        assert!(begun.elapsed() < Duration::from_secs(10), "seed {seed}: something holds on to the log");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_switches_definitions_and_kills_loses_nothing_and_dead_letters_once() {
    let seed = fastrand::u64(..1 << 32);
    for seed in (seed..).take(3) {
        storm(seed, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_resets_and_removals_ends_with_everything_finished() {
    let seed = fastrand::u64(..1 << 32);
    for seed in (seed..).take(3) {
        storm(seed, true).await;
    }
}
