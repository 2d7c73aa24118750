//! Limits of groups.

use std::time::Duration;

/// Limits of all groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// Shortest session time-out that a member may ask for. Default 6 s, as Kafka.
    pub session_timeout_min: Duration,
    /// Longest session time-out that a member may ask for. Default 30 min, as Kafka.
    pub session_timeout_max: Duration,
    /// How long an empty group waits for further members after its first, each time it fills again. Default 100 ms.
    ///
    /// Members started together then share their first generation, instead of each starting a rebalance for all. Kafka
    /// waits 3 s, for fleets that start over seconds; here that would be the longest part of starting one consumer.
    /// Each newcomer extends the wait by as much, up to the rebalance time-out.
    pub initial_rebalance_delay: Duration,
    /// How long a member that has joined and was never answered is kept. Default 5 min, as Kafka.
    pub new_member_timeout: Duration,
    /// How long a member that was only given an id is awaited, if its session time-out is not shorter. Default 60 s: it
    /// joins with the id at once, or never.
    pub pending_timeout_max: Duration,
    /// Most members of a group, those who were only given an id included. Default 1,000.
    pub members_max: usize,
    /// Most protocols (assignors) that a member offers. Default 64.
    pub protocols_max: usize,
    /// Longest metadata of a member over all its protocols, in bytes. Default 1 MiB.
    pub metadata_bytes_max: usize,
    /// Longest metadata of all members of a group, in bytes; the leader receives it in one response. Default 16 MiB.
    pub group_metadata_bytes_max: usize,
    /// Longest assignment of all members of a group, in bytes. Default 8 MiB.
    pub assignment_bytes_max: usize,
    /// Most bytes that members, their metadata and their assignments take in all groups together. Default 256 MiB.
    pub held_bytes_max: usize,
    /// Most groups that are kept in memory; empty ones give way, and then those that have only given out ids. Default
    /// 10,000.
    pub groups_max: usize,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            session_timeout_min: Duration::from_secs(6),
            session_timeout_max: Duration::from_secs(30 * 60),
            initial_rebalance_delay: Duration::from_millis(100),
            new_member_timeout: Duration::from_secs(5 * 60),
            pending_timeout_max: Duration::from_secs(60),
            members_max: 1_000,
            protocols_max: 64,
            metadata_bytes_max: 1024 * 1024,
            group_metadata_bytes_max: 16 * 1024 * 1024,
            assignment_bytes_max: 8 * 1024 * 1024,
            held_bytes_max: 256 * 1024 * 1024,
            groups_max: 10_000,
        }
    }
}
