//! Where a trigger on a cluster begins.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tripline_storage::Offset;
use uuid::Uuid;

use super::group;
use crate::broker::record::{JournalRecord, TriggerStart};
use crate::broker::state::{ClusterStart, ClusterStarts};
use crate::input::cluster::{Client, ClusterError, ClusterPartition, ClusterTopic, Committed, Start};
use crate::trigger::commit_metadata;
use crate::trigger::spec::{StartPosition, TopicSelection, TriggerSpec};

/// Where a trigger starts is decided when it is made, or begins to read a topic, by the first process that says so.
/// Answers what could not be committed, because the group has members: the journal keeps it, and when this process gets
/// such a partition, it commits that. `decided`: what the journal keeps already.
pub(super) async fn begins(
    client: &Client,
    spec: &TriggerSpec,
    topics: &BTreeMap<String, ClusterTopic>,
    running: Option<&TriggerSpec>,
    decided: &ClusterStarts,
) -> Result<ClusterStarts, ClusterError> {
    let group = group(spec);
    let committed = client.committed_of(&group, &partitions_of(topics)).await?;
    let knows = |topic: &str| committed.keys().any(|partition| partition.topic() == topic);
    let is_begun = |topic: &str| match running {
        Some(running) => !running.input.topics.selects(topic),
        // What a pattern has selected since the group began is read from its first record.
        None => committed.is_empty() || !matches!(spec.input.topics, TopicSelection::Pattern(_)),
    };
    let mut begins = ClusterStarts::new();
    for (name, topic) in topics.iter().filter(|(name, _)| !knows(name) && is_begun(name)) {
        for partition in 0..topic.partition_count() {
            let key = (name.clone(), partition);
            let begin = match kept(decided, &key, topic.id) {
                Some(kept) => kept,
                None => {
                    let offset = client.start_of(name, partition, at(spec.input.start)).await?;
                    ClusterStart { topic: topic.id, offset }
                }
            };
            begins.insert(key, begin);
        }
    }
    if running.is_none() && !begins.is_empty() {
        let commit = |((topic, partition), begin): (&(String, u32), &ClusterStart)| {
            let metadata = commit_metadata::of_start(begin.topic, begin.offset);
            (ClusterPartition::new(topic, *partition), Committed { offset: begin.offset, metadata })
        };
        if client.commit_outside(&group, &begins.iter().map(commit).collect()).await? {
            begins.clear();
        }
    }
    Ok(begins)
}

/// What is decided already for this very topic: the trigger could not be started here, and is made again.
fn kept(decided: &ClusterStarts, key: &(String, u32), id: Uuid) -> Option<ClusterStart> {
    decided.get(key).copied().filter(|start| !id.is_nil() && start.topic == id)
}

/// What is remembered with a definition of where it begins. `decided`: what is remembered so far; `is_elsewhere`: on
/// another cluster.
pub(super) fn to_remember(
    trigger: Uuid,
    spec: &TriggerSpec,
    decided: &ClusterStarts,
    is_elsewhere: bool,
    begins: &ClusterStarts,
) -> Vec<JournalRecord> {
    let is_left = |topic: &str| is_elsewhere || !spec.input.topics.selects(topic);
    let left = decided.iter().filter(|((topic, _), _)| is_left(topic));
    let left = left.map(|(key, start)| forgotten(trigger, key, start));
    left.chain(begins.iter().map(|(key, start)| start.record(trigger, key).into())).collect()
}

