//! From the log to a function: records a second through filter and window.
//!
//! `cargo bench --bench triggers` fills a partition with JSON records of about 200 bytes, then lets triggers read it from the
//! start to a function of this process that returns at once. Each case runs several times; the median and the spread are
//! printed with the CPU time that a million records took, all threads together. `-- --test` runs each once on few records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::watch;
use tripline::broker::{Broker, BrokerConfig, Topic};
use tripline::function::spec::FunctionDefinition;
use tripline::function::{
    FunctionOptions, FunctionService, Invocation, InvocationError, InvocationSuccess, Invoker, InvokerStatus,
};
use tripline::topic::name::TopicName;
use tripline::topic::spec::{TopicConfig, TopicSpec};
use tripline::trigger::service::TriggerService;
use tripline::trigger::spec::TriggerSpec;

use crate::support::{cpu_time, fill, in_turn};

mod support;

/// Returns at once.
struct Nothing {
    status: watch::Sender<InvokerStatus>,
}

impl Invoker for Nothing {
    fn invoke(&self, _: Invocation) -> BoxFuture<'_, Result<InvocationSuccess, InvocationError>> {
        std::future::ready(Ok(InvocationSuccess { body: Bytes::new() })).boxed()
    }

    fn status(&self) -> watch::Receiver<InvokerStatus> {
        self.status.subscribe()
    }

    fn resume(&self) {}

    fn stop(&self, _: tokio::time::Instant) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}

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
        let definition = json!({"function": "nothing", "runtime": "http", "url": "http://127.0.0.1:1/"});
        let spec = FunctionDefinition::from_json(&definition).expect("a definition").spec;
        functions.embed(spec, Arc::new(Nothing { status: watch::Sender::default() }));
        let name = TopicName::new("in").expect("a name");
        let topic = broker.create_topic(TopicSpec { name, partitions: 1, config: TopicConfig::default() }).await;
        let topic = topic.expect("a topic");
        fill(&broker, &topic, records, key_of);
        let (triggers, _) = TriggerService::start(broker.clone(), functions);
        Self { _dir: dir, broker, triggers, topic, records, runs }
    }

    /// Runs `definitions` over all records, several times, and prints what it took.
    async fn measure(&self, what: &str, definitions: &[Value]) {
        let mut rates = Vec::new();
        let mut cpu = Vec::new();
        for _ in 0..self.runs {
            let specs: Vec<TriggerSpec> =
                definitions.iter().map(|definition| TriggerSpec::from_json(definition).expect("a trigger")).collect();
            let tail = self.topic.partition(0).expect("a partition").tail();
            let (started, cpu_before) = (Instant::now(), cpu_time());
            for spec in specs {
                self.triggers.apply(spec).await.expect("applied");
            }
            let first = definitions[0]["trigger"].as_str().expect("a name");
            while self.triggers.list().iter().any(|report| report.lanes[0].committed < tail) {
                assert!(started.elapsed() < Duration::from_secs(120), "{:?}", self.triggers.describe(first));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let (took, cpu_took) = (started.elapsed(), cpu_time() - cpu_before);
            rates.push(self.records as f64 / took.as_secs_f64());
            cpu.push(cpu_took.as_secs_f64() * 1e6 / self.records as f64);
            for report in self.triggers.list() {
                self.triggers.remove(report.spec.name.as_str()).await.expect("removed");
            }
        }
        rates.sort_by(f64::total_cmp);
        cpu.sort_by(f64::total_cmp);
        let middle = self.runs / 2;
        println!(
            "{what}: {:.0} k records/s ({:.0}-{:.0}), {:.2} CPU s per million",
            rates[middle] / 1e3,
            rates[0] / 1e3,
            rates[self.runs - 1] / 1e3,
            cpu[middle],
        );
    }
}

/// Thousand keys in an order without a pattern, the same each time.
const fn scattered(number: u64) -> u64 {
    (number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xbf58_476d_1ce4_e5b9)) % 1000
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
        let rare: Vec<Value> = (0..many)
            .map(|number| {
                let filter = json!({"data": {"flight": [format!("LH{:06}", number * 37)]}});
                trigger(&format!("t{number}"), json!({"filter": filter}))
            })
            .collect();
        bench.measure(&format!("{many} triggers with a pattern each"), &rare).await;
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
        bench.triggers.shutdown(Duration::from_secs(5)).await;
        bench.broker.close();
    });
}
