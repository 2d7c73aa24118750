//! JoinGroup.

use std::time::Duration;

use super::group_errors;
use crate::group::error::JoinError;
use crate::group::id::{GroupId, InstanceId};
use crate::group::member::{JoinAnswer, JoinRequest, JoinedMember, Protocol};
use crate::group::service::GroupService;
use crate::kafka::codec::{JoinGroupRequest, JoinGroupResponse, RequestHeader, StrBytes, join_group_response};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::handler::{Answer, ConnectionContext};
use crate::kafka::service::{KafkaService, respond};
use crate::kafka::trigger_groups;

/// Versions in which a new member is given its id first and joins with it.
const ID_FIRST_SINCE: i16 = 4;
/// Versions that tell the kind of protocol, and may tell none.
const PROTOCOL_TYPE_SINCE: i16 = 7;
/// Versions in which a leader can be told not to assign.
const SKIP_SINCE: i16 = 9;

pub(crate) fn begin(
    service: &KafkaService,
    header: RequestHeader,
    request: &JoinGroupRequest,
    connection: &ConnectionContext,
) -> Answer {
    let version = header.api_version;
    let (group, join) = match read(&header, request, connection) {
        Ok(read) => read,
        Err(code) => return Answer::Now(respond(&header, &refused(service.count_error(code), request, version))),
    };
    if trigger_groups::owner(&service.triggers, &group).is_some() {
        let code = service.count_error(group_errors::join(&JoinError::Reserved));
        return Answer::Now(respond(&header, &refused(code, request, version)));
    }
    // The member has joined when this returns; the rest is the wait.
    let waiting = service.groups.join(&group, &join);
    // A copy: a slice of the request would keep all of it.
    let (service, sent_id) = (service.clone(), StrBytes::from(request.member_id.to_string()));
    Answer::Detached(Box::pin(async move {
        let response = match service.unless_stopping(waiting).await {
            Some(Ok(answer)) => joined(answer, version),
            Some(Err(error)) => {
                let code = service.count_error(group_errors::join(&error));
                let member_id = match error {
                    JoinError::MemberIdRequired(id) => StrBytes::from(id.as_str()),
                    _ => sent_id,
                };
                failed(code, member_id, version)
            }
            None => failed(service.count_error(ErrorCode::CoordinatorNotAvailable), sent_id, version),
        };
        respond(&header, &response)
    }))
}

fn read(
    header: &RequestHeader,
    request: &JoinGroupRequest,
    connection: &ConnectionContext,
) -> Result<(GroupId, JoinRequest), ErrorCode> {
    let group = GroupId::parse(&request.group_id).map_err(|_| ErrorCode::InvalidGroupId)?;
    let instance_id = request.group_instance_id.as_deref().map(InstanceId::parse).transpose();
    let instance_id = instance_id.map_err(|_| ErrorCode::InvalidRequest)?;
    let client_id = header.client_id.as_deref().unwrap_or_default();
    let protocols = request
        .protocols
        .iter()
        .map(|protocol| Protocol { name: (&*protocol.name).into(), metadata: protocol.metadata.clone() });
    let join = JoinRequest {
        member_id: Some(request.member_id.to_string()).filter(|id| !id.is_empty()),
        candidate_id: GroupService::candidate_id(client_id, instance_id.as_ref()),
        instance_id,
        client_id: client_id.to_owned(),
        // As Kafka's tools print it.
        client_host: format!("/{}", connection.peer.ip().to_canonical()),
        session_timeout: millis(request.session_timeout_ms).unwrap_or_default(),
        rebalance_timeout: millis(request.rebalance_timeout_ms),
        protocol_type: request.protocol_type.to_string(),
        protocols: protocols.collect(),
        id_required: header.api_version >= ID_FIRST_SINCE,
        may_skip_assignment: header.api_version >= SKIP_SINCE,
    };
    Ok((group, join))
}

fn millis(found: i32) -> Option<Duration> {
    u64::try_from(found).ok().map(Duration::from_millis)
}

fn joined(answer: JoinAnswer, version: i16) -> JoinGroupResponse {
    let member = |member: JoinedMember| {
        message!(join_group_response::JoinGroupResponseMember {
            member_id: StrBytes::from(member.member_id.as_str()),
            group_instance_id: member.instance_id.map(|id| StrBytes::from(id.as_str())),
            metadata: member.metadata,
        })
    };
    message!(JoinGroupResponse {
        generation_id: answer.generation,
        protocol_type: (version >= PROTOCOL_TYPE_SINCE).then(|| StrBytes::from(&*answer.protocol_type)),
        protocol_name: Some(StrBytes::from(&*answer.protocol)),
        leader: StrBytes::from(answer.leader.as_str()),
        skip_assignment: answer.skip_assignment,
        member_id: StrBytes::from(answer.member_id.as_str()),
        members: answer.members.into_iter().map(member).collect(),
    })
}

fn refused(code: i16, request: &JoinGroupRequest, version: i16) -> JoinGroupResponse {
    failed(code, request.member_id.clone(), version)
}

fn failed(code: i16, member_id: StrBytes, version: i16) -> JoinGroupResponse {
    message!(JoinGroupResponse {
        error_code: code,
        generation_id: -1,
        protocol_name: (version < PROTOCOL_TYPE_SINCE).then(StrBytes::default),
        member_id: member_id,
    })
}
