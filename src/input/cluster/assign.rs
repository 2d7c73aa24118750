//! Who reads which partition: decided by the group's leader, among members that all read one topic.
//!
//! Kafka's cooperative protocol: everybody says what he has, keeps that while the group comes together, and gives up only what
//! the new assignment takes from him. A partition that changes hands is in nobody's assignment first; when its owner has let go
//! of it, he joins again, and the next assignment gives it away. So nothing is read by two, and what does not move never stops.

use std::collections::{BTreeMap, BTreeSet};

use super::wire::schema::consumer_protocol_assignment::TopicPartition as AssignedPartitions;
use super::wire::schema::consumer_protocol_subscription::TopicPartition as OwnedPartitions;
use super::wire::schema::{ConsumerProtocolAssignment, ConsumerProtocolSubscription};
use super::wire::{ApiVersion, StrBytes};
use bytes::{Bytes, BytesMut};

use super::wire::{limits, message};

/// Kafka's name of the protocol, so that its tools can show what members have.
pub(super) const PROTOCOL: &str = "cooperative-sticky";
/// Owned partitions came with 1, the generation that they were owned in with 2.
const SUBSCRIPTION_VERSION: i16 = 2;
const ASSIGNMENT_VERSION: i16 = 0;

/// What a member says it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owned {
    /// The generation of the assignment that gave it; -1 for none.
    pub(super) generation: i32,
    pub(super) partitions: BTreeSet<u32>,
}

