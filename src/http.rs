//! HTTP: the JSON API under `/v1`, metrics and health, on hyper with a limit for everything.
//!
//! ```text
//! listener ─▶ guard (Host, Origin) ─▶ routes ─▶ v1/<resource> ─▶ broker, functions, triggers
//!                                                  └─ every error becomes a Problem (RFC 9457)
//! ```
//!
//! Nothing is guessed: an unknown query parameter, field or media type is an error that says what is allowed.

mod at_most;
mod bodies;
mod body_room;
pub mod cloud_events;
mod extract;
pub mod guard;
mod health;
pub mod limits;
pub mod listener;
pub mod metrics;
mod openapi;
pub mod problem;
pub mod query;
mod reader;
mod record_json;
mod rooms;
mod routes;
pub mod v1;

pub use guard::AllowedHosts;
pub use limits::HttpLimits;
pub use listener::Listener;
pub use openapi::document as openapi_document;
pub use rooms::{BrokerInfo, Readiness, Rooms};
pub use routes::router;
