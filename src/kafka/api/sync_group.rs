//! SyncGroup.

use bytes::Bytes;

use super::group_errors;
use crate::group::id::GroupId;
use crate::group::member::{Speaker, SyncRequest};
use crate::kafka::codec::{RequestHeader, StrBytes, SyncGroupRequest, SyncGroupResponse};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::handler::Answer;
use crate::kafka::service::{KafkaService, respond};

/// Versions that tell the protocol.
const PROTOCOL_SINCE: i16 = 5;

pub(crate) fn begin(service: &KafkaService, header: RequestHeader, request: &SyncGroupRequest) -> Answer {
    let Ok(group) = GroupId::parse(&request.group_id) else {
        let error_code = service.count_error(ErrorCode::InvalidGroupId);
        return Answer::Now(respond(&header, &message!(SyncGroupResponse { error_code: error_code })));
    };
    let assignments = request.assignments.iter();
    let sync = SyncRequest {
        speaker: Speaker {
            member_id: request.member_id.to_string(),
            instance_id: request.group_instance_id.as_deref().map(str::to_owned),
            generation: request.generation_id,
        },
        protocol_type: request.protocol_type.as_deref().map(str::to_owned),
        protocol: request.protocol_name.as_deref().map(str::to_owned),
        // Kept beyond the request, so not as slices of it.
        assignments: assignments
            .map(|part| (part.member_id.to_string(), Bytes::copy_from_slice(&part.assignment)))
            .collect(),
    };
    let waiting = service.groups.sync(&group, &sync);
    let service = service.clone();
    Answer::Detached(Box::pin(async move {
        let response = match service.unless_stopping(waiting).await {
            Some(Ok(answer)) => {
                let mut response = message!(SyncGroupResponse { assignment: answer.assignment });
                if header.api_version >= PROTOCOL_SINCE {
                    response.protocol_type = Some(StrBytes::from(&*answer.protocol_type));
                    response.protocol_name = Some(StrBytes::from(&*answer.protocol));
                }
                response
            }
            Some(Err(error)) => {
                message!(SyncGroupResponse { error_code: service.count_error(group_errors::sync(&error)) })
            }
            None => {
                let error_code = service.count_error(ErrorCode::CoordinatorNotAvailable);
                message!(SyncGroupResponse { error_code: error_code })
            }
        };
        respond(&header, &response)
    }))
}
