//! What compaction leaves of a batch: fewer records, the same offsets.
//!
//! A batch keeps its base offset, its last offset, its producer with the sequences, its epoch and its codec, whatever
//! is taken out of it. So the batches of a log stay dense, and only inside of them offsets are missing; where nothing
//! of a batch is needed any more, an empty one stands for it, and for its neighbours if they are empty too.

use std::ops::Range;

use super::header::{ATTRIBUTES_AT, BATCH_LENGTH_MIN, CRC_AT, HEADER_BYTES, NO_TIMESTAMP_MS};
use super::record::{RecordView, SliceInput, parse_record};
use super::{
    Attributes, BatchError, BatchHeader, BatchLimits, BatchView, CheckedBatch, CodecError, Compression, RecordSet,
    TimestampType, codec, crc32c, varint,
};
use crate::offset::{LeaderEpoch, Offset};

/// The most offsets that one empty batch stands for.
const SPAN_MAX: u64 = 1 << 31;

/// The records of a batch that are to stay.
#[derive(Debug)]
pub struct Retention<'a> {
    header: BatchHeader,
    records: RecordSet<'a>,
    /// The bytes of those that stay, once one goes; until then it is all of them.
    left: Option<Vec<u8>>,
    /// How many stay.
    pub kept: u32,
    /// How many of those have no value.
    pub kept_tombstones: u32,
    /// How many go.
    pub removed: u32,
    max_timestamp_ms: i64,
    decompressed_bytes_max: usize,
}

impl BatchView<'_> {
    /// Sorts the records by what `keep` says of them.
    ///
    /// # Errors
    /// As [`BatchView::records`] and what it iterates over.
    pub fn retain(
        &self,
        limits: &BatchLimits,
        mut keep: impl FnMut(&RecordView<'_>) -> bool,
    ) -> Result<Retention<'_>, BatchError> {
        let records = self.records(limits)?;
        let (mut left, mut kept, mut kept_tombstones, mut removed) = (None::<Vec<u8>>, 0, 0, 0);
        let mut max_timestamp_ms = NO_TIMESTAMP_MS;
        let mut iter = records.iter();
        loop {
            let start = iter.position();
            let Some(record) = iter.next().transpose()? else { break };
            if keep(&record) {
                kept += 1;
                // One without a key deletes nothing, and never goes.
                kept_tombstones += u32::from(record.key().is_some() && record.value().is_none());
                max_timestamp_ms = max_timestamp_ms.max(record.timestamp_ms());
                if let Some(left) = &mut left {
                    left.extend_from_slice(&records.bytes()[start..iter.position()]);
                }
            } else {
                removed += 1;
                left.get_or_insert_with(|| records.bytes()[..start].to_vec());
            }
        }
        let (header, decompressed_bytes_max) = (*self.header(), limits.decompressed_bytes_max);
        Ok(Retention {
            header,
            records,
            left,
            kept,
            kept_tombstones,
            removed,
            max_timestamp_ms,
            decompressed_bytes_max,
        })
    }
}

