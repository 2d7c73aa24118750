//! Names of partitions, and of the topics that a member wants.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// A partition of a topic of the cluster. In the order of names and numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterPartition {
    topic: Arc<str>,
    number: u32,
}

impl ClusterPartition {
    /// Partition `number` of a topic.
    #[must_use]
    pub fn new(topic: &str, number: u32) -> Self {
        Self { topic: topic.into(), number }
    }

    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Which of its partitions.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }
}

impl fmt::Display for ClusterPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.number)
    }
}

/// A time for which a member has a partition, from the assignment that gives it until it is lost or given back. One
/// that comes back is in another, whatever was between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tenure(pub(super) u64);

/// The numbers of partitions as messages have them, under the names of their topics.
pub(super) fn by_topic<'a>(partitions: impl IntoIterator<Item = &'a ClusterPartition>) -> BTreeMap<&'a str, Vec<i32>> {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        topics.entry(partition.topic()).or_default().push(partition.number().cast_signed());
    }
    topics
}

/// Which topics a member reads.
#[derive(Clone)]
pub enum Selection {
    /// These, also while they are not there.
    Named(BTreeSet<String>),
    /// All whose name this takes, also those that are made later.
    Matching(Arc<dyn Fn(&str) -> bool + Send + Sync>),
}

impl Selection {
    /// These topics.
    #[must_use]
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self::Named(names.into_iter().map(str::to_owned).collect())
    }

    /// Whether a topic with this name is read, if it exists.
    #[must_use]
    pub fn selects(&self, name: &str) -> bool {
        match self {
            Self::Named(names) => names.contains(name),
            Self::Matching(matches) => matches(name),
        }
    }
}

impl fmt::Debug for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(names) => f.debug_tuple("Named").field(names).finish(),
            Self::Matching(_) => f.write_str("Matching"),
        }
    }
}
