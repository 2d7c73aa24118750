//! From the log to a function: records a second through filter and window.
//!
//! `cargo bench --bench triggers` fills a partition with JSON records of about 200 bytes, then lets triggers read it
//! from the start to a function of this process that returns at once. Each case runs several times; the median and the
//! spread are printed with the CPU time that a million records took, all threads together. `-- --test` runs each once
//! on few records.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::{Value, json};
use tripline::broker::{Broker, BrokerConfig, Topic};
use tripline::function::{FunctionOptions, FunctionService};
use tripline::topic::name::TopicName;
use tripline::topic::spec::{TopicConfig, TopicSpec};
use tripline::trigger::service::TriggerService;
use tripline::trigger::spec::TriggerSpec;

use crate::support::{Meter, append, at_once, batches, embed, in_turn};

mod support;

/// One of so many invocations of the slow function takes its time.
const SLOW_EVERY: u64 = 20;
const SLOW: Duration = Duration::from_millis(100);

struct Bench {
    _dir: tempfile::TempDir,
    broker: Broker,
    triggers: TriggerService,
    topic: Arc<Topic>,
    records: u64,
    runs: usize,
}

impl Bench {
    async fn new(records: u64, runs: usize, key_of: fn(u64) -> u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (broker, _) = Broker::start(BrokerConfig::new(dir.path().join("data"))).expect("a broker");
        let functions = FunctionService::new(FunctionOptions::new(dir.path().join("functions")).expect("options"));
        let functions = functions.expect("functions");
        embed(&functions, "nothing", |_| at_once());
        let begun = AtomicU64::new(0);
        embed(&functions, "slow", move |_| {
            if begun.fetch_add(1, Ordering::Relaxed).is_multiple_of(SLOW_EVERY) {
                return tokio::time::sleep(SLOW).then(|()| at_once()).boxed();
            }
            at_once()
        });
        let name = TopicName::new("in").expect("a name");
        let topic = broker.create_topic(TopicSpec { name, partitions: 1, config: TopicConfig::default() }).await;
        let topic = topic.expect("a topic");
        append(&broker, &topic, batches(records, key_of));
        let (triggers, _) = TriggerService::start(broker.clone(), functions);
        Self { _dir: dir, broker, triggers, topic, records, runs }
    }

    /// Runs `definitions` over all records, several times, and prints what it took, from the first definition on.
    async fn measure(&self, what: &str, definitions: &[Value]) {
        let mut took = Took::default();
        for _ in 0..self.runs {
            let meter = Meter::start();
            self.apply(definitions).await;
            self.until_read(definitions, &meter).await;
            took.note(&meter, self.records);
            self.remove(definitions).await;
        }
        took.print(what);
    }

    /// The same for triggers that are there before the records. What appending these takes is in it, and at the end up
    /// to a second of waiting until what nothing matched is written down: the CPU time is what counts.
    async fn measure_at_head(&self, what: &str, definitions: &[Value], records: u64) {
        let mut took = Took::default();
        for _ in 0..self.runs {
            self.apply(definitions).await;
            self.until_read(definitions, &Meter::start()).await;
            let batches = batches(records, in_turn);
            let meter = Meter::start();
            append(&self.broker, &self.topic, batches);
            self.until_read(definitions, &meter).await;
            took.note(&meter, records);
            self.remove(definitions).await;
        }
        took.print(what);
    }

    async fn apply(&self, definitions: &[Value]) {
        for definition in definitions {
            let spec = TriggerSpec::from_json(definition).expect("a trigger");
            self.triggers.apply(spec).await.expect("applied");
        }
    }

