//! Damage of every kind in files of every kind: verification tells it, repair mends it, the broker serves the rest.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests play the user and the operating system")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::*;
use tripline_storage::batch::{BatchBuilder, BatchLimits, BatchOptions, BatchView, Batches, NewRecord};
use tripline_storage::config::CompactionConfig;
use tripline_storage::error::{OpenStoreError, ReadError};
use tripline_storage::fs::sim::{Call, Fault};
use tripline_storage::fs::{OsFs, SimFs};
use tripline_storage::offline::{DataDirectory, Finding, Observer, RepairPlan, Severity, VerifySummary};
use tripline_storage::partition::OffsetRange;
use tripline_storage::{LogConfig, Offset, Partition, Store, StoreConfig};
use uuid::Uuid;

const RECORDS: u64 = 150;

#[derive(Default)]
struct Findings {
    found: Vec<Finding>,
    progress: (u64, u64),
}

impl Observer for Findings {
    fn found(&mut self, finding: Finding) {
        self.found.push(finding);
    }

    fn progress(&mut self, done_bytes: u64, total_bytes: u64) {
        self.progress = (done_bytes, total_bytes);
    }
}

impl Findings {
    /// Without notices.
    fn bad(&self) -> Vec<&Finding> {
        self.found.iter().filter(|finding| finding.severity > Severity::Notice).collect()
    }

    /// The one that is no notice.
    fn only(&self) -> &Finding {
        let bad = self.bad();
        assert_eq!(bad.len(), 1, "{:#?}", self.found);
        bad[0]
    }
}

fn verify(root: &Path) -> (VerifySummary, Findings) {
    let before = content(root);
    let directory = DataDirectory::look(Arc::new(OsFs), root).unwrap();
    let mut findings = Findings::default();
    let summary = directory.verify(&mut findings).unwrap();
    assert!(content(root) == before, "verification changes nothing");
    let count = |severity| findings.found.iter().filter(|finding| finding.severity == severity).count() as u64;
    assert_eq!(
        (summary.damage, summary.defects, summary.notices),
        (count(Severity::Damage), count(Severity::Defect), count(Severity::Notice))
    );
    (summary, findings)
}

fn plan(root: &Path) -> RepairPlan {
    let before = content(root);
    let directory = DataDirectory::look(Arc::new(OsFs), root).unwrap();
    let plan = directory.plan_repair(Uuid::from_u128(99), &mut |_| {}).unwrap();
    assert!(content(root) == before, "planning changes nothing");
    plan
}

/// Repairs, and sees that a second repair finds nothing to do.
fn repair(root: &Path) -> RepairPlan {
    let directory = DataDirectory::change(Arc::new(OsFs), root).unwrap();
    let plan = directory.plan_repair(Uuid::from_u128(99), &mut |_| {}).unwrap();
    let mut told = 0;
    directory.repair(&plan, &mut |_| told += 1).unwrap();
    assert_eq!(told, plan.steps.len());
    let again = directory.plan_repair(Uuid::from_u128(98), &mut |_| {}).unwrap();
    assert!(again.steps.is_empty(), "{again:#?}");
    plan
}

/// Every file below `root` with its bytes.
fn content(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// A directory in which everything is flushed and closed: several sealed segments and an active one, with producers.
fn whole() -> tempfile::TempDir {
    whole_of(RECORDS)
}

fn whole_of(records: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, _) = open(&store, small_segments());
    append_records(&partition, 0, records / 2);
    let batch = producer_batch(records / 2, 3, 7, 0);
    partition.append(&batch, NOW_MS).unwrap();
    append_records(&partition, records / 2 + 3, records);
    store.close();
    dir
}

fn partition_dir(root: &Path) -> PathBuf {
    root.join(format!("topics/{TOPIC}/0"))
}

fn files(root: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(partition_dir(root)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    files
}

fn base_of(path: &Path) -> i64 {
    path.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn flip(path: &Path, at: usize) {
    change(path, |bytes| bytes[at] ^= 0x10);
}

/// The batches of a log file: position, size, first offset, one after the last.
fn batches(path: &Path) -> Vec<(usize, usize, i64, i64)> {
    let bytes = fs::read(path).unwrap();
    let (mut found, mut at) = (Vec::new(), 0);
    for view in Batches::of(&bytes).map_while(Result::ok) {
        let (header, size) = (view.header(), view.bytes().len());
        found.push((at, size, header.base_offset.get(), header.next_offset().get()));
        at += size;
    }
    found
}

fn range(from: i64, to: i64) -> Option<OffsetRange> {
    Some(OffsetRange { from: offset(from), to: offset(to) })
}

/// The broker serves every record but those of `lost`.
fn assert_serves_all_but(root: &Path, lost: std::ops::Range<i64>) {
    let store = open_store(root);
    let (partition, _) = open(&store, small_segments());
    assert_eq!(partition.tail(), offset(RECORDS as i64));
    let (mut at, mut found) = (partition.log_start(), Vec::new());
    while at < partition.tail() {
        match partition.read_blocking(at, 1 << 20) {
            Ok(outcome) => {
                found.extend(numbers(&outcome.bytes).into_iter().filter(|(record, _)| *record >= at.get()));
                at = outcome.next;
            }
            Err(ReadError::Damaged { to, .. }) => at = to,
            Err(other) => panic!("{other}"),
        }
    }
    let expected: Vec<_> = (0..RECORDS as i64).filter(|n| !lost.contains(n)).map(|n| (n, n as u64)).collect();
    assert_eq!(found, expected);
    store.close();
}

/// Repairs; then nothing is found any more, and readers go over what was lost as over records that were compacted away.
fn assert_mended(root: &Path, lost: std::ops::Range<i64>) -> RepairPlan {
    let plan = repair(root);
    let told: i64 = plan.lost.iter().map(|lost| lost.offsets.to.get() - lost.offsets.from.get()).sum();
    assert_eq!(told, lost.end - lost.start, "{plan:#?}");
    let (summary, findings) = verify(root);
    // The side files of a segment that is gone go with the next start.
    let is_known = findings.found.iter().all(|finding| finding.problem.name() == "orphan");
    assert!(summary.is_good() && is_known, "{:#?}", findings.found);
    assert_serves_all_but(root, lost);
    let store = open_store(root);
    let (partition, report) = open(&store, small_segments());
    assert!(report.damaged.is_empty() && report.cut.is_none(), "{report:?}");
    let mut at = partition.log_start();
    while at < partition.tail() {
        at = partition.read_blocking(at, 1 << 20).unwrap().next;
    }
    assert_eq!(partition.offset_for_time(NOW_MS).unwrap().map(|(found, _)| found >= partition.log_start()), Some(true));
    append_records(&partition, RECORDS, RECORDS + 3);
    store.close();
    plan
}

#[test]
fn a_whole_directory_has_no_findings_and_nothing_to_repair() {
    let dir = whole();
    let (summary, findings) = verify(dir.path());
    assert!(findings.found.is_empty(), "{:#?}", findings.found);
    assert!(summary.is_good());
    assert_eq!((summary.partitions, summary.records), (2, RECORDS));
    assert_eq!(summary.segments, files(dir.path(), "log").len() as u64);
    assert!(summary.segments > 3 && findings.progress.0 == findings.progress.1 && findings.progress.1 > 0);
    let plan = plan(dir.path());
    assert!(plan.steps.is_empty() && plan.lost.is_empty() && plan.refused.is_empty(), "{plan:#?}");
}

#[test]
fn a_killed_broker_leaves_notices_at_the_most() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open_store(dir.path());
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, 60);
        partition.flush().unwrap();
        append_records(&partition, 60, RECORDS);
        // Dropped without close: the reserved space stays, rolled segments have no seals.
    }
    let (summary, findings) = verify(dir.path());
    assert!(summary.is_good(), "{:#?}", findings.found);
    assert_eq!(summary.records, RECORDS);
    assert_serves_all_but(dir.path(), 0..0);
    // After the recovery what is missing beside sealed segments can be made.
    repair(dir.path());
    let (summary, findings) = verify(dir.path());
    assert!(summary.is_good() && findings.found.is_empty(), "{:#?}", findings.found);
    assert_serves_all_but(dir.path(), 0..0);
}

