//! Whether the broker lives and takes work, and what it measures.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use super::metrics;
use super::problem::Problem;
use super::rooms::Rooms;

/// The process answers.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, description = "It lives", body = String)))]
pub(crate) async fn live() -> &'static str {
    "ok\n"
}

/// The broker takes work: it has recovered and does not stop.
#[utoipa::path(get, path = "/readyz", tag = "health", responses((status = 200, description = "It does", body = String), (status = 503, description = "Not now")))]
pub(crate) async fn ready(State(rooms): State<Rooms>) -> Response {
    if rooms.readiness.is_ready() {
        return "ok\n".into_response();
    }
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "the broker is starting or stopping").into_response()
}

/// As `/readyz`, by the name that others use.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, description = "It does", body = String), (status = 503, description = "Not now")))]
pub(crate) async fn health(rooms: State<Rooms>) -> Response {
    ready(rooms).await
}

/// Prometheus metrics.
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, description = "Prometheus text", body = String)))]
pub(crate) async fn metrics_text(State(rooms): State<Rooms>) -> Response {
    let source = metrics::Source {
        broker: &rooms.broker,
        groups: &rooms.groups,
        functions: rooms.functions.service(),
        triggers: &rooms.triggers,
        schedules: &rooms.schedules,
        counts: &rooms.counts,
        version: rooms.info.version,
        commit: rooms.info.commit,
        kafka_address: rooms.info.kafka_address,
    };
    let media_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, media_type)], metrics::render(&source)).into_response()
}
