//! What the codecs take, and what hostile bytes cannot make them do.

use super::*;

const LIMITS: BatchLimits =
    BatchLimits { batch_bytes_max: 16 << 20, decompressed_bytes_max: 1 << 20, zstd_window_log_max: 21 };

const CODECS: [Compression; 4] = [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

fn packed(compression: Compression, records: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    compress(compression, records, &mut out).unwrap();
    out
}

fn unpacked(compression: Compression, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
    Decoder::new(compression, payload, &LIMITS)?.read_to_end()
}

/// Reads in small steps and tells how much came out before the end or the error.
fn drained_bytes(compression: Compression, payload: &[u8]) -> (usize, Result<(), CodecError>) {
    let mut decoder = Decoder::new(compression, payload, &LIMITS).unwrap();
    let mut drained_bytes = 0;
    loop {
        match decoder.read(&mut [0; 1000]) {
            Ok(0) => return (drained_bytes, Ok(())),
            Ok(read_bytes) => drained_bytes += read_bytes,
            Err(error) => return (drained_bytes, Err(error)),
        }
    }
}

fn assert_damaged(compression: Compression, payload: &[u8]) {
    let error = unpacked(compression, payload);
    assert!(matches!(error, Err(CodecError::Damaged { .. })), "{compression}: {error:?}");
}

fn too_large<T>() -> Result<T, CodecError> {
    Err(CodecError::OutputTooLarge { limit_bytes: LIMITS.decompressed_bytes_max })
}

/// Compressible, but not one byte repeated.
fn text(len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(7);
    (0..len).map(|_| b'a' + rng.u8(..8)).collect()
}

#[test]
fn what_is_packed_unpacks_to_the_same_at_sizes_around_every_block() {
    for compression in CODECS {
        for len in [0, 1, 100, 32 << 10, (32 << 10) + 1, 64 << 10, (64 << 10) + 1, LIMITS.decompressed_bytes_max] {
            let records = text(len);
            assert_eq!(unpacked(compression, &packed(compression, &records)), Ok(records), "{compression} {len}");
        }
    }
}

#[test]
fn one_byte_above_the_limit_is_refused() {
    let records = text(LIMITS.decompressed_bytes_max + 1);
    for compression in CODECS {
        assert_eq!(unpacked(compression, &packed(compression, &records)), too_large(), "{compression}");
    }
}

#[test]
fn a_stream_cut_anywhere_never_unpacks_to_something_else() {
    let records = text(5000);
    for compression in CODECS {
        let payload = packed(compression, &records);
        for len in 0..payload.len() {
            if let Ok(out) = unpacked(compression, &payload[..len]) {
                assert!(records.starts_with(&out), "{compression} cut at {len}");
            }
        }
    }
}

#[test]
fn bytes_behind_the_stream_are_refused() {
    for compression in CODECS {
        let mut payload = packed(compression, b"records");
        payload.extend([1, 2, 3]);
        assert!(unpacked(compression, &payload).is_err(), "{compression}");
    }
}

#[test]
fn bombs_stop_at_the_limit_however_much_they_hold() {
    let zeros = vec![0; 1 << 20];
    let gzip_member = packed(Compression::Gzip, &zeros);
    let mut xerial = packed(Compression::Snappy, b"");
    let block = snap::raw::Encoder::new().compress_vec(&zeros).unwrap();
    for _ in 0..100 {
        xerial.extend(i32::try_from(block.len()).unwrap().to_be_bytes());
        xerial.extend(&block);
    }
    let mut lz4 = Vec::new();
    let mut encoder = FrameEncoder::with_frame_info(FrameInfo::new().block_size(BlockSize::Max4MB), &mut lz4);
    for _ in 0..100 {
        encoder.write_all(&zeros).unwrap();
    }
    encoder.finish().unwrap();
    for (compression, bomb) in [
        (Compression::Gzip, gzip_member.repeat(10 << 10)),
        (Compression::Snappy, xerial),
        (Compression::Lz4, lz4),
        (Compression::Zstd, zstd_bomb(10 << 30)),
    ] {
        let (drained_bytes, end) = drained_bytes(compression, &bomb);
        assert!(drained_bytes <= LIMITS.decompressed_bytes_max, "{compression}: {drained_bytes}");
        assert_eq!(end, too_large(), "{compression}");
        assert_eq!(unpacked(compression, &bomb), too_large(), "{compression}");
    }
}

/// A frame of blocks that repeat one byte 128 KiB long and take four bytes each: 10 GiB from 320 KiB.
fn zstd_bomb(unpacked_bytes: usize) -> Vec<u8> {
    const BLOCK_BYTES: usize = 128 << 10;
    let mut bomb = zstd_frame_header(17);
    for _ in 0..unpacked_bytes / BLOCK_BYTES {
        let block_header = u32::try_from(BLOCK_BYTES).unwrap() << 3 | 1 << 1;
        bomb.extend(&block_header.to_le_bytes()[..3]);
        bomb.push(0);
    }
    bomb.extend([1, 0, 0]);
    bomb
}

/// A frame that names its window and not its size.
fn zstd_frame_header(window_log: u8) -> Vec<u8> {
    vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3]
}

#[test]
fn the_zstd_bomb_is_valid_zstd() {
    let bomb = zstd_bomb(512 << 10);
    assert_eq!(unpacked(Compression::Zstd, &bomb), Ok(vec![0; 512 << 10]));
}

#[test]
fn a_zstd_window_above_the_limit_is_refused_before_it_is_reserved() {
    for window_log in [22, 27, 31, 41] {
        let mut payload = zstd_frame_header(window_log);
        payload.extend([1, 0, 0]);
        assert_damaged(Compression::Zstd, &payload);
    }
    let mut payload = zstd_frame_header(21);
    payload.extend([1, 0, 0]);
    assert_eq!(unpacked(Compression::Zstd, &payload), Ok(Vec::new()));
}

