//! Every place at which a scripted run can be hit, one by one: each disk operation fails, or is the last one; each byte
//! of each kind of file is flipped.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/faults.rs"]
mod faults;
#[path = "common/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tripline_storage::batch::header::{LEADER_EPOCH_AT, MAGIC_AT};
use tripline_storage::batch::{BatchView, Batches};
use tripline_storage::error::{OpenStoreError, ReadError};
use tripline_storage::fs::SimFs;
use tripline_storage::fs::sim::Fault;
use tripline_storage::{LogConfig, Offset, Partition, PartitionId, Store, StoreConfig};
use uuid::Uuid;
use world::{Appended, Operation, TOPIC, Violation, World};

const CONFIG: LogConfig = LogConfig {
    segment_bytes: 1024,
    segment_age: Duration::from_secs(3600),
    index_interval_bytes: 200,
    retention_bytes: None,
    retention_age: None,
    hold_max: None,
    compaction: None,
};

const fn append(producer: Option<u8>) -> Operation {
    Operation::Append { records: 3, value_bytes: 60, producer }
}

/// Appends, rolls, flushes, removes, closes, opens and goes on; so that each kind of file is made, replaced and
/// removed.
const SCRIPT: [Operation; 20] = [
    append(Some(0)),
    Operation::Flush,
    append(None),
    append(Some(0)),
    append(Some(1)),
    append(None),
    Operation::Retry { producer: 0, back: 0 },
    Operation::Flush,
    append(Some(1)),
    append(None),
    append(None),
    append(Some(0)),
    Operation::Retention { keep_bytes: 1_000, by_age: false, held: None },
    Operation::Read { permille: 0, max_bytes: 700 },
    Operation::TimeLookup { permille: 500 },
    append(None),
    Operation::Reopen,
    append(Some(0)),
    Operation::Flush,
    append(None),
];

/// Moves the start into a sealed segment, beyond what is flushed, and over whole segments.
const TRIMMING: [Operation; 16] = [
    append(Some(0)),
    append(None),
    append(Some(1)),
    append(None),
    append(None),
    append(None),
    Operation::Flush,
    Operation::Trim { permille: 100 },
    append(Some(0)),
    Operation::Trim { permille: 950 },
    append(None),
    Operation::Retention { keep_bytes: 500, by_age: false, held: None },
    Operation::Read { permille: 0, max_bytes: 700 },
    append(Some(1)),
    Operation::Reopen,
    Operation::Trim { permille: 500 },
];

/// All of the log goes for its age, the active segment too, before it is flushed.
fn expiring() -> Vec<Operation> {
    let retention = Operation::Retention { keep_bytes: u16::MAX, by_age: true, held: None };
    let mut script = vec![append(Some(0)), append(None), Operation::Flush, append(Some(1)), append(None)];
    // Time passes, and the disk is not asked: nobody has this number.
    script.extend([Operation::Retry { producer: 200, back: 0 }; 50]);
    script.extend([retention, append(None), append(Some(0)), Operation::Reopen, append(Some(1))]);
    script
}

fn run(world: &mut World, script: &[Operation]) -> Result<(), Violation> {
    script.iter().try_for_each(|&operation| world.apply(operation))
}

/// Disk operations until the first store is open, and until the script is done.
fn operations_of(script: &[Operation]) -> std::ops::Range<u64> {
    let mut world = World::new(CONFIG, None).unwrap();
    let opened = world.disk.operations();
    run(&mut world, script).unwrap();
    opened..world.disk.operations()
}

#[test]
fn any_disk_operation_may_fail_in_any_way_and_nothing_acknowledged_is_lost() {
    fail_everywhere(&SCRIPT);
}

#[test]
fn any_disk_operation_of_a_trim_may_fail_in_any_way() {
    fail_everywhere(&TRIMMING);
}

#[test]
fn any_disk_operation_of_a_retention_by_age_may_fail_in_any_way() {
    let script = expiring();
    let mut world = World::new(CONFIG, None).unwrap();
    let retention = script.iter().position(|operation| matches!(operation, Operation::Retention { .. })).unwrap();
    run(&mut world, &script[..retention]).unwrap();
    let tail = world.tail();
    run(&mut world, &script[retention..=retention]).unwrap();
    assert_eq!((world.log_start(), tail > 0), (tail, true), "all of it goes");
    fail_everywhere(&script);
}

