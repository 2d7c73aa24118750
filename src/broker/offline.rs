//! What the state journal says, read without a broker: the names of topics, and records of its own that do not read
//! back.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use tripline_storage::batch::{BatchLimits, BatchView};
use tripline_storage::fs::OsFs;
use tripline_storage::offline::{DataDirectory, Finding, LogPiece, Problem, Severity, Survey, dump_log};
use tripline_storage::partition::OffsetRange;
use tripline_storage::store::STATE_PARTITION;
use tripline_storage::{Offset, PartitionId};
use uuid::Uuid;

use super::record::{JournalRecord, TopicCreated};
use super::state::State;

/// The state journal, as far as it reads back.
#[derive(Debug, Default)]
pub struct JournalView {
    /// The topics that a start would open, by id.
    pub topics: BTreeMap<Uuid, TopicCreated>,
    /// Records that do not decode. Damage to the bytes is found with that of all logs.
    pub findings: Vec<Finding>,
}

impl JournalView {
    /// Reads the journal in `directory`.
    ///
    /// # Errors
    /// The disk does not answer.
    pub fn read(directory: &DataDirectory, survey: &Survey) -> io::Result<Self> {
        let mut reading = Reading { state: State::default(), findings: Vec::new() };
        let journal = survey.partitions.iter().find(|partition| partition.id == STATE_PARTITION);
        for log in journal.map_or(Ok(Vec::new()), |partition| directory.log_files(partition))? {
            let file = log.strip_prefix(directory.root()).unwrap_or(&log).to_owned();
            dump_log(&OsFs, &log, &mut |piece| {
                if let LogPiece::Batch { position, view, crc: Ok(()) } = piece {
                    reading.batch(&file, position, &view);
                }
                true
            })?;
        }
        let topics = reading.state.topics.into_iter().collect();
        Ok(Self { topics, findings: reading.findings })
    }

    /// The name of a partition for people: topic and number, the topic's id where the journal does not know it.
    #[must_use]
    pub fn name_of(&self, id: PartitionId) -> String {
        if id == STATE_PARTITION {
            return "state journal".to_owned();
        }
        let topic = self.topics.get(&id.topic).map_or_else(|| id.topic.to_string(), |topic| topic.name.clone());
        format!("{topic}/{}", id.partition)
    }

    /// Where journal and directories do not agree: partitions without a directory, directories without a topic.
    #[must_use]
    pub fn compare(&self, survey: &Survey) -> Vec<Finding> {
        let mut findings = Vec::new();
        for topic in self.topics.values() {
            for partition in 0..topic.partitions {
                let id = PartitionId { topic: topic.id, partition };
                if !survey.partitions.iter().any(|found| found.id == id) {
                    let file = PathBuf::from(format!("topics/{}/{partition}", topic.id));
                    findings.push(finding(Severity::Damage, Some(id), file, Problem::FileMissing));
                }
            }
        }
        let is_owned = |id: PartitionId| {
            id == STATE_PARTITION || self.topics.get(&id.topic).is_some_and(|topic| id.partition < topic.partitions)
        };
        let unowned = survey.partitions.iter().filter(|partition| !is_owned(partition.id));
        findings.extend(
            unowned.map(|partition| {
                finding(Severity::Notice, Some(partition.id), partition.path.clone(), Problem::Unowned)
            }),
        );
        findings
    }
}

fn finding(severity: Severity, partition: Option<PartitionId>, file: PathBuf, problem: Problem) -> Finding {
    Finding { severity, partition, file, position: None, offsets: None, problem }
}

struct Reading {
    state: State,
    findings: Vec<Finding>,
}

impl Reading {
    fn batch(&mut self, file: &Path, position: u64, view: &BatchView<'_>) {
        // One that does not unpack is found with the damage of all logs.
        let Ok(records) = view.records(&BatchLimits::default()) else { return };
        for record in records.iter().map_while(Result::ok) {
            match JournalRecord::decode(record.value().unwrap_or_default()) {
                Ok(decoded) => self.state.apply(&decoded),
                Err(cause) => self.wrong(file, position, record.offset(), &cause.to_string()),
            }
        }
    }

    fn wrong(&mut self, file: &Path, position: u64, offset: Offset, reason: &str) {
        let offsets = Some(OffsetRange { from: offset, to: offset.next() });
        let problem = Problem::Unreadable(format!("a start would refuse this: {reason}"));
        let file = file.to_owned();
        self.findings.push(Finding {
            position: Some(position),
            offsets,
            ..finding(Severity::Damage, Some(STATE_PARTITION), file, problem)
        });
    }
}
