//! Laws that hold for every batch, and every rule of the check broken once.

use bytes::Bytes;
use proptest::prelude::*;

use super::header::{
    ATTRIBUTES_AT, BASE_OFFSET_AT, BASE_SEQUENCE_AT, BASE_TIMESTAMP_AT, BATCH_LENGTH_AT, CRC_AT, HEADER_BYTES,
    LAST_OFFSET_DELTA_AT, LEADER_EPOCH_AT, MAGIC_AT, MAX_TIMESTAMP_AT, PRODUCER_EPOCH_AT, PRODUCER_ID_AT,
    RECORD_COUNT_AT,
};
use super::*;
use crate::offset::{LeaderEpoch, Offset};

#[derive(Clone, Debug, PartialEq, Eq)]
struct OwnedRecord {
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..80),
        (any::<u8>(), 0..20_000usize).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

fn owned_record() -> impl Strategy<Value = OwnedRecord> {
    let headers = prop::collection::vec((prop::collection::vec(any::<u8>(), 0..4), prop::option::of(piece())), 0..4);
    (-1..i64::MAX, prop::option::of(piece()), prop::option::of(piece()), headers)
        .prop_map(|(timestamp_ms, key, value, headers)| OwnedRecord { timestamp_ms, key, value, headers })
}

fn compression() -> impl Strategy<Value = Compression> {
    prop::sample::select(&Compression::ALL[..])
}

fn push(builder: &mut BatchBuilder, record: &OwnedRecord) -> Result<(), BuildError> {
    let headers: Vec<(&[u8], Option<&[u8]>)> =
        record.headers.iter().map(|(name, value)| (&name[..], value.as_deref())).collect();
    let record = NewRecord {
        timestamp_ms: record.timestamp_ms,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: &headers,
    };
    let expected_bytes = builder.size_bytes_with(&record);
    let pushed = builder.push(&record);
    if pushed.is_ok() {
        assert_eq!(builder.size_bytes(), expected_bytes);
    }
    pushed
}

fn build(options: BatchOptions, records: &[OwnedRecord]) -> CheckedBatch {
    let mut builder = BatchBuilder::new(options);
    for record in records {
        push(&mut builder, record).unwrap();
    }
    builder.finish().unwrap()
}

fn with_compression(compression: Compression) -> BatchOptions {
    BatchOptions { compression, ..BatchOptions::default() }
}

fn read(view: &BatchView<'_>) -> Result<Vec<(i64, OwnedRecord)>, BatchError> {
    let set = view.records(&BatchLimits::default())?;
    set.iter()
        .map(|record| {
            let record = record?;
            let owned = OwnedRecord {
                timestamp_ms: record.timestamp_ms(),
                key: record.key().map(<[u8]>::to_vec),
                value: record.value().map(<[u8]>::to_vec),
                headers: record.headers().map(|h| (h.name.to_vec(), h.value.map(<[u8]>::to_vec))).collect(),
            };
            Ok((record.offset().get(), owned))
        })
        .collect()
}

fn check(bytes: impl Into<Bytes>) -> Result<CheckedBatch, BatchError> {
    CheckedBatch::check(bytes.into(), &BatchLimits::default(), Validation::Records)
}

fn rehash(bytes: &mut [u8]) {
    let crc = crc32c(&bytes[ATTRIBUTES_AT..]);
    bytes[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&crc.to_be_bytes());
}

/// Two records, of 8 and 12 bytes.
fn small_batch() -> CheckedBatch {
    small_batch_with(BatchOptions::default())
}

fn small_batch_with(options: BatchOptions) -> CheckedBatch {
    let record = |headers: &[(&[u8], Option<&[u8]>)]| OwnedRecord {
        timestamp_ms: 1000,
        key: None,
        value: Some(b"v".to_vec()),
        headers: headers.iter().map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect(),
    };
    build(options, &[record(&[]), record(&[(b"h", Some(b"x"))])])
}

