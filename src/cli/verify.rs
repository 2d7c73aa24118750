//! `tripline verify`: every byte of a data directory, offline and read-only.

use std::path::PathBuf;

use serde_json::json;
use tripline_storage::offline::{Finding, Observer, Severity, VerifySummary};

use super::failure::Failure;
use super::offline::{Opened, ProgressLine, bytes};
use super::output::Output;

/// Findings that are listed; of more only the numbers are told.
const LISTED_MAX: usize = 10_000;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Reads every file, changes none. Refuses a directory that a broker works in; several may look at the same time.
  damage   records are lost or not what was written
  defect   a file that can be made anew, or an end that was never flushed: no promised record is lost
  notice   worth knowing, nothing is wrong
Exit code 0: no damage and no defect. 1: something was found, or the directory is in use. 2: no data directory.

Examples:
  tripline verify tripline-data
  tripline verify tripline-data --json | jq '.findings[] | select(.severity == \"damage\")'")]
pub(super) struct VerifyArgs {
    /// The data directory.
    directory: PathBuf,
}

struct Collector {
    found: Vec<Finding>,
    line: ProgressLine,
}

impl Observer for Collector {
    fn found(&mut self, finding: Finding) {
        if self.found.len() < LISTED_MAX {
            self.found.push(finding);
        }
    }

    fn progress(&mut self, done_bytes: u64, total_bytes: u64) {
        self.line.show(done_bytes, total_bytes);
    }
}

pub(super) fn run(args: &VerifyArgs, output: Output) -> Result<(), Failure> {
    let opened = Opened::look(&args.directory)?;
    let mut collector = Collector { found: Vec::new(), line: ProgressLine::new("verifying", output.json) };
    let verified = opened.directory.verify(&mut collector);
    let Collector { mut found, line } = collector;
    drop(line);
    let mut summary = verified.map_err(|error| Failure::new(format!("{}: {error}", args.directory.display())))?;
    let beside = opened.journal.findings.iter().cloned().chain(opened.journal.compare(&opened.survey));
    for finding in beside {
        match finding.severity {
            Severity::Damage => summary.damage += 1,
            Severity::Defect => summary.defects += 1,
            Severity::Notice => summary.notices += 1,
        }
        found.push(finding);
    }
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    show(&opened, &summary, &found, output)?;
    if summary.is_good() {
        return Ok(());
    }
    let VerifySummary { damage, defects, .. } = summary;
    let directory = args.directory.display();
    let message = format!(
        "{damage} damaged place(s), {defects} defect(s); `tripline repair {directory}` shows what can be mended"
    );
    Err(Failure::new(message))
}

fn show(opened: &Opened, summary: &VerifySummary, found: &[Finding], output: Output) -> Result<(), Failure> {
    let VerifySummary { partitions, segments, batches, records, log_bytes, damage, defects, notices, .. } = summary;
    let findings: Vec<_> = found.iter().map(|finding| opened.json_of(finding)).collect();
    let answer = json!({
        "directory": opened.directory.root(),
        "partitions": partitions,
        "segments": segments,
        "batches": batches,
        "records": records,
        "log_bytes": log_bytes,
        "damage": damage,
        "defects": defects,
        "notices": notices,
        "good": summary.is_good(),
        "findings": findings,
    });
    output.show(&answer, |_| {
        let verdict = match (summary.is_good(), *damage) {
            (true, _) => "all good",
            (false, 0) => "defects, no record is lost",
            (false, _) => "damaged",
        };
        let mut text = String::new();
        found.iter().for_each(|finding| text.push_str(&format!("{}\n", opened.text_of(finding))));
        text + &format!(
            "{partitions} partitions, {segments} segments, {batches} batches, {records} records, {}: {verdict}\n",
            bytes(*log_bytes)
        )
    })
}
