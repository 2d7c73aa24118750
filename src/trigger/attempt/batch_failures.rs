//! A function's answer that only some records of its window failed: `{"batchItemFailures":[{"itemIdentifier": …}]}`.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;
use tripline_storage::Offset;

/// The field of an answer that names the records which failed.
pub const BATCH_ITEM_FAILURES: &str = "batchItemFailures";

/// How a record of a window can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRecord<'a> {
    /// The `id` of its event.
    pub id: &'a str,
    /// Its topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: Offset,
}

/// What a function's answer says of its window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchOutcome {
    /// Every record succeeded.
    Success,
    /// These failed, by their place in the window, ascending; the others succeeded.
    Partial(Vec<usize>),
    /// Nothing can be taken from the answer, so everything counts as failed.
    Whole(WholeFailure),
}

/// Why an answer fails the whole window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WholeFailure {
    /// `batchItemFailures` is something else than a list.
    #[error("`batchItemFailures` is not a list")]
    NotAList,
    /// An element has no usable `itemIdentifier`.
    #[error(
        "element {index} of `batchItemFailures` has no `itemIdentifier` that is an event id or {{partition, offset}}"
    )]
    BadIdentifier {
        /// Which one, from 0.
        index: usize,
    },
    /// An element names no record of the window.
    #[error("element {index} of `batchItemFailures` names no record of this window")]
    UnknownRecord {
        /// Which one, from 0.
        index: usize,
    },
}

/// Reads a function's answer. Anything without `batchItemFailures`, JSON or not, is a success: most functions answer
/// something of their own.
#[must_use]
pub fn parse_batch_item_failures(body: &[u8], records: &[BatchRecord<'_>]) -> BatchOutcome {
    let Ok(Value::Object(answer)) = serde_json::from_slice(body) else { return BatchOutcome::Success };
    let failures = match answer.get(BATCH_ITEM_FAILURES) {
        None | Some(Value::Null) => return BatchOutcome::Success,
        Some(Value::Array(failures)) => failures,
        Some(_) => return BatchOutcome::Whole(WholeFailure::NotAList),
    };
    if failures.is_empty() {
        return BatchOutcome::Success;
    }
    let places = Places::of(records);
    let mut failed = vec![false; records.len()];
    for (index, failure) in failures.iter().enumerate() {
        match places.find(failure.get("itemIdentifier")) {
            Ok(Some(place)) => failed[place] = true,
            Ok(None) => return BatchOutcome::Whole(WholeFailure::UnknownRecord { index }),
            Err(BadIdentifier) => return BatchOutcome::Whole(WholeFailure::BadIdentifier { index }),
        }
    }
    places.share(&mut failed);
    BatchOutcome::Partial(failed.iter().enumerate().filter_map(|(place, failed)| failed.then_some(place)).collect())
}

struct BadIdentifier;

/// Looks records up by name, so that an answer with as many elements as the window has records stays cheap.
struct Places<'a> {
    records: &'a [BatchRecord<'a>],
    by_id: HashMap<&'a str, usize>,
    by_offset: HashMap<(&'a str, u32, Offset), usize>,
    /// Their topics: one, but for dead letters of a trigger that reads several.
    topics: BTreeSet<&'a str>,
}

