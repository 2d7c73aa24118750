//! Little-endian fields of our own small files.
//!
//! Each such file starts with a four-byte magic and a `u16` version, and ends with a CRC-32 (IEEE, `crc32fast`) over
//! everything before it. Numbers of retired versions are not used again.

/// Why one of our own files cannot be used. All of them can be rebuilt, so the answer is to do that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    /// Too short, or longer than its fields say.
    #[error("has {found} bytes, {expected} were expected")]
    Length {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// Not this kind of file.
    #[error("does not start with the magic {expected:?}")]
    Magic {
        /// The magic of the kind that was looked for.
        expected: [u8; 4],
    },
    /// Written by a release that we do not know.
    #[error("has version {found}, this release reads {known}")]
    Version {
        /// In the file.
        found: u16,
        /// Ours.
        known: u16,
    },
    /// The content was damaged.
    #[error("fails its checksum")]
    Checksum,
    /// A field holds a value that the format does not allow.
    #[error("field {0} is out of its range")]
    Field(&'static str),
}

/// Builds a file of this kind.
#[derive(Debug)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(magic: [u8; 4], version: u16, capacity_bytes: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity_bytes);
        bytes.extend_from_slice(&magic);
        bytes.extend_from_slice(&version.to_le_bytes());
        Self { bytes }
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn i64(&mut self, value: i64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends the checksum.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let crc = crc32fast::hash(&self.bytes);
        self.bytes.extend_from_slice(&crc.to_le_bytes());
        self.bytes
    }
}

/// Reads a file of this kind. [`Reader::open`] has checked magic, version and checksum.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn open(bytes: &'a [u8], magic: [u8; 4], version: u16) -> Result<Self, FormatError> {
        const FRAME_BYTES: usize = 4 + 2 + 4;
        if bytes.len() < FRAME_BYTES {
            return Err(FormatError::Length { found: bytes.len(), expected: FRAME_BYTES });
        }
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if body[..4] != magic {
            return Err(FormatError::Magic { expected: magic });
        }
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err(FormatError::Checksum);
        }
        let mut reader = Self { rest: &body[4..] };
        let found = reader.u16()?;
        if found != version {
            return Err(FormatError::Version { found, known: version });
        }
        Ok(reader)
    }

    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        match self.rest.split_first_chunk() {
            Some((field, rest)) => {
                self.rest = rest;
                Ok(*field)
            }
            None => Err(FormatError::Length { found: self.rest.len(), expected: N }),
        }
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        self.take().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, FormatError> {
        self.take().map(i64::from_le_bytes)
    }

    /// Bytes not read yet.
    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// All fields were read.
    pub(crate) fn finish(self) -> Result<(), FormatError> {
        match self.rest.len() {
            0 => Ok(()),
            found => Err(FormatError::Length { found, expected: 0 }),
        }
    }
}
