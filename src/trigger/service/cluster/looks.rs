//! What is looked at of a cluster beside the lanes: ranges for a dry run, single records. Nothing is committed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tripline_storage::Offset;

use super::super::topics::meant;
use super::super::{RunError, TriggerService};
use super::starts::at;
use super::{ClusterError, ClusterInput, ClusterTopic, selection};
use crate::input::EventInput;
use crate::input::cluster::Client;
use crate::trigger::dry_run::{DryRun, DryRunReport, DryRunRequest};
use crate::trigger::run::{RangeRequest, RunRange, chosen, none_where_named};
use crate::trigger::runner::Runner;

/// How long it may take to find out what a request means, besides the time that it gives the look itself.
const LOOK_UP_MAX: Duration = Duration::from_secs(30);

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

    /// The offsets that a request means now; empty ranges are left out.
    async fn ranges(&self, asked: &[RangeRequest]) -> Result<Vec<RunRange>, RunError> {
        let mut ranges = Vec::new();
        for (partition, request) in (0..).zip(chosen(&self.name, self.topic.partition_count(), asked)?) {
            let Some(request) = request else { continue };
            let from = self.client.start_of(&self.name, partition, at(request.from)).await?;
            let to = self.client.start_of(&self.name, partition, at(request.to)).await?;
            ranges.extend(RunRange::new(partition, from, to));
        }
        if ranges.is_empty() {
            none_where_named(&self.name, asked)?;
        }
        Ok(ranges)
    }
}

impl TriggerService {
    /// As [`TriggerService::dry_run`], of topics of a cluster.
    pub(in crate::trigger::service) async fn dry_run_there(
        &self,
        name: &str,
        request: &DryRunRequest,
    ) -> Result<DryRunReport, RunError> {
        let runner = self.trigger(name)?;
        let looked_up = async {
            let there = self.there(&runner, request.topic.as_deref()).await?;
            let ranges = there.ranges(&request.ranges).await?;
            Ok::<_, RunError>((there, ranges))
        };
        let (there, ranges) = timeout(LOOK_UP_MAX, looked_up).await.map_err(|_| {
            let seconds = LOOK_UP_MAX.as_secs();
            RunError::Cluster(format!("its topics and offsets were not told within {seconds} s"))
        })??;
        let spec = runner.spec();
        let filter = request.filter.as_ref().or(spec.filter.as_ref());
        let mut run = DryRun::new((filter, &spec.transform), request);
        for range in &ranges {
            if run.leaves(range) {
                continue;
            }
            // Let go before the next is opened: each has connections of its own, and what it has fetched.
            let input = there.input(range.partition).await?;
            run.look_through(&input, range).await.map_err(|error| RunError::Cluster(error.to_string()))?;
        }
        Ok(run.finish())
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