/// The subscription of a member, as bytes.
pub(super) fn subscription(topic: &str, owned: &Owned) -> Bytes {
    let partitions = owned.partitions.iter().map(|partition| partition.cast_signed()).collect::<Vec<_>>();
    let owned_partitions =
        message!(OwnedPartitions { topic: StrBytes::from(topic.to_owned()), partitions: partitions });
    let subscription = message!(ConsumerProtocolSubscription {
        topics: vec![StrBytes::from(topic.to_owned())],
        owned_partitions: if owned.partitions.is_empty() { Vec::new() } else { vec![owned_partitions] },
        generation_id: owned.generation,
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

/// What a member says of `topic`; one that cannot be understood has nothing.
pub(super) fn owned(topic: &str, subscription: Bytes) -> Owned {
    let Ok((version, said)) = super::wire::schema::decode_consumer_protocol_subscription(subscription, limits()) else {
        return Owned { generation: -1, ..Owned::default() };
    };
    let of_topic = said.owned_partitions.iter().filter(|owned| &*owned.topic == topic);
    let partitions = of_topic.flat_map(|owned| &owned.partitions).filter_map(|number| u32::try_from(*number).ok());
    let generation = if version.value() >= SUBSCRIPTION_VERSION { said.generation_id } else { -1 };
    Owned { generation, partitions: partitions.collect() }
}

/// An assignment, as bytes.
pub(super) fn assignment(topic: &str, partitions: &BTreeSet<u32>) -> Bytes {
    let partitions: Vec<i32> = partitions.iter().map(|partition| partition.cast_signed()).collect();
    let assigned = message!(AssignedPartitions { topic: StrBytes::from(topic.to_owned()), partitions: partitions });
    let assignment = message!(ConsumerProtocolAssignment { assigned_partitions: vec![assigned] });
    let mut bytes = BytesMut::new();
    super::wire::schema::encode_consumer_protocol_assignment(
        &mut bytes,
        &assignment,
        ApiVersion::new(ASSIGNMENT_VERSION),
    )
    .expect("names and numbers of partitions fit");
    bytes.freeze()
}

/// The partitions of `topic` that an assignment gives. Nothing, for one that is empty or not understood.
pub(super) fn assigned(topic: &str, assignment: Bytes) -> BTreeSet<u32> {
    let Ok((_, given)) = super::wire::schema::decode_consumer_protocol_assignment(assignment, limits()) else {
        return BTreeSet::new();
    };
    let of_topic = given.assigned_partitions.iter().filter(|assigned| &*assigned.topic == topic);
    of_topic.flat_map(|assigned| &assigned.partitions).filter_map(|number| u32::try_from(*number).ok()).collect()
}

/// Shares `count` partitions among members: as evenly as possible, moving as few as that takes. What moves is given to nobody
/// until its owner has let go of it; in that case an owner who keeps less than he has joins again by himself.
pub(super) fn share(count: u32, members: &BTreeMap<String, Owned>) -> BTreeMap<String, BTreeSet<u32>> {
    let owners = owners(count, members);
    let mut shares: BTreeMap<String, BTreeSet<u32>> =
        members.keys().map(|member| (member.clone(), BTreeSet::new())).collect();
    // What has an owner first: what is free evens out what that leaves uneven, and less has to move.
    for (partition, owner) in &owners {
        shares.get_mut(*owner).into_iter().for_each(|share| share.extend([*partition]));
    }
    for partition in (0..count).filter(|partition| !owners.contains_key(partition)) {
        let owner = emptiest(&shares).cloned();
        owner.and_then(|owner| shares.get_mut(&owner)).into_iter().for_each(|share| share.extend([partition]));
    }
    while let (Some(from), Some(to)) = (fullest(&shares).cloned(), emptiest(&shares).cloned()) {
        if shares[&from].len() <= shares[&to].len() + 1 {
            break;
        }
        let moved = shares.get_mut(&from).and_then(BTreeSet::pop_last);
        shares.entry(to).or_default().extend(moved);
    }
    for (member, share) in &mut shares {
        share.retain(|partition| owners.get(partition).is_none_or(|owner| *owner == member));
    }
    shares
}

fn fullest(shares: &BTreeMap<String, BTreeSet<u32>>) -> Option<&String> {
    shares.iter().max_by_key(|(_, share)| share.len()).map(|(member, _)| member)
}

fn emptiest(shares: &BTreeMap<String, BTreeSet<u32>>) -> Option<&String> {
    shares.iter().min_by_key(|(_, share)| share.len()).map(|(member, _)| member)
}

/// Who has each partition: of several who say so, the one whose assignment is the latest.
fn owners(count: u32, members: &BTreeMap<String, Owned>) -> BTreeMap<u32, &String> {
    let mut owners: BTreeMap<u32, (i32, &String)> = BTreeMap::new();
    for (member, owned) in members {
        for &partition in owned.partitions.iter().filter(|partition| **partition < count) {
            let known = owners.entry(partition).or_insert((owned.generation, member));
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

    fn owned_by(generation: i32, partitions: &[u32]) -> Owned {
        Owned { generation, partitions: partitions.iter().copied().collect() }
    }

    fn members(members: &[(&str, Owned)]) -> BTreeMap<String, Owned> {
        members.iter().map(|(member, owned)| ((*member).to_owned(), owned.clone())).collect()
    }

    fn shares(count: u32, said: &[(&str, Owned)]) -> Vec<Vec<u32>> {
        share(count, &members(said)).into_values().map(|share| share.into_iter().collect()).collect()
    }

    #[test]
    fn what_moves_is_nobodys_until_its_owner_has_let_go() {
        let alone = owned_by(1, &[0, 1, 2, 3]);
        let none = owned_by(-1, &[]);
        assert_eq!(shares(4, &[("a", alone), ("b", none.clone())]), [vec![0, 1], vec![]]);
        assert_eq!(shares(4, &[("a", owned_by(2, &[0, 1])), ("b", none)]), [vec![0, 1], vec![2, 3]]);
    }

    #[test]
    fn the_latest_generation_owns_what_two_claim() {
        assert_eq!(shares(2, &[("a", owned_by(3, &[0, 1])), ("b", owned_by(4, &[0]))]), [vec![1], vec![0]]);
    }

    #[test]
    fn a_subscription_and_an_assignment_read_back() {
        let owned_here = owned_by(7, &[2, 5]);
        assert_eq!(owned("t", subscription("t", &owned_here)), owned_here);
        assert_eq!(owned("u", subscription("t", &owned_here)).partitions, BTreeSet::new());
        assert_eq!(assigned("t", assignment("t", &owned_here.partitions)), owned_here.partitions);
        assert_eq!(assigned("t", Bytes::new()), BTreeSet::new());
        assert_eq!(owned("t", Bytes::from_static(b"what")).partitions, BTreeSet::new());
    }

    proptest! {
        #[test]
        fn after_at_most_two_rounds_everything_is_shared_evenly_and_nothing_twice(
            count in 0u32..40,
            said in proptest::collection::btree_map("[a-h]", proptest::collection::btree_set(0u32..45, 0..40), 1..8),
        ) {
            let mut members: BTreeMap<String, Owned> = said
                .into_iter()
                .map(|(member, partitions)| (member, Owned { generation: 1, partitions }))
                .collect();
            let mut shared = BTreeMap::new();
            for generation in 2..4 {
                let before = owners(count, &members).into_iter().map(|(at, owner)| (at, owner.clone())).collect::<BTreeMap<_, _>>();
                shared = share(count, &members);
                let mut seen = BTreeSet::new();
                for (member, share) in &shared {
                    for partition in share {
                        prop_assert!(seen.insert(*partition), "{partition} twice");
                        prop_assert!(before.get(partition).is_none_or(|owner| owner == member), "taken from its owner");
                    }
                }
                members = shared.iter().map(|(member, partitions)| {
                    (member.clone(), Owned { generation, partitions: partitions.clone() })
                }).collect();
            }
            let sizes: Vec<usize> = shared.values().map(BTreeSet::len).collect();
            prop_assert_eq!(sizes.iter().sum::<usize>(), count as usize);
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{:?}", sizes);
            let again = share(count, &members);
            prop_assert_eq!(again, shared, "what is shared evenly stays");
        }
    }
}
