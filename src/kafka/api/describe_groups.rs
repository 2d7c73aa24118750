//! DescribeGroups: those with members, those with offsets only, and those of triggers.

use super::authorized;
use crate::group::id::GroupId;
use crate::group::state::{GroupDescription, GroupState, MemberDescription};
use crate::kafka::codec::{DescribeGroupsRequest, DescribeGroupsResponse, StrBytes, describe_groups_response};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::{KafkaService, Shared, once_each};
use crate::kafka::trigger_groups::{self, MEMBER_ID, PROTOCOL_TYPE};

/// Versions in which a group that is not there is an error.
const MISSING_IS_ERROR_SINCE: i16 = 6;
/// Versions that tell a reason; to the others it cannot be written.
const REASON_SINCE: i16 = 6;

pub(crate) fn answer(service: &KafkaService, request: DescribeGroupsRequest, version: i16) -> DescribeGroupsResponse {
    let with_operations = request.include_authorized_operations;
    let describe = |id: StrBytes| {
        let parsed = GroupId::parse(&id);
        let mut described = match &parsed {
            Err(error) => failed(service, version, ErrorCode::InvalidGroupId, &error.to_string()),
            Ok(group) => find(service, group).unwrap_or_else(|| missing(service, version)),
        };
        described.group_id = id;
        let of_trigger = parsed.is_ok_and(|group| trigger_groups::owner(&service.triggers, &group).is_some());
        described.authorized_operations = match (with_operations, of_trigger) {
            (false, _) => authorized::NOT_ASKED,
            (true, true) => authorized::TRIGGER_GROUP,
            (true, false) => authorized::GROUP,
        };
        described
    };
    message!(DescribeGroupsResponse { groups: once_each(request.groups, StrBytes::clone).map(describe).collect() })
}

fn find(service: &Shared, group: &GroupId) -> Option<describe_groups_response::DescribedGroup> {
    if let Some(trigger) = trigger_groups::owner(&service.triggers, group) {
        return trigger_groups::paused(&service.triggers, trigger).map(of_trigger);
    }
    if let Some(description) = service.groups.describe(group) {
        return Some(described(description));
    }
    let has_offsets = !service.broker.committed_offsets(group.as_str()).is_empty();
    has_offsets.then(|| {
        message!(describe_groups_response::DescribedGroup { group_state: StrBytes::from(GroupState::Empty.as_str()) })
    })
}

/// A paused trigger shows no member, as a group whose offsets may be reset has none.
fn of_trigger(paused: bool) -> describe_groups_response::DescribedGroup {
    let member = message!(describe_groups_response::DescribedGroupMember {
        member_id: StrBytes::from(MEMBER_ID),
        client_id: StrBytes::from(MEMBER_ID),
    });
    message!(describe_groups_response::DescribedGroup {
        group_state: StrBytes::from(if paused { GroupState::Empty } else { GroupState::Stable }.as_str()),
        protocol_type: StrBytes::from(PROTOCOL_TYPE),
        members: if paused { Vec::new() } else { vec![member] },
    })
}

fn described(description: GroupDescription) -> describe_groups_response::DescribedGroup {
    let member = |member: MemberDescription| {
        message!(describe_groups_response::DescribedGroupMember {
            member_id: StrBytes::from(member.member_id.as_str()),
            group_instance_id: member.instance_id.map(|id| StrBytes::from(id.as_str())),
            client_id: StrBytes::from(member.client_id),
            client_host: StrBytes::from(member.client_host),
            member_metadata: member.metadata,
            member_assignment: member.assignment,
        })
    };
    message!(describe_groups_response::DescribedGroup {
        group_state: StrBytes::from(description.state.as_str()),
        protocol_type: StrBytes::from(description.protocol_type),
        protocol_data: StrBytes::from(description.protocol),
        members: description.members.into_iter().map(member).collect(),
    })
}

fn missing(service: &Shared, version: i16) -> describe_groups_response::DescribedGroup {
    if version >= MISSING_IS_ERROR_SINCE {
        return failed(service, version, ErrorCode::GroupIdNotFound, "there is no such group");
    }
    message!(describe_groups_response::DescribedGroup { group_state: StrBytes::from(GroupState::Dead.as_str()) })
}

fn failed(service: &Shared, version: i16, code: ErrorCode, reason: &str) -> describe_groups_response::DescribedGroup {
    message!(describe_groups_response::DescribedGroup {
        error_code: service.count_error(code),
        error_message: (version >= REASON_SINCE).then(|| StrBytes::from(reason)),
        group_state: StrBytes::from(GroupState::Dead.as_str()),
    })
}
