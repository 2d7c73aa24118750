//! What stands beside a committed offset on a cluster: the progress of a lane.
//!
//! ```text
//! base64 of the progress bytes, then ~TOPIC
//! ```
//! `TOPIC` are the last 12 hexadecimal digits of the topic's id, where the cluster has ids: a topic that was deleted
//! and made again begins anew, whatever was committed for the one before, and whenever. Without it, it speaks of any
//! topic of its name. At most 4,096 characters: progress takes at most 4,000 of them, the topic 13.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tripline_storage::Offset;
use uuid::Uuid;

use super::progress::Progress;

/// What Kafka takes by default (`offset.metadata.max.bytes`).
const CHARS_MAX: usize = 4096;

/// What metadata says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) progress: Progress,
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
    encode(topic, &progress)
}

/// The metadata for these progress bytes.
pub(super) fn encode(topic: Uuid, progress: &[u8]) -> String {
    let mut metadata = STANDARD.encode(progress);
    if !topic.is_nil() {
        metadata.push_str(&format!("~{:012x}", digits(topic)));
    }
    metadata
}

/// What [`encode`] wrote; `None` for anything else.
pub(super) fn decode(metadata: &str) -> Option<Decoded> {
    if metadata.len() > CHARS_MAX {
        return None;
    }
    let (progress, topic) =
        metadata.split_once('~').map_or((metadata, None), |(progress, topic)| (progress, Some(topic)));
    let topic = match topic {
        Some(topic) if topic.len() == 12 => Some(u64::from_str_radix(topic, 16).ok()?),
        Some(_) => return None,
        None => None,
    };
    let progress = Progress::decode(&STANDARD.decode(progress).ok()?).ok()?;
    Some(Decoded { progress, topic })
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
        for (topic, known, expected) in
            [(Uuid::nil(), None, "B6wCAAAAAAAA"), (TOPIC, Some(0x0b0c_0d0e_0f10), "B6wCAAAAAAAA~0b0c0d0e0f10")]
        {
            let text = encode(topic, &progress.encode().unwrap());
            assert_eq!(text, expected);
            assert_eq!(decode(&text), Some(Decoded { progress: progress.clone(), topic: known }));
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
    fn the_longest_progress_has_room() {
        assert!(encode(TOPIC, &[0; ENCODED_BYTES_MAX]).len() <= CHARS_MAX);
    }

    #[test]
    fn what_others_wrote_is_no_progress() {
        for text in [
            "",
            "hello",
            "{}",
            "B6wCAAAAAAAA~",
            "B6wCAAAAAAAA~0b0c0d0e0f1g",
            "B6wCAAAAAAAA.",
            "B6wCAAAAAAAA~0b0c0d0e0f10.",
        ] {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_eq!(decode(&"A".repeat(5000)), None);
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(topic: u128, progress in any_progress()) {
            if let Ok(bytes) = progress.encode() {
                let topic = Uuid::from_u128(topic);
                let text = encode(topic, &bytes);
                let topic = (!topic.is_nil()).then(|| digits(topic));
                prop_assert_eq!(decode(&text), Some(Decoded { progress, topic }));
            }
        }
    }
}
