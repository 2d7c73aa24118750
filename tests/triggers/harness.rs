//! A broker with functions and triggers on a temporary directory, and what the functions printed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;
use tripline::broker::{Acks, Broker, BrokerConfig, Topic};
use tripline::function::spec::FunctionDefinition;
use tripline::function::{FunctionOptions, FunctionService, Launcher};
use tripline::topic::name::TopicName;
use tripline::topic::spec::{TopicConfig, TopicSpec};
use tripline::trigger::service::{TriggerReport, TriggerService, TriggerState};
use tripline::trigger::spec::TriggerSpec;
use tripline_storage::Offset;
use tripline_storage::batch::{BatchBuilder, BatchLimits, BatchOptions, Batches, NewRecord};
use tripline_storage::config::StoreConfig;
use tripline_storage::fs::SimFs;

/// Longer than anything here takes; only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What functions printed, in order.
#[derive(Clone, Default)]
pub(crate) struct Printed {
    lines: Arc<Mutex<Vec<String>>>,
    more: Arc<Notify>,
}

impl Printed {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }

    /// Waits until there are `count` lines, and answers them. What a function prints comes by another way than what it
    /// answers, and may come behind it.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<String> {
        let waiting = async {
            loop {
                let more = self.more.notified();
                let lines = self.lines();
                if lines.len() >= count {
                    return lines;
                }
                more.await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("printed: {:?}", self.lines()))
    }
}

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) broker: Broker,
    pub(crate) functions: FunctionService,
    pub(crate) triggers: TriggerService,
    pub(crate) printed: Printed,
}