/// The small batch with bytes replaced and the hash made to fit again.
fn patched(at: usize, patch: &[u8]) -> Vec<u8> {
    let mut bytes = small_batch().bytes().to_vec();
    bytes[at..at + patch.len()].copy_from_slice(patch);
    rehash(&mut bytes);
    bytes
}

/// A batch with `count` records in `payload`, whatever it is.
fn batch_of(compression: Compression, count: i32, payload: &[u8]) -> Vec<u8> {
    let header = BatchHeader {
        batch_length: header::BATCH_LENGTH_MIN + i32::try_from(payload.len()).unwrap(),
        attributes: Attributes::new(compression),
        last_offset_delta: count - 1,
        record_count: count,
        ..*small_batch().header()
    };
    let mut bytes = [&header.encode(), payload].concat();
    rehash(&mut bytes);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_built_passes_the_check_and_reads_back_in_every_codec(
        records in prop::collection::vec(owned_record(), 1..6),
        compression in compression(),
    ) {
        let built = build(with_compression(compression), &records);
        let checked = CheckedBatch::check(built.bytes().clone(), &BatchLimits::default(), Validation::Records).unwrap();
        prop_assert_eq!(&checked, &built);
        prop_assert_eq!(checked.bytes().as_ptr(), built.bytes().as_ptr(), "nothing is copied");
        let expected: Vec<_> = (0..).zip(records).collect();
        prop_assert_eq!(read(&checked.view()).unwrap(), expected);
    }

    #[test]
    fn a_batch_that_passes_the_check_can_be_read_whatever_its_bytes(
        records in prop::collection::vec(owned_record(), 1..4),
        compression in compression(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = build(with_compression(compression), &records).bytes().to_vec();
        let inside_crc = bytes.len() - ATTRIBUTES_AT;
        for (index, byte) in edits {
            bytes[ATTRIBUTES_AT + index.index(inside_crc)] = byte;
        }
        rehash(&mut bytes);
        match check(bytes) {
            Ok(checked) => {
                let records = read(&checked.view()).unwrap();
                prop_assert_eq!(records.len(), checked.header().record_count as usize);
                let max_timestamp_ms = records.iter().map(|(_, record)| record.timestamp_ms).max();
                prop_assert_eq!(max_timestamp_ms, Some(checked.header().max_timestamp_ms));
                checked.view().verify_crc().unwrap();
            }
            Err(error) => prop_assert!(!matches!(error, BatchError::Crc { .. }), "{}", error),
        }
    }

    #[test]
    fn any_bytes_are_refused_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(check(bytes).is_err());
    }

    #[test]
    fn any_payload_under_a_valid_header_is_checked_and_read_without_harm(
        payload in prop::collection::vec(any::<u8>(), 0..300),
        compression in compression(),
        count in 1..4i32,
    ) {
        let bytes = batch_of(compression, count, &payload);
        let (view, _) = BatchView::parse(&bytes).unwrap();
        prop_assert_eq!(check(bytes.clone()).is_ok(), read(&view).is_ok_and(|records| {
            records.iter().enumerate().all(|(at, (offset, r))| at as i64 == *offset && r.timestamp_ms >= -1)
        }));
    }
}

#[test]
fn every_flipped_bit_is_refused_unless_the_append_overwrites_it() {
    for compression in Compression::ALL {
        let batch = small_batch_with(with_compression(compression));
        for at in 0..batch.size_bytes() {
            for bit in 0..8 {
                let mut bytes = batch.bytes().to_vec();
                bytes[at] ^= 1 << bit;
                let overwritten =
                    (BASE_OFFSET_AT..BATCH_LENGTH_AT).contains(&at) || (LEADER_EPOCH_AT..MAGIC_AT).contains(&at);
                assert!(overwritten || check(bytes).is_err(), "{compression}: bit {bit} of byte {at}");
            }
        }
    }
}