/// Header fields that no checksum of the batch covers, with a byte of each.
const UNCOVERED: [(&str, usize); 5] =
    [("base_offset", 6), ("batch_length", 10), ("leader_epoch", 14), ("magic", 16), ("crc", 18)];

#[test]
fn a_changed_header_of_a_sealed_segment_is_told_with_both_values_and_put_back() {
    for (field, at) in UNCOVERED {
        for which in [0, 2, usize::MAX] {
            let dir = whole();
            let log = files(dir.path(), "log").remove(1);
            let batches = batches(&log);
            let (position, _, from, to) = batches[which.min(batches.len() - 1)];
            let right = fs::read(&log).unwrap();
            flip(&log, position + at);
            let (_, findings) = verify(dir.path());
            let finding = findings.only();
            assert_eq!(finding.severity, Severity::Damage);
            assert_eq!(dir.path().join(&finding.file), log);
            assert_eq!((finding.position, finding.offsets), (Some(position as u64), range(from, to)), "{finding}");
            let (expected, found) = finding.problem.expected_and_found().unwrap();
            assert!(finding.to_string().contains(field) && expected != found, "{finding}");
            let plan = repair(dir.path());
            assert!(plan.lost.is_empty(), "{plan:#?}");
            assert_eq!(fs::read(&log).unwrap(), right, "{field}: byte by byte as it was");
            let (summary, findings) = verify(dir.path());
            assert!(summary.is_good() && findings.found.is_empty(), "{:#?}", findings.found);
            assert_serves_all_but(dir.path(), 0..0);
        }
    }
}

#[test]
fn changed_records_are_told_by_their_batch_and_the_rest_is_served() {
    let dir = whole();
    let log = files(dir.path(), "log").remove(1);
    let (position, size, from, to) = batches(&log)[1];
    flip(&log, position + size - 3);
    let (_, findings) = verify(dir.path());
    let finding = findings.only();
    assert_eq!((finding.severity, finding.problem.name()), (Severity::Damage, "batch"));
    assert_eq!((finding.position, finding.offsets), (Some(position as u64), range(from, to)));
    assert!(finding.to_string().contains("CRC-32C"), "{finding}");
    assert_serves_all_but(dir.path(), from..to);
    let planted = fs::read(&log).unwrap();
    assert_mended(dir.path(), from..to);
    assert!(content(&dir.path().join("quarantine")).values().any(|kept| *kept == planted), "the old file is kept");
}

#[test]
fn damage_of_several_kinds_in_one_segment_is_mended_together() {
    let dir = whole();
    let log = files(dir.path(), "log").remove(1);
    let batches = batches(&log);
    let (position, size, from, to) = batches[1];
    flip(&log, position + size - 3);
    flip(&log, batches[3].0 + 6);
    change(&log, |bytes| bytes.extend([9; 50]));
    fs::remove_file(log.with_extension("seal")).unwrap();
    flip(&log.with_extension("index"), 20);
    fs::remove_file(log.with_extension("snapshot")).unwrap();
    assert!(verify(dir.path()).0.damage >= 2);
    assert_mended(dir.path(), from..to);
}

#[test]
fn a_producer_goes_on_after_the_segment_with_its_batches_was_lost_and_the_rest_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let mut sequence = 0;
    {
        let store = open_store(dir.path());
        let (partition, _) = open(&store, small_segments());
        while files(dir.path(), "log").len() < 4 {
            let first = partition.tail().get().cast_unsigned();
            if files(dir.path(), "log").len() < 3 {
                partition.append(&producer_batch(first, 3, 7, sequence), NOW_MS).unwrap();
                sequence += 3;
            } else {
                partition.append(&batch(first, 3), NOW_MS).unwrap();
            }
        }
        partition.close().unwrap();
    }
    let logs = files(dir.path(), "log");
    // Of what it appended behind the first segment nothing tells but a batch, which is gone.
    for log in &logs[1..] {
        let _ = fs::remove_file(log.with_extension("snapshot"));
    }
    fs::remove_file(&logs[2]).unwrap();
    repair(dir.path());
    assert!(logs[3].with_extension("snapshot").exists(), "it was made anew");
    let store = open_store(dir.path());
    let (partition, _) = open(&store, small_segments());
    let first = partition.tail().get().cast_unsigned();
    partition.append(&producer_batch(first, 3, 7, sequence), NOW_MS).unwrap();
}

#[test]
fn a_healed_segment_without_seal_and_index_gets_both() {
    let dir = whole();
    let log = files(dir.path(), "log").remove(1);
    let right = fs::read(&log).unwrap();
    flip(&log, batches(&log)[1].0 + 10);
    for extension in ["seal", "index"] {
        fs::remove_file(log.with_extension(extension)).unwrap();
    }
    assert_mended(dir.path(), 0..0);
    assert_eq!(fs::read(&log).unwrap(), right);
}

#[test]
fn an_interrupted_repair_keeps_the_broker_out_until_it_is_done() {
    let dir = whole();
    fs::write(dir.path().join("REPAIRING"), "x").unwrap();
    let refused = Store::open(Arc::new(OsFs), dir.path(), StoreConfig::default(), Uuid::nil()).unwrap_err();
    assert!(refused.to_string().contains("tripline repair"), "{refused}");
    assert_eq!(verify(dir.path()).1.only().file.to_str(), Some("REPAIRING"));
    assert_mended(dir.path(), 0..0);
}

