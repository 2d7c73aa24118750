//! The record that tests and benchmarks see as an event.

use tripline_storage::{LeaderEpoch, Offset};
use uuid::Uuid;

use super::{Header, RecordView};

pub(crate) fn record<'a>(value: Option<&'a [u8]>, headers: &'a [Header<'a>]) -> RecordView<'a> {
    RecordView {
        topic: "flights",
        cluster_id: "c1",
        topic_id: Uuid::from_u128(7),
        leader_epoch: LeaderEpoch::new(3).unwrap(),
        partition: 2,
        offset: Offset::new(41).unwrap(),
        timestamp_ms: 1_700_000_000_123,
        key: Some(b"LH400"),
        value,
        headers,
    }
}
