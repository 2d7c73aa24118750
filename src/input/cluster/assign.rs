//! Who reads which partition: decided by the group's leader, of the topics that each member wants.
//!
//! Kafka's cooperative protocol: everybody says what he has, keeps that while the group comes together, and gives up
//! only what the new assignment takes from him. A partition that changes hands is in nobody's assignment first; when
//! its owner has let go of it, he joins again, and the next assignment gives it away. So nothing is read by two, and
//! what does not move never stops. While a definition changes in one process after the other, members want different
//! topics; each gets only of those that it wants.

use std::collections::{BTreeMap, BTreeSet};

use super::wire::schema::consumer_protocol_assignment::TopicPartition as AssignedPartitions;
use super::wire::schema::consumer_protocol_subscription::TopicPartition as OwnedPartitions;
use super::wire::schema::{ConsumerProtocolAssignment, ConsumerProtocolSubscription};
use super::wire::{ApiVersion, StrBytes};
use bytes::{Bytes, BytesMut};

use super::place::{ClusterPartition, by_topic};
use super::wire::{limits, message};

/// Kafka's name of the protocol, so that its tools can show what members have.
pub(super) const PROTOCOL: &str = "cooperative-sticky";
/// Owned partitions came with 1, the generation that they were owned in with 2.
const SUBSCRIPTION_VERSION: i16 = 2;
const ASSIGNMENT_VERSION: i16 = 0;

/// What a member has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owned {
    /// The generation of the assignment that gave it; -1 for none.
    pub(super) generation: i32,
    pub(super) partitions: BTreeSet<ClusterPartition>,
}

impl Owned {
    pub(super) fn nothing() -> Self {
        Self { generation: -1, partitions: BTreeSet::new() }
    }
}

/// What a member says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// The topics that it wants.
    pub(super) topics: BTreeSet<String>,
    pub(super) owned: Owned,
}

impl Said {
    fn wants(&self, partition: &ClusterPartition) -> bool {
        self.topics.contains(partition.topic())
    }
}

/// The subscription of a member, as bytes.
pub(super) fn subscription(said: &Said) -> Bytes {
    let owned_partitions = by_topic(&said.owned.partitions).into_iter().map(|(topic, partitions)| {
        message!(OwnedPartitions { topic: StrBytes::from(topic.to_owned()), partitions: partitions })
    });
    let subscription = message!(ConsumerProtocolSubscription {
        topics: said.topics.iter().map(|topic| StrBytes::from(topic.clone())).collect(),
        owned_partitions: owned_partitions.collect(),
        generation_id: said.owned.generation,
    });
    let mut bytes = BytesMut::new();
    super::wire::schema::encode_consumer_protocol_subscription(
        &mut bytes,
        &subscription,
        ApiVersion::new(SUBSCRIPTION_VERSION),
    )
    .expect("names and numbers of partitions fit");
    bytes.freeze()
}

/// What a member says; one that cannot be understood wants nothing and has nothing.
pub(super) fn said(subscription: Bytes) -> Said {
    let Ok((version, said)) = super::wire::schema::decode_consumer_protocol_subscription(subscription, limits()) else {
        return Said { topics: BTreeSet::new(), owned: Owned::nothing() };
    };
    let owned = said.owned_partitions.iter().map(|owned| (&*owned.topic, owned.partitions.as_slice()));
    let generation = if version.value() >= SUBSCRIPTION_VERSION { said.generation_id } else { -1 };
    Said {
        topics: said.topics.iter().map(|topic| topic.to_string()).collect(),
        owned: Owned { generation, partitions: partitions(owned) },
    }
}

/// An assignment, as bytes.
pub(super) fn assignment(partitions: &BTreeSet<ClusterPartition>) -> Bytes {
    let assigned = by_topic(partitions).into_iter().map(|(topic, partitions)| {
        message!(AssignedPartitions { topic: StrBytes::from(topic.to_owned()), partitions: partitions })
    });
    let assignment = message!(ConsumerProtocolAssignment { assigned_partitions: assigned.collect() });
    let mut bytes = BytesMut::new();
    super::wire::schema::encode_consumer_protocol_assignment(
        &mut bytes,
        &assignment,
        ApiVersion::new(ASSIGNMENT_VERSION),
    )
    .expect("names and numbers of partitions fit");
    bytes.freeze()
}