#[test]
fn a_side_file_that_does_not_read_back_or_belongs_elsewhere_is_told_and_made_anew() {
    for extension in ["seal", "index", "snapshot"] {
        for plant in ["flip", "swap", "empty", "long"] {
            let dir = whole();
            let (file, other) = (files(dir.path(), extension).remove(1), files(dir.path(), extension).remove(2));
            let right = fs::read(&file).unwrap();
            match plant {
                "flip" => flip(&file, 12),
                "swap" => fs::write(&file, fs::read(other).unwrap()).unwrap(),
                "empty" => fs::write(&file, []).unwrap(),
                _ => fs::write(&file, vec![7; 1 << 20]).unwrap(),
            }
            let (_, findings) = verify(dir.path());
            let finding = findings.only();
            assert_eq!(finding.severity, Severity::Defect, "{extension} {plant}");
            assert_eq!(dir.path().join(&finding.file), file, "{extension} {plant}");
            let planted = fs::read(&file).unwrap();
            let plan = repair(dir.path());
            assert_eq!(plan.steps.len(), 1, "{plan:#?}");
            let kept = content(&dir.path().join("quarantine"));
            assert_eq!(kept.values().collect::<Vec<_>>(), [&planted], "what was replaced is kept");
            if extension != "seal" || plant == "swap" {
                // Times of a lost seal are estimates.
                assert!(extension == "snapshot" || fs::read(&file).unwrap() == right || extension == "index");
            }
            let (summary, findings) = verify(dir.path());
            assert!(summary.is_good() && findings.found.is_empty(), "{extension} {plant} {:#?}", findings.found);
            assert_serves_all_but(dir.path(), 0..0);
        }
    }
}

#[test]
fn a_side_file_that_is_gone_is_a_notice_and_made_anew() {
    for extension in ["seal", "index", "snapshot"] {
        let dir = whole();
        let file = files(dir.path(), extension).remove(1);
        fs::remove_file(&file).unwrap();
        let (summary, findings) = verify(dir.path());
        assert!(summary.is_good());
        assert_eq!(findings.found.len(), 1);
        assert_eq!(findings.found[0].problem.name(), "file-missing");
        repair(dir.path());
        assert!(file.exists());
        assert!(verify(dir.path()).1.found.is_empty());
    }
}

#[test]
fn an_index_that_reads_back_but_points_elsewhere_is_told() {
    let dir = whole();
    // A segment of its own bytes, made of batches of other sizes.
    let other = tempfile::tempdir().unwrap();
    let store = open_store(other.path());
    let (partition, _) = open(&store, small_segments());
    for n in 0..RECORDS {
        partition.append(&batch(n, 1), NOW_MS).unwrap();
    }
    store.close();
    let (ours, theirs) = (files(dir.path(), "index").remove(0), files(other.path(), "index").remove(0));
    fs::copy(theirs, &ours).unwrap();
    let (_, findings) = verify(dir.path());
    let finding = findings.only();
    assert_eq!((finding.severity, finding.problem.name()), (Severity::Defect, "differs"), "{finding}");
    assert!(finding.to_string().contains("an entry's position"), "{finding}");
    repair(dir.path());
    assert!(verify(dir.path()).1.found.is_empty());
}

#[test]
fn bytes_behind_a_sealed_segment_are_told_and_moved_away() {
    for zeros in [true, false] {
        let dir = whole();
        let log = files(dir.path(), "log").remove(0);
        let right = fs::read(&log).unwrap();
        change(&log, |bytes| bytes.extend([u8::from(!zeros); 100]));
        let (_, findings) = verify(dir.path());
        let finding = findings.only();
        assert_eq!((finding.severity, finding.problem.name()), (Severity::Defect, "bytes-behind"));
        assert_eq!(finding.position, Some(right.len() as u64));
        repair(dir.path());
        assert_eq!(fs::read(&log).unwrap(), right);
        assert!(verify(dir.path()).1.found.is_empty());
        assert_serves_all_but(dir.path(), 0..0);
    }
}

#[test]
fn a_shortened_segment_is_told_by_the_offsets_that_are_gone() {
    let dir = whole();
    let log = files(dir.path(), "log").remove(1);
    let (position, _, from, _) = batches(&log)[2];
    let next = base_of(&files(dir.path(), "log")[2]);
    change(&log, |bytes| bytes.truncate(position));
    let (_, findings) = verify(dir.path());
    let finding = findings.only();
    assert_eq!((finding.severity, finding.problem.name()), (Severity::Damage, "records-missing"));
    assert_eq!((finding.position, finding.offsets), (Some(position as u64), range(from, next)));
    assert_serves_all_but(dir.path(), from..next);
    assert_mended(dir.path(), from..next);
}

#[test]
fn segments_that_are_gone_are_told_by_their_offsets() {
    let count = files(whole().path(), "log").len();
    for which in [1, count - 1] {
        let dir = whole();
        let logs = files(dir.path(), "log");
        let from = base_of(&logs[which]);
        let to = logs.get(which + 1).map_or(RECORDS as i64, |next| base_of(next));
        fs::remove_file(&logs[which]).unwrap();
        let (_, findings) = verify(dir.path());
        let damage: Vec<_> = findings.found.iter().filter(|f| f.severity == Severity::Damage).collect();
        assert_eq!(damage.len(), 1, "{:#?}", findings.found);
        assert_eq!((damage[0].problem.name(), damage[0].offsets), ("records-missing", range(from, to)));
        assert_eq!(plan(dir.path()).lost.len(), 1);
        // Before a start has looked at it, and after.
        if which == 1 {
            assert_serves_all_but(dir.path(), from..to);
        }
        assert_mended(dir.path(), from..to);
    }
    let dir = whole();
    let logs = files(dir.path(), "log");
    fs::remove_file(&logs[0]).unwrap();
    let (_, findings) = verify(dir.path());
    let finding = findings.only();
    assert_eq!((finding.problem.name(), finding.offsets), ("records-missing", range(0, base_of(&logs[1]))));
    assert_mended(dir.path(), 0..base_of(&logs[1]));
    let dir = whole();
    files(dir.path(), "log").iter().for_each(|log| fs::remove_file(log).unwrap());
    assert_eq!(verify(dir.path()).1.bad()[0].offsets, range(0, RECORDS as i64));
    repair(dir.path());
    assert!(verify(dir.path()).0.is_good());
    let store = open_store(dir.path());
    let (partition, _) = open(&store, small_segments());
    assert_eq!((partition.log_start(), partition.tail()), (offset(RECORDS as i64), offset(RECORDS as i64)));
}

