//! One file per request.

pub mod api_versions;
pub mod produce_too_old;
