//! The four compressions of Kafka, unpacked as streams whose memory does not depend on what the bytes claim.
//!
//! | codec | written | read | memory while unpacking |
//! |---|---|---|---|
//! | gzip | one member | any number of members | the 32 KiB window |
//! | snappy | xerial framing, 32 KiB chunks | xerial framing or one raw block | one chunk, see [`snappy`] |
//! | lz4 | frame, independent 64 KiB blocks | one frame, any block size | two blocks and the window, 12 MiB at most |
//! | zstd | one frame | any number of frames | the window, bounded by `zstd_window_log_max` |
//!
//! Bytes after the end of the compressed stream are an error in each of them.

mod snappy;

use std::fmt;
use std::io::{self, Read, Write};

use flate2::bufread::MultiGzDecoder;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use super::BatchLimits;
use snappy::SnappyDecoder;

/// How the records of a batch are compressed: bits 0–2 of the attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// RFC 1952.
    Gzip = 1,
    /// Snappy, framed as by the Java client or a raw block.
    Snappy = 2,
    /// The LZ4 frame format.
    Lz4 = 3,
    /// RFC 8878.
    Zstd = 4,
}

impl Compression {
    /// Every compression, by id.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The compression with this id in a batch's attributes.
    #[must_use]
    pub const fn from_id(id: i16) -> Option<Self> {
        match id {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The name as in Kafka's `compression.type`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why compressed records cannot be unpacked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They unpack to more than the limit.
    #[error("the records unpack to more than the allowed {limit_bytes} bytes")]
    OutputTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// They are not what the codec writes, or ask for more memory than allowed.
    #[error("the records are not valid {compression}: {reason}")]
    Damaged {
        /// The codec.
        compression: Compression,
        /// What the decoder says.
        reason: String,
    },
    /// The compressed stream ends and bytes follow.
    #[error("{found_bytes} bytes follow the {compression} stream, allowed are 0")]
    TrailingBytes {
        /// The codec.
        compression: Compression,
        /// How many bytes follow.
        found_bytes: usize,
    },
}

fn damaged(compression: Compression, reason: impl fmt::Display) -> CodecError {
    CodecError::Damaged { compression, reason: reason.to_string() }
}

/// Unpacks one payload as a stream and stops at the limit.
pub(super) struct Decoder<'a> {
    stream: Stream<'a>,
    compression: Compression,
    produced_bytes: usize,
    limit_bytes: usize,
}

enum Stream<'a> {
    Plain(&'a [u8]),
    Gzip(Box<MultiGzDecoder<&'a [u8]>>),
    Snappy(SnappyDecoder<'a>),
    Lz4(Box<FrameDecoder<&'a [u8]>>),
    Zstd(zstd::Decoder<'static, &'a [u8]>),
}

impl<'a> Decoder<'a> {
    pub(super) fn new(compression: Compression, payload: &'a [u8], limits: &BatchLimits) -> Result<Self, CodecError> {
        let limit_bytes = limits.decompressed_bytes_max;
        let stream = match compression {
            Compression::None => Stream::Plain(payload),
            Compression::Gzip => Stream::Gzip(Box::new(MultiGzDecoder::new(payload))),
            Compression::Snappy => Stream::Snappy(SnappyDecoder::new(payload, limit_bytes)?),
            Compression::Lz4 => Stream::Lz4(Box::new(lz4_frame(payload)?)),
            Compression::Zstd => Stream::Zstd(zstd_stream(payload, limits).map_err(|e| damaged(compression, e))?),
        };
        Ok(Self { stream, compression, produced_bytes: 0, limit_bytes })
    }

    /// Fills the front of `out`, which is not empty; 0 means that the stream ended where the payload does.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, CodecError> {
        debug_assert!(!out.is_empty());
        let read_bytes = self.read_stream(out)?;
        if read_bytes == 0 {
            self.check_end()?;
        }
        self.produced_bytes += read_bytes;
        if self.produced_bytes > self.limit_bytes {
            return Err(CodecError::OutputTooLarge { limit_bytes: self.limit_bytes });
        }
        Ok(read_bytes)
    }

    /// Unpacks all that is left into one buffer, which grows with the output and never beyond the limit.
    pub(super) fn read_to_end(mut self) -> Result<Vec<u8>, CodecError> {
        let mut out = Vec::new();
        let mut chunk = [0; 16 << 10];
        loop {
            match self.read(&mut chunk)? {
                0 => return Ok(out),
                read_bytes => out.extend_from_slice(&chunk[..read_bytes]),
            }
        }
    }

    fn read_stream(&mut self, out: &mut [u8]) -> Result<usize, CodecError> {
        let read = match &mut self.stream {
            Stream::Plain(rest) => rest.read(out),
            Stream::Gzip(stream) => stream.read(out),
            Stream::Snappy(stream) => return stream.read(out),
            Stream::Lz4(stream) => stream.read(out),
            Stream::Zstd(stream) => stream.read(out),
        };
        read.map_err(|error| damaged(self.compression, error))
    }

    /// gzip and zstd read on until the payload ends, snappy counts its chunks; lz4 stops behind the first frame. A
    /// missing end mark of that frame is overlooked: records that are missing with it are noticed by whoever counts
    /// them.
    fn check_end(&self) -> Result<(), CodecError> {
        match &self.stream {
            Stream::Lz4(stream) if !stream.get_ref().is_empty() => {
                Err(CodecError::TrailingBytes { compression: self.compression, found_bytes: stream.get_ref().len() })
            }
            _ => Ok(()),
        }
    }
}

/// The frame's magic is looked at first: the decoder would also take the legacy format, which no Kafka client reads.
fn lz4_frame(payload: &[u8]) -> Result<FrameDecoder<&[u8]>, CodecError> {
    const MAGIC: [u8; 4] = 0x184d_2204_u32.to_le_bytes();
    if payload.starts_with(&MAGIC) {
        Ok(FrameDecoder::new(payload))
    } else {
        Err(damaged(Compression::Lz4, "no LZ4 frame starts here"))
    }
}

fn zstd_stream<'a>(payload: &'a [u8], limits: &BatchLimits) -> io::Result<zstd::Decoder<'static, &'a [u8]>> {
    let mut stream = zstd::Decoder::with_buffer(payload)?;
    stream.window_log_max(limits.zstd_window_log_max)?;
    Ok(stream)
}

/// Appends `records`, compressed, to `out`.
pub(super) fn compress(compression: Compression, records: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
    match compression {
        Compression::None => {
            out.extend_from_slice(records);
            Ok(())
        }
        Compression::Gzip => compress_gzip(records, out).map_err(|error| damaged(compression, error)),
        Compression::Snappy => snappy::compress(records, out),
        Compression::Lz4 => compress_lz4(records, out).map_err(|error| damaged(compression, error)),
        Compression::Zstd => compress_zstd(records, out).map_err(|error| damaged(compression, error)),
    }
}

fn compress_gzip(records: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
    encoder.write_all(records)?;
    encoder.finish().map(drop)
}

fn compress_lz4(records: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
    let mut encoder = FrameEncoder::with_frame_info(info, out);
    encoder.write_all(records)?;
    encoder.finish().map(drop).map_err(io::Error::from)
}

fn compress_zstd(records: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    out.extend(zstd::bulk::compress(records, zstd::DEFAULT_COMPRESSION_LEVEL)?);
    Ok(())
}

#[cfg(test)]
mod tests;
