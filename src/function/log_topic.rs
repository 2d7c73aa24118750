//! What functions print, as records of one of the broker's own topics.
//!
//! Lines wait in a bounded queue and are appended in batches. When functions print faster than the disk takes it, the
//! newest lines are dropped and counted, and a line in the log says how many: a function never waits for its own log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};

use super::{LogLine, LogSink, LogStream};
use crate::broker::{Broker, CreateTopicError, Topic};
use crate::topic::name::TopicName;
use crate::topic::spec::TopicConfig;

/// The topic; its records have the function's name as key and a [`LogRecord`] as value.
pub const LOG_TOPIC: &str = "__tripline.function_logs";
/// Lines that wait to be appended. Each has at most 8 KiB, so this is at most 64 MiB.
pub const LINES_WAITING_MAX: usize = 8_192;
/// Bytes of one batch.
const BATCH_BYTES: usize = 256 << 10;
/// How long lines are kept, and how many bytes of them.
const RETENTION_MS: u64 = 3 * 24 * 3600 * 1000;
const RETENTION_BYTES: u64 = 256 << 20;
const SEGMENT_BYTES: u32 = 16 << 20;

/// One printed line as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// The function.
    pub function: String,
    /// The version of its code.
    pub version: u64,
    /// The instance, unique per function while the broker runs.
    pub instance: u64,
    /// The invocation, if one was running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invocation: Option<String>,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// When it was read, ms since 1970.
    pub time_ms: i64,
    /// The line.
    pub text: String,
}

impl From<&LogLine> for LogRecord {
    fn from(line: &LogLine) -> Self {
        let stream = match line.stream {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        };
        Self {
            function: line.function.to_string(),
            version: line.version,
            instance: line.instance,
            invocation: line.invocation.as_deref().map(str::to_owned),
            stream: stream.to_owned(),
            time_ms: line.time_ms,
            text: line.text.clone(),
        }
    }
}

/// Takes lines in until it is started with a topic to put them in.
#[derive(Debug)]
pub struct LogWriter {
    lines: mpsc::Receiver<LogLine>,
    dropped: Arc<AtomicU64>,
}

/// A sink for functions, and the writer of what goes into it.
#[must_use]
pub fn channel() -> (LogSink, LogWriter) {
    let (sender, lines) = mpsc::channel(LINES_WAITING_MAX);
    let dropped = Arc::<AtomicU64>::default();
    let counter = Arc::clone(&dropped);
    let sink: LogSink = Arc::new(move |line| {
        if sender.try_send(line).is_err() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    (sink, LogWriter { lines, dropped })
}

/// The topic, made if it is missing.
///
/// # Errors
/// See [`CreateTopicError`].
pub async fn topic(broker: &Broker) -> Result<Arc<Topic>, CreateTopicError> {
    let name = TopicName::new(LOG_TOPIC).expect("a good name");
    let config = TopicConfig {
        retention_ms: Some(RETENTION_MS),
        retention_bytes: Some(RETENTION_BYTES),
        segment_bytes: SEGMENT_BYTES,
        ..TopicConfig::default()
    };
    broker.internal_topic(&name, config).await
}

impl LogWriter {
    /// Appends lines to the topic until the last sink is gone.
    pub async fn run(mut self, broker: Broker) {
        let mut lines = Vec::new();
        while self.lines.recv_many(&mut lines, LINES_WAITING_MAX).await > 0 {
            let topic = match topic(&broker).await {
                Ok(topic) => topic,
                Err(error) => {
                    tracing::warn!(%error, lines = lines.len(), "lines of functions were dropped: there is no topic for them");
                    lines.clear();
                    continue;
                }
            };
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                tracing::warn!(dropped, "lines of functions were dropped: they print faster than the log takes it");
            }
            append(&broker, &topic, &lines);
            lines.clear();
        }
    }
}

fn append(broker: &Broker, topic: &Topic, lines: &[LogLine]) {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    for line in lines {
        let value = serde_json::to_vec(&LogRecord::from(line)).expect("text and numbers are JSON");
        let record = NewRecord {
            timestamp_ms: line.time_ms,
            key: Some(line.function.as_bytes()),
            value: Some(&value),
            headers: &[],
        };
        if !builder.is_empty() && builder.size_bytes_with(&record) > BATCH_BYTES {
            let full = std::mem::replace(&mut builder, BatchBuilder::new(BatchOptions::default()));
            flush(broker, topic, full);
        }
        if let Err(error) = builder.push(&record) {
            tracing::warn!(%error, function = %line.function, "a line of a function was not kept");
        }
    }
    if !builder.is_empty() {
        flush(broker, topic, builder);
    }
}

fn flush(broker: &Broker, topic: &Topic, builder: BatchBuilder) {
    let appended = builder
        .finish()
        .map_err(|error| error.to_string())
        .and_then(|batch| broker.append(topic, 0, batch).map_err(|error| error.to_string()));
    if let Err(error) = appended {
        tracing::warn!(%error, "lines of functions were not kept");
    }
}
