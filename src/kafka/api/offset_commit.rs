//! OffsetCommit: durable before it is answered, and never ahead of its data.
//!
//! First the data is flushed that the offsets speak of. Then the group is asked whether this member may commit, and the
//! commit is appended while the group is held (G2: no generation begins in between). The answer waits for the disk, the
//! next request does not.

use tripline_storage::Offset;

use super::{group_errors, log_errors};
use crate::broker::journal::JournalError;
use crate::broker::{CommitOffsetsError, CommitRequest};
use crate::group::id::GroupId;
use crate::group::member::Speaker;
use crate::kafka::codec::{
    OffsetCommitRequest, OffsetCommitResponse, RequestHeader, offset_commit_request, offset_commit_response,
};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::handler::Answer;
use crate::kafka::service::{KafkaService, Shared, respond};
use crate::kafka::trigger_groups::{self, ResetError};

/// Longest metadata of one commit in bytes. Kafka's `offset.metadata.max.bytes`.
pub(crate) const METADATA_BYTES_MAX: usize = 4096;

/// The request with what becomes of each partition.
struct Commit {
    header: RequestHeader,
    response: OffsetCommitResponse,
}

impl Commit {
    /// Gives `code` to each partition that has no error of its own.
    fn finish(mut self, service: &Shared, code: ErrorCode) -> crate::kafka::handler::Response {
        for partition in self.response.topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
            if partition.error_code == ErrorCode::None.code() {
                partition.error_code = service.count_error(code);
            }
        }
        respond(&self.header, &self.response)
    }
}

pub(crate) async fn begin(service: &KafkaService, header: RequestHeader, request: OffsetCommitRequest) -> Answer {
    let (response, commits) = check(service, &request);
    let commit = Commit { header, response };
    let Ok(group) = GroupId::parse(&request.group_id) else {
        return Answer::Now(commit.finish(service, ErrorCode::InvalidGroupId));
    };
    if let Some(trigger) = trigger_groups::owner(&service.triggers, &group) {
        let trigger = trigger.to_owned();
        return reset(service, commit, trigger, commits);
    }
    service.broker.flush_for_commit(&commits).await;
    let speaker = Speaker {
        member_id: request.member_id.to_string(),
        instance_id: request.group_instance_id.as_deref().map(str::to_owned),
        generation: request.generation_id_or_member_epoch,
    };
    let append = || (!commits.is_empty()).then(|| service.broker.append_commit(group.as_str(), commits)).transpose();
    let next = match service.groups.commit(&group, &speaker, append) {
        Ok(Ok(next)) => next,
        Ok(Err(CommitOffsetsError::Journal(error))) => return Answer::Now(commit.finish(service, journal(&error))),
        Ok(Err(error)) => {
            tracing::warn!(%group, %error, "offsets not committed");
            return Answer::Now(commit.finish(service, ErrorCode::InvalidCommitOffsetSize));
        }
        Err(error) => return Answer::Now(commit.finish(service, group_errors::commit(error))),
    };
    let Some(next) = next else { return Answer::Now(commit.finish(service, ErrorCode::None)) };
    let service = service.clone();
    Answer::Later(Box::pin(async move {
        let durable = service.broker.journal().durable(next).await;
        commit.finish(&service, durable.as_ref().map_or_else(journal, |()| ErrorCode::None))
    }))
}

/// Retriable for clients, unlike an error of the disk, which they do not expect here.
fn journal(error: &JournalError) -> ErrorCode {
    tracing::error!(%error, "offsets not committed");
    ErrorCode::CoordinatorNotAvailable
}

fn check(service: &Shared, request: &OffsetCommitRequest) -> (OffsetCommitResponse, Vec<CommitRequest>) {
    let mut commits = Vec::new();
    let topics = request.topics.iter().map(|asked| {
        let topic = service.broker.topic(&asked.name);
        let partitions = asked.partitions.iter().map(|asked| {
            let checked = topic.as_ref().ok_or(ErrorCode::UnknownTopicOrPartition);
            let checked = checked.and_then(|topic| check_partition(topic, asked));
            let code = match checked {
                Ok(commit) => {
                    commits.push(commit);
                    ErrorCode::None
                }
                Err(code) => code,
            };
            message!(offset_commit_response::OffsetCommitResponsePartition {
                partition_index: asked.partition_index,
                error_code: service.count_error(code),
            })
        });
        message!(offset_commit_response::OffsetCommitResponseTopic {
            name: asked.name.clone(),
            partitions: partitions.collect(),
        })
    });
    let topics = topics.collect();
    (message!(OffsetCommitResponse { topics: topics }), commits)
}

fn check_partition(
    topic: &crate::broker::Topic,
    asked: &offset_commit_request::OffsetCommitRequestPartition,
) -> Result<CommitRequest, ErrorCode> {
    // What is known of an offline one is kept, too.
    if !(0..i64::from(topic.partition_count())).contains(&i64::from(asked.partition_index)) {
        return Err(ErrorCode::UnknownTopicOrPartition);
    }
    let metadata = asked.committed_metadata.as_deref().unwrap_or_default();
    if metadata.len() > METADATA_BYTES_MAX {
        return Err(ErrorCode::OffsetMetadataTooLarge);
    }
    Ok(CommitRequest {
        topic: topic.id(),
        partition: asked.partition_index.unsigned_abs(),
        offset: Some(Offset::new(asked.committed_offset).ok_or(ErrorCode::OffsetOutOfRange)?),
        leader_epoch: asked.committed_leader_epoch,
        metadata: metadata.to_owned(),
    })
}

/// The group of a trigger: a commit from outside is a reset, allowed while the trigger is paused.
fn reset(service: &KafkaService, commit: Commit, trigger: String, commits: Vec<CommitRequest>) -> Answer {
    let service = service.clone();
    Answer::Later(Box::pin(async move {
        let offsets = commits.into_iter().filter_map(|at| Some((at.topic, at.partition, at.offset?))).collect();
        let code = match trigger_groups::reset(&service.triggers, &trigger, offsets).await {
            Ok(()) => ErrorCode::None,
            Err(ResetError::Unknown | ResetError::Running) => ErrorCode::GroupAuthorizationFailed,
            Err(ResetError::Offline(error)) => log_errors::partition(&error),
            Err(ResetError::Failed(reason)) => {
                tracing::error!(trigger, reason, "a trigger was not reset");
                ErrorCode::CoordinatorNotAvailable
            }
        };
        commit.finish(&service, code)
    }))
}
