//! Progress as bytes; the layout stands in the head of the parent module.

use std::ops::Range;

use tripline_storage::Offset;

use super::{BlockedKey, GivenUp, Letters, Progress, Span, TriedAttempts, TriedWindow};
use crate::trigger::attempt::{ExhaustedReason, class_number};
use crate::trigger::window::WINDOW_COUNT_MAX;

/// The most bytes that progress may take. Beyond it the partition stops reading, visibly.
pub const ENCODED_BYTES_MAX: usize = 3000;

pub(super) const VERSION: u8 = 7;
/// What a map must save to be written: its length, and what its last byte leaves empty.
const MAP_BITS_MIN: i64 = 32;
const HAS_KEY: u8 = 1;
const RUNNING: u8 = 2;
const SUSPENDED: u8 = 4;
const GIVEN_UP: u8 = 8;
/// Above the flags stands how the last attempt failed: 0 for not yet, or the class's number from 1 on.
const FAILED_SHIFT: u8 = 4;
/// Bit 7: another filter is in force than when the window was made.
const FOREIGN: u8 = 128;
const FAILED_MAX: u8 = 7;
const _: () = assert!(class_number::CLASSES.len() <= FAILED_MAX as usize, "the classes fit into three bits");
/// By number; a number is never used for another reason.
const REASONS: [ExhaustedReason; 4] =
    [ExhaustedReason::Attempts, ExhaustedReason::Age, ExhaustedReason::Rejected, ExhaustedReason::Skipped];
/// Beside the number of a reason: its dead letters are begun.
const LETTERS: u8 = 4;
/// And the records are not those any more.
const NOT_WHOLE: u8 = 8;
/// What is written of letters that are begun takes so much at most: the producer id and the number of records.
pub(in crate::trigger) const LETTERS_BYTES: usize =
    varint_bytes(i64::MAX.unsigned_abs()) + varint_bytes(WINDOW_COUNT_MAX as u64);

/// Progress does not fit its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("progress takes {size_bytes} bytes, at most {ENCODED_BYTES_MAX} are allowed")]
pub struct TooLarge {
    /// How many it would take.
    pub size_bytes: usize,
}

/// Why bytes are not progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They are longer than any that we write.
    #[error("{size_bytes} bytes are more than {ENCODED_BYTES_MAX}")]
    TooLarge {
        /// How long.
        size_bytes: usize,
    },
    /// Their version is not known.
    #[error("version {found} is not known")]
    Version {
        /// What stands there.
        found: u8,
    },
    /// They end too early.
    #[error("the bytes end at {at}")]
    Truncated {
        /// Where more was expected.
        at: usize,
    },
    /// A number is too large, or contradicts another.
    #[error("the number before byte {at} cannot be right")]
    Number {
        /// Where it ends.
        at: usize,
    },
    /// Bytes follow the end.
    #[error("{count} bytes too many")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
}