#[test]
fn a_damaged_or_lost_flushed_offset_is_told_and_written_anew() {
    let dir = whole();
    let file = partition_dir(dir.path()).join("flushed");
    flip(&file, 512 + 9);
    let (_, findings) = verify(dir.path());
    let finding = findings.only();
    assert_eq!((finding.severity, finding.position), (Severity::Defect, Some(512)), "{finding}");
    repair(dir.path());
    assert!(verify(dir.path()).1.found.is_empty());
    fs::remove_file(&file).unwrap();
    let (_, findings) = verify(dir.path());
    assert_eq!((findings.only().severity, findings.only().problem.name()), (Severity::Defect, "file-missing"));
    repair(dir.path());
    assert!(verify(dir.path()).1.found.is_empty());
    assert_serves_all_but(dir.path(), 0..0);
}

#[test]
fn damage_in_the_flushed_part_of_the_active_segment_is_damage_and_above_it_ends_the_log() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open_store(dir.path());
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, 9);
        partition.flush().unwrap();
        append_records(&partition, 9, 15);
    }
    let log = files(dir.path(), "log").remove(0);
    let batches = batches(&log);
    let right = fs::read(&log).unwrap();
    let (position, size, from, to) = batches[1];
    flip(&log, position + size - 3);
    let (_, findings) = verify(dir.path());
    let finding = findings.only();
    assert_eq!((finding.severity, finding.offsets), (Severity::Damage, range(from, to)), "{finding}");
    let damaged = fs::read(&log).unwrap();
    let files_before = content(dir.path());
    let plan = repair(dir.path());
    assert_eq!(plan.lost[0].offsets, range(from, to).unwrap());
    assert!(verify(dir.path()).1.found.is_empty());
    {
        let store = open_store(dir.path());
        let (partition, report) = open(&store, small_segments());
        assert!(report.cut.is_none() && report.damaged.is_empty(), "{report:?}");
        let found: Vec<_> = read_all(&partition, 0, 1 << 20).into_iter().map(|(record, _)| record).collect();
        assert_eq!(found, (0..15).filter(|n| !(from..to).contains(n)).collect::<Vec<_>>());
    }
    for path in content(dir.path()).into_keys().filter(|path| !files_before.contains_key(path)) {
        fs::remove_file(path).unwrap();
    }
    files_before.into_iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    assert_eq!(fs::read(&log).unwrap(), damaged);
    fs::write(&log, right).unwrap();
    let (position, size, from, _) = batches[3];
    flip(&log, position + size - 3);
    let (_, findings) = verify(dir.path());
    let finding = findings.only();
    assert_eq!((finding.severity, finding.problem.name()), (Severity::Defect, "log-ends"), "{finding}");
    assert_eq!(finding.position, Some(position as u64));
    let plan = repair(dir.path());
    assert!(plan.steps[0].what.contains(&format!("end the log at offset {from}")), "{plan:#?}");
    assert!(verify(dir.path()).0.is_good());
    let (_, partition) = {
        let store = open_store(dir.path());
        let (partition, _) = open(&store, small_segments());
        (store, partition)
    };
    assert_eq!(partition.tail(), offset(from));
}

/// Damages every other of `batches` of a log: most in their records, every tenth in its base offset, which its neighbours
/// tell. Answers the offsets that are lost, by batch.
fn damage_every_other(log: &Path, batches: &[(usize, usize, i64, i64)]) -> Vec<std::ops::Range<i64>> {
    let mut lost = Vec::new();
    change(log, |bytes| {
        for (which, &(position, size, from, to)) in batches.iter().skip(1).step_by(2).enumerate() {
            if which % 10 == 9 {
                bytes[position + 6] ^= 0x10;
            } else {
                bytes[position + size - 3] ^= 0x10;
                lost.push(from..to);
            }
        }
    });
    lost
}

#[test]
fn of_more_wrong_places_than_are_listed_each_is_mended_by_itself_and_what_lies_between_is_kept() {
    const PLACES: usize = 1_300;
    let config = LogConfig { segment_bytes: 16 << 20, ..small_segments() };
    for is_sealed in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let records = 3 * (2 * PLACES as u64 + 1);
        {
            let store = open_store(dir.path());
            let (partition, _) = open(&store, config);
            append_records(&partition, 0, records);
            if is_sealed {
                partition.set_config(small_segments());
                append_records(&partition, records, records + 3);
            }
            store.close();
        }
        let log = files(dir.path(), "log").remove(0);
        let lost = damage_every_other(&log, &batches(&log));
        if is_sealed {
            change(&log, |bytes| bytes.extend([9; 50]));
        }
        let damaged = fs::read(&log).unwrap();
        let (summary, findings) = verify(dir.path());
        assert_eq!(summary.damage, 1_001);
        let rest = findings.bad().into_iter().find(|finding| finding.problem.name() == "unlisted").unwrap();
        assert!(rest.to_string().contains("300 more places, of 900 offsets"), "{rest}");
        let plan = repair(dir.path());
        assert_eq!((plan.lost.len(), plan.lost_unlisted.places, plan.lost_unlisted.offsets), (900, 270, 810));
        assert!(plan.refused.is_empty() && plan.steps.len() < 5, "{} steps", plan.steps.len());
        let (summary, findings) = verify(dir.path());
        assert!(summary.is_good() && findings.found.is_empty(), "{:#?}", findings.found);
        let store = open_store(dir.path());
        let (partition, report) = open(&store, config);
        assert!(report.damaged.is_empty() && report.cut.is_none(), "{report:?}");
        let lost: BTreeSet<i64> = lost.into_iter().flatten().collect();
        let tail = records as i64 + if is_sealed { 3 } else { 0 };
        let expected: Vec<_> = (0..tail).filter(|n| !lost.contains(n)).map(|n| (n, n as u64)).collect();
        assert_eq!(read_all(&partition, 0, 1 << 20), expected, "sealed: {is_sealed}");
        assert!(content(&dir.path().join("quarantine")).values().any(|kept| *kept == damaged), "the old file is kept");
    }
}

/// Where a header has the last byte of its leader epoch.
const EPOCH_BYTE: usize = 15;

