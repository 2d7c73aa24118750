//! What verification finds, with everything that is known of it.

use std::fmt;
use std::path::PathBuf;

use crate::batch::BatchError;
use crate::offset::PartitionId;
use crate::partition::OffsetRange;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Notice,
    /// A file that the log can do without, or the end of what was not flushed yet: no record that was promised is lost.
    /// The next start or a repair mends it.
    Defect,
    /// Records are lost, or not what was written.
    Damage,
}

impl Severity {
    /// In one word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Defect => "defect",
            Self::Damage => "damage",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Where; `None` for files of the whole data directory.
    pub partition: Option<PartitionId>,
    /// The file, or the directory, below the data directory.
    pub file: PathBuf,
    /// Where in the file.
    pub position: Option<u64>,
    /// The offsets that it is about.
    pub offsets: Option<OffsetRange>,
    /// What.
    pub problem: Problem,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// No batch stands where one should.
    Batch(BatchError),
    /// A field has another value than the rest of the log says.
    Differs {
        /// The field.
        field: &'static str,
        /// What the rest says.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// More places of the file are wrong than are told one by one: 1,000 of a log. A repair deals with each of them.
    Unlisted {
        /// How many.
        places: u64,
        /// How many offsets they have.
        offsets: u64,
    },
    /// Records that should be there are not.
    RecordsMissing,
    /// Bytes behind what the file should hold.
    Behind {
        /// How many.
        size_bytes: u64,
    },
    /// The log ends here: what follows was never flushed and is no batch of it. The next start moves it to
    /// `quarantine/`.
    LogEnds {
        /// How many bytes follow.
        size_bytes: u64,
        /// Why it is no batch.
        reason: BatchError,
    },
    /// The file does not read back.
    Unreadable(String),
    /// The file is not there.
    FileMissing,
    /// The file belongs to nothing that is there.
    Orphan,
    /// The name is not ours.
    Alien,
    /// A partition of no topic that there is.
    Unowned,
    /// The disk does not answer.
    Io(String),
}

impl Problem {
    /// The kind of problem, for programs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Batch(_) => "batch",
            Self::Differs { .. } => "differs",
            Self::Unlisted { .. } => "unlisted",
            Self::RecordsMissing => "records-missing",
            Self::Behind { .. } => "bytes-behind",
            Self::LogEnds { .. } => "log-ends",
            Self::Unreadable(_) => "unreadable",
            Self::FileMissing => "file-missing",
            Self::Orphan => "orphan",
            Self::Alien => "alien",
            Self::Unowned => "unowned",
            Self::Io(_) => "io",
        }
    }

    /// What was expected and what was found, where both have a name.
    #[must_use]
    pub fn expected_and_found(&self) -> Option<(String, String)> {
        match self {
            Self::Differs { expected, found, .. } => Some((expected.clone(), found.clone())),
            Self::Batch(reason) | Self::LogEnds { reason, .. } => expected_and_found(reason),
            _ => None,
        }
    }
}

fn expected_and_found(reason: &BatchError) -> Option<(String, String)> {
    match reason {
        BatchError::Crc { stored, computed } => Some((format!("{stored:#010x}"), format!("{computed:#010x}"))),
        BatchError::Field { found, allowed, .. } => Some(((*allowed).to_owned(), found.to_string())),
        BatchError::UnsupportedMagic { found } => Some(("2".to_owned(), found.to_string())),
        BatchError::Truncated { needed_bytes, found_bytes } => {
            Some((format!("{needed_bytes} bytes"), format!("{found_bytes} bytes")))
        }
        _ => None,
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch(reason) => write!(f, "no batch: {reason}"),
            Self::Differs { field, expected, found } => write!(f, "{field} is {found}, expected is {expected}"),
            Self::Unlisted { places, offsets } => {
                write!(f, "from here on {places} more places, of {offsets} offsets, which are not listed")
            }
            Self::RecordsMissing => f.write_str("records are missing"),
            Self::Behind { size_bytes } => write!(f, "{size_bytes} bytes behind the last batch"),
            Self::LogEnds { size_bytes, reason } => {
                write!(f, "the log ends here, {size_bytes} bytes that were never flushed follow: {reason}")
            }
            Self::Unreadable(reason) => f.write_str(reason),
            Self::FileMissing => f.write_str("the file is missing"),
            Self::Orphan => f.write_str("belongs to no segment that is there; the next start removes it"),
            Self::Alien => f.write_str("the name is not one of ours; it is left alone"),
            Self::Unowned => f.write_str("no topic of the state journal owns it; it is left alone"),
            Self::Io(reason) => write!(f, "the disk does not answer: {reason}"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity.name(), self.file.display())?;
        if let Some(position) = self.position {
            write!(f, ", byte {position}")?;
        }
        match &self.offsets {
            Some(range) if range.to.since(range.from) == 1 => write!(f, ", offset {}", range.from)?,
            Some(range) => write!(f, ", offsets {}..{}", range.from, range.to)?,
            None => {}
        }
        write!(f, ": {}", self.problem)
    }
}
