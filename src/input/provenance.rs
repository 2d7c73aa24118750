//! Where a record comes from: from where it stands, or, for a dead letter, from where it stood when it was given up.

use std::collections::HashMap;

use jiff::Timestamp;
use tripline_storage::batch::RecordView as StoredRecord;
use tripline_storage::{LeaderEpoch, Offset};
use uuid::Uuid;

use super::Origin;

/// What all headers that a dead letter adds start with.
pub const LETTER_HEADER_PREFIX: &str = "tripline-dlq-";

/// Dead letters are seen as the records that they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Letters {
    /// The ids of the topics whose records were given up, by name.
    pub(super) topics: HashMap<String, Uuid>,
}

/// Where a record comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// The topic's name.
    pub topic: String,
    /// The topic's id; nil for a letter of another topic than those that its trigger reads now.
    pub topic_id: Uuid,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: Offset,
    /// Milliseconds since 1970; −1 for none.
    pub timestamp_ms: i64,
    /// The leader epoch of its batch.
    pub leader_epoch: LeaderEpoch,
    /// How often it was redriven, this time included.
    pub redrives: u32,
}

impl Provenance {
    /// Of a record as it stands.
    pub(super) fn of_record(origin: &Origin, record: &StoredRecord<'_>, leader_epoch: LeaderEpoch) -> Self {
        Self {
            topic: origin.topic.clone(),
            topic_id: origin.topic_id,
            partition: origin.partition,
            offset: record.offset(),
            timestamp_ms: record.timestamp_ms(),
            leader_epoch,
            redrives: redrives(record),
        }
    }

    /// Of the record that a dead letter was. What its headers do not say, as with letters that somebody else wrote, is
    /// taken from the letter itself.
    pub(super) fn of_letter(
        letters: &Letters,
        origin: &Origin,
        record: &StoredRecord<'_>,
        leader_epoch: LeaderEpoch,
    ) -> Self {
        let own = Self::of_record(origin, record, leader_epoch);
        let (Some(topic), Some(partition), Some(offset)) =
            (text(record, "topic"), number(record, "partition"), number(record, "offset").and_then(Offset::new))
        else {
            return Self { redrives: own.redrives.saturating_add(1), ..own };
        };
        let timestamp_ms = text(record, "timestamp").and_then(|time| time.parse::<Timestamp>().ok());
        Self {
            topic_id: letters.topics.get(topic).copied().unwrap_or(Uuid::nil()),
            topic: topic.to_owned(),
            partition,
            offset,
            timestamp_ms: timestamp_ms.map_or(-1, Timestamp::as_millisecond),
            leader_epoch: number(record, "leader-epoch").and_then(LeaderEpoch::new).unwrap_or(LeaderEpoch::NONE),
            redrives: own.redrives.saturating_add(1),
        }
    }
}

/// Whether a record's header is one that dead letters add.
#[must_use]
pub fn is_letter_header(name: &[u8]) -> bool {
    name.starts_with(LETTER_HEADER_PREFIX.as_bytes())
}

/// The text of one of the headers that a dead letter adds, by its name without the prefix.
#[must_use]
pub fn text<'r>(record: &StoredRecord<'r>, name: &str) -> Option<&'r str> {
    let wanted = |found: &[u8]| found.strip_prefix(LETTER_HEADER_PREFIX.as_bytes()) == Some(name.as_bytes());
    let header = record.headers().into_iter().find(|header| wanted(header.name))?;
    header.value.and_then(|value| std::str::from_utf8(value).ok())
}

fn number<N: std::str::FromStr>(record: &StoredRecord<'_>, name: &str) -> Option<N> {
    text(record, name)?.parse().ok()
}

/// How often a record was redriven, by its headers; 0 when they do not say.
#[must_use]
pub fn redrives(record: &StoredRecord<'_>) -> u32 {
    number(record, "redrives").unwrap_or(0)
}
