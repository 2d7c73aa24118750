//! What stands beside a committed offset on a cluster: the progress of a lane, and the verdicts that are being carried
//! out.
//!
//! ```text
//! base64 of the progress bytes, then ~TOPIC, then for each verdict: .FIRST.PRODUCER
//! ```
//! `TOPIC` are the last 12 hexadecimal digits of the topic's id, where the cluster has ids: a topic that was deleted
//! and made again begins anew, whatever was committed for the one before, and whenever. Without it, it speaks of any
//! topic of its name.
//!
//! `FIRST` is the first offset of the window that was given up, as progress has it, `PRODUCER` the producer id of its
//! dead letters: whoever takes over invokes nothing for it, and asks the cluster how far that producer came. Decimal
//! numbers. At most 4,096 characters: progress takes at most 4,000 of them, the topic 13, and a verdict at most 40.
//! Verdicts that find no room wait for others to be carried out.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tripline_storage::Offset;
use uuid::Uuid;

use super::progress::Progress;

/// What Kafka takes by default (`offset.metadata.max.bytes`).
const CHARS_MAX: usize = 4096;

/// Producer ids by the first offset of their window.
pub(super) type Verdicts = BTreeMap<Offset, i64>;

/// What metadata says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) progress: Progress,
    pub(super) verdicts: Verdicts,
    topic: Option<u64>,
}

impl Decoded {
    /// Whether it may be about this topic.
    pub(super) fn is_of(&self, topic: Uuid) -> bool {
        topic.is_nil() || self.topic.is_none_or(|known| known == digits(topic))
    }
}

/// 12 hexadecimal digits of a topic's id.
const fn digits(topic: Uuid) -> u64 {
    topic.as_u64_pair().1 & ((1 << 48) - 1)
}

/// The metadata of a lane that begins at `at`.
pub(super) fn of_start(topic: Uuid, at: Offset) -> String {
    let progress = Progress::start(at).encode().expect("an offset alone is short");
    encode(topic, &progress, std::iter::empty()).0
}

/// The metadata for these progress bytes and as many of `verdicts` as fit, and how many those are.
pub(super) fn encode(topic: Uuid, progress: &[u8], verdicts: impl Iterator<Item = (Offset, i64)>) -> (String, usize) {
    let mut metadata = STANDARD.encode(progress);
    if !topic.is_nil() {
        metadata.push_str(&format!("~{:012x}", digits(topic)));
    }
    let mut included = 0;
    for (first, producer_id) in verdicts {
        let verdict = format!(".{first}.{producer_id}");
        if metadata.len() + verdict.len() > CHARS_MAX {
            break;
        }
        metadata.push_str(&verdict);
        included += 1;
    }
    (metadata, included)
}

/// What [`encode`] wrote; `None` for anything else.
pub(super) fn decode(metadata: &str) -> Option<Decoded> {
    if metadata.len() > CHARS_MAX {
        return None;
    }
    let mut parts = metadata.split('.');
    let first = parts.next()?;
    let (progress, topic) = first.split_once('~').map_or((first, None), |(progress, topic)| (progress, Some(topic)));
    let topic = match topic {
        Some(topic) if topic.len() == 12 => Some(u64::from_str_radix(topic, 16).ok()?),
        Some(_) => return None,
        None => None,
    };
    let progress = Progress::decode(&STANDARD.decode(progress).ok()?).ok()?;
    let numbers: Vec<i64> =
        parts.map(|number| number.parse().ok().filter(|number| *number >= 0)).collect::<Option<_>>()?;
    let (pairs, []) = numbers.as_chunks::<2>() else { return None };
    let verdicts = pairs.iter().map(|&[first, producer_id]| Some((Offset::new(first)?, producer_id))).collect::<Option<_>>()?;
    Some(Decoded { progress, verdicts, topic })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trigger::progress::ENCODED_BYTES_MAX;
    use crate::trigger::progress::tests::any_progress;

    const TOPIC: Uuid = Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);

    #[test]
    fn the_text_is_this() {
        let progress = Progress::start(Offset::new(300).unwrap());
        let verdicts = BTreeMap::from([(Offset::new(300).unwrap(), 4000), (Offset::new(305).unwrap(), 7)]);
        for (topic, known, expected) in [
            (Uuid::nil(), None, "BqwCAAAAAAAA.300.4000.305.7"),
            (TOPIC, Some(0x0b0c_0d0e_0f10), "BqwCAAAAAAAA~0b0c0d0e0f10.300.4000.305.7"),
        ] {
            let (text, included) = encode(topic, &progress.encode().unwrap(), verdicts.clone().into_iter());
            assert_eq!((text.as_str(), included), (expected, 2));
            let decoded = Decoded { progress: progress.clone(), verdicts: verdicts.clone(), topic: known };
            assert_eq!(decode(&text), Some(decoded));
        }
    }

    #[test]
    fn metadata_is_of_the_topic_that_it_names_or_of_any_where_there_are_no_ids() {
        let of = |topic| decode(&of_start(topic, Offset::ZERO)).unwrap();
        let another = Uuid::from_u128(TOPIC.as_u128() + 1);
        assert!(of(TOPIC).is_of(TOPIC) && !of(TOPIC).is_of(another));
        assert!(of(TOPIC).is_of(Uuid::nil()) && of(Uuid::nil()).is_of(TOPIC));
    }

    #[test]
    fn beside_the_longest_progress_there_is_room_for_two_verdicts() {
        let verdicts = (1..5).map(|index| (Offset::new(i64::MAX - index).unwrap(), i64::MAX));
        let (text, included) = encode(TOPIC, &[0; ENCODED_BYTES_MAX], verdicts);
        assert_eq!(included, 2);
        assert!(text.len() <= CHARS_MAX);
    }

    #[test]
    fn what_others_wrote_is_no_progress() {
        for text in [
            "",
            "hello",
            "{}",
            "BqwCAAAAAAAA~",
            "BqwCAAAAAAAA~0b0c0d0e0f1g",
            "BqwCAAAAAAAA.300",
            "BqwCAAAAAAAA.300.x",
            "BqwCAAAAAAAA.300.-4",
            "BqwCAAAAAAAA.",
        ] {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_eq!(decode(&"A".repeat(5000)), None);
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(
            topic: u128,
            progress in any_progress(),
            verdicts in proptest::collection::btree_map(0i64.., 0i64.., 0..4),
        ) {
            if let Ok(bytes) = progress.encode() {
                let topic = Uuid::from_u128(topic);
                let verdicts: Verdicts =
                    verdicts.into_iter().map(|(first, producer_id)| (Offset::new(first).unwrap(), producer_id)).collect();
                let (text, included) = encode(topic, &bytes, verdicts.clone().into_iter());
                let kept: Verdicts = verdicts.into_iter().take(included).collect();
                let topic = (!topic.is_nil()).then(|| digits(topic));
                prop_assert_eq!(decode(&text), Some(Decoded { progress, verdicts: kept, topic }));
            }
        }
    }
}
