//! What this broker is.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::http::extract::NoParameters;
use crate::http::problem::Problem;
use crate::http::rooms::Rooms;

/// Version, cluster id, addresses.
#[utoipa::path(get, path = "/v1/cluster", tag = "cluster", responses((status = 200, description = "Facts about this broker")))]
pub(crate) async fn get(State(rooms): State<Rooms>, _: NoParameters) -> Result<Json<Value>, Problem> {
    let info = &rooms.info;
    Ok(Json(json!({
        "version": info.version,
        "commit": info.commit,
        "cluster_id": rooms.broker.cluster_id(),
        "leader_epoch": rooms.broker.leader_epoch().get(),
        "kafka_address": info.kafka_address.map(|address| address.to_string()),
        "http_address": info.http_address.to_string(),
    })))
}
