//! Groups: what they have committed, and how far they are behind.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde_json::{Value, json};

use crate::broker::Broker;
use crate::http::extract::Segments;
use crate::http::problem::Problem;
use crate::http::query::Query;
use crate::http::rooms::Rooms;

fn offsets(broker: &Broker, group: &str) -> Vec<Value> {
    let shown = broker.committed_offsets(group).into_iter().filter_map(|((topic, partition), committed)| {
        let topic = broker.topic_by_id(topic)?;
        let tail = topic.partition(partition)?.tail();
        Some(json!({
            "topic": topic.name(),
            "partition": partition,
            "committed": committed.offset.get(),
            "tail": tail.get(),
            "lag": (tail.get() - committed.offset.get()).max(0),
            "commit_ms": committed.commit_ms,
        }))
    });
    shown.collect()
}

fn describe(broker: &Broker, group: &str) -> Value {
    let offsets = offsets(broker, group);
    let lag: i64 = offsets.iter().filter_map(|offset| offset["lag"].as_i64()).sum();
    json!({ "group": group, "lag": lag, "offsets": offsets })
}

/// All groups with committed offsets.
#[utoipa::path(get, path = "/v1/groups", tag = "groups", responses((status = 200, description = "Groups by id")))]
pub(crate) async fn list(State(rooms): State<Rooms>, RawQuery(query): RawQuery) -> Result<Json<Value>, Problem> {
    Query::parse(query.as_deref(), &[])?;
    let groups = rooms.broker.groups_with_offsets();
    let groups: Vec<Value> = groups.iter().map(|group| describe(&rooms.broker, group)).collect();
    Ok(Json(json!({ "groups": groups })))
}

/// One group.
#[utoipa::path(get, path = "/v1/groups/{group}", tag = "groups", params(("group" = String, Path, description = "Its id")),
    responses((status = 200, description = "The group"), (status = 404, description = "Problem details")))]
pub(crate) async fn get(
    State(rooms): State<Rooms>,
    Segments(group): Segments<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Problem> {
    Query::parse(query.as_deref(), &[])?;
    if !rooms.broker.groups_with_offsets().contains(&group) {
        return Err(Problem::not_found("group", "unknown-group", &format!("{group:?}")));
    }
    Ok(Json(describe(&rooms.broker, &group)))
}
