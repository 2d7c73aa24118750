//! One file per request.

/// A message of the generated codec, by its fields; those not named have their defaults.
macro_rules! message {
    ($type:path { $($field:ident: $value:expr),* $(,)? }) => {{
        let mut message = <$type>::default();
        $(message.$field = $value;)*
        message
    }};
}

pub mod api_versions;
mod authorized;
pub(crate) mod create_topics;
pub(crate) mod delete_groups;
pub(crate) mod delete_records;
pub(crate) mod delete_topics;
pub(crate) mod describe_configs;
pub(crate) mod describe_groups;
pub(crate) mod describe_producers;
pub(crate) mod fetch;
pub(crate) mod find_coordinator;
pub mod group_errors;
pub(crate) mod heartbeat;
pub(crate) mod init_producer_id;
pub(crate) mod join_group;
pub(crate) mod leave_group;
pub(crate) mod list_groups;
pub(crate) mod list_offsets;
pub mod log_errors;
pub(crate) mod metadata;
pub(crate) mod offset_commit;
pub(crate) mod offset_fetch;
pub(crate) mod produce;
pub mod produce_size;
pub mod produce_too_old;
pub(crate) mod sync_group;