#[test]
fn a_batch_cut_at_any_length_is_truncated_and_not_damaged() {
    let batch = small_batch();
    for len in 0..batch.size_bytes() {
        let needed_bytes = if len < HEADER_BYTES { HEADER_BYTES } else { batch.size_bytes() };
        let expected = BatchError::Truncated { needed_bytes, found_bytes: len };
        assert_eq!(BatchView::parse(&batch.bytes()[..len]).map(drop), Err(expected.clone()));
        assert_eq!(check(batch.bytes().slice(..len)), Err(expected));
    }
}

#[test]
fn a_second_batch_is_left_by_a_view_and_refused_by_the_check() {
    let batch = small_batch();
    let two = [&batch.bytes()[..], batch.bytes()].concat();
    let (first, rest) = BatchView::parse(&two).unwrap();
    assert_eq!(first.bytes(), batch.bytes());
    assert_eq!(rest, batch.bytes());
    assert_eq!(check(two), Err(BatchError::TrailingBytes { found_bytes: batch.size_bytes() }));
}

#[test]
fn a_record_is_read_by_its_position_and_nothing_else_is_one() {
    for compression in [Compression::None, Compression::Lz4] {
        let batch = small_batch_with(BatchOptions { compression, ..BatchOptions::default() });
        let (view, _) = BatchView::parse(batch.bytes()).unwrap();
        let records = view.records(&BatchLimits::default()).unwrap();
        let walked: Vec<_> = records.iter().map(|record| record.unwrap()).collect();
        assert_eq!(walked.iter().map(RecordView::position).collect::<Vec<_>>(), [0, 8]);
        for record in &walked {
            let again = records.record_at(record.position()).unwrap();
            assert_eq!((again.offset(), again.value()), (record.offset(), record.value()));
            assert_eq!(again.headers().count(), record.headers().count());
        }
        for position in (0..30).filter(|position| ![0, 8].contains(position)) {
            assert!(records.record_at(position).is_err(), "{position}");
        }
    }
}

#[test]
fn batches_one_behind_the_other_are_walked_up_to_what_is_no_whole_batch() {
    let batch = small_batch();
    let two = [&batch.bytes()[..], batch.bytes()].concat();
    let walked = |bytes| Batches::of(bytes).map(|view| view.map(|view| view.bytes().to_vec())).collect::<Vec<_>>();
    let whole = Ok(batch.bytes().to_vec());
    assert_eq!(walked(&[]), []);
    assert_eq!(walked(&two), [whole.clone(), whole.clone()]);
    let cut = &two[..two.len() - 1];
    let torn = BatchError::Truncated { needed_bytes: batch.size_bytes(), found_bytes: batch.size_bytes() - 1 };
    assert_eq!(walked(cut), [whole.clone(), Err(torn)]);
    let mut foreign = [&two[..], batch.bytes()].concat();
    foreign[batch.size_bytes() + MAGIC_AT] = 1;
    assert_eq!(walked(&foreign), [whole, Err(BatchError::UnsupportedMagic { found: 1 })]);
}

#[test]
fn a_batch_at_the_size_limit_passes_and_one_byte_more_does_not() {
    let batch = small_batch();
    let size_bytes = batch.size_bytes();
    for (limit_bytes, passes) in [(size_bytes, true), (size_bytes - 1, false)] {
        let limits = BatchLimits { batch_bytes_max: limit_bytes, ..BatchLimits::default() };
        let checked = CheckedBatch::check(batch.bytes().clone(), &limits, Validation::Header);
        let expected = if passes { Ok(batch.clone()) } else { Err(BatchError::TooLarge { size_bytes, limit_bytes }) };
        assert_eq!(checked, expected);
    }
}

#[test]
fn a_flipped_record_is_found_by_its_hash() {
    let mut bytes = small_batch().bytes().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    assert!(matches!(check(bytes), Err(BatchError::Crc { .. })));
}

