//! LeaveGroup: one member, or many by their ids or static names.

use super::group_errors;
use crate::group::error::MemberError;
use crate::group::id::GroupId;
use crate::group::member::Leaver;
use crate::kafka::codec::{LeaveGroupRequest, LeaveGroupResponse, leave_group_response};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::KafkaService;

/// Versions that name many members.
const MANY_SINCE: i16 = 3;

pub(crate) fn answer(service: &KafkaService, request: &LeaveGroupRequest, version: i16) -> LeaveGroupResponse {
    let Ok(group) = GroupId::parse(&request.group_id) else {
        return message!(LeaveGroupResponse { error_code: service.count_error(ErrorCode::InvalidGroupId) });
    };
    let code = |left: Result<(), MemberError>| {
        service.count_error(left.map_or_else(group_errors::member, |()| ErrorCode::None))
    };
    if version < MANY_SINCE {
        let leaver = Leaver { member_id: Some(request.member_id.to_string()), instance_id: None };
        let left = service.groups.leave(&group, &[leaver]).pop().unwrap_or(Err(MemberError::Unknown));
        return message!(LeaveGroupResponse { error_code: code(left) });
    }
    let leaver = |member: &crate::kafka::codec::leave_group_request::MemberIdentity| Leaver {
        member_id: Some(member.member_id.to_string()).filter(|id| !id.is_empty()),
        instance_id: member.group_instance_id.as_deref().map(str::to_owned),
    };
    let leavers: Vec<_> = request.members.iter().map(leaver).collect();
    let results = service.groups.leave(&group, &leavers);
    let members = request.members.iter().zip(results).map(|(member, left)| {
        message!(leave_group_response::MemberResponse {
            member_id: member.member_id.clone(),
            group_instance_id: member.group_instance_id.clone(),
            error_code: code(left),
        })
    });
    message!(LeaveGroupResponse { members: members.collect() })
}