/// The record that a start is of no use any more.
pub(super) fn forgotten(trigger: Uuid, key: &(String, u32), start: &ClusterStart) -> JournalRecord {
    TriggerStart { offset: None, ..start.record(trigger, key) }.into()
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
    pub(super) fn new(spec: &TriggerSpec) -> Self {
        let is_pattern = matches!(spec.input.topics, TopicSelection::Pattern(_));
        Self { start: spec.input.start, is_pattern, later: BTreeSet::new() }
    }

    pub(super) fn redefine(&mut self, spec: &TriggerSpec) {
        let Self { start, is_pattern, .. } = Self::new(spec);
        (self.start, self.is_pattern) = (start, is_pattern);
    }

    /// These topics are not there: should there be one of their name again, none of its records is to be missed.
    pub(super) fn are_gone(&mut self, topics: BTreeSet<String>) {
        self.later.extend(topics);
    }

    /// `id`: the topic's; `decided`: what the journal says of the partition; `committed`: what the group knows of the
    /// topics that are read.
    pub(super) fn of(
        &self,
        (partition, id): (&ClusterPartition, Uuid),
        decided: Option<ClusterStart>,
        committed: &HashMap<ClusterPartition, Committed>,
    ) -> Begin {
        match decided {
            Some(decided) if id.is_nil() || decided.topic.is_nil() || decided.topic == id => {
                return Begin::At(decided.offset);
            }
            // It was another topic. None of the records of this one is to be missed.
            Some(_) => return Begin::From(Start::Earliest),
            None => {}
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
    use std::time::Duration;

    use serde_json::json;
    use tokio::time::timeout;

    use super::super::super::tests::World;
    use super::*;
    use crate::input::cluster::fake::{AskedCommit, FakeCluster};

    const SOON: Duration = Duration::from_secs(10);
    /// Kafka's answers to a commit: it is there; the group has members.
    const NONE: i16 = 0;
    const UNKNOWN_MEMBER_ID: i16 = 25;

    fn spec(input: &str) -> TriggerSpec {
        let definition = format!(
            r#"{{"trigger": "t", "input": {{{input}, "start": "latest", "cluster": {{"bootstrap_servers": "h:1"}}}}, "function": "f"}}"#
        );
        TriggerSpec::from_json(&serde_json::from_str(&definition).unwrap()).unwrap()
    }

    async fn asked(cluster: &mut FakeCluster) -> AskedCommit {
        timeout(SOON, cluster.commits.recv()).await.expect("something is committed").unwrap()
    }

    #[tokio::test]
    async fn a_start_that_was_decided_holds_after_a_kill_before_the_group_gives_out_its_partition() {
        let mut cluster = FakeCluster::start(&[("a", 300), ("b", 500)]).await;
        let reads = |topics: &[&str]| {
            let there = json!({"bootstrap_servers": cluster.address});
            json!({"input": {"topics": topics, "start": "latest", "cluster": there}})
        };
        let (one, two) = (reads(&["a"]), reads(&["a", "b"]));
        let world = World::start().await;
        // The group has members: what is committed from outside is refused.
        let (id, ()) = tokio::join!(world.apply(one), async {
            let outside = asked(&mut cluster).await;
            assert_eq!((outside.generation, outside.offsets), (-1, vec![(ClusterPartition::new("a", 0), 300)]));
            outside.answer.send(UNKNOWN_MEMBER_ID).unwrap();
        });
        world.apply(two).await;
        cluster.grow("a", 400);
        cluster.grow("b", 600);
        let world = world.begin_again().await;
        cluster.let_in();
        for (topic, at) in [("a", 300), ("b", 500)] {
            let begun = asked(&mut cluster).await;
            assert_eq!((begun.generation, begun.offsets), (1, vec![(ClusterPartition::new(topic, 0), at)]));
            begun.answer.send(NONE).unwrap();
        }
        // The group knows.
        let forgets = async {
            while !world.broker.journal().look(|state| state.triggers[&id].starts.is_empty()) {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, forgets).await.expect("they are forgotten");
    }

    #[test]
    fn what_the_group_does_not_know_begins_where_the_definition_says_or_came_later() {
        let at = |topic: &str, number| ClusterPartition::new(topic, number);
        let knows =
            |partition| HashMap::from([(partition, Committed { offset: Offset::ZERO, metadata: String::new() })]);
        let (named, pattern) = (spec(r#""topics": ["a", "b"]"#), spec(r#""pattern": "*""#));
        let (latest, earliest) = (Begin::From(Start::Latest), Begin::From(Start::Earliest));
        let id = Uuid::from_u128(1);
        let of = |starts: &Starts, partition, committed| starts.of((&partition, id), None, &committed);
        for (spec, new) in [(&named, latest), (&pattern, earliest)] {
            let starts = Starts::new(spec);
            assert_eq!(of(&starts, at("a", 1), HashMap::new()), new, "nobody has read anything yet");
            assert_eq!(of(&starts, at("a", 1), knows(at("a", 0))), earliest, "a partition that was added");
        }
        let mut starts = Starts::new(&named);
        assert_eq!(of(&starts, at("b", 0), knows(at("a", 0))), latest, "a topic that is named by now");
        starts.are_gone(["b".to_owned()].into());
        assert_eq!(of(&starts, at("b", 0), knows(at("a", 0))), earliest, "one that was not there");
        let mut starts = Starts::new(&pattern);
        assert_eq!(of(&starts, at("b", 0), knows(at("a", 0))), earliest, "a topic that came later");
        starts.redefine(&named);
        let seven = Offset::new(7).unwrap();
        for (of, now, begin) in [
            (id, id, Begin::At(seven)),
            (id, Uuid::from_u128(2), earliest),
            // Clusters that give topics no ids.
            (Uuid::nil(), id, Begin::At(seven)),
            (id, Uuid::nil(), Begin::At(seven)),
        ] {
            let decided = Some(ClusterStart { topic: of, offset: seven });
            assert_eq!(
                starts.of((&at("b", 0), now), decided, &knows(at("a", 0))),
                begin,
                "decided with the definition"
            );
        }
    }

    #[test]
    fn what_is_decided_is_not_decided_again_but_for_another_topic() {
        let (key, id) = (("b".to_owned(), 0), Uuid::from_u128(1));
        let start = ClusterStart { topic: id, offset: Offset::ZERO };
        let decided = ClusterStarts::from([(key.clone(), start)]);
        assert_eq!(kept(&decided, &key, id), Some(start));
        for other in [Uuid::from_u128(2), Uuid::nil()] {
            assert_eq!(kept(&decided, &key, other), None, "it may be in another cluster");
        }
    }

    #[test]
    fn what_is_left_out_or_on_another_cluster_is_forgotten_with_the_definition_that_says_so() {
        let spec = spec(r#""topics": ["a", "c"]"#);
        let start = |value| ClusterStart { topic: Uuid::from_u128(1), offset: Offset::new(value).unwrap() };
        let starts = |topics: [(&str, i64); 2]| -> ClusterStarts {
            topics.map(|(topic, value)| ((topic.to_owned(), 0), start(value))).into()
        };
        let (decided, begins) = (starts([("a", 1), ("b", 2)]), starts([("a", 3), ("c", 4)]));
        let remembered = |is_elsewhere| {
            let records = to_remember(Uuid::nil(), &spec, &decided, is_elsewhere, &begins).into_iter();
            let told = records.map(|record| match record {
                JournalRecord::TriggerStart(start) => (start.topic, start.offset),
                other => panic!("{other:?}"),
            });
            told.collect::<Vec<_>>()
        };
        let told = |topic: &str, offset| (topic.to_owned(), offset);
        let now = [told("a", Some(3)), told("c", Some(4))];
        assert_eq!(remembered(false), [&[told("b", None)][..], &now].concat());
        assert_eq!(remembered(true), [&[told("a", None), told("b", None)][..], &now].concat());
    }
}