/// The partitions that an assignment gives. Nothing, for one that is empty or not understood.
pub(super) fn assigned(assignment: Bytes) -> BTreeSet<ClusterPartition> {
    let Ok((_, given)) = super::wire::schema::decode_consumer_protocol_assignment(assignment, limits()) else {
        return BTreeSet::new();
    };
    partitions(given.assigned_partitions.iter().map(|assigned| (&*assigned.topic, assigned.partitions.as_slice())))
}

/// What stands in a message under the names of topics.
fn partitions<'a>(of_topics: impl Iterator<Item = (&'a str, &'a [i32])>) -> BTreeSet<ClusterPartition> {
    let of_topic = |(topic, numbers): (&'a str, &'a [i32])| {
        let numbers = numbers.iter().filter_map(|number| u32::try_from(*number).ok());
        numbers.map(|number| ClusterPartition::new(topic, number)).collect::<Vec<_>>()
    };
    of_topics.flat_map(of_topic).collect()
}

/// Who gets what.
pub(super) type Shares = BTreeMap<String, BTreeSet<ClusterPartition>>;

/// Shares the partitions of topics, which have so many each, among the members that want them: as evenly as possible,
/// moving as few as that takes. What moves is given to nobody until its owner has let go of it; in that case an owner
/// who keeps less than he has joins again by himself.
pub(super) fn share(counts: &BTreeMap<String, u32>, members: &BTreeMap<String, Said>) -> Shares {
    let owners = owners(counts, members);
    let mut shares: Shares = members.keys().map(|member| (member.clone(), BTreeSet::new())).collect();
    // What has an owner first: what is free evens out what that leaves uneven, and less has to move.
    for (partition, owner) in &owners {
        shares.get_mut(*owner).into_iter().for_each(|share| share.extend([partition.clone()]));
    }
    let all = counts.iter().flat_map(|(topic, count)| (0..*count).map(|number| ClusterPartition::new(topic, number)));
    for partition in all.filter(|partition| !owners.contains_key(partition)) {
        let wanting = shares.iter_mut().filter(|(member, _)| members[*member].wants(&partition));
        if let Some((_, share)) = wanting.min_by_key(|(_, share)| share.len()) {
            share.insert(partition);
        }
    }
    let mut topics = members.values().map(|said| &said.topics);
    let all_want_the_same = topics.next().is_none_or(|first| topics.all(|topics| topics == first));
    while let Some((partition, from, to)) = move_that_evens_out(&shares, members) {
        let has_owner = owners.contains_key(&partition);
        shares.entry(from).or_default().remove(&partition);
        shares.entry(to).or_default().insert(partition);
        // Where anybody may have anything, what is let go of finds the same places the next time. Else it may find
        // another way, and members could pass partitions around for ever. One at a time finds a place that is as good,
        // or better: each time shares are more even than before.
        if has_owner && !all_want_the_same {
            break;
        }
    }
    for (member, share) in &mut shares {
        share.retain(|partition| owners.get(partition).is_none_or(|owner| *owner == member));
    }
    shares
}

/// The partition that a member with more gives to the one with the least who wants it, if the one has two more than the
/// other: each such move makes shares more even, so there is a last one.
fn move_that_evens_out(
    shares: &Shares,
    members: &BTreeMap<String, Said>,
) -> Option<(ClusterPartition, String, String)> {
    let mut by_size: Vec<(&String, &BTreeSet<ClusterPartition>)> = shares.iter().collect();
    by_size.sort_by_key(|(_, share)| share.len());
    for (from, share) in by_size.iter().rev() {
        for (to, _) in by_size.iter().take_while(|(_, other)| other.len() + 1 < share.len()) {
            if let Some(partition) = share.iter().rev().find(|partition| members[*to].wants(partition)) {
                return Some((partition.clone(), (*from).clone(), (*to).clone()));
            }
        }
    }
    None
}