impl Progress {
    /// The bytes of this progress.
    ///
    /// # Errors
    /// When they would be more than [`ENCODED_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, TooLarge> {
        let committed = self.committed();
        let mut bytes = vec![VERSION];
        put(&mut bytes, committed.get().unsigned_abs());
        put(&mut bytes, self.reading_point.since(committed));
        put_holes(&mut bytes, committed, &self.holes);
        put_windows(&mut bytes, committed, self);
        put(&mut bytes, count(self.blocked_keys.len()));
        for key in &self.blocked_keys {
            bytes.extend_from_slice(&key.hash.to_le_bytes());
            put(&mut bytes, key.first.since(committed));
        }
        if bytes.len() > ENCODED_BYTES_MAX { Err(TooLarge { size_bytes: bytes.len() }) } else { Ok(bytes) }
    }

    /// Reads what [`Progress::encode`] wrote. Whatever decodes encodes to the same bytes again: others are refused.
    ///
    /// # Errors
    /// Where the bytes are wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > ENCODED_BYTES_MAX {
            return Err(DecodeError::TooLarge { size_bytes: bytes.len() });
        }
        let mut reader = Reader { bytes, at: 0 };
        let found = reader.byte()?;
        if found != VERSION {
            return Err(DecodeError::Version { found });
        }
        let committed = reader.offset_after(Offset::ZERO)?;
        let reading_point = reader.offset_after(committed)?;
        let holes = reader.holes(committed)?;
        let (windows, filter) = reader.windows(committed)?;
        let blocked_keys = reader.blocked_keys(committed)?;
        let progress = Self { reading_point, holes, windows, filter, blocked_keys };
        if progress.committed() != committed || !progress.is_consistent() {
            return Err(reader.wrong());
        }
        match bytes.len() - reader.at {
            0 if progress.encode().is_ok_and(|encoded| encoded == bytes) => Ok(progress),
            0 => Err(reader.wrong()),
            count => Err(DecodeError::TrailingBytes { count }),
        }
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// How many bytes a number takes.
pub(in crate::trigger) const fn varint_bytes(number: u64) -> usize {
    let bits = u64::BITS - (number | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push((number & 0x7f) as u8);
}

fn put_holes(bytes: &mut Vec<u8>, committed: Offset, holes: &[Span]) {
    let mapped = mapped(committed, holes);
    let mut end = put_runs(bytes, committed, &holes[..mapped.start]);
    let map = &holes[mapped.clone()];
    match (map.first(), map.last()) {
        (Some(first), Some(last)) => {
            put(bytes, last.next.since(first.first).div_ceil(8));
            put(bytes, first.first.since(end));
            put_bits(bytes, first.first, map);
            end = last.next;
        }
        _ => put(bytes, 0),
    }
    put_runs(bytes, end, &holes[mapped.end..]);
}

/// Answers where the last of them ends.
fn put_runs(bytes: &mut Vec<u8>, mut end: Offset, holes: &[Span]) -> Offset {
    put(bytes, count(holes.len()));
    for hole in holes {
        put(bytes, hole.first.since(end));
        put(bytes, hole.next.since(hole.first));
        end = hole.next;
    }
    end
}

fn put_bits(bytes: &mut Vec<u8>, from: Offset, holes: &[Span]) {
    let start = bytes.len();
    for hole in holes {
        for at in hole.first.since(from)..hole.next.since(from) {
            let index = start + (at / 8) as usize;
            if bytes.len() <= index {
                bytes.resize(index + 1, 0);
            }
            bytes[index] |= 1 << (at % 8);
        }
    }
}

/// Which holes are written as a map: the neighbours for which that saves the most bits, if it saves any.
fn mapped(committed: Offset, holes: &[Span]) -> Range<usize> {
    let bits = |distance: u64| i64::try_from(distance).unwrap_or(i64::MAX);
    let saved = |distance: u64| 8 * varint_bytes(distance) as i64;
    let (mut best, mut best_saved) = (holes.len()..holes.len(), MAP_BITS_MIN);
    let (mut start, mut start_saved) = (0, 0i64);
    let mut end = committed;
    for (index, hole) in holes.iter().enumerate() {
        let (gap, length) = (hole.first.since(end), hole.next.since(hole.first));
        // The gap before a map is written in either way.
        let alone = saved(length).saturating_sub(bits(length));
        let further = start_saved.saturating_add(alone).saturating_add(saved(gap)).saturating_sub(bits(gap));
        if index > start && further > alone {
            start_saved = further;
        } else {
            (start, start_saved) = (index, alone);
        }
        if start_saved > best_saved {
            (best, best_saved) = (start..index + 1, start_saved);
        }
        end = hole.next;
    }
    best
}

fn put_windows(bytes: &mut Vec<u8>, committed: Offset, Progress { windows, filter, .. }: &Progress) {
    put(bytes, count(windows.len()));
    let Some(base_ms) = windows.iter().map(|window| window.attempts.first_attempt_ms).min() else { return };
    bytes.extend_from_slice(&filter.to_le_bytes());
    put(bytes, base_ms);
    let mut before = committed;
    for window in windows {
        put(bytes, window.span.first.since(before));
        put(bytes, window.span.offsets());
        put(bytes, u64::from(window.records));
        put_window(bytes, window, base_ms);
        before = window.span.first;
    }
}

fn put_window(bytes: &mut Vec<u8>, window: &TriedWindow, base_ms: u64) {
    let TriedAttempts { first_attempt_ms, last_attempt_ms, .. } = window.attempts;
    let flag = |set: bool, flag| if set { flag } else { 0 };
    let tried = &window.attempts;
    bytes.push(
        flag(window.key.is_some(), HAS_KEY)
            | flag(tried.running, RUNNING)
            | flag(tried.excluded_since_ms.is_some(), SUSPENDED)
            | flag(window.given_up.is_some(), GIVEN_UP)
            | flag(window.is_foreign, FOREIGN)
            | tried.failed.map_or(0, |class| class_number::of(class) + 1) << FAILED_SHIFT,
    );
    bytes.extend(window.key.iter().flat_map(|key| key.to_le_bytes()));
    bytes.extend_from_slice(&window.fingerprint.to_le_bytes());
    put(bytes, u64::from(tried.attempts));
    put(bytes, u64::from(tried.interrupted));
    put(bytes, first_attempt_ms - base_ms);
    put(bytes, last_attempt_ms - first_attempt_ms);
    put(bytes, tried.next_attempt_ms.map_or(0, |next_ms| next_ms - last_attempt_ms + 1));
    put(bytes, tried.excluded_ms);
    if let Some(since_ms) = tried.excluded_since_ms {
        put(bytes, since_ms - first_attempt_ms);
    }
    if let Some(GivenUp { reason, letters }) = window.given_up {
        put_given_up(bytes, reason, letters);
    }
}

fn put_given_up(bytes: &mut Vec<u8>, reason: ExhaustedReason, letters: Option<Letters>) {
    let number = REASONS.iter().position(|known| *known == reason).and_then(|number| u8::try_from(number).ok());
    let begun = letters.map_or(0, |letters| LETTERS | if letters.is_whole { 0 } else { NOT_WHOLE });
    bytes.push(number.unwrap_or(0) | begun);
    if let Some(Letters { producer_id, records, .. }) = letters {
        put(bytes, producer_id.unsigned_abs());
        put(bytes, u64::from(records));
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let byte = *self.bytes.get(self.at).ok_or(DecodeError::Truncated { at: self.at })?;
        self.at += 1;
        Ok(byte)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.byte()?;
        }
        Ok(bytes)
    }

    fn hash(&mut self) -> Result<u64, DecodeError> {
        self.bytes().map(u64::from_le_bytes)
    }

    const fn wrong(&self) -> DecodeError {
        DecodeError::Number { at: self.at }
    }

    fn number(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            let placed = bits << shift;
            if placed >> shift != bits {
                return Err(self.wrong());
            }
            number |= placed;
            if byte & 0x80 == 0 {
                let shortest = byte != 0 || shift == 0;
                return if shortest { Ok(number) } else { Err(self.wrong()) };
            }
        }
        Err(self.wrong())
    }

    fn small(&mut self) -> Result<u32, DecodeError> {
        let number = self.number()?;
        u32::try_from(number).map_err(|_| self.wrong())
    }

    fn offset_after(&mut self, from: Offset) -> Result<Offset, DecodeError> {
        let distance = self.number()?;
        from.checked_add(distance).ok_or_else(|| self.wrong())
    }

    fn time_after(&mut self, from_ms: u64) -> Result<u64, DecodeError> {
        let distance = self.number()?;
        from_ms.checked_add(distance).filter(|time_ms| *time_ms < u64::MAX).ok_or_else(|| self.wrong())
    }

    fn span_after(&mut self, from: Offset) -> Result<Span, DecodeError> {
        let first = self.offset_after(from)?;
        let next = self.offset_after(first)?;
        Span::new(first, next).ok_or_else(|| self.wrong())
    }

    fn holes(&mut self, committed: Offset) -> Result<Vec<Span>, DecodeError> {
        let mut holes: Vec<Span> = Vec::new();
        self.runs(committed, &mut holes)?;
        self.map(committed, &mut holes)?;
        self.runs(committed, &mut holes)?;
        Ok(holes)
    }

    fn runs(&mut self, committed: Offset, holes: &mut Vec<Span>) -> Result<(), DecodeError> {
        // Every hole takes bytes of its own, so a count that lies ends at the end of the bytes.
        for _ in 0..self.number()? {
            let end = holes.last().map_or(committed, |hole| hole.next);
            holes.push(self.span_after(end)?);
        }
        Ok(())
    }

    fn map(&mut self, committed: Offset, holes: &mut Vec<Span>) -> Result<(), DecodeError> {
        let bytes = self.number()?;
        if bytes == 0 {
            return Ok(());
        }
        let end = holes.last().map_or(committed, |hole| hole.next);
        let mut at = self.offset_after(end)?;
        for _ in 0..bytes {
            let byte = self.byte()?;
            for bit in 0..8 {
                let next = at.checked_add(1).ok_or_else(|| self.wrong())?;
                if byte & 1 << bit != 0 {
                    match holes.last_mut().filter(|hole| hole.next == at) {
                        Some(hole) => hole.next = next,
                        None => holes.push(Span { first: at, next }),
                    }
                }
                at = next;
            }
        }
        Ok(())
    }

    /// With the filter that they were written under.
    fn windows(&mut self, committed: Offset) -> Result<(Vec<TriedWindow>, u32), DecodeError> {
        let count = self.number()?;
        if count == 0 {
            return Ok((Vec::new(), 0));
        }
        let filter = u32::from_le_bytes(self.bytes()?);
        let base_ms = self.number()?;
        let mut windows: Vec<TriedWindow> = Vec::new();
        for _ in 0..count {
            let before = windows.last().map_or(committed, |window| window.span.first);
            let span = self.span_after(before)?;
            let records = self.small()?;
            windows.push(self.window(span, records, base_ms)?);
        }
        // Another base would be other bytes for the same windows.
        let earliest_ms = windows.iter().map(|window| window.attempts.first_attempt_ms).min();
        if earliest_ms == Some(base_ms) { Ok((windows, filter)) } else { Err(self.wrong()) }
    }

    fn window(&mut self, span: Span, records: u32, base_ms: u64) -> Result<TriedWindow, DecodeError> {
        let flags = self.byte()?;
        let failed = match flags >> FAILED_SHIFT & FAILED_MAX {
            0 => None,
            number => class_number::class(number - 1),
        };
        let key = if flags & HAS_KEY != 0 { Some(self.hash()?) } else { None };
        let fingerprint = u16::from_le_bytes(self.bytes()?);
        let is_foreign = flags & FOREIGN != 0;
        let attempts = self.small()?;
        let interrupted = self.small()?;
        let first_attempt_ms = self.time_after(base_ms)?;
        let last_attempt_ms = self.time_after(first_attempt_ms)?;
        let next_attempt_ms = match self.number()? {
            0 => None,
            later => {
                let next_ms = last_attempt_ms.checked_add(later - 1).filter(|time_ms| *time_ms < u64::MAX);
                Some(next_ms.ok_or_else(|| self.wrong())?)
            }
        };
        let excluded_ms = self.number()?;
        let excluded_since_ms = if flags & SUSPENDED != 0 { Some(self.time_after(first_attempt_ms)?) } else { None };
        let running = flags & RUNNING != 0;
        let given_up = if flags & GIVEN_UP != 0 { Some(self.given_up()?) } else { None };
        let attempts = TriedAttempts {
            attempts,
            interrupted,
            running,
            first_attempt_ms,
            last_attempt_ms,
            next_attempt_ms,
            excluded_ms,
            excluded_since_ms,
            failed,
        };
        Ok(TriedWindow { span, records, fingerprint, is_foreign, key, attempts, given_up })
    }

    fn given_up(&mut self) -> Result<GivenUp, DecodeError> {
        let byte = self.byte()?;
        let number = usize::from(byte & !(LETTERS | NOT_WHOLE));
        let reason = *REASONS.get(number).ok_or_else(|| self.wrong())?;
        let letters = if byte & LETTERS != 0 {
            let producer_id = i64::try_from(self.number()?).map_err(|_| self.wrong())?;
            Some(Letters { producer_id, records: self.small()?, is_whole: byte & NOT_WHOLE == 0 })
        } else {
            None
        };
        Ok(GivenUp { reason, letters })
    }

    fn blocked_keys(&mut self, committed: Offset) -> Result<Vec<BlockedKey>, DecodeError> {
        let count = self.number()?;
        let mut keys = Vec::new();
        for _ in 0..count {
            let hash = self.hash()?;
            keys.push(BlockedKey { hash, first: self.offset_after(committed)? });
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::ErrorClass;

    fn offset(value: i64) -> Offset {
        Offset::new(value).unwrap()
    }

    fn span(first: i64, next: i64) -> Span {
        Span::new(offset(first), offset(next)).unwrap()
    }

    #[test]
    fn the_bytes_are_these() {
        assert_eq!(Progress::start(offset(300)).encode().unwrap(), [VERSION, 0xac, 2, 0, 0, 0, 0, 0, 0]);
        let tried = TriedAttempts {
            attempts: 2,
            interrupted: 1,
            running: true,
            first_attempt_ms: 1000,
            last_attempt_ms: 1200,
            next_attempt_ms: Some(1327),
            excluded_ms: 5,
            excluded_since_ms: None,
            failed: Some(ErrorClass::Rejected),
        };
        let suspended = TriedAttempts {
            attempts: 0,
            running: false,
            first_attempt_ms: 1003,
            last_attempt_ms: 1003,
            next_attempt_ms: None,
            excluded_since_ms: Some(1010),
            failed: None,
            ..tried
        };
        let windows = vec![
            TriedWindow {
                span: span(300, 302),
                records: 2,
                fingerprint: 0x5678,
                is_foreign: false,
                key: None,
                attempts: tried,
                given_up: Some(GivenUp {
                    reason: ExhaustedReason::Rejected,
                    letters: Some(Letters { producer_id: 200, records: 3, is_whole: false }),
                }),
            },
            TriedWindow {
                span: span(305, 306),
                records: 1,
                fingerprint: 0x1234,
                is_foreign: true,
                key: Some(9),
                attempts: suspended,
                given_up: None,
            },
        ];
        let keys = vec![BlockedKey { hash: 0x0102_0304_0506_0708, first: offset(301) }];
        let progress = Progress::new(offset(306), vec![span(300, 302), span(305, 306)], windows, keys);
        let progress = progress.under(0x0102_0304);
        let expected = [
            7, 0xac, 2, 6, // version, committed 300, reading point 306
            2, 0, 2, 3, 1, 0, 0, // two holes, no map: 300..302, 305..306
            2, 4, 3, 2, 1, 0xe8, 7, // two windows, their filter, times since 1000
            0, 2, 2, 0x2a, 0x78, 0x56, 2, 1, 0, 0xc8, 1, 0x80, 1, 5, 14, 0xc8, 1,
            3, // 300..302: running, rejected, two attempts, last at 1200, next at 1327; letters of three
            5, 1, 1, 0x85, 9, 0, 0, 0, 0, 0, 0, 0, 0x34, 0x12, 0, 1, 3, 0, 0, 5,
            7, // 305..306 of key 9: suspended since 1010
            1, 8, 7, 6, 5, 4, 3, 2, 1, 1, // one blocked key from 301
        ];
        assert_eq!(progress.encode().unwrap(), expected);
        assert_eq!(Progress::decode(&expected), Ok(progress));
    }

    #[test]
    fn wrong_bytes_are_told_apart() {
        let decode = Progress::decode;
        assert_eq!(decode(&[]), Err(DecodeError::Truncated { at: 0 }));
        assert_eq!(decode(&[1]), Err(DecodeError::Version { found: 1 }));
        assert_eq!(decode(&[VERSION, 5, 0, 0, 0, 0, 0]), Err(DecodeError::Truncated { at: 7 }));
        assert_eq!(decode(&[VERSION, 5, 0, 0, 0, 0, 0, 0, 9]), Err(DecodeError::TrailingBytes { count: 1 }));
        assert_eq!(decode(&vec![1; 3001]), Err(DecodeError::TooLarge { size_bytes: 3001 }));
        // Longer than needed; beyond 64 bits; a hole beyond the reading point; an empty hole; a hole after committed; a
        // window beyond the reading point; one of no records, or of too many; a reason not known; letters that are not
        // whole and not begun, of no records, of a negative producer; another base than the earliest attempt; holes
        // that touch; a map that saves nothing; one that ends with zeros; one beyond the last offset.
        for bytes in [
            &[VERSION, 0x85, 0, 0, 0, 0, 0, 0, 0][..],
            &[VERSION, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0],
            &[VERSION, 5, 1, 1, 0, 2, 0, 0, 0, 0],
            &[VERSION, 5, 1, 1, 0, 0, 0, 0, 0, 0],
            &[VERSION, 5, 3, 1, 1, 1, 0, 0, 0, 0],
            &[VERSION, 5, 1, 1, 0, 1, 0, 0, 1, 3, 0, 0, 0, 7, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[VERSION, 5, 1, 1, 0, 1, 0, 0, 1, 3, 0, 0, 0, 7, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[VERSION, 5, 1, 1, 0, 1, 0, 0, 1, 3, 0, 0, 0, 7, 0, 1, 0x91, 0x4e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[VERSION, 5, 1, 1, 0, 1, 0, 0, 1, 3, 0, 0, 0, 7, 0, 1, 1, 8, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0],
            &[VERSION, 5, 1, 1, 0, 1, 0, 0, 1, 3, 0, 0, 0, 7, 0, 1, 1, 8, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0],
            &[VERSION, 5, 1, 1, 0, 1, 0, 0, 1, 3, 0, 0, 0, 7, 0, 1, 1, 8, 0, 0, 0, 0, 0, 0, 0, 0, 4, 9, 0, 0],
            &[
                VERSION, 5, 1, 1, 0, 1, 0, 0, 1, 3, 0, 0, 0, 7, 0, 1, 1, 8, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0xff, 0xff,
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1, 0,
            ],
            &[VERSION, 5, 1, 1, 0, 1, 0, 0, 1, 3, 0, 0, 0, 7, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
            &[VERSION, 5, 4, 2, 0, 1, 0, 1, 0, 0, 0, 0],
            &[VERSION, 5, 8, 0, 1, 0, 0x01, 0, 0, 0],
            &[VERSION, 5, 100, 0, 9, 0, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0, 0, 0, 0],
            &[VERSION, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0, 1, 0, 1, 0, 0, 0],
        ] {
            assert!(matches!(decode(bytes), Err(DecodeError::Number { .. })), "{bytes:?}: {:?}", decode(bytes));
        }
        let huge_count = [VERSION, 5, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1];
        assert_eq!(decode(&huge_count), Err(DecodeError::Truncated { at: 13 }));
    }

    #[test]
    fn many_short_holes_stand_as_bits() {
        // 0..100, then every other one of 64, then 300..310.
        let mut holes = vec![span(0, 100)];
        holes.extend((0..32).map(|index| span(110 + index * 2, 111 + index * 2)));
        holes.push(span(300, 310));
        let progress = Progress::new(offset(310), holes, Vec::new(), Vec::new());
        let mut expected = vec![VERSION, 0, 0xb6, 2, 1, 0, 100, 8, 10];
        expected.extend([0x55; 8]);
        expected.extend([1, 0x7f, 10, 0, 0]);
        assert_eq!(progress.encode().unwrap(), expected);
        assert_eq!(Progress::decode(&expected), Ok(progress));
    }

    #[test]
    fn whatever_is_finished_of_twenty_thousand_offsets_fits() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for odds in [2, 3, 10, 100] {
            let unfinished = (0..20_000).filter(|_| random.u32(..odds) == 0);
            let holes: Vec<Span> = unfinished.map(|at| span(at, at + 1)).collect();
            let progress = Progress::new(offset(20_000), holes, Vec::new(), Vec::new());
            let bytes = progress.encode().unwrap();
            assert!(bytes.len() <= 20_000 / 8 + 16, "{} bytes", bytes.len());
            assert_eq!(Progress::decode(&bytes), Ok(progress));
        }
    }

    #[test]
    fn too_many_holes_do_not_fit() {
        let holes = (0..2000).map(|index| span(index * 200, index * 200 + 1)).collect();
        let progress = Progress::new(offset(400_000), holes, Vec::new(), Vec::new());
        assert!(matches!(progress.encode(), Err(TooLarge { size_bytes: 3001.. })));
    }
}
