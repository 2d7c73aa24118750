//! The resources of the API, one file each.

pub mod cluster;
pub mod dead_letters;
mod definitions;
pub mod events;
pub mod explain;
pub mod functions;
pub mod groups;
pub mod logs;
pub mod patterns;
pub mod records_in;
pub mod records_out;
pub mod run_requests;
pub mod runs;
pub mod schedules;
pub mod topics;
pub mod transforms;
pub mod triggers;