#[test]
fn header_fields_that_a_producer_may_not_set_are_refused_by_name() {
    let cases: [(usize, &[u8], &str); 12] = [
        (ATTRIBUTES_AT, &[0, 0x20], "attributes"),
        (ATTRIBUTES_AT, &[0, 0x80], "attributes"),
        (ATTRIBUTES_AT, &[0x80, 0], "attributes"),
        (ATTRIBUTES_AT, &[0, 0x40], "attributes"),
        (ATTRIBUTES_AT, &[0, 0x08], "attributes"),
        (ATTRIBUTES_AT, &[0, 0x10], "attributes"),
        (RECORD_COUNT_AT, &[0, 0, 0, 0], "record_count"),
        (RECORD_COUNT_AT, &[0x7f, 0xff, 0xff, 0xff], "record_count"),
        (LAST_OFFSET_DELTA_AT, &[0, 0, 0, 2], "last_offset_delta"),
        (PRODUCER_ID_AT, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], "producer_id"),
        (BASE_TIMESTAMP_AT, &[0x80], "base_timestamp"),
        (MAX_TIMESTAMP_AT, &[0x80], "max_timestamp"),
    ];
    for (at, patch, name) in cases {
        for validation in [Validation::Records, Validation::Header] {
            let checked = CheckedBatch::check(patched(at, patch).into(), &BatchLimits::default(), validation);
            let error = checked.unwrap_err();
            assert!(matches!(error, BatchError::Field { field, .. } if field == name), "{name}: {error}");
        }
    }
}

#[test]
fn a_producer_id_needs_an_epoch_and_a_sequence() {
    let producer = BatchProducer { id: 5, epoch: 0, base_sequence: 0 };
    let batch = small_batch_with(BatchOptions { producer: Some(producer), ..BatchOptions::default() });
    assert_eq!(check(batch.bytes().clone()).unwrap().header().producer(), Some(producer));
    for (at, size, name) in [(PRODUCER_EPOCH_AT, 2, "producer_epoch"), (BASE_SEQUENCE_AT, 4, "base_sequence")] {
        let mut bytes = batch.bytes().to_vec();
        bytes[at..at + size].fill(0xff);
        rehash(&mut bytes);
        let error = check(bytes).unwrap_err();
        assert!(matches!(error, BatchError::Field { field, found: -1, .. } if field == name), "{error}");
    }
}

#[test]
fn without_a_producer_id_epoch_and_sequence_mean_nothing() {
    for fill in [0, 0xff, 7] {
        let mut bytes = small_batch().bytes().to_vec();
        bytes[PRODUCER_EPOCH_AT..RECORD_COUNT_AT].fill(fill);
        rehash(&mut bytes);
        assert_eq!(check(bytes).unwrap().header().producer(), None);
    }
}

#[test]
fn a_greatest_timestamp_that_is_not_that_of_the_records_is_corrected() {
    let batch = small_batch();
    for wrong_ms in [-1i64, 0, 999, 5_000_000] {
        let bytes = patched(MAX_TIMESTAMP_AT, &wrong_ms.to_be_bytes());
        let corrected = check(bytes.clone()).unwrap();
        assert_eq!(corrected.bytes(), batch.bytes());
        assert_eq!(corrected.header(), batch.header());
        let unseen = CheckedBatch::check(bytes.into(), &BatchLimits::default(), Validation::Header).unwrap();
        assert_eq!(unseen.header().max_timestamp_ms, wrong_ms);
    }
}

/// `length` as a one-byte varint, then a record of these bytes.
fn record_bytes(body: &[u8]) -> Vec<u8> {
    let mut record = vec![u8::try_from(body.len() * 2).unwrap()];
    record.extend_from_slice(body);
    record
}

