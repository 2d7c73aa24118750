//! Topics of a cluster: which there are, how many partitions they have, and who leads those.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::client::{Client, ClusterError, PAUSE, TRIES, code, host_and_port};
use super::place::Selection;
use super::wire::schema::metadata_response::MetadataResponseTopic;
use super::wire::schema::{
    CreateTopicsRequest, MetadataRequest, MetadataResponse, create_topics_request, metadata_request,
};
use super::wire::{StrBytes, message};

/// A topic as the cluster describes it.
#[derive(Clone, Debug)]
pub struct ClusterTopic {
    /// The id of the cluster; empty if it has none.
    pub cluster_id: String,
    /// The topic's id; nil in clusters that give none.
    pub id: Uuid,
    /// Addresses of the leaders, by partition.
    leaders: Vec<Option<String>>,
}

impl ClusterTopic {
    /// With one partition, which nobody leads.
    #[cfg(test)]
    pub(crate) fn for_test(id: Uuid) -> Self {
        Self { cluster_id: "test".to_owned(), id, leaders: vec![None] }
    }

    /// How many partitions it has.
    #[must_use]
    pub fn partition_count(&self) -> u32 {
        u32::try_from(self.leaders.len()).unwrap_or(u32::MAX)
    }
}

impl Client {
    /// A topic, as it is now.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn topic(&self, name: &str) -> Result<ClusterTopic, ClusterError> {
        let mut found = self.topics_named([name]).await?;
        found.remove(name).ok_or_else(|| ClusterError::NoTopic(name.to_owned()))
    }

    /// The topics that a member with this selection reads, as they are now.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn selected(&self, selection: &Selection) -> Result<BTreeMap<String, ClusterTopic>, ClusterError> {
        match selection {
            Selection::Named(names) => self.topics_named(names.iter().map(String::as_str)).await,
            Selection::Matching(matches) => self.found(None, &**matches).await,
        }
    }

    /// Those of these topics that there are.
    pub(super) async fn topics_named<'n>(
        &self,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<BTreeMap<String, ClusterTopic>, ClusterError> {
        let names: Vec<&str> = names.into_iter().collect();
        // None named would mean all.
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.found(Some(&names), &|_| true).await
    }

    async fn found(
        &self,
        names: Option<&[&str]>,
        is_wanted: &(dyn Fn(&str) -> bool + Send + Sync),
    ) -> Result<BTreeMap<String, ClusterTopic>, ClusterError> {
        let mut moves = String::new();
        for _ in 0..TRIES {
            let answer = self.metadata(names).await?;
            match wanted_in(&answer, is_wanted) {
                Ok(found) => return Ok(found),
                Err((topic, code)) if code::moves(code) => topic.clone_into(&mut moves),
                Err((topic, code)) => {
                    return Err(ClusterError::refused(format!("a description of topic {topic}"), code));
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(ClusterError::NoLeader { topic: moves, partition: 0 })
    }

    /// What a broker says of these topics, or of all.
    async fn metadata(&self, names: Option<&[&str]>) -> Result<MetadataResponse, ClusterError> {
        let asked = |name: &&str| {
            message!(metadata_request::MetadataRequestTopic { name: Some(StrBytes::from((*name).to_owned())) })
        };
        let topics = names.map(|names| names.iter().map(asked).collect());
        let request = message!(MetadataRequest { topics: topics, allow_auto_topic_creation: false });
        let answer = self.ask(1..=12, &request).await?;
        *self.heard_of.lock() = brokers(&answer).into_values().take(16).collect();
        Ok(answer)
    }

    pub(super) async fn leader(&self, topic: &str, partition: u32) -> Result<String, ClusterError> {
        self.leader_of(topic, Uuid::nil(), partition).await
    }

    /// Of the topic with this id, where the cluster gives them; another of its name has no leader for it.
    pub(super) async fn leader_of(&self, topic: &str, id: Uuid, partition: u32) -> Result<String, ClusterError> {
        let described = self.topic(topic).await?;
        if !id.is_nil() && !described.id.is_nil() && described.id != id {
            return Err(ClusterError::OtherTopic(topic.to_owned()));
        }
        let leader = described.leaders.get(partition as usize).cloned().flatten();
        leader.ok_or_else(|| ClusterError::NoLeader { topic: topic.to_owned(), partition })
    }

    /// Makes a topic with so many partitions, if there is none of that name.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn create_topic(&self, name: &str, partitions: u32) -> Result<(), ClusterError> {
        let topic = message!(create_topics_request::CreatableTopic {
            name: StrBytes::from(name.to_owned()),
            num_partitions: partitions.cast_signed(),
            replication_factor: -1,
        });
        let request = message!(CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000 });
        // From version 4 on, the cluster's own replication factor can be asked for.
        let answer = self.ask(4..=7, &request).await?;
        match answer.topics.first().map_or(code::NONE, |topic| topic.error_code) {
            code::NONE | code::TOPIC_ALREADY_EXISTS => Ok(()),
            code => Err(ClusterError::refused(format!("topic {name}"), code)),
        }
    }
}

/// The wanted ones of the topics that an answer describes; or one that it cannot, and Kafka's error code for that.
fn wanted_in<'a>(
    answer: &'a MetadataResponse,
    is_wanted: &(dyn Fn(&str) -> bool + Send + Sync),
) -> Result<BTreeMap<String, ClusterTopic>, (&'a str, i16)> {
    let brokers = brokers(answer);
    let mut found = BTreeMap::new();
    for topic in &answer.topics {
        let name = topic.name.as_deref().unwrap_or_default();
        match topic.error_code {
            _ if !is_wanted(name) => {}
            code::NONE => drop(found.insert(name.to_owned(), described(answer, topic, &brokers))),
            code::UNKNOWN_TOPIC_OR_PARTITION => {}
            code => return Err((name, code)),
        }
    }
    Ok(found)
}

/// Addresses of the brokers that an answer names, by number.
fn brokers(answer: &MetadataResponse) -> HashMap<i32, String> {
    let brokers = answer.brokers.iter();
    brokers.map(|broker| (broker.node_id, host_and_port(&broker.host, broker.port))).collect()
}

fn described(answer: &MetadataResponse, topic: &MetadataResponseTopic, brokers: &HashMap<i32, String>) -> ClusterTopic {
    let count = topic.partitions.iter().filter_map(|at| usize::try_from(at.partition_index).ok()).max();
    // As many as are described, whatever numbers they claim.
    let count = count.map_or(0, |last| (last + 1).min(topic.partitions.len()));
    let mut leaders = vec![None; count];
    for partition in &topic.partitions {
        let place = usize::try_from(partition.partition_index).ok().and_then(|index| leaders.get_mut(index));
        if let Some(place) = place {
            *place = brokers.get(&partition.leader_id).cloned();
        }
    }
    ClusterTopic {
        cluster_id: answer.cluster_id.as_deref().unwrap_or_default().to_owned(),
        id: Uuid::from_bytes(topic.topic_id.to_bytes()),
        leaders,
    }
}