fn fail_everywhere(script: &[Operation]) {
    let operations = operations_of(script);
    for number in operations.start + 1..=operations.end {
        for fault in
            [Fault::Eio, Fault::Enospc, Fault::ShortWriteThenEio, Fault::ShortWriteThenFull, Fault::Interrupted]
        {
            let ends = [Operation::Kill, Operation::PowerCut { seed: number }];
            for end in ends {
                let mut world = World::new(CONFIG, None).unwrap();
                world.fail_at(number, fault);
                let result = run(&mut world, script).and_then(|()| world.apply(end));
                let result = result.and_then(|()| run(&mut world, &script[..4]));
                result.unwrap_or_else(|violation| panic!("operation {number}, {fault:?}, {end:?}: {violation}"));
            }
        }
    }
}

#[test]
fn the_process_or_the_power_may_end_at_any_disk_operation() {
    end_everywhere(&SCRIPT);
}

#[test]
fn the_process_or_the_power_may_end_at_any_disk_operation_of_a_trim() {
    end_everywhere(&TRIMMING);
}

#[test]
fn the_process_or_the_power_may_end_at_any_disk_operation_of_a_retention_by_age() {
    end_everywhere(&expiring());
}

fn end_everywhere(script: &[Operation]) {
    let operations = operations_of(script);
    for number in 1..=operations.end {
        for seed in [None, Some(1), Some(2), Some(3)] {
            let result = World::until_the_end(CONFIG, number, seed, script);
            result.unwrap_or_else(|violation| panic!("ended at operation {number}, seed {seed:?}: {violation}"));
        }
    }
}

// ---- damage --------------------------------------------------------------------------------------------------------

/// A directory that was closed, and what was appended to it.
struct Closed {
    disk: SimFs,
    batches: Vec<Appended>,
    log_start: i64,
}

fn closed() -> Closed {
    let mut world = World::new(CONFIG, None).unwrap();
    run(&mut world, &SCRIPT).unwrap();
    run(&mut world, &[append(Some(1)), append(None), Operation::Reopen]).unwrap();
    let (disk, batches, log_start) = (world.disk.clone(), world.batches.clone(), world.log_start());
    // The last start has repaired nothing, so this is how the close left it.
    Closed { disk: disk.kill(), batches, log_start }
}

impl Closed {
    fn files(&self, wanted: &str) -> Vec<PathBuf> {
        let is_wanted = |path: &PathBuf| path.starts_with(World::dir()) && path.to_string_lossy().ends_with(wanted);
        self.disk.paths().into_iter().filter(is_wanted).collect()
    }

    fn with_flipped(&self, path: &Path, byte: u64, bit: u32) -> SimFs {
        let disk = self.disk.kill();
        disk.flip(path, byte, bit).unwrap();
        disk
    }

    fn with_cut(&self, path: &Path, len: usize) -> SimFs {
        let disk = self.disk.kill();
        let image = disk.read_image(path).unwrap();
        disk.write_image(path, &image[..len]).unwrap();
        disk
    }

    fn open(disk: &SimFs) -> Result<(Store, Arc<Partition>), OpenStoreError> {
        let config = StoreConfig {
            flush_interval: Duration::from_secs(3600),
            flush_threads: 1,
            reserve_bytes: 0,
            ..StoreConfig::default()
        };
        let store = Store::open(Arc::new(disk.clone()), World::root(), config, Uuid::from_u128(1))?;
        let (partition, _) = store.open_partition(PartitionId { topic: TOPIC, partition: 0 }, CONFIG).unwrap();
        Ok((store, partition))
    }

    /// Reads everything; answers the bases of the batches that were not served. A served batch is as appended, but for
    /// its epoch when that was flipped.
    fn missing(&self, disk: &SimFs, context: &str) -> BTreeSet<i64> {
        let (_store, partition) = Self::open(disk).unwrap();
        assert_eq!(partition.tail().get(), self.batches.last().unwrap().next(), "{context}");
        assert_eq!(partition.log_start().get(), self.log_start, "{context}");
        let mut missing: BTreeSet<i64> =
            self.batches.iter().map(|batch| batch.base).filter(|&base| base >= self.log_start).collect();
        let mut at = partition.log_start();
        while at < partition.tail() {
            match partition.read_blocking(at, 1_000) {
                Ok(outcome) => {
                    assert!(outcome.next > at && !outcome.bytes.is_empty(), "{context}: skipped in silence at {at}");
                    for base in self.served(&outcome.bytes, context) {
                        missing.remove(&base);
                    }
                    at = outcome.next;
                }
                Err(ReadError::Damaged { from, to }) => {
                    assert!(from <= at && to > at, "{context}: damage {from}..{to} at {at}");
                    at = to;
                }
                Err(other) => panic!("{context}: {other}"),
            }
        }
        self.check_first_by_time(&partition, &missing, context);
        missing
    }