#[test]
fn malformed_records_are_refused_by_field_in_every_codec() {
    // attributes, timestamp delta, offset delta, key length, value length, header count
    let cases: [(&[u8], RecordFault); 13] = [
        (&[0, 0, 0, 3, 1, 0], negative("key", -2)),
        (&[0, 0, 0, 1, 5, 0], negative("value", -3)),
        (&[0, 0, 0, 2, 1, 0], RecordFault::EndsEarly { field: "header_count" }),
        (&[0, 0, 0, 8, 1, 0], RecordFault::EndsEarly { field: "key" }),
        (&[0, 0, 0, 1, 4, 0], RecordFault::EndsEarly { field: "value" }),
        (&[0, 0, 0, 1, 1, 2], too_many_headers(1)),
        (&[0, 0, 0, 1, 1, 1], too_many_headers(-1)),
        (&[0, 0, 0, 1, 1, 0, 0], RecordFault::LeftOver { found_bytes: 1 }),
        (&[0, 0, 0, 1, 1, 2, 1, 1], name_length(-1)),
        (&[0, 0, 0, 1, 1, 2, 4, 1], RecordFault::EndsEarly { field: "header_name" }),
        (&[0, 0, 0, 1, 1, 2, 0, 3], negative("header_value", -2)),
        (&[0, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0], RecordFault::Varint { field: "offset_delta" }),
        (&[0, 0x80, 0x80, 0x80, 0x80, 0x80], RecordFault::EndsEarly { field: "timestamp_delta" }),
    ];
    for (body, expected) in cases {
        for compression in Compression::ALL {
            let mut payload = Vec::new();
            codec::compress(compression, &record_bytes(body), &mut payload).unwrap();
            let expected = BatchError::Record { index: 0, fault: expected.clone() };
            assert_eq!(check(batch_of(compression, 1, &payload)), Err(expected), "{compression} {body:?}");
        }
    }
}

#[test]
fn a_record_shorter_than_its_fixed_fields_is_refused() {
    for (length, found) in [(10, 5), (0, 0), (1, -1)] {
        let payload = [length, 0, 0, 0, 1, 1, 0];
        let fault = RecordFault::Field { field: "length", found, allowed: "6 to 2147483647" };
        let expected = BatchError::Record { index: 0, fault };
        assert_eq!(check(batch_of(Compression::None, 1, &payload)), Err(expected));
    }
}

fn negative(field: &'static str, found: i64) -> RecordFault {
    RecordFault::Field { field, found, allowed: "a length of -1 (none) or more" }
}

fn name_length(found: i64) -> RecordFault {
    RecordFault::Field { field: "header_name", found, allowed: "a length of 0 or more" }
}

fn too_many_headers(found: i64) -> RecordFault {
    RecordFault::Field { field: "header_count", found, allowed: "0 to what the record has room for" }
}

#[test]
fn a_length_of_two_gibibytes_is_refused_in_every_codec() {
    let payload = [0xfe, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0x0f];
    for compression in Compression::ALL {
        let mut packed = Vec::new();
        codec::compress(compression, &payload, &mut packed).unwrap();
        let expected = BatchError::Record { index: 0, fault: RecordFault::EndsEarly { field: "key" } };
        assert_eq!(check(batch_of(compression, 1, &packed)), Err(expected), "{compression}");
    }
}

#[test]
fn offset_deltas_count_from_zero_without_gaps() {
    for (deltas, wrong) in [([1, 2], 0), ([0, 2], 1), ([0, 0], 1)] {
        let payload: Vec<u8> = deltas.iter().flat_map(|delta| record_bytes(&[0, 0, delta * 2, 1, 1, 0])).collect();
        let error = check(batch_of(Compression::None, 2, &payload)).unwrap_err();
        let BatchError::Record { index, fault: RecordFault::Field { field: "offset_delta", found, .. } } = error else {
            panic!("{error}");
        };
        assert_eq!((index, found), (wrong, i64::from(deltas[wrong as usize])));
    }
}

#[test]
fn bytes_and_records_behind_the_last_record_are_refused_in_every_codec() {
    for compression in Compression::ALL {
        let two = [record_bytes(&[0, 0, 0, 1, 1, 0]), record_bytes(&[0, 0, 2, 1, 1, 0])].concat();
        for (records, count) in [(&two[..], 1), (&[&two[..], &[0]].concat(), 2)] {
            let mut payload = Vec::new();
            codec::compress(compression, records, &mut payload).unwrap();
            let error = check(batch_of(compression, count, &payload)).unwrap_err();
            let expected = "bytes after the last record";
            assert!(matches!(error, BatchError::Field { field, .. } if field == expected), "{compression}: {error}");
        }
    }
}

