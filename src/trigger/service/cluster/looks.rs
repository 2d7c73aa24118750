//! What is looked at of a cluster beside the lanes: ranges for a dry run, single records. Nothing is committed.

use std::sync::Arc;

use tripline_storage::Offset;

use super::super::topics::meant;
use super::super::{RunError, TriggerService};
use super::starts::at;
use super::{ClusterError, ClusterInput, ClusterTopic, selection};
use crate::input::EventInput;
use crate::input::cluster::Client;
use crate::trigger::run::{RangeRequest, RunRange, chosen, none_where_named};
use crate::trigger::runner::Runner;

/// A topic of a cluster.
struct There {
    client: Arc<Client>,
    name: String,
    topic: ClusterTopic,
}

impl There {
    async fn input(&self, partition: u32) -> Result<EventInput, ClusterError> {
        let input =
            ClusterInput::open(Arc::clone(&self.client), &self.name, &self.topic, partition, Offset::ZERO).await?;
        Ok(EventInput::Cluster(input))
    }
}

impl TriggerService {
    /// The partitions of a trigger's input that a request means now, with what of them; empty ones are left out.
    pub(in crate::trigger::service) async fn ranges_there(
        &self,
        runner: &Runner,
        topic: Option<&str>,
        asked: &[RangeRequest],
    ) -> Result<Vec<(EventInput, RunRange)>, RunError> {
        let there = self.there(runner, topic).await?;
        let mut inputs = Vec::new();
        for (partition, request) in (0..).zip(chosen(&there.name, there.topic.partition_count(), asked)?) {
            let Some(request) = request else { continue };
            let from = there.client.start_of(&there.name, partition, at(request.from)).await?;
            let to = there.client.start_of(&there.name, partition, at(request.to)).await?;
            if let Some(range) = RunRange::new(partition, from, to) {
                inputs.push((there.input(partition).await?, range));
            }
        }
        if inputs.is_empty() {
            none_where_named(&there.name, asked)?;
        }
        Ok(inputs)
    }

    /// A partition of the cluster that a trigger reads: of this topic, or of the only one that it reads.
    pub(in crate::trigger::service) async fn partition_there(
        &self,
        runner: &Runner,
        topic: Option<&str>,
        partition: u32,
    ) -> Result<EventInput, RunError> {
        let there = self.there(runner, topic).await?;
        let count = there.topic.partition_count();
        if partition >= count {
            let (topic, last) = (there.name, count.saturating_sub(1));
            return Err(RunError::Partition { topic, last, found: partition });
        }
        Ok(there.input(partition).await?)
    }

    /// The topic that is meant, among those that there are and that the definition selects.
    async fn there(&self, runner: &Runner, wanted: Option<&str>) -> Result<There, RunError> {
        let spec = runner.spec();
        let client = self.inner.client(&spec).map_err(|error| RunError::Cluster(error.to_string()))?;
        let mut topics = client.selected(&selection(&spec.input.topics)).await?;
        let names: Vec<&str> = topics.keys().map(String::as_str).collect();
        let name = meant(spec.name.as_str(), wanted, &names)?;
        let topic = topics.remove(&name).ok_or_else(|| ClusterError::NoTopic(name.clone()))?;
        Ok(There { client, name, topic })
    }
}

impl From<ClusterError> for RunError {
    fn from(error: ClusterError) -> Self {
        Self::Cluster(error.to_string())
    }
}
