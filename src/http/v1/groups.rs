//! Groups: what they have committed, and how far they are behind.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::broker::{NoPartition, Topic};
use crate::group::id::GroupId;
use crate::http::extract::{NoParameters, Segments};
use crate::http::problem::Problem;
use crate::http::rooms::Rooms;
use crate::topic::name::TRIGGER_GROUP_PREFIX;
use crate::trigger::service::LaneReport;

/// A committed offset: topic, partition, the next offset to read.
type Committed = (Arc<Topic>, u32, i64);

fn describe(rooms: &Rooms, group: &str) -> Option<Value> {
    let trigger = group.strip_prefix(TRIGGER_GROUP_PREFIX).and_then(|name| rooms.triggers.describe(name));
    let trigger = trigger.filter(|report| report.spec.input.cluster.is_none());
    if let Some(report) = trigger {
        let lane = |lane: &LaneReport| Some((rooms.broker.topic(&lane.topic)?, lane.partition, lane.committed.get()));
        let committed = report.lanes.iter().filter_map(lane);
        let state = report.state.as_str();
        return Some(shown(group, state, 1, committed.collect()));
    }
    let members = GroupId::parse(group).ok().and_then(|id| rooms.groups.describe(&id));
    let offsets = rooms.broker.committed_offsets(group);
    if members.is_none() && offsets.is_empty() {
        return None;
    }
    let committed = offsets.into_iter().filter_map(|((topic, partition), committed)| {
        Some((rooms.broker.topic_by_id(topic)?, partition, committed.offset.get()))
    });
    let state = members.as_ref().map_or("Empty", |description| description.state.as_str());
    Some(shown(group, state, members.as_ref().map_or(0, |description| description.members.len()), committed.collect()))
}

fn shown(group: &str, state: &str, members: usize, committed: Vec<Committed>) -> Value {
    let offset = |(topic, partition, committed): &Committed| {
        let mut shown = json!({ "topic": topic.name(), "partition": partition, "committed": committed });
        match topic.partition(*partition) {
            Ok(log) => {
                let tail = log.tail().get();
                (shown["tail"], shown["lag"]) = (json!(tail), json!((tail - committed).max(0)));
            }
            Err(NoPartition::Unknown { .. }) => return None,
            Err(error) => shown["offline"] = json!(error.to_string()),
        }
        Some(shown)
    };
    let offsets: Vec<Value> = committed.iter().filter_map(offset).collect();
    let lag: i64 = offsets.iter().filter_map(|offset| offset["lag"].as_i64()).sum();
    json!({ "group": group, "state": state, "members": members, "lag": lag, "offsets": offsets })
}

/// The ids of all groups: with commits, with members, of triggers.
fn ids(rooms: &Rooms) -> BTreeSet<String> {
    let mut ids: BTreeSet<String> = rooms.broker.groups_with_offsets().into_iter().collect();
    ids.extend(rooms.groups.list().into_iter().map(|listing| listing.id.to_string()));
    ids.extend(
        rooms
            .triggers
            .list()
            .into_iter()
            .filter(|report| report.spec.input.cluster.is_none())
            .map(|report| report.spec.name.group_id().to_string()),
    );
    ids
}

/// All groups, those of triggers too.
#[utoipa::path(get, path = "/v1/groups", tag = "groups", responses((status = 200, description = "Groups by id")))]
pub(crate) async fn list(State(rooms): State<Rooms>, _: NoParameters) -> Result<Json<Value>, Problem> {
    let groups: Vec<Value> = ids(&rooms).iter().filter_map(|group| describe(&rooms, group)).collect();
    Ok(Json(json!({ "groups": groups })))
}

/// One group.
#[utoipa::path(get, path = "/v1/groups/{group}", tag = "groups", params(("group" = String, Path, description = "Its id")),
    responses((status = 200, description = "The group"), (status = 404, description = "Problem details")))]
pub(crate) async fn get(
    State(rooms): State<Rooms>,
    Segments(group): Segments<String>,
    _: NoParameters,
) -> Result<Json<Value>, Problem> {
    let described = describe(&rooms, &group);
    described.map(Json).ok_or_else(|| Problem::not_found("group", "unknown-group", &format!("{group:?}")))
}
