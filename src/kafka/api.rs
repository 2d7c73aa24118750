//! One file per request.

pub mod api_versions;
pub mod group_errors;
pub mod produce_too_old;
