//! Heartbeat.

use super::group_errors;
use crate::group::id::GroupId;
use crate::group::member::Speaker;
use crate::kafka::codec::{HeartbeatRequest, HeartbeatResponse};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::KafkaService;

pub(crate) fn answer(service: &KafkaService, request: &HeartbeatRequest) -> HeartbeatResponse {
    let code = match GroupId::parse(&request.group_id) {
        Err(_) => ErrorCode::InvalidGroupId,
        Ok(group) => {
            let speaker = Speaker {
                member_id: request.member_id.to_string(),
                instance_id: request.group_instance_id.as_deref().map(str::to_owned),
                generation: request.generation_id,
            };
            service.groups.heartbeat(&group, &speaker).map_or_else(group_errors::heartbeat, |()| ErrorCode::None)
        }
    };
    message!(HeartbeatResponse { error_code: service.count_error(code) })
}
