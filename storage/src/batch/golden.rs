//! Batches written by another client's encoder (kafka-python 3.0.12), byte for byte.
//!
//! The first five hold the same three records, once per codec: a record with key, value, a repeated header name and a
//! header without a value; a record with neither key nor value; an earlier record with both empty.

use bytes::Bytes;

use super::{BatchError, BatchLimits, BatchProducer, CheckedBatch, Compression, HeaderView, Validation};

const NONE: &str = "00000000000000000000008800000000023fdb36b50000000000020000018bcfe568000000018bcfe56805ffffffffffffffffffff\
    ffffffff000000038e01000000066b65796076616c75652076616c75652076616c75652076616c75652076616c75652076616c75652076616c75652076\
    616c756520060268023102680232086e6f6e65010c000a020101000c001304000000";
const GZIP: &str = "0000000000000000000000710000000002ff4eae2b0001000000020000018bcfe568000000018bcfe56805ffffffffffffffffffff\
    ffffffff000000031f8b0800d515016b02ffeb6364606060cb4ead4c284bcc294d55209e6463ca60320462238ebcfcbc54461e062e264646061e066116\
    a08900e8be8e5257000000";
const SNAPPY: &str = "00000000000000000000007800000000022e0650440002000000020000018bcfe568000000018bcfe56805ffffffffffffffffff\
    ffffffffff0000000382534e4150505900000000010000000100000033573c8e01000000066b65796076616c756520a606007006026802310268023208\
    6e6f6e65010c000a020101000c001304000000";
const LZ4: &str = "00000000000000000000007c000000000250eb33340003000000020000018bcfe568000000018bcfe56805ffffffffffffffffffff\
    ffffffff0000000304224d18684057000000000000007f34000000ff018e01000000066b65796076616c756520060017f00e0602680231026802320\
    86e6f6e65010c000a020101000c00130400000000000000";
const ZSTD: &str = "00000000000000000000006e0000000002\
    39e528a90004000000020000018bcfe568000000018bcfe56805ffffffffffffffffffffffffffff\
    0000000328b52ffd2057a50100d4028e01000000066b65796076616c756520060268023102680232086e6f6e65010c000a020101000c0013040000000100\
    062a4b";
/// One record of producer 4242, epoch 7, sequence 99, in a transaction.
const TRANSACTIONAL: &str = "00000000000000000000003a0000000002d4aebcf30010000000000000018bcfe568000000018bcfe5680000000000000\
    010920007000000630000000110000000026b027600";

fn bytes(hex: &str) -> Bytes {
    let digits: Vec<u8> = hex.chars().map(|digit| u8::try_from(digit.to_digit(16).unwrap()).unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn check(hex: &str) -> Result<CheckedBatch, BatchError> {
    CheckedBatch::check(bytes(hex), &BatchLimits::default(), Validation::Records)
}

#[test]
fn the_header_of_another_client_is_read_field_by_field() {
    let batch = check(NONE).unwrap();
    let header = batch.header();
    assert_eq!(header.base_offset.get(), 0);
    assert_eq!(header.batch_length, 0x88);
    assert_eq!(header.crc, 0x3fdb_36b5);
    assert_eq!(header.attributes.bits(), 0);
    assert_eq!(header.last_offset_delta, 2);
    assert_eq!(header.base_timestamp_ms, 1_700_000_000_000);
    assert_eq!(header.max_timestamp_ms, 1_700_000_000_005);
    assert_eq!(header.producer(), None);
    assert_eq!(header.record_count, 3);
    assert_eq!(batch.size_bytes(), 148);
}

#[test]
fn the_records_of_another_client_are_read_in_every_codec() {
    for (compression, hex) in Compression::ALL.into_iter().zip([NONE, GZIP, SNAPPY, LZ4, ZSTD]) {
        let batch = check(hex).unwrap();
        assert_eq!(batch.header().attributes.compression(), compression);
        assert_eq!(batch.bytes(), &bytes(hex), "{compression}: nothing was corrected");
        let set = batch.view().records(&BatchLimits::default()).unwrap();
        let records: Vec<_> = set.iter().map(Result::unwrap).collect();
        assert_eq!(records.len(), 3);
        assert_eq!(records.iter().map(|r| r.offset().get()).collect::<Vec<_>>(), [0, 1, 2]);
        let timestamps_ms: Vec<_> = records.iter().map(|r| r.timestamp_ms()).collect();
        assert_eq!(timestamps_ms, [1_700_000_000_000, 1_700_000_000_005, 1_699_999_999_990]);
        assert_eq!(records[0].key(), Some(&b"key"[..]));
        assert_eq!(records[0].value(), Some(&b"value ".repeat(8)[..]));
        let headers: Vec<_> = records[0].headers().collect();
        assert_eq!(
            headers,
            [
                HeaderView { name: b"h", value: Some(b"1") },
                HeaderView { name: b"h", value: Some(b"2") },
                HeaderView { name: b"none", value: None },
            ]
        );
        assert_eq!((records[1].key(), records[1].value()), (None, None));
        assert_eq!((records[2].key(), records[2].value()), (Some(&b""[..]), Some(&b""[..])));
        assert_eq!(records[2].headers().count(), 0);
    }
}

#[test]
fn a_transactional_batch_of_another_client_names_its_producer() {
    let batch = check(TRANSACTIONAL).unwrap();
    assert!(batch.header().attributes.is_transactional());
    assert_eq!(batch.header().producer(), Some(BatchProducer { id: 4242, epoch: 7, base_sequence: 99 }));
}

#[test]
fn our_builder_writes_the_same_bytes_as_the_other_client() {
    let mut builder = super::BatchBuilder::new(super::BatchOptions::default());
    let value = b"value ".repeat(8);
    let headers: [(&[u8], Option<&[u8]>); 3] = [(b"h", Some(b"1")), (b"h", Some(b"2")), (b"none", None)];
    let start_ms = 1_700_000_000_000;
    for record in [
        super::NewRecord { timestamp_ms: start_ms, key: Some(b"key"), value: Some(&value), headers: &headers },
        super::NewRecord { timestamp_ms: start_ms + 5, ..super::NewRecord::default() },
        super::NewRecord { timestamp_ms: start_ms - 10, key: Some(b""), value: Some(b""), headers: &[] },
    ] {
        builder.push(&record).unwrap();
    }
    let built = builder.finish().unwrap();
    let mut expected = bytes(NONE).to_vec();
    // The other client writes leader epoch 0, we write "none"; the field is outside the CRC.
    expected[12..16].fill(0xff);
    assert_eq!(built.bytes()[..], expected[..]);
}
