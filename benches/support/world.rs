//! A broker with a partition full of records, functions, and a trigger that delivers some of them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tripline::broker::{Broker, BrokerConfig, Topic};
use tripline::function::spec::FunctionDefinition;
use tripline::function::{FunctionOptions, FunctionService};
use tripline::topic::name::TopicName;
use tripline::topic::spec::{TopicConfig, TopicSpec};
use tripline::trigger::service::TriggerService;
use tripline::trigger::spec::TriggerSpec;

use crate::support::{Meter, append, batches, in_turn};

pub(crate) struct World {
    _dir: tempfile::TempDir,
    broker: Broker,
    pub(crate) functions: FunctionService,
    triggers: TriggerService,
    topic: Arc<Topic>,
    records: usize,
}

/// What it took to deliver one record, or to send one request.
#[derive(Clone, Copy)]
pub(crate) struct Took {
    pub(crate) per_s: f64,
    pub(crate) cpu_us: f64,
}

impl Took {
    pub(crate) fn until_now(meter: &Meter, count: usize) -> Self {
        let (took, cpu) = (meter.elapsed(), meter.cpu());
        Self { per_s: count as f64 / took.as_secs_f64(), cpu_us: cpu.as_secs_f64() * 1e6 / count as f64 }
    }
}

/// The least, the median and the most.
pub(crate) fn spread(mut numbers: Vec<f64>) -> (f64, f64, f64) {
    numbers.sort_by(f64::total_cmp);
    (numbers[0], numbers[numbers.len() / 2], numbers[numbers.len() - 1])
}

impl World {
    pub(crate) async fn new(records: usize, set: impl FnOnce(&mut FunctionOptions)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (broker, _) = Broker::start(BrokerConfig::new(dir.path().join("data"))).expect("a broker");
        let mut options = FunctionOptions::new(dir.path().join("functions")).expect("options");
        set(&mut options);
        let functions = FunctionService::new(options).expect("functions");
        let name = TopicName::new("in").expect("a name");
        let topic = broker.create_topic(TopicSpec { name, partitions: 1, config: TopicConfig::default() }).await;
        let topic = topic.expect("a topic");
        append(&broker, &topic, batches(records as u64, in_turn));
        let (triggers, _) = TriggerService::start(broker.clone(), functions.clone());
        Self { _dir: dir, broker, functions, triggers, topic, records }
    }

    /// Makes a function known, with its code where it has some.
    pub(crate) async fn deploy(&self, definition: &Value, code: Option<&'static str>) {
        let spec = FunctionDefinition::from_json(definition).expect("a definition").spec;
        self.functions.deploy(spec, code.map(|code| code.as_bytes().into())).await.expect("deployed");
    }

    /// Has a trigger deliver the last `count` records in windows of `window` to the function `target`.
    pub(crate) async fn run(&self, count: usize, window: usize, more: &Value) -> Took {
        let mut definition = json!({
            "trigger": "t", "input": {"topic": "in", "start": {"offset": self.records - count}},
            "window": {"count": window}, "function": "target",
        });
        definition.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let spec = TriggerSpec::from_json(&definition).expect("a trigger");
        let tail = self.topic.partition(0).expect("a partition").tail();
        let meter = Meter::start();
        self.triggers.apply(spec).await.expect("applied");
        while self.triggers.describe("t").expect("it is there").lanes[0].committed < tail {
            assert!(meter.elapsed() < Duration::from_secs(120), "{:?}", self.triggers.describe("t"));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = Took::until_now(&meter, count);
        let counts = self.triggers.describe("t").expect("it is there").counts;
        assert_eq!((counts.delivered as usize, counts.attempts_failed), (count, 0), "each was delivered once");
        self.triggers.remove("t").await.expect("removed");
        took
    }

    pub(crate) async fn close(self) {
        self.triggers.shutdown(Duration::from_secs(5)).await;
        self.functions.shutdown(Duration::from_secs(5)).await;
        self.broker.close();
    }
}
