//! What several benches need: a partition full of records, a function of this program, and the time that something
//! took.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::sync::watch;
use tripline::broker::{Broker, Topic};
use tripline::function::spec::FunctionDefinition;
use tripline::function::{FunctionService, Invocation, InvocationError, InvocationSuccess, Invoker, InvokerStatus};
use tripline_storage::batch::{BatchBuilder, BatchOptions, CheckedBatch, NewRecord};

mod allocator;

/// Thousand keys, one after the other.
pub(crate) const fn in_turn(number: u64) -> u64 {
    number % 1000
}

/// JSON records of about 200 bytes, in batches of 500.
pub(crate) fn batches(records: u64, key_of: fn(u64) -> u64) -> Vec<CheckedBatch> {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    let mut full = Vec::new();
    for number in 0..records {
        let value = format!(
            r#"{{"flight":"LH{number:06}","origin":"FRA","destination":"JFK","carrier":"LH","delay":{},"gate":"A{}","passengers":{},"aircraft":{{"type":"A340-600","registration":"D-AIHE"}},"cancelled":false,"note":"on time"}}"#,
            number % 120,
            number % 60,
            number % 400,
        );
        let key = key_of(number).to_string();
        let record = NewRecord {
            timestamp_ms: 1_700_000_000_000,
            key: Some(key.as_bytes()),
            value: Some(value.as_bytes()),
            headers: &[],
        };
        builder.push(&record).expect("it fits");
        if builder.record_count() == 500 || number + 1 == records {
            let builder = std::mem::replace(&mut builder, BatchBuilder::new(BatchOptions::default()));
            full.push(builder.finish().expect("a batch"));
        }
    }
    full
}

/// To the topic's first partition.
pub(crate) fn append(broker: &Broker, topic: &Topic, batches: Vec<CheckedBatch>) {
    for batch in batches {
        broker.append(topic, 0, batch).expect("appended");
    }
}

/// Of all threads of this process.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// From a start until now, by the clock and of CPU.
pub(crate) struct Meter {
    started: Instant,
    cpu: Duration,
}

impl Meter {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), cpu: cpu_time() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn cpu(&self) -> Duration {
        cpu_time() - self.cpu
    }
}

/// What an invocation comes to.
pub(crate) type Answer = BoxFuture<'static, Result<InvocationSuccess, InvocationError>>;

/// At once, with nothing.
pub(crate) fn at_once() -> Answer {
    std::future::ready(Ok(InvocationSuccess { body: Default::default() })).boxed()
}

/// Makes `act` a function of this name.
pub(crate) fn embed<F>(functions: &FunctionService, name: &str, act: F)
where
    F: Fn(Invocation) -> Answer + Send + Sync + 'static,
{
    // Where it would run says nothing: it runs here.
    let definition = json!({"function": name, "runtime": "http", "url": "http://127.0.0.1:1/"});
    let spec = FunctionDefinition::from_json(&definition).expect("a definition").spec;
    functions.embed(spec, Arc::new(Embedded { act, status: watch::Sender::default() }));
}

struct Embedded<F> {
    act: F,
    status: watch::Sender<InvokerStatus>,
}

impl<F> Invoker for Embedded<F>
where
    F: Fn(Invocation) -> Answer + Send + Sync,
{
    fn invoke(&self, invocation: Invocation) -> BoxFuture<'_, Result<InvocationSuccess, InvocationError>> {
        (self.act)(invocation)
    }

    fn status(&self) -> watch::Receiver<InvokerStatus> {
        self.status.subscribe()
    }

    fn resume(&self) {}

    fn stop(&self, _: tokio::time::Instant) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}
