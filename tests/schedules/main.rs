//! Schedules with a real server: by HTTP, over restarts, killed, and as the documentation says.
#![allow(clippy::unwrap_used, reason = "tests")]

mod documentation;
mod killed;
mod many;
#[path = "../common/served.rs"]
mod served;
mod server;