impl CheckedBatch {
    /// The place in the batch of the first record that has no key; `None` when all have one.
    ///
    /// # Errors
    /// As [`BatchView::records`] and what it iterates over; nothing of a batch that was checked with its records.
    pub fn first_without_key(&self, limits: &BatchLimits) -> Result<Option<u32>, BatchError> {
        let view = self.view();
        let records = view.records(limits)?;
        for (index, record) in (0..).zip(&records) {
            if record?.key().is_none() {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

impl Retention<'_> {
    /// The batch with the records that stay. With a delete horizon, the time from which on its tombstones may go, that
    /// becomes the base timestamp, as in Kafka; the records keep their times.
    ///
    /// `None` when the records' times are too far from that horizon to be counted from it, or take so many bytes that
    /// the batch would not unpack within the limits under which it was read: it must stay without one.
    ///
    /// # Errors
    /// The compressor failed.
    pub fn rebuild(&self, delete_horizon_ms: Option<i64>) -> Result<Option<Vec<u8>>, CodecError> {
        let mut header = BatchHeader { record_count: self.kept.cast_signed(), ..self.header };
        if header.attributes.timestamp_type() == TimestampType::CreateTime {
            header.max_timestamp_ms = self.max_timestamp_ms;
        }
        let left = self.left.as_deref().unwrap_or_else(|| self.records.bytes());
        let Some(horizon_ms) = delete_horizon_ms else { return encode(header, left).map(Some) };
        let Some(moved) = count_from(left, header.base_timestamp_ms, horizon_ms) else { return Ok(None) };
        if header.attributes.compression() != Compression::None && moved.len() > self.decompressed_bytes_max {
            return Ok(None);
        }
        header.base_timestamp_ms = horizon_ms;
        header.attributes = header.attributes.with_delete_horizon();
        encode(header, &moved).map(Some)
    }
}

/// The batch without any record: it says which sequences its producer had appended.
#[must_use]
pub fn emptied(header: &BatchHeader) -> Vec<u8> {
    let attributes = header.attributes.without_records();
    let base_timestamp_ms = header.max_timestamp_ms;
    encode(BatchHeader { attributes, base_timestamp_ms, record_count: 0, ..*header }, &[])
        .expect("nothing is compressed")
}

/// Empty batches of no producer in place of `offsets`, one behind the other; nearly always one.
pub fn fillers(offsets: Range<Offset>, leader_epoch: Option<LeaderEpoch>) -> impl Iterator<Item = Vec<u8>> {
    let mut from = offsets.start;
    std::iter::from_fn(move || {
        let span = offsets.end.since(from).min(SPAN_MAX);
        let last_offset_delta = i32::try_from(span.checked_sub(1)?).expect("spans are that long at the most");
        let header = BatchHeader {
            base_offset: from,
            batch_length: BATCH_LENGTH_MIN,
            leader_epoch,
            crc: 0,
            attributes: Attributes::new(Compression::None),
            last_offset_delta,
            base_timestamp_ms: NO_TIMESTAMP_MS,
            max_timestamp_ms: NO_TIMESTAMP_MS,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count: 0,
        };
        from = header.next_offset();
        Some(encode(header, &[]).expect("nothing is compressed"))
    })
}

/// Puts length and checksum into `header` and the records behind it.
fn encode(mut header: BatchHeader, records: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![0; HEADER_BYTES];
    codec::compress(header.attributes.compression(), records, &mut bytes)?;
    let payload_bytes = i32::try_from(bytes.len() - HEADER_BYTES)
        .expect("records that were unpacked within the limits stay below 2 GiB");
    header.batch_length = BATCH_LENGTH_MIN + payload_bytes;
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    header.crc = crc32c(&bytes[ATTRIBUTES_AT..]);
    bytes[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&header.crc.to_be_bytes());
    Ok(bytes)
}

/// The records with their timestamps counted from another base; `None` where 64 bits do not reach.
fn count_from(records: &[u8], old_base_ms: i64, new_base_ms: i64) -> Option<Vec<u8>> {
    let shift_ms = old_base_ms.checked_sub(new_base_ms)?;
    let mut out = Vec::with_capacity(records.len() + records.len() / 8);
    let mut body = Vec::new();
    let mut input = SliceInput::new(records);
    while input.left_bytes() > 0 {
        let parsed = parse_record(&mut input).expect("the records were read before");
        body.clear();
        body.push(parsed.attributes);
        varint::put_i64(&mut body, parsed.timestamp_delta_ms.checked_add(shift_ms)?);
        body.extend_from_slice(&records[parsed.offset_delta_at..parsed.end]);
        varint::put_i64(&mut out, i64::try_from(body.len()).expect("a record in memory"));
        out.extend_from_slice(&body);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{BatchBuilder, BatchOptions, BatchProducer, NewRecord, Validation};
    use super::*;

    const LIMITS: BatchLimits = BatchLimits {
        batch_bytes_max: BatchLimits::BATCH_BYTES_MAX,
        decompressed_bytes_max: BatchLimits::DECOMPRESSED_BYTES_MAX,
        zstd_window_log_max: BatchLimits::ZSTD_WINDOW_LOG_MAX,
    };

    fn at(offset: i64) -> Offset {
        Offset::new(offset).unwrap()
    }

    /// Records of key `k<n>` at offsets from 100 on; every third has no value, every twelfth no key either.
    fn stored(count: u8, compression: Compression) -> Vec<u8> {
        let producer = Some(BatchProducer { id: 7, epoch: 2, base_sequence: 40 });
        let mut builder = BatchBuilder::new(BatchOptions { compression, producer, ..BatchOptions::default() });
        for n in 0..count {
            let (key, value) = (format!("k{n}"), format!("value {n}"));
            builder
                .push(&NewRecord {
                    timestamp_ms: 1_000 + i64::from(n % 5) * 10,
                    key: (n % 12 != 11).then_some(key.as_bytes()),
                    value: (n % 3 != 2).then_some(value.as_bytes()),
                    headers: &[(b"h", Some(b"1")), (b"h", None)],
                })
                .unwrap();
        }
        builder.finish().unwrap().appended_bytes(at(100), LeaderEpoch::new(3).unwrap()).to_vec()
    }

    type Seen = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, usize);

    fn records(bytes: &[u8]) -> Vec<Seen> {
        let (view, rest) = BatchView::parse(bytes).unwrap();
        assert!(rest.is_empty());
        view.verify_crc().unwrap();
        let records = view.records(&LIMITS).unwrap();
        let seen = |record: RecordView<'_>| {
            let (key, value) = (record.key().map(<[u8]>::to_vec), record.value().map(<[u8]>::to_vec));
            (record.offset().get(), record.timestamp_ms(), key, value, record.headers().count())
        };
        records.iter().map(|record| seen(record.unwrap())).collect()
    }

    proptest! {
        #[test]
        fn what_stays_is_as_it_was_whatever_goes(
            count in 1u8..40,
            mask in any::<u64>(),
            codec in 0usize..5,
            horizon in prop::option::of(0i64..5_000),
        ) {
            let bytes = stored(count, Compression::ALL[codec]);
            let (view, _) = BatchView::parse(&bytes).unwrap();
            let stays = |offset: i64| mask >> (offset - 100) & 1 == 1;
            let retention = view.retain(&LIMITS, |record| stays(record.offset().get())).unwrap();
            let expected: Vec<_> = records(&bytes).into_iter().filter(|record| stays(record.0)).collect();
            prop_assert_eq!(retention.kept as usize, expected.len());
            prop_assert_eq!(retention.removed as usize, usize::from(count) - expected.len());
            let tombstones = expected.iter().filter(|record| record.2.is_some() && record.3.is_none()).count();
            prop_assert_eq!(retention.kept_tombstones as usize, tombstones);
            let rebuilt = retention.rebuild(horizon).unwrap().unwrap();
            prop_assert_eq!(&records(&rebuilt), &expected);
            let (before, after) = (*view.header(), *BatchView::parse(&rebuilt).unwrap().0.header());
            prop_assert_eq!(after.max_timestamp_ms, expected.iter().map(|record| record.1).max().unwrap_or(-1));
            prop_assert_eq!(after.attributes.has_delete_horizon(), horizon.is_some());
            prop_assert_eq!(after.base_timestamp_ms, horizon.unwrap_or(before.base_timestamp_ms));
            let unchanged = BatchHeader {
                batch_length: after.batch_length,
                crc: after.crc,
                attributes: after.attributes,
                base_timestamp_ms: after.base_timestamp_ms,
                max_timestamp_ms: after.max_timestamp_ms,
                record_count: after.record_count,
                ..before
            };
            prop_assert_eq!(after, unchanged);
        }
    }

    #[test]
    fn an_emptied_batch_keeps_its_offsets_and_its_producer() {
        for compression in Compression::ALL {
            let bytes = stored(5, compression);
            let header = *BatchView::parse(&bytes).unwrap().0.header();
            let empty = emptied(&header);
            assert_eq!((records(&empty), empty.len()), (vec![], HEADER_BYTES));
            let found = *BatchView::parse(&empty).unwrap().0.header();
            assert_eq!((found.base_offset, found.next_offset()), (header.base_offset, header.next_offset()));
            assert_eq!((found.producer(), found.leader_epoch), (header.producer(), header.leader_epoch));
            assert_eq!(found.attributes.compression(), Compression::None);
        }
    }

    #[test]
    fn the_bytes_of_a_filler_never_change() {
        let filler = fillers(at(5)..at(9), LeaderEpoch::new(2)).next().unwrap();
        #[rustfmt::skip]
        let expected: &[u8] = &[
            0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 49, 0, 0, 0, 2, 2, 90, 123, 18, 159, 0, 0, 0, 0, 0, 3,
            255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
            255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0,
        ];
        assert_eq!(filler, expected);
        assert_eq!(records(&filler), []);
    }

    #[test]
    fn fillers_cover_any_range_without_a_gap() {
        assert_eq!(fillers(at(5)..at(5), None).count(), 0);
        let long = (1i64 << 32) + 17;
        let mut next = at(3);
        for filler in fillers(at(3)..at(3 + long), LeaderEpoch::new(1)) {
            let header = *BatchView::parse(&filler).unwrap().0.header();
            assert_eq!(header.base_offset, next);
            next = header.next_offset();
        }
        assert_eq!(next, at(3 + long));
    }

    #[test]
    fn a_horizon_out_of_reach_is_refused_and_nothing_else_is() {
        let bytes = stored(3, Compression::None);
        let (view, _) = BatchView::parse(&bytes).unwrap();
        let retention = view.retain(&LIMITS, |_| true).unwrap();
        assert!(retention.rebuild(Some(i64::MIN)).unwrap().is_none());
        assert_eq!(retention.rebuild(None).unwrap().unwrap(), bytes);
    }

    #[test]
    fn a_horizon_that_would_make_the_batch_too_long_to_unpack_is_refused() {
        for compression in Compression::ALL {
            let bytes = stored(30, compression);
            let (view, _) = BatchView::parse(&bytes).unwrap();
            // As long as a batch may be unpacked; times of one byte take ten, counted from a horizon far away.
            let decompressed_bytes_max = view.records(&LIMITS).unwrap().bytes().len();
            let limits = BatchLimits { decompressed_bytes_max, ..LIMITS };
            let retention = view.retain(&limits, |_| true).unwrap();
            let rebuilt = retention.rebuild(Some(1 << 40)).unwrap();
            assert_eq!(rebuilt.is_some(), compression == Compression::None, "{compression}");
            let one = view.retain(&limits, |record| record.offset() == at(101)).unwrap();
            let rebuilt = one.rebuild(Some(1 << 40)).unwrap().expect("there is room for it");
            assert_eq!(BatchView::parse(&rebuilt).unwrap().0.records(&limits).unwrap().iter().count(), 1);
        }
    }

    #[test]
    fn the_broker_s_time_stays_on_all_records_of_a_batch_that_has_it() {
        let checked = CheckedBatch::check(stored(4, Compression::Lz4).into(), &LIMITS, Validation::Records).unwrap();
        let bytes = checked.with_append_time(9_000).appended_bytes(at(0), LeaderEpoch::NONE);
        let (view, _) = BatchView::parse(&bytes).unwrap();
        let retention = view.retain(&LIMITS, |record| record.offset().get() == 1).unwrap();
        let rebuilt = retention.rebuild(Some(77)).unwrap().unwrap();
        assert_eq!(records(&rebuilt).iter().map(|record| (record.0, record.1)).collect::<Vec<_>>(), [(1, 9_000)]);
    }

    #[test]
    fn a_record_without_a_key_is_named_by_its_place() {
        let mut builder = BatchBuilder::new(BatchOptions { compression: Compression::Gzip, ..BatchOptions::default() });
        for key in [Some(&b"a"[..]), Some(b""), None, None] {
            builder.push(&NewRecord { key, ..NewRecord::default() }).unwrap();
        }
        assert_eq!(builder.finish().unwrap().first_without_key(&LIMITS), Ok(Some(2)));
        let all = CheckedBatch::check(stored(4, Compression::None).into(), &LIMITS, Validation::Records).unwrap();
        assert_eq!(all.first_without_key(&LIMITS), Ok(None));
    }
}