#[test]
fn a_timestamp_outside_64_bits_or_before_none_is_refused() {
    let mut payload = vec![(1 + 10 + 4) * 2, 0];
    payload.extend([0xff; 9]);
    payload.extend([1, 0, 1, 1, 0]);
    let mut bytes = batch_of(Compression::None, 1, &payload);
    let error = check(bytes.clone()).unwrap_err();
    assert!(
        matches!(error, BatchError::Record { fault: RecordFault::Field { field: "timestamp", .. }, .. }),
        "{error}"
    );
    bytes[BASE_TIMESTAMP_AT..MAX_TIMESTAMP_AT].copy_from_slice(&(-1i64).to_be_bytes());
    rehash(&mut bytes);
    let error = check(bytes).unwrap_err();
    let fault = RecordFault::Field {
        field: "timestamp_delta",
        found: i64::MIN,
        allowed: "what keeps the timestamp within 64 bits",
    };
    assert_eq!(error, BatchError::Record { index: 0, fault });
}

#[test]
fn a_batch_without_timestamps_is_accepted() {
    let record = OwnedRecord { timestamp_ms: -1, key: None, value: None, headers: Vec::new() };
    let checked = check(build(BatchOptions::default(), std::slice::from_ref(&record)).bytes().clone()).unwrap();
    assert_eq!(read(&checked.view()).unwrap(), [(0, record)]);
}

#[test]
fn header_validation_does_not_look_at_the_records() {
    let bytes = Bytes::from(batch_of(Compression::Zstd, 3, b"not zstd"));
    assert!(matches!(check(bytes.clone()), Err(BatchError::Codec(CodecError::Damaged { .. }))));
    let checked = CheckedBatch::check(bytes, &BatchLimits::default(), Validation::Header).unwrap();
    assert!(read(&checked.view()).is_err());
}

#[test]
fn the_two_parts_of_an_append_are_the_batch_with_its_offset_and_a_true_hash() {
    let batch = small_batch();
    let (base, epoch) = (Offset::new(1 << 40).unwrap(), LeaderEpoch::new(77).unwrap());
    let (front, rest) = batch.write_parts(base, epoch);
    let appended = batch.appended_bytes(base, epoch);
    assert_eq!([&front[..], rest].concat(), appended);
    assert_eq!(rest.as_ptr(), batch.bytes()[16..].as_ptr());
    let (view, rest) = BatchView::parse(&appended).unwrap();
    assert!(rest.is_empty());
    view.verify_crc().unwrap();
    assert_eq!(*view.header(), BatchHeader { base_offset: base, leader_epoch: Some(epoch), ..*batch.header() });
    let offsets: Vec<_> = read(&view).unwrap().iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [1 << 40, (1 << 40) + 1]);
}

#[test]
fn append_time_replaces_every_timestamp_and_keeps_the_rest() {
    let batch = small_batch();
    let stamped = batch.with_append_time(123_456);
    stamped.view().verify_crc().unwrap();
    assert_eq!(BatchHeader::parse(stamped.bytes()), Ok(*stamped.header()));
    assert_eq!(stamped.header().attributes.timestamp_type(), TimestampType::LogAppendTime);
    let expected: Vec<_> = read(&batch.view())
        .unwrap()
        .into_iter()
        .map(|(offset, record)| (offset, OwnedRecord { timestamp_ms: 123_456, ..record }))
        .collect();
    assert_eq!(read(&stamped.view()).unwrap(), expected);
    assert_eq!(read(&batch.view()).unwrap()[0].1.timestamp_ms, 1000, "the original is untouched");
}

