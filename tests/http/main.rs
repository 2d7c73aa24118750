//! The HTTP door with a real server and a real client: every resource, its errors, the limits.
#![allow(clippy::unwrap_used, reason = "tests")]

mod definitions;
mod deployments;
mod door;
mod explain;
mod records;
mod support;
