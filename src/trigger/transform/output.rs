//! JSON text of bounded length.

use std::io::{self, Write};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::{Failure, TransformCode};

/// The most that one record may be turned into, in bytes of JSON: by a chain of pure steps, or by a function with all
/// its events.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// Appends to a buffer, up to [`OUTPUT_BYTES_MAX`].
pub(super) struct Output<'o> {
    out: &'o mut Vec<u8>,
    bytes_left: usize,
}

impl<'o> Output<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out, bytes_left: OUTPUT_BYTES_MAX }
    }

    /// Text that is JSON, or a part of it.
    pub(super) fn raw(&mut self, text: &[u8]) -> Result<(), Failure> {
        self.write_all(text).map_err(|_| too_large())
    }

    /// One JSON value.
    pub(super) fn value(&mut self, value: &Value) -> Result<(), Failure> {
        serde_json::to_writer(self, value).map_err(|_| too_large())
    }

    /// Text with quotes around it.
    pub(super) fn text(&mut self, text: &[u8]) -> Result<(), Failure> {
        self.raw(b"\"")?;
        self.text_content(text)?;
        self.raw(b"\"")
    }

    /// Text inside a string literal.
    pub(super) fn text_content(&mut self, text: &[u8]) -> Result<(), Failure> {
        Escaped(self).write_all(text).map_err(|_| too_large())
    }

    /// A value inside a string literal: a text as it is, others as their JSON text.
    pub(super) fn value_content(&mut self, value: &Value) -> Result<(), Failure> {
        match value {
            Value::String(text) => self.text_content(text.as_bytes()),
            other => serde_json::to_writer(Escaped(self), other).map_err(|_| too_large()),
        }
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes_left = self.bytes_left.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Escapes what a JSON string may not hold as it is. All of that is ASCII, so pieces of characters pass through
/// unharmed.
struct Escaped<'w, 'o>(&'w mut Output<'o>);

impl Write for Escaped<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut plain_from = 0;
        for (index, byte) in bytes.iter().enumerate() {
            if *byte >= b' ' && *byte != b'"' && *byte != b'\\' {
                continue;
            }
            self.0.write_all(&bytes[plain_from..index])?;
            plain_from = index + 1;
            match byte {
                b'"' => self.0.write_all(b"\\\"")?,
                b'\\' => self.0.write_all(b"\\\\")?,
                b'\n' => self.0.write_all(b"\\n")?,
                b'\r' => self.0.write_all(b"\\r")?,
                b'\t' => self.0.write_all(b"\\t")?,
                control => write!(self.0, "\\u{control:04x}")?,
            }
        }
        self.0.write_all(&bytes[plain_from..])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Text that was written here, as a value.
pub(super) fn read_back(text: &[u8]) -> Result<Value, Failure> {
    read(text)
}

/// Whether [`read_back`] would read it: no value is made.
pub(super) fn check(text: &[u8]) -> Result<(), Failure> {
    read(text).map(|IgnoredAny| ())
}

fn read<'t, T: Deserialize<'t>>(text: &'t [u8]) -> Result<T, Failure> {
    serde_json::from_slice(text)
        .map_err(|error| Failure::new(TransformCode::TooDeep, format!("the result cannot be read: {error}")))
}

pub(super) fn too_large() -> Failure {
    Failure::new(TransformCode::TooLarge, format!("the result has more than {OUTPUT_BYTES_MAX} bytes"))
}
