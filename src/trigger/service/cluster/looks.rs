//! Topics of a cluster beside the lanes: what runs read, dry runs and single records look at.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tripline_storage::Offset;
use uuid::Uuid;

use super::super::run_topic::RunTopic;
use super::super::topics::meant;
use super::super::{RunError, TriggerService};
use super::starts::at;
use super::{ClusterError, ClusterInput, ClusterTopic, selection};
use crate::input::EventInput;
use crate::input::cluster::Client;
use crate::topic::name::TopicName;
use crate::trigger::runner::Runner;
use crate::trigger::spec::{StartPosition, TriggerSpec};

/// How long it may take to find out what a request means…
const LOOK_UP_MAX: Duration = Duration::from_secs(30);
/// …and so long more for each partition.
const LOOK_UP_PARTITION: Duration = Duration::from_millis(100);

/// A topic of a cluster.
#[derive(Clone, Debug)]
pub(in crate::trigger::service) struct There {
    client: Arc<Client>,
    name: String,
    topic: ClusterTopic,
}

impl There {
    #[cfg(test)]
    pub(in crate::trigger::service) fn for_test(name: &str, id: Uuid) -> Self {
        use crate::input::ClusterAddress;
        use crate::input::cluster::{ClusterAccess, Security};

        let access = ClusterAccess { bootstrap_servers: Vec::new(), security: Security::default() };
        let client = Arc::new(Client::new(access, ClusterAddress::SESSION_TIMEOUT, "test"));
        Self { client, name: name.to_owned(), topic: ClusterTopic::for_test(id) }
    }

    /// A topic, as it is now.
    pub(super) async fn find(client: Arc<Client>, name: &str) -> Result<Self, ClusterError> {
        let topic = client.topic(name).await?;
        Ok(Self { client, name: name.to_owned(), topic })
    }

    pub(in crate::trigger::service) fn name(&self) -> &str {
        &self.name
    }

    pub(in crate::trigger::service) const fn id(&self) -> Uuid {
        self.topic.id
    }

    pub(in crate::trigger::service) fn partition_count(&self) -> u32 {
        self.topic.partition_count()
    }

    /// A partition, for one who has read what lies below `read_to`.
    pub(in crate::trigger::service) async fn input(
        &self,
        partition: u32,
        read_to: Offset,
    ) -> Result<EventInput, ClusterError> {
        let client = Arc::clone(&self.client);
        Ok(EventInput::Cluster(ClusterInput::open(client, &self.name, &self.topic, partition, read_to).await?))
    }

    /// The offset that is meant in a partition.
    pub(in crate::trigger::service) async fn offset(
        &self,
        partition: u32,
        position: StartPosition,
    ) -> Result<Offset, ClusterError> {
        self.client.start_of(&self.name, partition, at(position)).await
    }
}

impl TriggerService {
    /// A partition of the cluster that a trigger reads: of this topic, or of the only one that it reads.
    pub(in crate::trigger::service) async fn partition_there(
        &self,
        runner: &Runner,
        topic: Option<&str>,
        partition: u32,
    ) -> Result<EventInput, RunError> {
        let there = self.input_there(&runner.spec(), topic).await?;
        let count = there.partition_count();
        if partition >= count {
            let (topic, last) = (there.name().to_owned(), count.saturating_sub(1));
            return Err(RunError::Partition { topic, last, found: partition });
        }
        there.input(&self.inner.broker, partition).await
    }

    /// The topic that is meant, among those that there are and that the definition selects.
    pub(in crate::trigger::service) async fn input_there(
        &self,
        spec: &TriggerSpec,
        wanted: Option<&str>,
    ) -> Result<RunTopic, RunError> {
        let client = self.client_for(spec)?;
        let mut topics = told_in_time(0, client.selected(&selection(&spec.input.topics))).await?;
        let names: Vec<&str> = topics.keys().map(String::as_str).collect();
        let name = meant(spec.name.as_str(), wanted, &names)?;
        let topic = topics.remove(&name).ok_or_else(|| ClusterError::NoTopic(name.clone()))?;
        Ok(RunTopic::there(There { client, name, topic }))
    }

    /// The topic of the trigger's dead letters, seen as the records that they were.
    pub(in crate::trigger::service) async fn letter_topic_there(
        &self,
        spec: &TriggerSpec,
        letters: &TopicName,
    ) -> Result<RunTopic, RunError> {
        let client = self.client_for(spec)?;
        let told = async {
            let ids = ids_of_topics(&client, spec).await?;
            match There::find(client, letters.as_str()).await {
                Ok(there) => Ok((there, ids)),
                Err(ClusterError::NoTopic(_)) => Err(RunError::NoDeadLetters(spec.name.to_string())),
                Err(error) => Err(error.into()),
            }
        };
        let (there, ids) = told_in_time(0, told).await?;
        Ok(RunTopic::there(there).with_letters_of(ids))
    }

    fn client_for(&self, spec: &TriggerSpec) -> Result<Arc<Client>, RunError> {
        self.inner.client(spec).map_err(|error| RunError::Cluster(error.to_string()))
    }
}

/// The topics that a definition selects: their ids, by name.
pub(super) async fn ids_of_topics(client: &Client, spec: &TriggerSpec) -> Result<HashMap<String, Uuid>, ClusterError> {
    let topics = client.selected(&selection(&spec.input.topics)).await?;
    Ok(topics.into_iter().map(|(name, topic)| (name, topic.id)).collect())
}

/// What a cluster says, of so many partitions, while somebody waits for it.
pub(in crate::trigger::service) async fn told_in_time<T, E>(
    partitions: u32,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, RunError>
where
    RunError: From<E>,
{
    let patience = LOOK_UP_MAX + LOOK_UP_PARTITION * partitions;
    let late = |_| RunError::Cluster(format!("its topics and offsets were not told within {} s", patience.as_secs()));
    Ok(timeout(patience, answer).await.map_err(late)??)
}

impl From<ClusterError> for RunError {
    fn from(error: ClusterError) -> Self {
        Self::Cluster(error.to_string())
    }
}