#[test]
fn an_epoch_that_is_blamed_behind_another_wrong_place_is_put_right_where_it_stands_among_many_places() {
    const PLACES: usize = 1_100;
    let config = LogConfig { segment_bytes: 16 << 20, ..small_segments() };
    for is_sealed in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let records = 3 * (2 * PLACES as u64 + 60);
        {
            let store = open_store(dir.path());
            let (partition, _) = open(&store, config);
            append_records(&partition, 0, records);
            if is_sealed {
                partition.set_config(small_segments());
                append_records(&partition, records, records + 3);
            }
            store.close();
        }
        let log = files(dir.path(), "log").remove(0);
        let before = fs::read(&log).unwrap();
        let found = batches(&log);
        let mut lost: BTreeSet<_> =
            damage_every_other(&log, &found[..2 * PLACES]).into_iter().flat_map(|range| range.into_iter()).collect();
        let behind = &found[2 * PLACES..];
        change(&log, |bytes| {
            // In front of a damaged batch, of a wrong base offset, of both, of an epoch that is wrong in turn, and of one
            // that is not there.
            for at in [3, 13, 23, 33, 43] {
                bytes[behind[at].0 + EPOCH_BYTE] ^= 8;
            }
            for (at, byte) in [(14, 6), (24, 6), (34, 6), (34, EPOCH_BYTE)] {
                bytes[behind[at].0 + byte] ^= 0x10;
            }
            for at in [4, 25] {
                bytes[behind[at].0 + behind[at].1 - 3] ^= 0x10;
            }
            bytes.drain(behind[44].0..behind[45].0);
        });
        lost.extend([4, 25, 44].into_iter().flat_map(|at: usize| behind[at].2..behind[at].3));
        repair(dir.path());
        let (summary, findings) = verify(dir.path());
        assert!(summary.is_good() && findings.found.is_empty(), "{:#?}", findings.found);
        let mended = fs::read(&log).unwrap();
        let mended_at: BTreeMap<_, _> =
            batches(&log).into_iter().map(|(at, size, from, _)| (from, (at, size))).collect();
        for (at, size, from, _) in found.into_iter().filter(|(_, _, from, _)| !lost.contains(from)) {
            let (mended_at, mended_size) = mended_at[&from];
            assert!(before[at..at + size] == mended[mended_at..mended_at + mended_size], "the batch at offset {from}");
        }
        let store = open_store(dir.path());
        let (partition, report) = open(&store, config);
        assert!(report.damaged.is_empty() && report.cut.is_none(), "{report:?}");
        let tail = records as i64 + if is_sealed { 3 } else { 0 };
        let expected: Vec<_> = (0..tail).filter(|n| !lost.contains(n)).map(|n| (n, n as u64)).collect();
        assert_eq!(read_all(&partition, 0, 1 << 20), expected, "sealed: {is_sealed}");
    }
}

#[test]
fn a_damaged_format_is_mended_from_what_the_file_tells() {
    type Plant = fn(&mut Vec<u8>);
    let cases: [(&str, Plant); 4] = [
        ("one bit was flipped", |bytes| bytes[50] ^= 1),
        ("one bit was flipped", |bytes| {
            let last = bytes.len() - 3;
            bytes[last] ^= 4;
        }),
        ("as far as the damaged file tells", |bytes| {
            let last = bytes.len() - 3;
            bytes.truncate(last);
        }),
        ("a new one", |bytes| bytes.fill(0)),
    ];
    for (how, plant) in cases {
        let dir = whole();
        let file = dir.path().join("FORMAT");
        let right = fs::read(&file).unwrap();
        change(&file, plant);
        let (_, findings) = verify(dir.path());
        let finding = findings.only();
        assert_eq!((finding.severity, finding.file.to_str()), (Severity::Damage, Some("FORMAT")));
        let plan = repair(dir.path());
        assert!(plan.steps[0].what.contains(how), "{how}: {plan:#?}");
        assert_eq!(fs::read(&file).unwrap() == right, how != "a new one");
        assert!(verify(dir.path()).1.found.is_empty());
        assert_serves_all_but(dir.path(), 0..0);
    }
    let dir = whole();
    fs::remove_file(dir.path().join("FORMAT")).unwrap();
    assert_eq!(verify(dir.path()).1.only().problem.name(), "file-missing");
    assert!(repair(dir.path()).steps[0].what.contains("nothing else holds it"));
    assert_serves_all_but(dir.path(), 0..0);
}

#[test]
fn a_lost_epoch_is_written_above_every_epoch_of_a_batch() {
    let dir = whole();
    for _ in 0..4 {
        drop(open_store(dir.path()));
    }
    let store = open_store(dir.path());
    let (partition, _) = open(&store, small_segments());
    let newest = store.leader_epoch();
    append_records(&partition, RECORDS, RECORDS + 3);
    store.close();
    drop((store, partition));
    let file = dir.path().join("EPOCH");
    let right = fs::read(&file).unwrap();
    flip(&file, 0);
    assert_eq!(verify(dir.path()).1.only().severity, Severity::Damage);
    assert!(repair(dir.path()).steps[0].what.contains("one bit"));
    assert_eq!(fs::read(&file).unwrap(), right);
    for plant in [&b"nonsense"[..], &b"1\ncrc32 06bf12fe\n"[..]] {
        fs::write(&file, plant).unwrap();
        assert_eq!(verify(dir.path()).1.only().file.to_str(), Some("EPOCH"));
        repair(dir.path());
        assert!(verify(dir.path()).1.found.is_empty());
        assert!(open_store(dir.path()).leader_epoch() > newest);
    }
    fs::remove_file(&file).unwrap();
    repair(dir.path());
    assert!(open_store(dir.path()).leader_epoch() > newest);
}

#[test]
fn alien_and_left_over_files_are_notices_and_left_alone() {
    let dir = whole();
    let aliens = ["notes.txt", "topics/readme", &format!("topics/{TOPIC}/zero"), &format!("topics/{TOPIC}/0/x.log")];
    for alien in aliens {
        fs::write(dir.path().join(alien), "mine").unwrap();
    }
    fs::write(partition_dir(dir.path()).join("00000000000000099999.seal"), "x").unwrap();
    fs::write(partition_dir(dir.path()).join("00000000000000099999.tmp"), "x").unwrap();
    let (summary, findings) = verify(dir.path());
    assert!(summary.is_good());
    let names: Vec<_> = findings.found.iter().map(|f| (f.problem.name(), f.file.to_str().unwrap())).collect();
    assert_eq!(names.iter().filter(|(name, _)| *name == "orphan").count(), 2, "{names:?}");
    for alien in aliens {
        assert!(names.contains(&("alien", alien)), "{alien}: {names:?}");
    }
    assert!(repair(dir.path()).steps.is_empty());
    assert!(aliens.iter().all(|alien| dir.path().join(alien).exists()));
}