    /// By time the first record is found, or the damage in its place is told of.
    fn check_first_by_time(&self, partition: &Partition, missing: &BTreeSet<i64>, context: &str) {
        let first = self.batches.iter().find(|batch| batch.base >= self.log_start).expect("the log is not empty");
        match partition.offset_for_time(0) {
            Ok(found) => {
                let (view, _) = BatchView::parse(&first.stored).unwrap();
                let expected = (Offset::new(first.base).unwrap(), view.header().base_timestamp_ms);
                assert_eq!(found, Some(expected), "{context}: by time");
            }
            Err(ReadError::Damaged { from, .. }) => {
                assert!(
                    missing.iter().any(|&base| base <= from.get()),
                    "{context}: nothing is missing, yet by time {from} is"
                );
            }
            Err(other) => panic!("{context}: by time {other}"),
        }
    }

    fn served(&self, bytes: &[u8], context: &str) -> Vec<i64> {
        let mut bases = Vec::new();
        for view in Batches::of(bytes) {
            let view = view.unwrap();
            let base = view.header().base_offset.get();
            let expected = self.batches.iter().find(|batch| batch.base == base);
            let expected = expected.unwrap_or_else(|| panic!("{context}: served a batch at {base}"));
            let mut found = view.bytes().to_vec();
            found[LEADER_EPOCH_AT..MAGIC_AT].copy_from_slice(&expected.stored[LEADER_EPOCH_AT..MAGIC_AT]);
            assert!(found == expected.stored, "{context}: wrong bytes at {base}");
            bases.push(base);
        }
        bases
    }
}

#[test]
fn any_flipped_byte_of_a_small_file_costs_no_record() {
    let closed = closed();
    let mut flipped = 0;
    for kind in ["flushed", ".index", ".seal", ".snapshot"] {
        let path = closed.files(kind).pop().unwrap_or_else(|| panic!("no file {kind}"));
        for byte in 0..closed.disk.read_image(&path).unwrap().len() as u64 {
            let context = format!("byte {byte} of {}", path.display());
            let disk = closed.with_flipped(&path, byte, (byte % 8) as u32);
            assert!(closed.missing(&disk, &context).is_empty(), "{context}");
            flipped += 1;
        }
    }
    assert!(flipped > 700, "{flipped}");
}

#[test]
fn a_small_file_cut_at_any_length_costs_no_record() {
    let closed = closed();
    let mut cut = 0;
    for kind in ["flushed", ".index", ".seal", ".snapshot"] {
        let path = closed.files(kind).pop().unwrap_or_else(|| panic!("no file {kind}"));
        for len in 0..closed.disk.read_image(&path).unwrap().len() {
            let context = format!("{} cut to {len} bytes", path.display());
            assert!(closed.missing(&closed.with_cut(&path, len), &context).is_empty(), "{context}");
            cut += 1;
        }
    }
    assert!(cut > 700, "{cut}");
}

#[test]
fn format_or_epoch_cut_at_any_length_is_refused_and_nothing_is_touched() {
    let closed = closed();
    for name in ["FORMAT", "EPOCH"] {
        let path = World::root().join(name);
        for len in 0..closed.disk.read_image(&path).unwrap().len() {
            let disk = closed.with_cut(&path, len);
            let images =
                |disk: &SimFs| -> Vec<_> { disk.paths().iter().map(|path| disk.read_image(path).unwrap()).collect() };
            let before = images(&disk);
            let refused = Closed::open(&disk).unwrap_err();
            assert!(matches!(refused, OpenStoreError::Foreign { .. }), "{name} cut to {len}: {refused}");
            assert!(before == images(&disk), "{name} cut to {len}: the directory was changed");
        }
    }
}