#[test]
fn a_zstd_frame_that_claims_exbibytes_is_refused() {
    // Single segment, the size in eight bytes.
    let mut payload = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    payload.extend((1u64 << 60).to_le_bytes());
    payload.extend([1, 0, 0]);
    assert_damaged(Compression::Zstd, &payload);
}

#[test]
fn snappy_chunk_lengths_that_cannot_be_are_refused() {
    for length in [0, -1, i32::MIN, 2, i32::MAX] {
        let mut payload = packed(Compression::Snappy, b"");
        payload.extend(length.to_be_bytes());
        payload.push(0);
        assert_damaged(Compression::Snappy, &payload);
    }
    let header = packed(Compression::Snappy, b"");
    assert_damaged(Compression::Snappy, &header[..10]);
    assert_damaged(Compression::Snappy, &[&header[..], &[0, 0]].concat());
}

#[test]
fn a_snappy_block_that_claims_more_than_the_format_can_reach_is_refused() {
    for claim in [&[0xff, 0xff, 0xff, 0xff, 0x0f, 0, b'x'][..], &[0xff, 0xff, 0x03, 0, b'x']] {
        let mut framed = packed(Compression::Snappy, b"");
        framed.extend(i32::try_from(claim.len()).unwrap().to_be_bytes());
        framed.extend(claim);
        for payload in [claim, &framed] {
            let Err(CodecError::Damaged { reason, .. }) = unpacked(Compression::Snappy, payload) else { panic!() };
            assert!(reason.contains("claims"), "refused before anything is reserved: {reason}");
        }
    }
}

#[test]
fn a_raw_snappy_block_unpacks_as_the_framed_one() {
    let records = text(200_000);
    let block = snap::raw::Encoder::new().compress_vec(&records).unwrap();
    assert_eq!(unpacked(Compression::Snappy, &block), Ok(records));
}

#[test]
fn the_densest_snappy_block_is_within_what_is_believed() {
    let records = vec![0; 1 << 20];
    let block = snap::raw::Encoder::new().compress_vec(&records).unwrap();
    assert_eq!(unpacked(Compression::Snappy, &block), Ok(records));
}

#[test]
fn snappy_framing_of_other_versions_is_taken() {
    let mut payload = packed(Compression::Snappy, b"records");
    payload[8..16].fill(0);
    assert_eq!(unpacked(Compression::Snappy, &payload), Ok(b"records".to_vec()));
}

#[test]
fn lz4_frames_of_every_kind_unpack() {
    let records = text(300_000);
    for block_size in [BlockSize::Max64KB, BlockSize::Max256KB, BlockSize::Max1MB, BlockSize::Max4MB] {
        for block_mode in [BlockMode::Independent, BlockMode::Linked] {
            for checksums in [false, true] {
                let info = FrameInfo::new()
                    .block_size(block_size)
                    .block_mode(block_mode)
                    .block_checksums(checksums)
                    .content_checksum(checksums)
                    .content_size(checksums.then_some(records.len() as u64));
                let mut payload = Vec::new();
                let mut encoder = FrameEncoder::with_frame_info(info, &mut payload);
                encoder.write_all(&records).unwrap();
                encoder.finish().unwrap();
                assert_eq!(unpacked(Compression::Lz4, &payload).as_ref(), Ok(&records));
            }
        }
    }
}

#[test]
fn lz4_blocks_that_claim_more_than_their_frame_are_refused() {
    let frame = packed(Compression::Lz4, b"records");
    let block_length_at = 7;
    for length in [0x7fff_ffff_u32, 0xffff_ffff, 0x0001_0001, 0x8001_0001] {
        let mut payload = frame.clone();
        payload[block_length_at..block_length_at + 4].copy_from_slice(&length.to_le_bytes());
        assert_damaged(Compression::Lz4, &payload);
    }
}

#[test]
fn lz4_that_is_legacy_skippable_or_followed_by_another_frame_is_refused() {
    assert_damaged(Compression::Lz4, &[0x02, 0x21, 0x4c, 0x18, 0, 0, 0, 0]);
    assert_damaged(Compression::Lz4, &[0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0x7f]);
    let frame = packed(Compression::Lz4, b"records");
    let expected = CodecError::TrailingBytes { compression: Compression::Lz4, found_bytes: frame.len() };
    assert_eq!(unpacked(Compression::Lz4, &frame.repeat(2)), Err(expected));
}

#[test]
fn a_gzip_header_without_end_is_refused() {
    // The flag says that a file name follows, and it never ends.
    let mut payload = vec![0x1f, 0x8b, 8, 0x08, 0, 0, 0, 0, 0, 0xff];
    payload.extend(std::iter::repeat_n(b'n', 200_000));
    assert_damaged(Compression::Gzip, &payload);
}

#[test]
fn a_gzip_stream_with_a_wrong_checksum_is_refused() {
    let mut payload = packed(Compression::Gzip, b"records");
    let crc_at = payload.len() - 8;
    payload[crc_at] ^= 1;
    assert_damaged(Compression::Gzip, &payload);
}

#[test]
fn ids_and_names_are_kafkas() {
    for (id, name) in (0..).zip(["none", "gzip", "snappy", "lz4", "zstd"]) {
        let compression = Compression::from_id(id).unwrap();
        assert_eq!(compression as i16, id);
        assert_eq!(compression.to_string(), name);
    }
    assert_eq!(Compression::from_id(5), None);
    assert_eq!(Compression::from_id(-1), None);
}