#[test]
fn every_changed_byte_of_every_file_is_found() {
    let dir = whole_of(80);
    let root = dir.path();
    let active = files(root, "log").pop().unwrap();
    let active_headers: Vec<usize> = batches(&active).iter().map(|(position, ..)| *position).collect();
    let mut looked_at = 0;
    for (path, bytes) in content(root) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name == "LOCK" {
            continue;
        }
        for at in 0..bytes.len() {
            // What was never written holds nothing, and nothing vouches for the epochs of a segment that is not sealed.
            let is_unused = name == "flushed" && at % 512 >= 50;
            let is_epoch = path == active && active_headers.iter().any(|from| (from + 12..from + 16).contains(&at));
            if is_unused || is_epoch {
                continue;
            }
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, &damaged).unwrap();
            looked_at += 1;
            // A version beyond ours is a newer release's, as far as one can see.
            let Ok(directory) = DataDirectory::look(Arc::new(OsFs), root) else {
                assert_eq!(name, "FORMAT");
                continue;
            };
            let summary = directory.verify(&mut Findings::default()).unwrap();
            assert!(!summary.is_good(), "byte {at} of {}", path.display());
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert!(looked_at > 4_000, "{looked_at}");
    assert!(verify(root).1.found.is_empty());
}

#[test]
fn a_directory_in_use_is_refused_and_lookers_share() {
    let dir = whole();
    {
        let _store = open_store(dir.path());
        for refused in [
            DataDirectory::look(Arc::new(OsFs), dir.path()).unwrap_err(),
            DataDirectory::change(Arc::new(OsFs), dir.path()).unwrap_err(),
        ] {
            assert!(matches!(refused, OpenStoreError::InUse { .. }));
            assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        }
    }
    let one = DataDirectory::look(Arc::new(OsFs), dir.path()).unwrap();
    let two = DataDirectory::look(Arc::new(OsFs), dir.path()).unwrap();
    assert!(matches!(DataDirectory::change(Arc::new(OsFs), dir.path()), Err(OpenStoreError::InUse { .. })));
    drop((one, two));
    DataDirectory::change(Arc::new(OsFs), dir.path()).unwrap();
}

#[test]
fn other_directories_and_newer_ones_are_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    let refused = DataDirectory::change(Arc::new(OsFs), dir.path()).unwrap_err();
    assert!(matches!(refused, OpenStoreError::Foreign { .. }), "{refused}");
    assert!(matches!(DataDirectory::look(Arc::new(OsFs), &dir.path().join("none")), Err(OpenStoreError::Io { .. })));
    let dir = whole();
    change(&dir.path().join("FORMAT"), |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        *bytes = text.replace("version 1", "version 2").into_bytes();
    });
    let before = content(dir.path());
    for refused in [
        DataDirectory::look(Arc::new(OsFs), dir.path()).unwrap_err(),
        DataDirectory::change(Arc::new(OsFs), dir.path()).unwrap_err(),
    ] {
        assert!(matches!(refused, OpenStoreError::Newer { found: 2, known: 1, .. }), "{refused}");
        assert!(refused.to_string().contains("format version 2"), "{refused}");
    }
    assert!(content(dir.path()) == before);
}

#[test]
fn a_disk_that_does_not_answer_is_told_with_the_file() {
    let disk = SimFs::new();
    let root = Path::new("/data");
    {
        let store = open_store_on(Arc::new(disk.clone()), root);
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, 40);
        store.close();
    }
    let mut failed = 0;
    let calls = {
        let disk = disk.kill();
        let before = disk.operations();
        let directory = DataDirectory::look(Arc::new(disk.clone()), root).unwrap();
        assert!(directory.verify(&mut Findings::default()).unwrap().is_good());
        disk.operations() - before
    };
    assert!(calls <= 64, "so that the disk remembers all of them");
    for nth in 1..=calls {
        let disk = disk.kill();
        disk.fail_nth(nth, Fault::Eio);
        let Ok(directory) = DataDirectory::look(Arc::new(disk.clone()), root) else { continue };
        let mut findings = Findings::default();
        let verified = directory.verify(&mut findings);
        let history = disk.history();
        let operation = history.iter().find(|operation| operation.number == nth).unwrap();
        match verified {
            Err(_) => {
                let of_partitions = [root.join("state"), root.join(format!("topics/{TOPIC}/0"))];
                assert!(!of_partitions.iter().any(|dir| operation.path.starts_with(dir)), "{operation}");
            }
            // Of a log it was asked a second time, and answered.
            Ok(summary) if operation.call == Call::Slice => assert!(summary.is_good(), "{operation}"),
            Ok(summary) => {
                assert!(!summary.is_good(), "{operation}");
                assert!(findings.found.iter().any(|finding| finding.problem.name() == "io"), "{operation}");
                assert_eq!(summary.partitions, 2, "{operation}");
            }
        }
        failed += 1;
    }
    assert!(failed > 20, "{failed}");
    let disk = disk.kill();
    let log = disk.paths().into_iter().find(|path| path.extension().is_some_and(|found| found == "log")).unwrap();
    disk.set_unreadable(&log, Some(100..200)).unwrap();
    let directory = DataDirectory::look(Arc::new(disk), root).unwrap();
    let mut findings = Findings::default();
    assert!(!directory.verify(&mut findings).unwrap().is_good());
    assert_eq!((root.join(&findings.only().file), findings.only().problem.name()), (log, "io"));
    let plan = directory.plan_repair(Uuid::from_u128(99), &mut |_| {}).unwrap();
    assert!(plan.steps.is_empty() && plan.lost.is_empty() && plan.refused.len() == 1, "it may pass: {plan:#?}");
}

/// Settings under which everything that is sealed and flushed is compacted.
fn compacted_log() -> LogConfig {
    let compaction = CompactionConfig { dirty_millionths_min: 1, ..CompactionConfig::default() };
    LogConfig { compaction: Some(compaction), ..small_segments() }
}

/// Appends and flushes records of five keys.
fn append_keyed(partition: &Arc<Partition>, count: u64) {
    for n in 0..count {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for half in 0..2 {
            let (key, value) = (format!("key {}", (n + half) % 5), format!("value {n} {}", "x".repeat(60)));
            let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
            builder.push(&NewRecord { timestamp_ms: NOW_MS, key, value, ..NewRecord::default() }).unwrap();
        }
        partition.append(&builder.finish().unwrap(), NOW_MS).unwrap();
    }
    partition.flush().unwrap();
}