    /// Looks at one trigger after the other: to list thousands again and again would be most of the work.
    async fn until_read(&self, definitions: &[Value], meter: &Meter) {
        let tail = self.topic.partition(0).expect("a partition").tail();
        for name in names(definitions) {
            while self.triggers.describe(name).expect("it is there").lanes[0].committed < tail {
                assert!(meter.elapsed() < Duration::from_secs(120), "{:?}", self.triggers.describe(name));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }

    async fn remove(&self, definitions: &[Value]) {
        for name in names(definitions) {
            self.triggers.remove(name).await.expect("removed");
        }
    }
}

fn names(definitions: &[Value]) -> impl Iterator<Item = &str> {
    definitions.iter().map(|definition| definition["trigger"].as_str().expect("a name"))
}

/// What each run of a case took.
#[derive(Default)]
struct Took {
    records_per_s: Vec<f64>,
    cpu_s_per_million: Vec<f64>,
}

impl Took {
    fn note(&mut self, meter: &Meter, records: u64) {
        self.records_per_s.push(records as f64 / meter.elapsed().as_secs_f64());
        self.cpu_s_per_million.push(meter.cpu().as_secs_f64() * 1e6 / records as f64);
    }

    fn print(mut self, what: &str) {
        self.records_per_s.sort_by(f64::total_cmp);
        self.cpu_s_per_million.sort_by(f64::total_cmp);
        let (rates, middle) = (&self.records_per_s, self.records_per_s.len() / 2);
        println!(
            "{what}: {:.0} k records/s ({:.0}-{:.0}), {:.2} CPU s per million",
            rates[middle] / 1e3,
            rates[0] / 1e3,
            rates[rates.len() - 1] / 1e3,
            self.cpu_s_per_million[middle],
        );
    }
}

/// Thousand keys in an order without a pattern, the same each time.
const fn scattered(number: u64) -> u64 {
    (number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xbf58_476d_1ce4_e5b9)) % 1000
}

/// Triggers that one record in a million each concerns.
fn rare(many: usize, start: &str) -> Vec<Value> {
    let one = |number: usize| {
        let filter = json!({"data": {"flight": [format!("LH{:06}", number * 37)]}});
        let input = json!({"topic": "in", "start": start});
        trigger(&format!("t{number}"), json!({"filter": filter, "input": input}))
    };
    (0..many).map(one).collect()
}

fn trigger(name: &str, more: Value) -> Value {
    let mut definition = json!({
        "trigger": name, "input": {"topic": "in", "start": "earliest"}, "function": "nothing",
    });
    definition.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    definition
}

fn main() {
    let test = std::env::args().any(|argument| argument == "--test");
    let (records, runs) = if test { (2_000, 1) } else { (1_000_000, 5) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let bench = Bench::new(records, runs, in_turn).await;
        let late = json!({"data": {"delay": [{"numeric": [">=", 60]}]}});
        let never = json!({"data": {"delay": [{"numeric": [">", 1000]}]}});
        bench.measure("no filter, windows of 100", &[trigger("t", json!({}))]).await;
        bench.measure("one pattern, half match, windows of 100", &[trigger("t", json!({"filter": late}))]).await;
        bench.measure("one pattern, none match", &[trigger("t", json!({"filter": never}))]).await;
        bench.measure("one pattern, order key", &[trigger("t", json!({"filter": late, "order": "key"}))]).await;
        bench.measure("one pattern, order none", &[trigger("t", json!({"filter": late, "order": "none"}))]).await;
        let many = if test { 20 } else { 1_000 };
        bench.measure(&format!("{many} triggers with a pattern each"), &rare(many, "earliest")).await;
        for many in if test { [1, 10, 30] } else { [100, 1_000, 10_000] } {
            let what = format!("{many} triggers with a pattern each, there before the records");
            bench.measure_at_head(&what, &rare(many, "latest"), records / 2).await;
        }
        bench.triggers.shutdown(Duration::from_secs(5)).await;
        bench.broker.close();
        // Neighbours finish in any order: progress has to say which.
        let bench = Bench::new(if test { 500 } else { 100_000 }, runs, scattered).await;
        for concurrency in [8, 64] {
            let one = json!({"order": "key", "concurrency": concurrency});
            bench.measure(&format!("order key, scattered keys, concurrency {concurrency}"), &[trigger("t", one)]).await;
        }
        bench.triggers.shutdown(Duration::from_secs(5)).await;
        bench.broker.close();
        // What it costs to tell the story of every event: per window, so windows are small.
        let bench = Bench::new(if test { 500 } else { 50_000 }, runs, in_turn).await;
        for trace in ["all", "failures", "none"] {
            let one = json!({"window": {"count": 1}, "order": "none", "trace": trace});
            bench.measure(&format!("windows of 1, history: {trace}"), &[trigger("t", one)]).await;
        }
        // Most of what is in flight is slow: the ends of the others are not to wait for it.
        let slow = json!({"window": {"count": 1}, "order": "none", "concurrency": 64, "function": "slow"});
        bench.measure("windows of 1, one in 20 takes 100 ms", &[trigger("t", slow)]).await;
        bench.triggers.shutdown(Duration::from_secs(5)).await;
        bench.broker.close();
    });
}
