//! Which path leads where.

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use http::{Method, StatusCode, Uri};

use super::body_room::BodyBudget;
use super::limits::HttpLimits;
use super::problem::Problem;
use super::rooms::Rooms;
use super::{health, openapi, v1};

/// All routes over `rooms`.
pub fn router(rooms: Rooms, limits: HttpLimits) -> Router {
    let budget = BodyBudget::new(limits.bodies_bytes_max);
    let v1 = Router::new()
        .route("/cluster", get(v1::cluster::get))
        .route("/topics", get(v1::topics::list).post(v1::topics::create))
        .route("/topics/{topic}", get(v1::topics::get).put(v1::topics::put).delete(v1::topics::delete))
        .route(
            "/topics/{topic}/records",
            get(v1::records_out::records).post(v1::records_in::append).delete(v1::topics::delete_records),
        )
        .route("/triggers", get(v1::triggers::list))
        .route("/triggers/{trigger}", get(v1::triggers::get).put(v1::triggers::put).delete(v1::triggers::delete))
        .route("/triggers/{trigger}/pause", post(v1::triggers::pause))
        .route("/triggers/{trigger}/resume", post(v1::triggers::resume))
        .route("/triggers/{trigger}/explain", post(v1::explain::explain))
        .route("/schedules", get(v1::schedules::list))
        .route("/schedules/{schedule}", get(v1::schedules::get).put(v1::schedules::put).delete(v1::schedules::delete))
        .route("/schedules/{schedule}/pause", post(v1::schedules::pause))
        .route("/schedules/{schedule}/resume", post(v1::schedules::resume))
        .route("/schedules/{schedule}/next", get(v1::schedules::next))
        .route("/triggers/{trigger}/skip", post(v1::triggers::skip))
        .route("/triggers/{trigger}/reset", post(v1::triggers::reset))
        .route("/triggers/{trigger}/dry-run", post(v1::runs::dry_run))
        .route("/triggers/{trigger}/replays", post(v1::runs::replay))
        .route("/triggers/{trigger}/redrives", post(v1::runs::redrive))
        .route("/triggers/{trigger}/discards", post(v1::runs::discard))
        .route("/triggers/{trigger}/runs", get(v1::runs::list))
        .route("/triggers/{trigger}/runs/{run}", get(v1::runs::get))
        .route("/triggers/{trigger}/runs/{run}/cancel", post(v1::runs::cancel))
        .route("/triggers/{trigger}/runs/{run}/resume", post(v1::runs::resume))
        .route("/triggers/{trigger}/runs/{run}/skip", post(v1::runs::skip))
        .route("/functions", get(v1::functions::list))
        .route("/functions/{function}", get(v1::functions::get).put(v1::functions::put).delete(v1::functions::delete))
        .route("/functions/{function}/invocations", post(v1::functions::invoke))
        .route("/functions/{function}/logs", get(v1::logs::logs))
        .route("/groups", get(v1::groups::list))
        .route("/groups/{group}", get(v1::groups::get))
        .route("/dead-letters", get(v1::dead_letters::list))
        .route("/dead-letters/{topic}/{partition}/{offset}", get(v1::dead_letters::get))
        .route("/events/{id}", get(v1::events::get))
        .route("/patterns/test", post(v1::patterns::test))
        .route("/transforms/test", post(v1::transforms::test));
    Router::new()
        .nest("/v1", v1)
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/healthz", get(health::health))
        .route("/metrics", get(health::metrics_text))
        .route("/openapi.json", get(openapi::serve))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn(move |mut request: Request, next: Next| {
            let room = budget.room();
            async move {
                request.extensions_mut().insert(limits);
                request.extensions_mut().insert(room.clone());
                let response: Response = next.run(request).await;
                // Until here its body, or what was made of it, may be in memory.
                drop(room);
                response
            }
        }))
        .with_state(rooms)
}

async fn unknown_path(uri: Uri) -> Problem {
    let detail = format!("there is nothing at {}; GET /openapi.json lists what there is", uri.path());
    Problem::new(StatusCode::NOT_FOUND, "unknown-path", detail)
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{method} is not possible at {}; the Allow header says what is", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail)
}
