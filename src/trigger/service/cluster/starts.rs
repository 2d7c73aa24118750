//! Where a trigger on a cluster begins.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tripline_storage::Offset;

use super::group;
use crate::input::cluster::{Client, ClusterError, ClusterPartition, ClusterTopic, Committed, Start};
use crate::trigger::commit_metadata;
use crate::trigger::spec::{StartPosition, TopicSelection, TriggerSpec};

/// Where a trigger starts is decided when it is made, or begins to read a topic, by the first process that says so.
/// Answers what could not be committed, because the group has members: whoever gets such a partition does that.
pub(super) async fn begins(
    client: &Client,
    spec: &TriggerSpec,
    topics: &BTreeMap<String, ClusterTopic>,
    running: Option<&TriggerSpec>,
) -> Result<BTreeMap<ClusterPartition, Offset>, ClusterError> {
    let group = group(spec);
    let committed = client.committed_of(&group, &partitions_of(topics)).await?;
    let knows = |topic: &str| committed.keys().any(|partition| partition.topic() == topic);
    let is_begun = |topic: &str| match running {
        Some(running) => !running.input.topics.selects(topic),
        // What a pattern has selected since the group began is read from its first record.
        None => committed.is_empty() || !matches!(spec.input.topics, TopicSelection::Pattern(_)),
    };
    let mut begins = BTreeMap::new();
    for (name, topic) in topics.iter().filter(|(name, _)| !knows(name) && is_begun(name)) {
        for partition in 0..topic.partition_count() {
            let start = client.start_of(name, partition, at(spec.input.start)).await?;
            begins.insert(ClusterPartition::new(name, partition), start);
        }
    }
    if running.is_none() && !begins.is_empty() {
        let commit = |(partition, offset): (&ClusterPartition, &Offset)| {
            let metadata = commit_metadata::of_start(topics[partition.topic()].id, *offset);
            (partition.clone(), Committed { offset: *offset, metadata })
        };
        if client.commit_outside(&group, &begins.iter().map(commit).collect()).await? {
            begins.clear();
        }
    }
    Ok(begins)
}

pub(super) fn partitions_of(topics: &BTreeMap<String, ClusterTopic>) -> Vec<ClusterPartition> {
    let of_topic = |(name, topic): (&String, &ClusterTopic)| {
        (0..topic.partition_count()).map(|number| ClusterPartition::new(name, number)).collect::<Vec<_>>()
    };
    topics.iter().flat_map(of_topic).collect()
}

pub(super) fn at(start: StartPosition) -> Start {
    match start {
        StartPosition::Earliest => Start::Earliest,
        StartPosition::Latest => Start::Latest,
        StartPosition::Offset(offset) => Start::Offset(offset),
        StartPosition::Time(time) => Start::Time(time.as_millisecond()),
    }
}

/// Where partitions begin of which the group knows nothing.
#[derive(Debug)]
pub(super) struct Starts {
    start: StartPosition,
    is_pattern: bool,
    /// Decided when the definition began to select their topics.
    decided: BTreeMap<ClusterPartition, Offset>,
    /// Topics that were not there at a time since then.
    later: BTreeSet<String>,
}

/// Where a partition begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    At(Offset),
    From(Start),
}

impl Starts {
    pub(super) fn new(spec: &TriggerSpec, decided: BTreeMap<ClusterPartition, Offset>) -> Self {
        let is_pattern = matches!(spec.input.topics, TopicSelection::Pattern(_));
        Self { start: spec.input.start, is_pattern, decided, later: BTreeSet::new() }
    }

    pub(super) fn redefine(&mut self, spec: &TriggerSpec, decided: BTreeMap<ClusterPartition, Offset>) {
        let Self { start, is_pattern, .. } = Self::new(spec, BTreeMap::new());
        (self.start, self.is_pattern) = (start, is_pattern);
        // What was decided before may not have been given out yet.
        self.decided.extend(decided);
    }

    /// These topics are not there: should there be one of their name again, none of its records is to be missed.
    pub(super) fn are_gone(&mut self, topics: BTreeSet<String>) {
        self.decided.retain(|partition, _| !topics.contains(partition.topic()));
        self.later.extend(topics);
    }

    /// `committed`: what the group knows of the topics that are read.
    pub(super) fn of(&self, partition: &ClusterPartition, committed: &HashMap<ClusterPartition, Committed>) -> Begin {
        if let Some(decided) = self.decided.get(partition) {
            return Begin::At(*decided);
        }
        let topic = partition.topic();
        // A partition, or a topic, that came later is read from its beginning. What a pattern selected when it was
        // applied has been decided.
        let came_later =
            self.is_pattern || self.later.contains(topic) || committed.keys().any(|known| known.topic() == topic);
        Begin::From(if came_later { Start::Earliest } else { at(self.start) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_group_does_not_know_begins_where_the_definition_says_or_came_later() {
        let spec = |input: &str| {
            let definition = format!(
                r#"{{"trigger": "t", "input": {{{input}, "start": "latest", "cluster": {{"bootstrap_servers": "h:1"}}}}, "function": "f"}}"#
            );
            TriggerSpec::from_json(&serde_json::from_str(&definition).unwrap()).unwrap()
        };
        let at = |topic: &str, number| ClusterPartition::new(topic, number);
        let knows =
            |partition| HashMap::from([(partition, Committed { offset: Offset::ZERO, metadata: String::new() })]);
        let (named, pattern) = (spec(r#""topics": ["a", "b"]"#), spec(r#""pattern": "*""#));
        let (latest, earliest) = (Begin::From(Start::Latest), Begin::From(Start::Earliest));
        for (spec, new) in [(&named, latest), (&pattern, earliest)] {
            let starts = Starts::new(spec, BTreeMap::new());
            assert_eq!(starts.of(&at("a", 1), &HashMap::new()), new, "nobody has read anything yet");
            assert_eq!(starts.of(&at("a", 1), &knows(at("a", 0))), earliest, "a partition that was added");
        }
        let mut starts = Starts::new(&named, BTreeMap::new());
        assert_eq!(starts.of(&at("b", 0), &knows(at("a", 0))), latest, "a topic that is named by now");
        starts.are_gone(["b".to_owned()].into());
        assert_eq!(starts.of(&at("b", 0), &knows(at("a", 0))), earliest, "one that was not there");
        let mut starts = Starts::new(&pattern, BTreeMap::new());
        assert_eq!(starts.of(&at("b", 0), &knows(at("a", 0))), earliest, "a topic that came later");
        let seven = Offset::new(7).unwrap();
        starts.redefine(&pattern, BTreeMap::from([(at("b", 0), seven)]));
        starts.redefine(&named, BTreeMap::new());
        assert_eq!(starts.of(&at("b", 0), &knows(at("a", 0))), Begin::At(seven), "decided with the definition");
        starts.are_gone(["b".to_owned()].into());
        assert_eq!(starts.of(&at("b", 0), &knows(at("a", 0))), earliest, "and then deleted");
    }
}