impl<'a> Places<'a> {
    fn of(records: &'a [BatchRecord<'a>]) -> Self {
        let by_id = records.iter().enumerate().map(|(place, record)| (record.id, place)).collect();
        let by_offset = records.iter().enumerate();
        let by_offset =
            by_offset.map(|(place, record)| ((record.topic, record.partition, record.offset), place)).collect();
        Self { records, by_id, by_offset, topics: records.iter().map(|record| record.topic).collect() }
    }

    /// Records with one name share its fate: which of them the function meant nobody knows.
    fn share(&self, failed: &mut [bool]) {
        for (place, record) in self.records.iter().enumerate() {
            failed[place] |= failed[self.by_id[record.id]];
        }
    }

    fn find(&self, identifier: Option<&Value>) -> Result<Option<usize>, BadIdentifier> {
        match identifier {
            Some(Value::String(id)) if !id.is_empty() => Ok(self.by_id.get(id.as_str()).copied()),
            Some(Value::Object(place)) => {
                let offset = place.get("offset").and_then(Value::as_i64).and_then(Offset::new).ok_or(BadIdentifier)?;
                self.find_offset(place.get("partition").ok_or(BadIdentifier)?, offset)
            }
            _ => Err(BadIdentifier),
        }
    }

    /// A partition is a number, or `<topic>-<number>`. A number alone that is meant in one of several topics names no
    /// record.
    fn find_offset(&self, partition: &Value, offset: Offset) -> Result<Option<usize>, BadIdentifier> {
        let (topic, number) = match partition {
            Value::Number(number) => (None, number.as_u64().and_then(|number| u32::try_from(number).ok())),
            Value::String(text) => {
                let (topic, number) = text.rsplit_once('-').ok_or(BadIdentifier)?;
                (Some(topic), number.parse().ok())
            }
            _ => return Err(BadIdentifier),
        };
        let number = number.ok_or(BadIdentifier)?;
        let topics = self.topics.iter().filter(|found| topic.is_none_or(|topic| topic == **found));
        let mut places = topics.filter_map(|topic| self.by_offset.get(&(topic, number, offset)).copied());
        Ok(places.next().filter(|_| places.next().is_none()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(body: &str) -> BatchOutcome {
        let ids = ["0-5", "0-6", "mine"];
        let records: Vec<BatchRecord<'_>> = (5..)
            .zip(ids)
            .map(|(offset, id)| BatchRecord { id, topic: "a-1", partition: 0, offset: Offset::new(offset).unwrap() })
            .collect();
        parse_batch_item_failures(body.as_bytes(), &records)
    }

    fn failures(identifiers: &str) -> BatchOutcome {
        outcome(&format!(r#"{{"batchItemFailures":[{identifiers}]}}"#))
    }

    #[test]
    fn an_empty_or_foreign_answer_is_a_success() {
        for body in [
            "",
            "null",
            "ok",
            "[]",
            "{}",
            "3",
            "{\"batchItemFailures\":null}",
            "{\"batchItemFailures\":[]}",
            "{\"batch",
        ] {
            assert_eq!(outcome(body), BatchOutcome::Success, "{body}");
        }
    }

    #[test]
    fn records_are_named_by_event_id_or_by_place() {
        assert_eq!(
            failures(r#"{"itemIdentifier":"mine"},{"itemIdentifier":"0-5"}"#),
            BatchOutcome::Partial(vec![0, 2])
        );
        assert_eq!(failures(r#"{"itemIdentifier":{"partition":"a-1-0","offset":6}}"#), BatchOutcome::Partial(vec![1]));
        assert_eq!(failures(r#"{"itemIdentifier":{"partition":0,"offset":6}}"#), BatchOutcome::Partial(vec![1]));
        assert_eq!(failures(r#"{"itemIdentifier":"0-5"},{"itemIdentifier":"0-5"}"#), BatchOutcome::Partial(vec![0]));
    }

    #[test]
    fn records_of_several_topics_are_told_apart_by_topic() {
        let record = |topic| BatchRecord { id: "0-5", topic, partition: 0, offset: Offset::new(5).unwrap() };
        let records = [BatchRecord { id: "x", ..record("a") }, record("b")];
        let outcome = |identifier: &str| {
            let body = format!(r#"{{"batchItemFailures":[{{"itemIdentifier":{identifier}}}]}}"#);
            parse_batch_item_failures(body.as_bytes(), &records)
        };
        assert_eq!(outcome(r#"{"partition":"a-0","offset":5}"#), BatchOutcome::Partial(vec![0]));
        assert_eq!(outcome(r#"{"partition":"b-0","offset":5}"#), BatchOutcome::Partial(vec![1]));
        // Which of the two is meant nobody knows.
        assert!(matches!(outcome(r#"{"partition":0,"offset":5}"#), BatchOutcome::Whole(_)));
    }

    #[test]
    fn all_records_of_the_name_that_failed_count_as_failed() {
        let record = |id, offset| BatchRecord { id, topic: "a", partition: 0, offset: Offset::new(offset).unwrap() };
        let records = [record("x", 5), record("y", 6), record("x", 7)];
        let body = br#"{"batchItemFailures":[{"itemIdentifier":"x"}]}"#;
        assert_eq!(parse_batch_item_failures(body, &records), BatchOutcome::Partial(vec![0, 2]));
    }

    #[test]
    fn an_unknown_record_fails_the_whole_window() {
        for identifier in [
            r#""0-7""#,
            r#"{"partition":1,"offset":6}"#,
            r#"{"partition":"b-0","offset":6}"#,
            r#"{"partition":0,"offset":9}"#,
        ] {
            let answer = failures(&format!(r#"{{"itemIdentifier":"mine"}},{{"itemIdentifier":{identifier}}}"#));
            assert_eq!(answer, BatchOutcome::Whole(WholeFailure::UnknownRecord { index: 1 }), "{identifier}");
        }
    }

    #[test]
    fn an_identifier_that_names_nothing_fails_the_whole_window() {
        for element in [
            "{}",
            "3",
            "\"mine\"",
            r#"{"itemIdentifier":null}"#,
            r#"{"itemIdentifier":""}"#,
            r#"{"itemidentifier":"mine"}"#,
            r#"{"itemIdentifier":{"offset":5}}"#,
            r#"{"itemIdentifier":{"partition":0}}"#,
            r#"{"itemIdentifier":{"partition":0,"offset":-5}}"#,
            r#"{"itemIdentifier":{"partition":[],"offset":5}}"#,
            r#"{"itemIdentifier":{"partition":"a","offset":5}}"#,
            r#"{"itemIdentifier":{"partition":1.5,"offset":5}}"#,
        ] {
            assert_eq!(failures(element), BatchOutcome::Whole(WholeFailure::BadIdentifier { index: 0 }), "{element}");
        }
        assert_eq!(outcome(r#"{"batchItemFailures":{}}"#), BatchOutcome::Whole(WholeFailure::NotAList));
    }
}
