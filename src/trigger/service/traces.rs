//! The story of one event, as the service knows it.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{Running, TriggerService};
use crate::trigger::lane_status::LaneStatus;
use crate::trigger::trace::lookup::{self, Reader, Readers};
use crate::trigger::trace::story::Story;
use crate::trigger::trace::{SearchLimits, TraceCounts, TraceError, Wanted};

/// What the writer of history gets at a shutdown to write what it has.
const GRACE: Duration = Duration::from_millis(500);

impl TriggerService {
    /// The story of one event: where it is, what every trigger of its topic did with it, what is still to come.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub async fn trace(&self, wanted: &Wanted, limits: SearchLimits) -> Result<Story, TraceError> {
        lookup::story(&self.inner.broker, &self.inner.traces, wanted, limits, self.now_ms(), self).await
    }

    /// What became of history since the start.
    #[must_use]
    pub fn trace_counts(&self) -> TraceCounts {
        self.inner.traces.counts()
    }

    /// Writes down what is left of history; the broker is free of its writer then.
    pub(super) async fn end_history(&self) {
        let writer = self.inner.trace_writer.lock().take();
        let Some(mut writer) = writer else { return };
        let stopped = async {
            self.inner.traces.stop().await;
            (&mut writer).await
        };
        if tokio::time::timeout(GRACE, stopped).await.is_err() {
            writer.abort();
            let _ = writer.await;
        }
    }
}

impl Readers for TriggerService {
    fn here(&self, topic: Uuid, partition: u32) -> Vec<Reader> {
        let running = self.inner.running.read();
        let readers = running.values().filter(|running| running.reads(topic));
        readers
            .filter_map(|running| running.reader(|lane| lane.origin().topic_id == topic && lane.number() == partition))
            .collect()
    }

    fn on_cluster(&self, topic: &str, partition: u32) -> Vec<Reader> {
        let running = self.inner.running.read();
        let there = running.values().filter(|running| running.runner.spec().input.cluster.is_some());
        let mut readers: Vec<Reader> =
            there.filter_map(|running| running.reader(|lane| lane.place() == (topic, partition))).collect();
        // Of several clusters that have such a topic, one.
        let of = |reader: &Reader| (reader.input.origin().cluster_id.clone(), reader.input.origin().topic_id);
        if let Some(first) = readers.first().map(of) {
            readers.retain(|reader| of(reader) == first);
        }
        readers
    }
}

impl Running {
    /// Itself, as one that reads in the first lane that `is_it` takes.
    fn reader(&self, is_it: impl Fn(&LaneStatus) -> bool) -> Option<Reader> {
        let index = self.lanes.iter().position(|lane| is_it(lane))?;
        let (poller, input) = (self.pollers.get(index)?.clone(), self.lanes[index].input().clone());
        Some(Reader { runner: Arc::clone(&self.runner), poller, input })
    }
}