impl World {
    pub(crate) fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), &[])
    }

    /// `functions`: definitions and the version of their code, as the journal would have them.
    pub(crate) fn start_in(dir: tempfile::TempDir, functions: &[(Value, u64)]) -> Self {
        let (broker, _) = Broker::start(BrokerConfig::new(dir.path().join("data"))).unwrap();
        Self::start_with(broker, dir, functions)
    }

    /// On a disk in memory, where nothing is flushed but what somebody waits for.
    pub(crate) fn start_on(disk: &SimFs) -> Self {
        let store = StoreConfig { flush_interval: Duration::from_secs(3600), ..StoreConfig::default() };
        let config = BrokerConfig { store, ..BrokerConfig::new("/data") };
        let (broker, _) = Broker::start_on(Arc::new(disk.clone()), config).unwrap();
        Self::start_with(broker, tempfile::tempdir().unwrap(), &[])
    }

    fn start_with(broker: Broker, dir: tempfile::TempDir, functions: &[(Value, u64)]) -> Self {
        let printed = Printed::default();
        let sink = printed.clone();
        let mut options = FunctionOptions::new(dir.path().join("data/functions")).unwrap();
        options.launcher = Launcher::Program(env!("CARGO_BIN_EXE_tripline").into());
        options.egress.allow_loopback = true;
        options.log_sink = Arc::new(move |line| {
            sink.lines.lock().push(line.text);
            sink.more.notify_waiters();
        });
        let service = FunctionService::new(options).unwrap();
        for (definition, version) in functions {
            service.restore(FunctionDefinition::from_json(definition).unwrap().spec, *version).unwrap();
        }
        let (triggers, failed) = TriggerService::start(broker.clone(), service.clone());
        assert!(failed.is_empty(), "{failed:?}");
        Self { dir, broker, functions: service, triggers, printed }
    }

    /// Ends everything without a clean stop, as a kill would, and answers the directory. What the page cache has stays.
    pub(crate) async fn kill(self) -> tempfile::TempDir {
        // Triggers first: they would try again what the end of the functions interrupts.
        self.triggers.shutdown(Duration::ZERO).await;
        self.functions.shutdown(Duration::ZERO).await;
        // A change that a cut-off attempt asked for goes to its end.
        self.broker.changes_ended().await;
        let Self { dir, broker, functions, triggers, .. } = self;
        drop((broker, functions, triggers));
        // A read that is on its way keeps the directory for a moment; its lock says when it is free. None in a disk in
        // memory.
        if let Ok(lock) = std::fs::File::open(dir.path().join("data/LOCK")) {
            // Given back by name: a process that another test starts just now has its descriptor too.
            let free = tokio::task::spawn_blocking(move || lock.lock().and_then(|()| lock.unlock()));
            tokio::time::timeout(Duration::from_secs(60), free).await.expect("nothing keeps it").unwrap().unwrap();
        }
        dir
    }

    pub(crate) async fn topic(&self, name: &str, partitions: u32) -> Arc<Topic> {
        let name = TopicName::new(name).unwrap();
        self.broker.create_topic(TopicSpec { name, partitions, config: TopicConfig::default() }).await.unwrap()
    }

    /// Deploys `code` as python3 function `name` with handler `f.handler`.
    pub(crate) async fn python(&self, name: &str, code: &str) -> u64 {
        let definition = python_definition(name);
        let spec = FunctionDefinition::from_json(&definition).unwrap().spec;
        let deployed = self.functions.deploy(spec, Some(Bytes::copy_from_slice(code.as_bytes()))).await.unwrap();
        self.triggers.function_deployed(name, deployed.changed);
        deployed.version
    }

    pub(crate) async fn http_function(&self, definition: &Value) {
        let spec = FunctionDefinition::from_json(definition).unwrap().spec;
        let deployed = self.functions.deploy(spec, None).await.unwrap();
        self.triggers.function_deployed(definition["function"].as_str().unwrap(), deployed.changed);
    }

    pub(crate) async fn apply(&self, definition: Value) {
        self.triggers.apply(TriggerSpec::from_json(&definition).unwrap()).await.unwrap();
    }

    /// Records with these keys and values.
    pub(crate) async fn produce_keyed(&self, topic: &Topic, partition: u32, records: &[(&str, &str)]) {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for (key, value) in records {
            let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
            builder.push(&NewRecord { timestamp_ms: 1_700_000_000_000, key, value, headers: &[] }).unwrap();
        }
        self.broker.append(topic, partition, builder.finish().unwrap()).unwrap();
    }

    pub(crate) async fn produce(&self, topic: &Topic, partition: u32, values: &[&str]) {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for value in values {
            let record = NewRecord {
                timestamp_ms: 1_700_000_000_000,
                key: Some(b"k"),
                value: Some(value.as_bytes()),
                headers: &[(b"h", Some(b"v")), (b"h", None)],
            };
            builder.push(&record).unwrap();
        }
        let appended = self.broker.append(topic, partition, builder.finish().unwrap()).unwrap();
        appended.acknowledged(Acks::All).await.unwrap();
    }

    /// Waits until the trigger looks as `wanted`.
    pub(crate) async fn until(&self, trigger: &str, wanted: impl Fn(&TriggerReport) -> bool) -> TriggerReport {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let report = self.triggers.describe(trigger).unwrap();
            if wanted(&report) {
                return report;
            }
            assert!(tokio::time::Instant::now() < deadline, "{report:?}; printed {:?}", self.printed.lines());
            // There is nothing to listen to from outside: a look every few milliseconds.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn until_state(&self, trigger: &str, state: TriggerState) -> TriggerReport {
        self.until(trigger, |report| report.state == state).await
    }

    pub(crate) async fn until_committed(&self, trigger: &str, partition: u32, offset: i64) -> TriggerReport {
        let offset = Offset::new(offset).unwrap();
        self.until(trigger, |report| report.lanes[partition as usize].committed == offset).await
    }

    /// All records of a topic's partition: value, and headers as text.
    pub(crate) fn records(&self, topic: &str, partition: u32) -> Vec<Stored> {
        let topic = self.broker.topic(topic).unwrap();
        let log = topic.partition(partition).unwrap();
        let mut found = Vec::new();
        let mut at = log.log_start();
        while at < log.tail() {
            let outcome = log.read_blocking(at, 1 << 20).unwrap();
            for view in Batches::of(&outcome.bytes) {
                for record in &view.unwrap().records(&BatchLimits::default()).unwrap() {
                    let record = record.unwrap();
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                    found.push(Stored {
                        key: record.key().map(text),
                        value: text(record.value().unwrap()),
                        headers: record.headers().map(|h| (text(h.name), h.value.map(text))).collect(),
                    });
                }
            }
            at = outcome.next;
        }
        found
    }
}

#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) key: Option<String>,
    pub(crate) value: String,
    pub(crate) headers: Vec<(String, Option<String>)>,
}

pub(crate) fn python_definition(name: &str) -> Value {
    serde_json::json!({
        "function": name, "runtime": "python3", "code": "f.py", "handler": "f.handler", "timeout": "10s"
    })
}
