//! From another broker to a function of this program, as a member of a consumer group.
//!
//! `cargo bench --bench cluster --features cluster` starts a second Tripline in a process of its own, full of JSON
//! records of 200 bytes in four partitions, and a trigger that reads them there. What is told of each kind of window is
//! the rate from the first invocation on, how many invocations that is, the CPU time that a record took on the
//! trigger's side, and how long it took from the definition to the first invocation: to find the cluster, to join the
//! group and to fetch. Medians of several turns with their spread. `-- --test` runs each once with few records.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tripline::broker::{Broker, BrokerConfig};
use tripline::function::{FunctionOptions, FunctionService};
use tripline::server::{Server, ServerConfig};
use tripline::topic::name::TopicName;
use tripline::topic::spec::{TopicConfig, TopicSpec};
use tripline::trigger::service::TriggerService;
use tripline::trigger::spec::TriggerSpec;

use crate::child::Counterpart;
use crate::support::{Meter, at_once, batches, embed, in_turn};
use crate::world::{Took, spread};

#[path = "support/child.rs"]
mod child;
mod support;
#[allow(dead_code, reason = "other benches use the rest")]
#[path = "support/world.rs"]
mod world;

/// What starts this program as the cluster.
const SERVE: &str = "serve-as-cluster";
const PARTITIONS: u32 = 4;

/// A broker on this directory whose topic has so many records in each partition, until it is killed.
async fn serve(data: &str, records: u64) {
    let any = ([127, 0, 0, 1], 0).into();
    let config = ServerConfig { kafka: any, http: any, ..ServerConfig::new(data) };
    let server = Server::start(config).await.expect("a server");
    let broker = &server.rooms().broker;
    let spec = TopicSpec { name: topic(), partitions: PARTITIONS, config: TopicConfig::default() };
    let made = broker.create_topic(spec).await.expect("a topic");
    for partition in 0..PARTITIONS {
        for batch in batches(records, in_turn) {
            broker.append(&made, partition, batch).expect("appended");
        }
    }
    println!("{}", server.kafka_address());
    std::future::pending::<()>().await;
}

fn topic() -> TopicName {
    TopicName::new("in").expect("a name")
}

struct Bench {
    cluster: Counterpart,
    /// Of both brokers; removed when the other one has ended.
    _dir: tempfile::TempDir,
    broker: Broker,
    triggers: TriggerService,
    /// Since the first invocation.
    first: Arc<Mutex<Option<Meter>>>,
    records: usize,
    turns: usize,
}

impl Bench {
    fn new(records: u64, turns: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data = dir.path().join("cluster");
        let cluster = Counterpart::start(&[SERVE, data.to_str().expect("a path in UTF-8"), &records.to_string()]);
        let (broker, _) = Broker::start(BrokerConfig::new(dir.path().join("data"))).expect("a broker");
        let options = FunctionOptions::new(dir.path().join("functions")).expect("options");
        let functions = FunctionService::new(options).expect("functions");
        let first = Arc::<Mutex<Option<Meter>>>::default();
        let begun = Arc::clone(&first);
        embed(&functions, "nothing", move |_| {
            begun.lock().get_or_insert_with(Meter::start);
            at_once()
        });
        let (triggers, _) = TriggerService::start(broker.clone(), functions);
        let records = usize::try_from(records).expect("they fit") * PARTITIONS as usize;
        Self { _dir: dir, cluster, broker, triggers, first, records, turns }
    }

    async fn measure(&self, what: &str, more: Value) {
        let (mut rates, mut cpu, mut joins) = (Vec::new(), Vec::new(), Vec::new());
        let mut invocations = 0;
        for turn in 0..self.turns {
            // A group goes on where it was: each turn has one of its own.
            let name = format!("{}-{turn}", what.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-"));
            let mut definition = json!({
                "trigger": name, "function": "nothing",
                "input": {"topic": "in", "start": "earliest", "cluster": {"bootstrap_servers": self.cluster.address}},
            });
            definition.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            let spec = TriggerSpec::from_json(&definition).expect("a trigger");
            let (whole, delivered) = (Meter::start(), || self.triggers.describe(&name).expect("it is there").counts);
            self.triggers.apply(spec).await.expect("applied");
            while (delivered().delivered as usize) < self.records {
                assert!(whole.elapsed() < Duration::from_secs(120), "{:?}", self.triggers.describe(&name));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let first = self.first.lock().take().expect("it was invoked");
            let took = Took::until_now(&first, self.records);
            joins.push((whole.elapsed().saturating_sub(first.elapsed())).as_secs_f64() * 1e3);
            rates.push(took.per_s / 1e3);
            cpu.push(took.cpu_us);
            invocations = delivered().attempts_succeeded as usize;
            assert_eq!(delivered().delivered as usize, self.records, "each was delivered once");
            self.triggers.remove(&name).await.expect("removed");
        }
        let ((low, rate, high), (_, cpu, _), (_, join, _)) = (spread(rates), spread(cpu), spread(joins));
        println!(
            "{what}: {rate:.0} k records/s ({low:.0}-{high:.0}) in {invocations} invocations, {cpu:.2} us of CPU each, \
             first after {join:.0} ms"
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if let Some(at) = arguments.iter().position(|argument| argument == SERVE) {
        let records = arguments[at + 2].parse().expect("a number of records");
        return runtime.block_on(serve(&arguments[at + 1], records));
    }
    let test = arguments.iter().any(|argument| argument == "--test");
    let (records, turns) = if test { (500, 1) } else { (100_000, 5) };
    runtime.block_on(async {
        let bench = Bench::new(records, turns);
        bench.measure("windows of 100", json!({"window": {"count": 100}})).await;
        bench.measure("windows of 1000", json!({"window": {"count": 1000}})).await;
        let none = |count: u32| json!({"window": {"count": count}, "order": "none", "concurrency": 8});
        bench.measure("windows of 100, order none, 8 in flight", none(100)).await;
        bench.measure("windows of 10, order none, 8 in flight", none(10)).await;
        bench.triggers.shutdown(Duration::from_secs(5)).await;
        bench.broker.close();
    });
}
