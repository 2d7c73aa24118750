//! What the commands on a data directory share: opening it, naming partitions, telling how far they are.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tripline_storage::error::OpenStoreError;
use tripline_storage::fs::OsFs;
use tripline_storage::offline::{DataDirectory, Finding, Survey};

use super::failure::Failure;
use crate::broker::offline::JournalView;

/// A data directory that no broker works in, with the names of its topics.
pub(super) struct Opened {
    pub(super) directory: DataDirectory,
    pub(super) survey: Survey,
    pub(super) journal: JournalView,
}

impl Opened {
    pub(super) fn look(root: &Path) -> Result<Self, Failure> {
        Self::with(DataDirectory::look(Arc::new(OsFs), root).map_err(refused)?)
    }

    pub(super) fn change(root: &Path) -> Result<Self, Failure> {
        Self::with(DataDirectory::change(Arc::new(OsFs), root).map_err(refused)?)
    }

    fn with(directory: DataDirectory) -> Result<Self, Failure> {
        let at = |error: std::io::Error| Failure::new(format!("{}: {error}", directory.root().display()));
        let survey = directory.survey().map_err(at)?;
        let journal = JournalView::read(&directory, &survey).map_err(at)?;
        Ok(Self { directory, survey, journal })
    }

    /// A finding for people.
    pub(super) fn text_of(&self, finding: &Finding) -> String {
        match finding.partition {
            Some(id) => format!("{} [{}]", finding, self.journal.name_of(id)),
            None => finding.to_string(),
        }
    }

    /// A finding for programs.
    pub(super) fn json_of(&self, finding: &Finding) -> Value {
        let id = finding.partition;
        let topic = id.and_then(|id| self.journal.topics.get(&id.topic)).map(|topic| topic.name.clone());
        let (expected, found) = finding.problem.expected_and_found().unzip();
        json!({
            "severity": finding.severity.name(),
            "problem": finding.problem.name(),
            "topic": topic,
            "topic_id": id.map(|id| id.topic.to_string()),
            "partition": id.map(|id| id.partition),
            "file": finding.file,
            "position": finding.position,
            "offsets": finding.offsets.map(|range| json!({ "from": range.from.get(), "to": range.to.get() })),
            "expected": expected,
            "found": found,
            "text": finding.problem.to_string(),
        })
    }
}

fn refused(error: OpenStoreError) -> Failure {
    match &error {
        OpenStoreError::Foreign { .. } => Failure::wrong_use(error.to_string()),
        OpenStoreError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::NotFound => {
            Failure::wrong_use(error.to_string())
        }
        _ => Failure::new(error.to_string()),
    }
}

/// Bytes for people.
pub(super) fn bytes(count: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, bits)| count >> bits > 0) {
        Some((unit, bits)) => format!("{:.1} {unit}", count as f64 / (1_u64 << bits) as f64),
        None => format!("{count} B"),
    }
}

/// A line on standard error that says how far long work is, while a person looks on.
pub(super) struct ProgressLine {
    what: &'static str,
    shown: bool,
    next: Option<Instant>,
}

impl ProgressLine {
    const INTERVAL: Duration = Duration::from_millis(200);

    pub(super) fn new(what: &'static str, json: bool) -> Self {
        let is_watched = !json && std::io::stderr().is_terminal();
        Self { what, shown: false, next: is_watched.then(|| Instant::now() + Self::INTERVAL) }
    }

    pub(super) fn show(&mut self, done_bytes: u64, total_bytes: u64) {
        let now = Instant::now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = Some(now + Self::INTERVAL);
        self.shown = true;
        let percent = (done_bytes.saturating_mul(100)).checked_div(total_bytes).unwrap_or(100).min(100);
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "\r\x1b[K{}: {percent} % of {}", self.what, bytes(total_bytes));
        let _ = stderr.flush();
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// All log bytes of a directory, for a progress line.
pub(super) fn log_bytes(opened: &Opened) -> u64 {
    let logs = opened.survey.partitions.iter().flat_map(|partition| opened.directory.log_files(partition));
    logs.flatten().filter_map(|log: PathBuf| std::fs::metadata(log).ok()).map(|metadata| metadata.len()).sum()
}
