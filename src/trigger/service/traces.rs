//! The story of one event, as the service knows it.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::TriggerService;
use crate::trigger::lane_status::LaneStatus;
use crate::trigger::trace::lookup::{self, Reader};
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
        let readers = |topic, partition| self.readers(topic, partition);
        lookup::story(&self.inner.broker, &self.inner.traces, wanted, limits, self.now_ms(), readers).await
    }

    /// What became of history since the start.
    #[must_use]
    pub fn trace_counts(&self) -> TraceCounts {
        self.inner.traces.counts()
    }

    /// The triggers that read a partition, by name.
    fn readers(&self, topic: Uuid, partition: u32) -> Vec<Reader> {
        let running = self.inner.running.read();
        let readers = running.values().filter(|running| running.reads(topic));
        let readers = readers.filter_map(|running| {
            let is_it = |lane: &Arc<LaneStatus>| lane.origin().topic_id == topic && lane.number() == partition;
            let index = running.lanes.iter().position(is_it)?;
            Some(Reader { runner: Arc::clone(&running.runner), poller: running.pollers.get(index)?.clone() })
        });
        readers.collect()
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
