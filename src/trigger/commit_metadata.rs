//! What stands beside a committed offset on a cluster: the progress of a lane, and the verdicts that are being carried out.
//!
//! ```text
//! base64 of the progress bytes, then for each verdict: .FIRST.PRODUCER
//! ```
//! `FIRST` is the first offset of the window that was given up, `PRODUCER` the producer id of its dead letters: whoever takes
//! over invokes nothing for it and sends the same batches again, which the cluster recognises. Decimal numbers. At most 4,096
//! characters: progress takes at most 4,000 of them, and a verdict at most 40. Verdicts that find no room wait for others to
//! be carried out.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::progress::Progress;

/// What Kafka takes by default (`offset.metadata.max.bytes`).
const CHARS_MAX: usize = 4096;

/// Producer ids by the first offset of their window.
pub(super) type Verdicts = BTreeMap<i64, i64>;

/// The metadata for these progress bytes and as many of `verdicts` as fit, and which those are.
pub(super) fn encode(progress: &[u8], verdicts: impl Iterator<Item = (i64, i64)>) -> (String, Vec<i64>) {
    let mut metadata = STANDARD.encode(progress);
    let mut included = Vec::new();
    for (first, producer_id) in verdicts {
        let verdict = format!(".{first}.{producer_id}");
        if metadata.len() + verdict.len() > CHARS_MAX {
            break;
        }
        metadata.push_str(&verdict);
        included.push(first);
    }
    (metadata, included)
}

/// What [`encode`] wrote; `None` for anything else.
pub(super) fn decode(metadata: &str) -> Option<(Progress, Verdicts)> {
    if metadata.len() > CHARS_MAX {
        return None;
    }
    let mut parts = metadata.split('.');
    let progress = Progress::decode(&STANDARD.decode(parts.next()?).ok()?).ok()?;
    let numbers: Vec<i64> =
        parts.map(|number| number.parse().ok().filter(|number| *number >= 0)).collect::<Option<_>>()?;
    let (pairs, []) = numbers.as_chunks::<2>() else { return None };
    Some((progress, pairs.iter().map(|&[first, producer_id]| (first, producer_id)).collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tripline_storage::Offset;

    use super::*;
    use crate::trigger::progress::ENCODED_BYTES_MAX;
    use crate::trigger::progress::tests::any_progress;

    #[test]
    fn the_text_is_this() {
        let progress = Progress::start(Offset::new(300).unwrap());
        let (text, included) = encode(&progress.encode().unwrap(), [(300, 4000), (305, 7)].into_iter());
        assert_eq!((text.as_str(), included), ("A6wCAAAAAAAA.300.4000.305.7", vec![300, 305]));
        assert_eq!(decode(&text), Some((progress, BTreeMap::from([(300, 4000), (305, 7)]))));
    }

    #[test]
    fn beside_the_longest_progress_there_is_room_for_two_verdicts() {
        let verdicts = (1..5).map(|index| (i64::MAX - index, i64::MAX));
        let (text, included) = encode(&[0; ENCODED_BYTES_MAX], verdicts);
        assert_eq!(included.len(), 2);
        assert!(text.len() <= CHARS_MAX);
    }

    #[test]
    fn what_others_wrote_is_no_progress() {
        for text in
            ["", "hello", "{}", "A6wCAAAAAAAA.300", "A6wCAAAAAAAA.300.x", "A6wCAAAAAAAA.300.-4", "A6wCAAAAAAAA."]
        {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_eq!(decode(&"A".repeat(5000)), None);
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(
            progress in any_progress(),
            verdicts in proptest::collection::btree_map(0i64.., 0i64.., 0..4),
        ) {
            if let Ok(bytes) = progress.encode() {
                let (text, included) = encode(&bytes, verdicts.clone().into_iter());
                let kept: Verdicts = verdicts.into_iter().filter(|(first, _)| included.contains(first)).collect();
                prop_assert_eq!(decode(&text), Some((progress, kept)));
            }
        }
    }
}