#[test]
fn a_compacted_log_is_whole_and_its_damage_is_told_and_mended_as_any() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open_store(dir.path());
        let (partition, _) = open(&store, compacted_log());
        append_keyed(&partition, 100);
        let outcome = partition.compact(Some(NOW_MS), None, &|| true).unwrap().unwrap();
        assert!(outcome.removed_records > 50, "{outcome:?}");
        store.close();
    }
    let (summary, findings) = verify(dir.path());
    assert!(summary.is_good(), "{:#?}", findings.found);
    repair(dir.path());
    assert!(verify(dir.path()).1.found.is_empty());
    let note = partition_dir(dir.path()).join("compacted");
    flip(&note, 9);
    assert_eq!(verify(dir.path()).1.only().severity, Severity::Defect);
    repair(dir.path());
    let log = files(dir.path(), "log").remove(0);
    let (position, size, from, to) = *batches(&log).iter().max_by_key(|(_, size, ..)| *size).unwrap();
    flip(&log, position + size - 3);
    let (_, findings) = verify(dir.path());
    assert_eq!((findings.only().severity, findings.only().offsets), (Severity::Damage, range(from, to)));
    repair(dir.path());
    assert!(verify(dir.path()).1.found.is_empty());
}

/// The keys of all records below `to`.
fn keys_below(partition: &Partition, to: Offset) -> Vec<Vec<u8>> {
    let (mut found, mut at) = (Vec::new(), Offset::ZERO);
    while at < to {
        let read = partition.read_blocking(at, 1 << 20).unwrap();
        for view in Batches::of(&read.bytes) {
            for record in &view.unwrap().records(&BatchLimits::default()).unwrap() {
                let record = record.unwrap();
                if record.offset() < to {
                    found.push(record.key().unwrap().to_vec());
                }
            }
        }
        at = read.next;
    }
    found
}

#[test]
fn what_compaction_passed_over_because_of_damage_is_compacted_after_the_repair() {
    let dir = tempfile::tempdir().unwrap();
    let log = {
        let store = open_store(dir.path());
        let (partition, _) = open(&store, compacted_log());
        append_keyed(&partition, 100);
        let log = files(dir.path(), "log").remove(2);
        let (position, size, ..) = batches(&log)[1];
        flip(&log, position + size - 3);
        let outcome = partition.compact(Some(NOW_MS), None, &|| true).unwrap().unwrap();
        assert_eq!(outcome.damaged, [offset(base_of(&log))]);
        store.close();
        log
    };
    let note = partition_dir(dir.path()).join("compacted");
    assert!(note.exists() && !plan(dir.path()).steps.is_empty());
    repair(dir.path());
    assert!(!note.exists(), "{}: it says that {} was compacted", note.display(), log.display());
    let store = open_store(dir.path());
    let (partition, _) = open(&store, compacted_log());
    let outcome = partition.compact(Some(NOW_MS), None, &|| true).unwrap().unwrap();
    assert!(outcome.damaged.is_empty() && outcome.removed_records > 0, "{outcome:?}");
    let left = keys_below(&partition, outcome.to);
    let keys: BTreeSet<_> = left.iter().collect();
    assert_eq!(left.len(), keys.len(), "a key has an old record still");
}

#[test]
fn a_compaction_that_was_interrupted_anywhere_is_no_damage_and_is_ended() {
    let disk = SimFs::new();
    let root = Path::new("/data");
    {
        let store = open_store_on(Arc::new(disk.clone()), root);
        let (partition, _) = open(&store, compacted_log());
        append_keyed(&partition, 60);
        store.close();
    }
    let disk = disk.kill();
    let (mut decided, mut nth) = (0, 0);
    loop {
        nth += 1;
        let disk = disk.kill();
        let before = {
            let store = open_store_on(Arc::new(disk.clone()), root);
            let (partition, _) = open(&store, compacted_log());
            let before = disk.operations();
            disk.fail_from(before + nth, Fault::Eio);
            let ended = partition.compact(Some(NOW_MS), None, &|| true);
            (ended.is_ok(), disk.operations() - before < nth)
        };
        let disk = disk.kill();
        let findings = {
            let directory = DataDirectory::change(Arc::new(disk.clone()), root).unwrap();
            let mut findings = Findings::default();
            directory.verify(&mut findings).unwrap();
            let plan = directory.plan_repair(Uuid::nil(), &mut |_| {}).unwrap();
            assert!(plan.lost.is_empty(), "operation {nth}: {plan:#?}");
            directory.repair(&plan, &mut |_| {}).unwrap();
            let mut after = Findings::default();
            assert!(directory.verify(&mut after).unwrap().is_good(), "operation {nth}: {:#?}", after.found);
            findings
        };
        let damage: Vec<_> = findings.found.iter().filter(|found| found.severity == Severity::Damage).collect();
        assert!(damage.is_empty(), "operation {nth}: {damage:#?}");
        decided += u64::from(findings.found.iter().any(|found| found.to_string().contains("compaction")));
        if before == (true, true) {
            break;
        }
    }
    assert!(nth > 20 && decided > 1, "{nth} {decided}");
}

/// A disk of the heap with damage of several kinds, and the offsets that are lost.
fn damaged_disk() -> (SimFs, std::ops::Range<i64>) {
    let disk = SimFs::new();
    let root = Path::new("/data");
    {
        let store = open_store_on(Arc::new(disk.clone()), root);
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, RECORDS);
        store.close();
    }
    // On a disk where all of it is durable, the note of the flushed offset too: lost together with a batch that only it
    // vouches for, the log would end there.
    let written = disk.kill();
    let disk = SimFs::new();
    for path in written.paths() {
        disk.write_image(&path, &written.read_image(&path).unwrap()).unwrap();
    }
    let paths: Vec<_> = disk.paths().into_iter().filter(|path| path.starts_with("/data/topics")).collect();
    let of = |extension: &str| -> Vec<&PathBuf> {
        paths.iter().filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
    };
    let log = of("log")[1];
    let image = disk.read_image(log).unwrap();
    let (first, _) = BatchView::parse(&image).unwrap();
    let lost = first.header().base_offset.get()..first.header().next_offset().get();
    disk.flip(log, first.bytes().len() as u64 - 3, 1).unwrap();
    disk.flip(of("log")[2], 6, 1).unwrap();
    disk.flip(of("seal")[0], 20, 1).unwrap();
    disk.flip(of("snapshot")[0], 20, 1).unwrap();
    disk.flip(of("log").last().unwrap(), 80, 1).unwrap();
    // The older slot.
    disk.flip(&partition_dir(root).join("flushed"), 512 + 9, 1).unwrap();
    disk.flip(&root.join("EPOCH"), 0, 1).unwrap();
    (disk, lost)
}