/// What was flushed is cut off: the batches that are not whole any more are reported, all others are served, and no
/// offset is given away again.
#[test]
fn a_flushed_segment_cut_at_any_length_costs_the_batches_that_are_not_whole() {
    let closed = closed();
    let logs = closed.files(".log");
    for path in [&logs[0], &logs[1], logs.last().unwrap()] {
        let base: i64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let image_len = closed.disk.read_image(path).unwrap().len();
        let mut ends = Vec::new();
        let mut at = 0;
        for batch in closed.batches.iter().filter(|batch| batch.base >= base) {
            at += batch.stored.len();
            if at <= image_len {
                ends.push((batch.base, at));
            }
        }
        assert_eq!(ends.last().unwrap().1, image_len, "a closed segment ends with its last batch");
        for len in 0..image_len {
            let context = format!("{} cut to {len} bytes", path.display());
            let expected = ends.iter().filter(|(_, end)| *end > len).map(|(base, _)| *base).collect::<BTreeSet<_>>();
            assert_eq!(closed.missing(&closed.with_cut(path, len), &context), expected, "{context}");
        }
    }
}

#[test]
fn any_flipped_byte_of_format_or_epoch_is_refused_and_nothing_is_touched() {
    let closed = closed();
    for name in ["FORMAT", "EPOCH"] {
        let path = World::root().join(name);
        for byte in 0..closed.disk.read_image(&path).unwrap().len() as u64 {
            let disk = closed.with_flipped(&path, byte, (byte % 7) as u32);
            let before: Vec<_> = disk.paths().iter().map(|path| disk.read_image(path).unwrap()).collect();
            let refused = Closed::open(&disk).unwrap_err();
            let expected = matches!(refused, OpenStoreError::Foreign { .. } | OpenStoreError::Newer { .. });
            assert!(expected, "byte {byte} of {name}: {refused}");
            let after: Vec<_> = disk.paths().iter().map(|path| disk.read_image(path).unwrap()).collect();
            assert!(before == after, "byte {byte} of {name}: the directory was changed");
        }
    }
}

/// What was flushed is damaged: the batch with the flipped byte is reported, all others are served.
#[test]
fn any_flipped_byte_of_a_flushed_segment_costs_the_batch_that_holds_it() {
    let closed = closed();
    let logs = closed.files(".log");
    assert!(logs.len() >= 3, "sealed ones and the active one: {logs:?}");
    for path in [&logs[0], &logs[1], logs.last().unwrap()] {
        let base: i64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let image = closed.disk.read_image(path).unwrap();
        let mut at = 0;
        for batch in closed.batches.iter().filter(|batch| batch.base >= base) {
            for byte in at..(at + batch.stored.len()).min(image.len()) {
                let context = format!("byte {} of batch {} in {}", byte - at, batch.base, path.display());
                let disk = closed.with_flipped(path, byte as u64, (byte % 8) as u32);
                let missing = closed.missing(&disk, &context);
                let epoch = (at + LEADER_EPOCH_AT..at + MAGIC_AT).contains(&byte);
                let only = missing.iter().all(|&base| base == batch.base);
                assert!(only && (epoch || missing.len() == 1), "{context}: missing {missing:?}");
            }
            at += batch.stored.len();
        }
        assert!(at >= image.len() && image.len() > 250, "{} bytes", image.len());
    }
}

/// What was not flushed and is damaged ends the log there, whole batches before it stay, and the rest is kept aside.
#[test]
fn any_flipped_byte_above_the_flushed_offset_cuts_there() {
    let mut world = World::new(CONFIG, None).unwrap();
    run(&mut world, &[append(None), Operation::Flush, append(Some(0)), append(None)]).unwrap();
    let (disk, batches) = (world.disk.kill(), world.batches.clone());
    let path = World::dir().join(format!("{:020}.log", 0));
    let mut at = batches[0].stored.len();
    for (number, batch) in batches.iter().enumerate().skip(1) {
        for byte in at..at + batch.stored.len() {
            let image = disk.kill();
            image.flip(&path, byte as u64, (byte % 8) as u32).unwrap();
            let (_store, partition) = Closed::open(&image).unwrap();
            let context = format!("byte {} of batch {number}", byte - at);
            let epoch = (at + LEADER_EPOCH_AT..at + MAGIC_AT).contains(&byte);
            let tail = partition.tail().get();
            assert!(tail == batch.base || (epoch && tail >= batch.base), "{context}: tail {tail}");
            if tail == batch.base {
                let quarantine = World::root().join("quarantine");
                assert!(image.paths().iter().any(|path| path.starts_with(&quarantine)), "{context}: nothing kept");
            }
            let read = partition.read_blocking(Offset::ZERO, 1 << 20).unwrap();
            let expected: Vec<u8> = batches[..number].iter().flat_map(|batch| batch.stored.clone()).collect();
            assert!(read.bytes.starts_with(&expected), "{context}");
        }
        at += batch.stored.len();
    }
}
