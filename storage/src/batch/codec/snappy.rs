//! Snappy as Kafka's clients write it: raw blocks in xerial's framing (Java and most others), or one raw block
//! (librdkafka).
//!
//! The framing is 16 bytes, `82 "SNAPPY" 00`, version i32, oldest compatible version i32, then chunks of a length i32
//! and a raw block, all big-endian. A raw block says first how much it unpacks to; that is believed only up to what the
//! format can reach and what is left of the limit, because the block unpacks in one piece.

use super::{CodecError, Compression, damaged};

const XERIAL_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const XERIAL_VERSION: i32 = 1;
const XERIAL_HEADER_BYTES: usize = XERIAL_MAGIC.len() + 2 * size_of::<i32>();
/// What xerial writes: small enough that a reader's buffer stays in the processor's cache.
const CHUNK_BYTES: usize = 32 << 10;
/// The densest element of the format: a copy of 64 bytes written in 3.
const EXPANSION_MAX: usize = 22;

/// Unpacks chunk by chunk.
pub(super) struct SnappyDecoder<'a> {
    rest: &'a [u8],
    framed: bool,
    chunk: Vec<u8>,
    read_bytes: usize,
    left_bytes: usize,
    limit_bytes: usize,
}

impl<'a> SnappyDecoder<'a> {
    pub(super) fn new(payload: &'a [u8], limit_bytes: usize) -> Result<Self, CodecError> {
        let framed = payload.starts_with(&XERIAL_MAGIC);
        let rest = if framed { after_header(payload)? } else { payload };
        Ok(Self { rest, framed, chunk: Vec::new(), read_bytes: 0, left_bytes: limit_bytes, limit_bytes })
    }

    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, CodecError> {
        while self.read_bytes == self.chunk.len() {
            if self.rest.is_empty() {
                return Ok(0);
            }
            self.unpack_chunk()?;
        }
        let unread = &self.chunk[self.read_bytes..];
        let count = unread.len().min(out.len());
        out[..count].copy_from_slice(&unread[..count]);
        self.read_bytes += count;
        Ok(count)
    }

    fn unpack_chunk(&mut self) -> Result<(), CodecError> {
        let block = if self.framed { self.next_block()? } else { std::mem::take(&mut self.rest) };
        let unpacked_bytes = snap::raw::decompress_len(block).map_err(|error| damaged(Compression::Snappy, error))?;
        if unpacked_bytes > block.len() * EXPANSION_MAX {
            let reason = format!("a block of {} bytes claims to unpack to {unpacked_bytes}", block.len());
            return Err(damaged(Compression::Snappy, reason));
        }
        let Some(left_bytes) = self.left_bytes.checked_sub(unpacked_bytes) else {
            return Err(CodecError::OutputTooLarge { limit_bytes: self.limit_bytes });
        };
        self.left_bytes = left_bytes;
        self.chunk.resize(unpacked_bytes, 0);
        let written = snap::raw::Decoder::new()
            .decompress(block, &mut self.chunk)
            .map_err(|error| damaged(Compression::Snappy, error))?;
        self.chunk.truncate(written);
        self.read_bytes = 0;
        Ok(())
    }

    fn next_block(&mut self) -> Result<&'a [u8], CodecError> {
        let (length, rest) =
            split_i32(self.rest).ok_or_else(|| damaged(Compression::Snappy, "a chunk ends inside its length"))?;
        let block = usize::try_from(length).ok().filter(|length| *length > 0).and_then(|length| rest.get(..length));
        let Some(block) = block else {
            let reason = format!("a chunk's length is {length}, allowed is 1 to {}", rest.len());
            return Err(damaged(Compression::Snappy, reason));
        };
        self.rest = &rest[block.len()..];
        Ok(block)
    }
}

/// Appends the xerial framing of `records` to `out`.
pub(super) fn compress(records: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
    out.extend_from_slice(&XERIAL_MAGIC);
    out.extend_from_slice(&XERIAL_VERSION.to_be_bytes());
    out.extend_from_slice(&XERIAL_VERSION.to_be_bytes());
    let mut encoder = snap::raw::Encoder::new();
    for chunk in records.chunks(CHUNK_BYTES) {
        let block = encoder.compress_vec(chunk).map_err(|error| damaged(Compression::Snappy, error))?;
        let length = i32::try_from(block.len()).expect("a chunk of 32 KiB compresses to less than 2 GiB");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&block);
    }
    Ok(())
}

/// The versions are not looked at: clients write different ones and mean the same format.
fn after_header(payload: &[u8]) -> Result<&[u8], CodecError> {
    payload.get(XERIAL_HEADER_BYTES..).ok_or_else(|| damaged(Compression::Snappy, "the framing ends inside its header"))
}

fn split_i32(bytes: &[u8]) -> Option<(i32, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    Some((i32::from_be_bytes(*length), rest))
}