#[test]
fn a_repair_that_ends_at_any_disk_operation_is_done_by_the_next_one() {
    let root = Path::new("/data");
    let (damaged, lost) = damaged_disk();
    let last = {
        let log = damaged.paths().into_iter().rfind(|path| path.extension().is_some_and(|found| found == "log"));
        let image = damaged.read_image(&log.unwrap()).unwrap();
        let (first, _) = BatchView::parse(&image).unwrap();
        first.header().base_offset.get()..first.header().next_offset().get()
    };
    let mut nth = 0;
    loop {
        nth += 1;
        let disk = damaged.kill();
        let directory = DataDirectory::change(Arc::new(disk.clone()), root).unwrap();
        let plan = directory.plan_repair(Uuid::nil(), &mut |_| {}).unwrap();
        assert!(plan.steps.len() >= 6, "{plan:#?}");
        let before = disk.operations();
        disk.fail_from(before + nth, Fault::Eio);
        let mut begun = 0;
        let ended = directory.repair(&plan, &mut |_| begun += 1).is_ok();
        let is_over = ended && disk.operations() - before < nth;
        drop(directory);
        // A kill, or a power cut.
        let disk = if nth % 2 == 0 { disk.kill() } else { disk.crash(nth) };
        let is_marked = disk.paths().contains(&root.join("REPAIRING"));
        assert!(is_marked || begun == 0 || begun == plan.steps.len(), "operation {nth}: {begun} steps");
        let opened = Store::open(Arc::new(disk.clone()), root, StoreConfig::default(), Uuid::nil());
        assert!(!is_marked || opened.is_err(), "operation {nth}");
        drop(opened);
        let disk = disk.kill();
        let directory = DataDirectory::change(Arc::new(disk.clone()), root).unwrap();
        let plan = directory.plan_repair(Uuid::nil(), &mut |_| {}).unwrap();
        directory.repair(&plan, &mut |_| {}).unwrap();
        let mut findings = Findings::default();
        assert!(directory.verify(&mut findings).unwrap().is_good(), "operation {nth}: {:#?}", findings.found);
        drop(directory);
        let store = open_store_on(Arc::new(disk), root);
        let (partition, report) = open(&store, small_segments());
        assert!(report.damaged.is_empty() && report.cut.is_none(), "operation {nth}: {report:?}");
        let found: Vec<_> = read_all(&partition, 0, 1 << 20).into_iter().map(|(record, _)| record).collect();
        let expected: Vec<_> =
            (0..RECORDS as i64).filter(|record| !lost.contains(record) && !last.contains(record)).collect();
        assert_eq!(found, expected, "operation {nth}");
        if is_over {
            break;
        }
    }
    assert!(nth > 60, "{nth}");
}

#[test]
fn producers_are_not_written_from_a_log_that_cannot_be_read_to_its_end() {
    let root = Path::new("/data");
    let (damaged, _) = damaged_disk();
    let of = |extension: &str| -> Vec<PathBuf> {
        damaged.paths().into_iter().filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
    };
    of("snapshot").iter().for_each(|path| damaged.write_image(path, b"lost").unwrap());
    let logs = of("log");
    // The disk gives it to the plan and not to the repair.
    for log in &logs[..logs.len() - 1] {
        let disk = damaged.kill();
        let directory = DataDirectory::change(Arc::new(disk.clone()), root).unwrap();
        let plan = directory.plan_repair(Uuid::nil(), &mut |_| {}).unwrap();
        let mut begun = PathBuf::new();
        let ended = directory.repair(&plan, &mut |step| {
            begun.clone_from(&step.file);
            if step.file.extension().is_some_and(|found| found == "snapshot") {
                disk.set_unreadable(log, Some(0..100)).unwrap();
            }
        });
        let cause = ended.expect_err("what stands there is not known");
        assert!(cause.to_string().contains("os error 5"), "{cause}");
        assert_eq!(disk.read_image(&root.join(begun)).unwrap(), b"lost");
    }
}

/// A disk whose only segment is appended to and damaged where it was flushed, with more behind that was not, and the
/// offsets that are lost.
fn damaged_active() -> (SimFs, std::ops::Range<i64>) {
    let disk = SimFs::new();
    let root = Path::new("/data");
    {
        let store = open_store_on(Arc::new(disk.clone()), root);
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, 9);
        partition.flush().unwrap();
        append_records(&partition, 9, 15);
    }
    let written = disk.kill();
    let disk = SimFs::new();
    for path in written.paths() {
        disk.write_image(&path, &written.read_image(&path).unwrap()).unwrap();
    }
    let log = partition_dir(root).join(format!("{:020}.log", 0));
    let image = disk.read_image(&log).unwrap();
    let second = Batches::of(&image).nth(1).unwrap().unwrap();
    let first_bytes = BatchView::parse(&image).unwrap().0.bytes().len();
    disk.flip(&log, (first_bytes + second.bytes().len()) as u64 - 3, 1).unwrap();
    let lost = second.header().base_offset.get()..second.header().next_offset().get();
    (disk, lost)
}

#[test]
fn a_repair_of_the_segment_that_is_appended_to_may_end_at_any_disk_operation_and_cuts_nothing() {
    let root = Path::new("/data");
    let (damaged, lost) = damaged_active();
    let kept = |to: i64| (0..to).filter(|record| !lost.contains(record)).collect::<Vec<_>>();
    let mut nth = 0;
    loop {
        nth += 1;
        let disk = damaged.kill();
        let directory = DataDirectory::change(Arc::new(disk.clone()), root).unwrap();
        let plan = directory.plan_repair(Uuid::nil(), &mut |_| {}).unwrap();
        let before = disk.operations();
        disk.fail_from(before + nth, Fault::Eio);
        let ended = directory.repair(&plan, &mut |_| {}).is_ok();
        let is_over = ended && disk.operations() - before < nth;
        drop(directory);
        for disk in [disk.kill(), disk.crash(nth)] {
            let directory = DataDirectory::change(Arc::new(disk.clone()), root).unwrap();
            let plan = directory.plan_repair(Uuid::nil(), &mut |_| {}).unwrap();
            directory.repair(&plan, &mut |_| {}).unwrap();
            let plan = directory.plan_repair(Uuid::nil(), &mut |_| {}).unwrap();
            assert!(plan.steps.is_empty(), "operation {nth}: {plan:#?}");
            let mut findings = Findings::default();
            assert!(directory.verify(&mut findings).unwrap().is_good(), "operation {nth}: {:#?}", findings.found);
            drop(directory);
            let store = open_store_on(Arc::new(disk), root);
            let (partition, report) = open(&store, small_segments());
            assert!(report.damaged.is_empty() && report.cut.is_none(), "operation {nth}: {report:?}");
            let records = || read_all(&partition, 0, 1 << 20).into_iter().map(|(record, _)| record).collect::<Vec<_>>();
            assert_eq!(records(), kept(15), "operation {nth}");
            append_records(&partition, 15, 18);
            assert_eq!(records(), kept(18), "operation {nth}");
        }
        if is_over {
            break;
        }
    }
    assert!(nth > 30, "{nth}");
}
