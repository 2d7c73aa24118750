//! ListGroups: those with members, those with offsets only, and those of triggers.

use std::collections::BTreeMap;

use crate::group::id::TRIGGER_PREFIX;
use crate::group::state::GroupState;
use crate::kafka::codec::{ListGroupsRequest, ListGroupsResponse, StrBytes, list_groups_response};
use crate::kafka::service::{KafkaService, Shared};
use crate::kafka::trigger_groups::PROTOCOL_TYPE;
use crate::trigger::service::TriggerState;

/// The one kind of group there is: its members' leader assigns.
const GROUP_TYPE: &str = "classic";

pub(crate) fn answer(service: &KafkaService, request: &ListGroupsRequest) -> ListGroupsResponse {
    let groups = all(service).into_iter().filter(|(_, (state, _))| {
        is_wanted(&request.states_filter, state.as_str()) && is_wanted(&request.types_filter, GROUP_TYPE)
    });
    let groups = groups.map(|(id, (state, protocol_type))| {
        message!(list_groups_response::ListedGroup {
            group_id: StrBytes::from(id),
            protocol_type: StrBytes::from(protocol_type),
            group_state: StrBytes::from(state.as_str()),
            group_type: StrBytes::from(GROUP_TYPE),
        })
    });
    message!(ListGroupsResponse { groups: groups.collect() })
}

fn is_wanted(filter: &[StrBytes], value: &str) -> bool {
    filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
}

/// By id: where it stands, and what kind of members it has.
fn all(service: &Shared) -> BTreeMap<String, (GroupState, String)> {
    let with_offsets = service.broker.groups_with_offsets().into_iter();
    let mut groups: BTreeMap<_, _> = with_offsets.map(|id| (id, (GroupState::Empty, String::new()))).collect();
    for listing in service.groups.list() {
        groups.insert(listing.id.to_string(), (listing.state, listing.protocol_type));
    }
    for trigger in service.triggers.list().into_iter().filter(|trigger| trigger.spec.input.cluster.is_none()) {
        let state = if trigger.state == TriggerState::Paused { GroupState::Empty } else { GroupState::Stable };
        groups.insert(format!("{TRIGGER_PREFIX}{}", trigger.spec.name), (state, PROTOCOL_TYPE.to_owned()));
    }
    groups
}
