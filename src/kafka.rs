//! The Kafka wire protocol over TCP: frames, connections, and one file per request.
//!
//! ```text
//!  listener ─▶ connection: reader ─▶ frame ─▶ request ─▶ handler.begin ─▶ ordered queue ─▶ writer ─▶ socket
//! ```
//! [`frame`], [`request`], [`codec`], [`version`] and [`response`] are pure: bytes in, values or errors out. [`listener`] and
//! [`connection`] move the bytes. What a request *does* is behind [`handler::RequestHandler`].
//!
//! Only [`codec`] names the crates that know Kafka's schemas, so replacing them is a change to one file.

pub mod api;
pub mod codec;
pub mod connection;
pub mod error_code;
pub mod frame;
pub mod handler;
pub mod listener;
pub mod metrics;
pub mod request;
pub mod response;
pub mod version;
