//! OffsetFetch: what groups have committed, of one group or of many.
//!
//! Without transactions no commit is ever pending, so `require_stable` asks for what is true anyway.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use crate::broker::state::Committed;
use crate::group::id::GroupId;
use crate::kafka::codec::{
    OffsetFetchRequest, OffsetFetchResponse, StrBytes, offset_fetch_request, offset_fetch_response,
};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::{KafkaService, Shared, once_each, once_each_in};
use crate::kafka::trigger_groups;

/// Versions that ask for many groups.
const MANY_SINCE: i16 = 8;
/// Versions with an error of the whole request.
const ERROR_SINCE: i16 = 2;

/// What is asked of one group: topics with their partitions, or everything.
type Asked = Option<Vec<(StrBytes, Vec<i32>)>>;

/// What is answered: topics with their partitions.
type Answered = Vec<(StrBytes, Vec<(i32, Option<Committed>)>)>;

pub(crate) fn answer(service: &KafkaService, request: OffsetFetchRequest, version: i16) -> OffsetFetchResponse {
    if version >= MANY_SINCE {
        let groups = once_each(request.groups, |group| group.group_id.clone()).map(|group| of_group(service, group));
        return message!(OffsetFetchResponse { groups: groups.collect() });
    }
    let asked =
        request.topics.map(|topics| merged(topics.into_iter().map(|topic| (topic.name, topic.partition_indexes))));
    let (code, topics) = match look_up(service, &request.group_id, asked.clone()) {
        Ok(topics) => (ErrorCode::None, topics),
        Err(code) => (code, without_commits(asked)),
    };
    let error_code = service.count_error(code);
    let partition = |(partition_index, committed): (i32, Option<Committed>)| {
        let (offset, leader_epoch, metadata) = told(committed);
        message!(offset_fetch_response::OffsetFetchResponsePartition {
            partition_index: partition_index,
            committed_offset: offset,
            committed_leader_epoch: leader_epoch,
            metadata: Some(metadata),
            error_code: error_code,
        })
    };
    let topics = topics.into_iter().map(|(name, partitions)| {
        message!(offset_fetch_response::OffsetFetchResponseTopic {
            name: name,
            partitions: partitions.into_iter().map(partition).collect(),
        })
    });
    message!(OffsetFetchResponse {
        topics: topics.collect(),
        error_code: if version >= ERROR_SINCE { error_code } else { 0 },
    })
}

fn of_group(
    service: &Shared,
    group: offset_fetch_request::OffsetFetchRequestGroup,
) -> offset_fetch_response::OffsetFetchResponseGroup {
    let asked =
        group.topics.map(|topics| merged(topics.into_iter().map(|topic| (topic.name, topic.partition_indexes))));
    let (code, topics) = match look_up(service, &group.group_id, asked) {
        Ok(topics) => (ErrorCode::None, topics),
        Err(code) => (code, Vec::new()),
    };
    let partition = |(partition_index, committed): (i32, Option<Committed>)| {
        let (offset, leader_epoch, metadata) = told(committed);
        message!(offset_fetch_response::OffsetFetchResponsePartitions {
            partition_index: partition_index,
            committed_offset: offset,
            committed_leader_epoch: leader_epoch,
            metadata: Some(metadata),
        })
    };
    let topics = topics.into_iter().map(|(name, partitions)| {
        message!(offset_fetch_response::OffsetFetchResponseTopics {
            name: name,
            partitions: partitions.into_iter().map(partition).collect(),
        })
    });
    message!(offset_fetch_response::OffsetFetchResponseGroup {
        group_id: group.group_id,
        topics: topics.collect(),
        error_code: service.count_error(code),
    })
}

/// Each partition once: metadata is told with it, of which naming it again would make as many copies.
fn merged(topics: impl Iterator<Item = (StrBytes, Vec<i32>)>) -> Vec<(StrBytes, Vec<i32>)> {
    once_each_in(topics, |number| *number)
}

/// Offset, leader epoch and metadata, as the wire says that there are none.
fn told(committed: Option<Committed>) -> (i64, i32, StrBytes) {
    match committed {
        Some(committed) => (committed.offset.get(), committed.leader_epoch, StrBytes::from(committed.metadata)),
        None => (-1, -1, StrBytes::default()),
    }
}

fn look_up(service: &Shared, group: &str, asked: Asked) -> Result<Answered, ErrorCode> {
    let group = GroupId::parse(group).map_err(|_| ErrorCode::InvalidGroupId)?;
    let committed = committed(service, &group);
    Ok(match asked {
        None => all(service, committed),
        Some(asked) => {
            asked.into_iter().map(|(name, partitions)| named(service, &committed, name, partitions)).collect()
        }
    })
}

fn without_commits(asked: Asked) -> Answered {
    let topics = asked.unwrap_or_default().into_iter();
    topics.map(|(name, partitions)| (name, partitions.into_iter().map(|number| (number, None)).collect())).collect()
}

fn committed(service: &Shared, group: &GroupId) -> HashMap<(Uuid, u32), Committed> {
    let Some(trigger) = trigger_groups::owner(&service.triggers, group) else {
        return service.broker.committed_offsets(group.as_str()).into_iter().collect();
    };
    let offsets = service.triggers.committed(trigger).into_iter();
    offsets
        .map(|(topic, partition, offset)| {
            ((topic, partition), Committed { offset, leader_epoch: -1, metadata: String::new(), commit_ms: 0 })
        })
        .collect()
}

fn named(
    service: &Shared,
    committed: &HashMap<(Uuid, u32), Committed>,
    name: StrBytes,
    partitions: Vec<i32>,
) -> (StrBytes, Vec<(i32, Option<Committed>)>) {
    let id = service.broker.topic(&name).map(|topic| topic.id());
    let look = |number: i32| committed.get(&(id?, u32::try_from(number).ok()?)).cloned();
    let partitions = partitions.into_iter().map(|number| (number, look(number))).collect();
    (name, partitions)
}

fn all(service: &Shared, committed: HashMap<(Uuid, u32), Committed>) -> Answered {
    let mut topics: BTreeMap<String, BTreeMap<i32, Option<Committed>>> = BTreeMap::new();
    for ((topic, partition), committed) in committed {
        let Some(topic) = service.broker.topic_by_id(topic) else { continue };
        let Ok(partition) = i32::try_from(partition) else { continue };
        topics.entry(topic.name().to_string()).or_default().insert(partition, Some(committed));
    }
    let topics = topics.into_iter();
    topics.map(|(name, partitions)| (StrBytes::from(name), partitions.into_iter().collect())).collect()
}