#[test]
fn a_batch_that_was_built_without_a_producer_becomes_one_of_a_producer() {
    let producer = BatchProducer { id: 77, epoch: 3, base_sequence: 12 };
    let build = |producer| {
        let mut builder = BatchBuilder::new(BatchOptions { producer, ..BatchOptions::default() });
        builder.push(&NewRecord { timestamp_ms: 1000, value: Some(b"v"), ..NewRecord::default() }).unwrap();
        builder.finish().unwrap()
    };
    let (plain, produced) = (build(None), build(Some(producer)));
    assert_eq!(plain.produced_by(producer), produced);
    assert_eq!(plain.header().producer(), None, "the original is untouched");
}

#[test]
fn a_compacted_batch_with_gaps_reads_at_its_offsets_and_never_backwards() {
    let payload: Vec<u8> = [0, 3, 7].iter().flat_map(|delta| record_bytes(&[0, 0, delta * 2, 1, 1, 0])).collect();
    let mut bytes = batch_of(Compression::None, 3, &payload);
    bytes[LAST_OFFSET_DELTA_AT..BASE_TIMESTAMP_AT].copy_from_slice(&9i32.to_be_bytes());
    let (view, _) = BatchView::parse(&bytes).unwrap();
    let offsets: Vec<_> = read(&view).unwrap().iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [0, 3, 7]);
    bytes[LAST_OFFSET_DELTA_AT..BASE_TIMESTAMP_AT].copy_from_slice(&6i32.to_be_bytes());
    let (view, _) = BatchView::parse(&bytes).unwrap();
    assert!(matches!(read(&view), Err(BatchError::Record { index: 2, .. })));
}

#[test]
fn reading_ends_behind_the_first_error() {
    let payload = [record_bytes(&[0, 0, 0, 1, 1, 0]), vec![2, 0]].concat();
    let bytes = batch_of(Compression::None, 5, &payload);
    let (view, _) = BatchView::parse(&bytes).unwrap();
    let set = view.records(&BatchLimits::default()).unwrap();
    let outcomes: Vec<_> = set.iter().map(|record| record.is_ok()).collect();
    assert_eq!(outcomes, [true, false]);
}

#[test]
fn a_control_batch_is_built_for_the_log_and_refused_from_a_producer() {
    let batch = BatchBuilder::transaction_end(9, 2, TransactionResult::Commit, 3, 55);
    assert!(batch.header().attributes.is_control());
    assert!(batch.header().attributes.is_transactional());
    assert_eq!(batch.header().producer(), Some(BatchProducer { id: 9, epoch: 2, base_sequence: -1 }));
    batch.view().verify_crc().unwrap();
    let record = OwnedRecord {
        timestamp_ms: 55,
        key: Some(vec![0, 0, 0, 1]),
        value: Some(vec![0, 0, 0, 0, 0, 3]),
        headers: Vec::new(),
    };
    assert_eq!(read(&batch.view()).unwrap(), [(0, record)]);
    assert!(matches!(check(batch.bytes().clone()), Err(BatchError::Field { field: "attributes", .. })));
}

#[test]
fn a_builder_refuses_what_cannot_be_read_back_and_stays_as_it_was() {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    assert_eq!(builder.size_bytes(), HEADER_BYTES);
    assert_eq!(BatchBuilder::new(BatchOptions::default()).finish(), Err(BuildError::Empty));
    builder.push(&NewRecord { timestamp_ms: -1, ..NewRecord::default() }).unwrap();
    let size_bytes = builder.size_bytes();
    let refused = NewRecord { timestamp_ms: -2, ..NewRecord::default() };
    assert_eq!(builder.push(&refused), Err(BuildError::Timestamp { found_ms: -2 }));
    let refused = NewRecord { timestamp_ms: i64::MAX, ..NewRecord::default() };
    assert_eq!(builder.push(&refused), Err(BuildError::Timestamp { found_ms: i64::MAX }));
    let huge = vec![0; BatchBuilder::RECORD_BYTES_MAX];
    let refused = NewRecord { value: Some(&huge), ..NewRecord::default() };
    assert!(matches!(builder.push(&refused), Err(BuildError::TooLarge { .. })));
    assert_eq!((builder.size_bytes(), builder.record_count()), (size_bytes, 1));
    check(builder.finish().unwrap().bytes().clone()).unwrap();
}