/// Who has each partition that there is: of several who say so and want it, the one whose assignment is the latest.
fn owners<'m>(
    counts: &BTreeMap<String, u32>,
    members: &'m BTreeMap<String, Said>,
) -> BTreeMap<ClusterPartition, &'m String> {
    let is_there =
        |partition: &ClusterPartition| counts.get(partition.topic()).is_some_and(|count| partition.number() < *count);
    let mut owners: BTreeMap<ClusterPartition, (i32, &String)> = BTreeMap::new();
    for (member, said) in members {
        let owned = &said.owned;
        for partition in owned.partitions.iter().filter(|partition| is_there(partition) && said.wants(partition)) {
            let known = owners.entry(partition.clone()).or_insert((owned.generation, member));
            if known.0 < owned.generation {
                *known = (owned.generation, member);
            }
        }
    }
    owners.into_iter().map(|(partition, (_, member))| (partition, member)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(counts: &[(&str, u32)]) -> BTreeMap<String, u32> {
        counts.iter().map(|(topic, count)| ((*topic).to_owned(), *count)).collect()
    }

    fn partitions_of(places: &[(&str, u32)]) -> BTreeSet<ClusterPartition> {
        places.iter().map(|(topic, number)| ClusterPartition::new(topic, *number)).collect()
    }

    /// Who wants the topics whose names are these letters, and has this.
    fn says(topics: &str, generation: i32, owned: &[(&str, u32)]) -> Said {
        let owned = Owned { generation, partitions: partitions_of(owned) };
        Said { topics: topics.chars().map(String::from).collect(), owned }
    }

    fn shares(counts: &BTreeMap<String, u32>, said: &[(&str, Said)]) -> Vec<BTreeSet<ClusterPartition>> {
        let members = said.iter().map(|(member, said)| ((*member).to_owned(), said.clone())).collect();
        share(counts, &members).into_values().collect()
    }

    #[test]
    fn what_moves_is_nobodys_until_its_owner_has_let_go() {
        let there = counts(&[("t", 4)]);
        let alone = says("t", 1, &[("t", 0), ("t", 1), ("t", 2), ("t", 3)]);
        let none = says("t", -1, &[]);
        let half = [("t", 0), ("t", 1)];
        assert_eq!(shares(&there, &[("a", alone), ("b", none.clone())]), [partitions_of(&half), BTreeSet::new()]);
        let rest = partitions_of(&[("t", 2), ("t", 3)]);
        assert_eq!(shares(&there, &[("a", says("t", 2, &half)), ("b", none)]), [partitions_of(&half), rest]);
    }

    #[test]
    fn the_latest_generation_owns_what_two_claim() {
        let claims = [("a", says("t", 3, &[("t", 0), ("t", 1)])), ("b", says("t", 4, &[("t", 0)]))];
        assert_eq!(shares(&counts(&[("t", 2)]), &claims), [partitions_of(&[("t", 1)]), partitions_of(&[("t", 0)])]);
    }

    #[test]
    fn a_member_gets_only_of_topics_that_it_wants_and_those_of_several_even_that_out() {
        let there = counts(&[("a", 2), ("b", 2), ("gone", 0)]);
        let none = |topics| says(topics, -1, &[]);
        let shared = shares(&there, &[("x", none("ab")), ("y", none("b"))]);
        assert_eq!(shared, [partitions_of(&[("a", 0), ("a", 1)]), partitions_of(&[("b", 0), ("b", 1)])]);
        // One that it does not want any more is not its own, and nobody else wants it.
        let shared = shares(&there, &[("x", says("b", 5, &[("a", 0), ("b", 0), ("b", 9), ("gone", 0)]))]);
        assert_eq!(shared, [partitions_of(&[("b", 0), ("b", 1)])]);
    }

    #[test]
    fn a_subscription_and_an_assignment_read_back() {
        for owned in [&[("t", 2), ("t", 5), ("u", 0)][..], &[]] {
            let here = says("tuv", 7, owned);
            assert_eq!(said(subscription(&here)), here);
            assert_eq!(assigned(assignment(&here.owned.partitions)), here.owned.partitions);
        }
        assert_eq!(assigned(Bytes::new()), BTreeSet::new());
        assert_eq!(said(Bytes::from_static(b"what")), says("", -1, &[]));
    }

    prop_compose! {
        /// Partitions of topics `a` to `d`, some of which there are not.
        fn any_owned()(owned in proptest::collection::btree_set(("[a-d]", 0u32..15), 0..40)) -> BTreeSet<ClusterPartition> {
            owned.iter().map(|(topic, number)| ClusterPartition::new(topic, *number)).collect()
        }
    }

    prop_compose! {
        /// Members, and the topics that they want, where those are the same for all or not.
        fn any_members(same: bool)(
            said in proptest::collection::btree_map(
                "[a-h]",
                (any_owned(), proptest::collection::btree_set("[a-d]", 0..4)),
                1..8,
            ),
        ) -> BTreeMap<String, Said> {
            let all: BTreeSet<String> = ["a", "b", "c", "d"].map(str::to_owned).into();
            let said = said.into_iter().map(|(member, (partitions, wanted))| {
                let topics = if same { all.clone() } else { wanted };
                (member, Said { topics, owned: Owned { generation: 1, partitions } })
            });
            said.collect()
        }
    }

    /// Shares so often; nobody is ever given what another has.
    fn shared(
        rounds: i32,
        counts: &BTreeMap<String, u32>,
        mut members: BTreeMap<String, Said>,
    ) -> Result<(BTreeMap<String, Said>, Shares), TestCaseError> {
        let mut shared = Shares::new();
        for generation in 2..2 + rounds {
            let before: BTreeMap<_, _> =
                owners(counts, &members).into_iter().map(|(at, owner)| (at, owner.clone())).collect();
            shared = share(counts, &members);
            let mut seen = BTreeSet::new();
            for (member, share) in &shared {
                for partition in share {
                    prop_assert!(seen.insert(partition.clone()), "{partition} twice");
                    prop_assert!(before.get(partition).is_none_or(|owner| owner == member), "taken from its owner");
                    prop_assert!(members[member].wants(partition), "{partition} is not wanted");
                }
            }
            let are_settled = members.iter().all(|(member, said)| said.owned.partitions == shared[member]);
            for (member, partitions) in &shared {
                let said = members.get_mut(member).expect("nobody else gets something");
                said.owned = Owned { generation, partitions: partitions.clone() };
            }
            if are_settled {
                break;
            }
        }
        Ok((members, shared))
    }

    proptest! {
        #[test]
        fn after_at_most_two_rounds_everything_is_shared_evenly_and_nothing_twice(
            sizes in proptest::collection::vec(0u32..12, 4),
            members in any_members(true),
        ) {
            let counts: BTreeMap<String, u32> = ["a", "b", "c", "d"].map(str::to_owned).into_iter().zip(sizes).collect();
            let (members, shared) = shared(2, &counts, members)?;
            let sizes: Vec<usize> = shared.values().map(BTreeSet::len).collect();
            prop_assert_eq!(sizes.iter().sum::<usize>(), counts.values().sum::<u32>() as usize);
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{:?}", sizes);
            prop_assert_eq!(share(&counts, &members), shared, "what is shared evenly stays");
        }

        #[test]
        fn members_that_want_different_topics_come_to_rest_and_leave_nothing_that_somebody_wants(
            sizes in proptest::collection::vec(0u32..12, 4),
            members in any_members(false),
        ) {
            let counts: BTreeMap<String, u32> = ["a", "b", "c", "d"].map(str::to_owned).into_iter().zip(sizes).collect();
            // Far fewer than the moves that a worst order could take.
            let (members, shared) = shared(100, &counts, members)?;
            let is_wanted = |topic: &&String| members.values().any(|said| said.topics.contains(*topic));
            let wanted: u32 = counts.keys().filter(is_wanted).map(|topic| counts[topic]).sum();
            prop_assert_eq!(shared.values().map(BTreeSet::len).sum::<usize>(), wanted as usize);
            prop_assert_eq!(share(&counts, &members), shared, "what is shared stays");
        }
    }
}
