//! What the log costs: appending, reading by offset, flushing and recovering, on the directory that `TMPDIR` names.
//!
//! `cargo bench -p tripline-storage --bench log`. Each group has the bare system call beside it (`pwrite` of the same
//! bytes into files that come and go as segments do, `fdatasync` after it), so that a number says what the log adds.
//! Sizes and counts are fixed, values are filled from a fixed seed.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use event_listener::Listener;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tripline_storage::batch::{BatchBuilder, BatchLimits, BatchOptions, CheckedBatch, NewRecord, Validation};
use tripline_storage::fs::OsFs;
use tripline_storage::partition::ReadStart;
use tripline_storage::{LogConfig, Offset, Partition, PartitionId, Store, StoreConfig};
use uuid::Uuid;

const SEED: u64 = 7;
const NOW_MS: i64 = 1_700_000_000_000;
const ID: PartitionId = PartitionId { topic: Uuid::from_u128(7), partition: 0 };

/// (bytes of a record's value, records in a batch).
const SHAPES: [(usize, usize); 4] = [(1 << 10, 16), (1 << 10, 1000), (100, 1), (100, 160)];

/// 64 MiB: a benchmark that appends for seconds rolls as production does, and leaves no more than that behind.
fn config() -> LogConfig {
    LogConfig { segment_bytes: 64 << 20, retention_bytes: Some(64 << 20), ..LogConfig::default() }
}

fn open(root: &Path) -> (Store, Arc<Partition>) {
    let store_config = StoreConfig { flush_interval: Duration::from_secs(3600), ..StoreConfig::default() };
    let store = Store::open(Arc::new(OsFs), root, store_config, Uuid::from_u128(1)).unwrap();
    let (partition, _) = store.open_partition(ID, config()).unwrap();
    (store, partition)
}

fn batch(value_bytes: usize, records: usize) -> CheckedBatch {
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut builder = BatchBuilder::new(BatchOptions::default());
    for _ in 0..records {
        let value: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(value_bytes).collect();
        builder.push(&NewRecord { timestamp_ms: NOW_MS, value: Some(&value), ..NewRecord::default() }).unwrap();
    }
    builder.finish().unwrap()
}

fn name(value_bytes: usize, records: usize) -> String {
    format!("{records} x {value_bytes} B")
}

/// Appends, and lets go of what exceeds the bound of the benchmark's disk use.
fn append(partition: &Arc<Partition>, batch: &CheckedBatch) {
    black_box(partition.append(batch, NOW_MS).unwrap());
    if partition.len_bytes() > 192 << 20 {
        partition.enforce_retention(None, None).unwrap();
    }
}

/// Files of 64 MiB written one after the other, of which three are kept: what the bytes cost without a log around them.
struct Bare {
    dir: PathBuf,
    file: File,
    number: u64,
    position: u64,
}

impl Bare {
    const LEN_BYTES: u64 = 64 << 20;

    fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file: create(dir, 0), number: 0, position: 0 }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.position + bytes.len() as u64 > Self::LEN_BYTES {
            self.number += 1;
            self.position = 0;
            self.file = create(&self.dir, self.number);
            if let Some(old) = self.number.checked_sub(3) {
                std::fs::remove_file(bare_path(&self.dir, old)).unwrap();
            }
        }
        self.file.write_all_at(bytes, self.position).unwrap();
        self.position += bytes.len() as u64;
    }
}

fn bare_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("bare-{number}"))
}

fn create(dir: &Path, number: u64) -> File {
    let path = bare_path(dir, number);
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(Bare::LEN_BYTES).unwrap();
    file
}

fn bench_append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append");
    for (value_bytes, records) in SHAPES {
        let batch = batch(value_bytes, records);
        group.throughput(Throughput::Bytes(batch.size_bytes() as u64));
        let dir = tempfile::tempdir().unwrap();
        let (_store, partition) = open(dir.path());
        group.bench_function(BenchmarkId::new("log", name(value_bytes, records)), |bencher| {
            bencher.iter(|| append(&partition, &batch));
        });
        let mut bare = Bare::new(dir.path());
        group.bench_function(BenchmarkId::new("pwrite", name(value_bytes, records)), |bencher| {
            bencher.iter(|| bare.write(batch.bytes()));
        });
    }
}

/// What the broker does with a batch of a client, from its bytes to the page cache: check, offsets, append. Beside it
/// the least that can be done with the same bytes: one checksum over them, one write.
fn bench_append_checked(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append (checked)");
    let limits = BatchLimits::default();
    for (value_bytes, records) in [(1 << 10, 16), (1 << 10, 1000)] {
        let bytes = batch(value_bytes, records).bytes().clone();
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        let dir = tempfile::tempdir().unwrap();
        let (_store, partition) = open(dir.path());
        group.bench_function(BenchmarkId::new("log", name(value_bytes, records)), |bencher| {
            bencher.iter(|| {
                let batch = CheckedBatch::check(bytes.clone(), &limits, Validation::Records).unwrap();
                append(&partition, &batch);
            });
        });
        let mut bare = Bare::new(dir.path());
        group.bench_function(BenchmarkId::new("crc32c, pwrite", name(value_bytes, records)), |bencher| {
            bencher.iter(|| {
                black_box(crc_fast::crc32_iscsi(&bytes));
                bare.write(&bytes);
            });
        });
    }
}

fn bench_flush(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append and flush");
    group.sample_size(20);
    for (value_bytes, records) in [(1 << 10, 16), (1 << 10, 1000)] {
        let batch = batch(value_bytes, records);
        group.throughput(Throughput::Bytes(batch.size_bytes() as u64));
        let dir = tempfile::tempdir().unwrap();
        let (_store, partition) = open(dir.path());
        group.bench_function(BenchmarkId::new("log", name(value_bytes, records)), |bencher| {
            bencher.iter(|| {
                append(&partition, &batch);
                partition.flush().unwrap()
            });
        });
        let mut bare = Bare::new(dir.path());
        group.bench_function(BenchmarkId::new("pwrite, fdatasync", name(value_bytes, records)), |bencher| {
            bencher.iter(|| {
                bare.write(batch.bytes());
                bare.file.sync_data().unwrap();
            });
        });
    }
}

/// Makes everything in these partitions durable as waiters do: asks for all, then waits for each.
fn flush_all(partitions: &[Arc<Partition>]) {
    partitions.iter().for_each(Partition::request_flush);
    partitions.iter().for_each(|partition| wait_for_flush(partition, partition.tail()));
}

/// What `Partition::flushed_to` does, on a thread that may block.
fn wait_for_flush(partition: &Arc<Partition>, offset: Offset) {
    while partition.flushed() < offset {
        let ended = partition.listen_flush();
        partition.request_flush();
        if partition.flushed() < offset {
            ended.wait();
        }
    }
}

/// Batches of 16 KiB to many partitions, all durable at the end.
fn bench_many_partitions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append to each and flush all");
    group.sample_size(10);
    let batch = batch(1 << 10, 16);
    for count in [1, 10, 100, 1000] {
        let dir = tempfile::tempdir().unwrap();
        let store_config =
            StoreConfig { flush_interval: Duration::from_secs(3600), reserve_bytes: 0, ..StoreConfig::default() };
        let store = Store::open(Arc::new(OsFs), dir.path(), store_config, Uuid::from_u128(1)).unwrap();
        let open = |partition| store.open_partition(PartitionId { partition, ..ID }, config()).unwrap().0;
        let partitions: Vec<Arc<Partition>> = (0..count).map(open).collect();
        group.throughput(Throughput::Elements(count.into()));
        group.bench_function(BenchmarkId::new("partitions", count), |bencher| {
            bencher.iter(|| {
                partitions.iter().for_each(|partition| append(partition, &batch));
                flush_all(&partitions);
            });
        });
    }
}

/// Runs a future on this thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Producers that wait for the disk after each batch of one record of 1 KiB, tasks of one thread on one partition,
/// against one that writes and syncs by itself.
fn bench_group_commit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append one and wait for the disk");
    group.sample_size(20);
    let batch = batch(1 << 10, 1);
    for producers in [1, 8, 64] {
        let dir = tempfile::tempdir().unwrap();
        let (_store, partition) = open(dir.path());
        // Each producer appends so often a round.
        const EACH: u64 = 64;
        group.throughput(Throughput::Elements(producers * EACH));
        group.bench_function(BenchmarkId::new("producers", producers), |bencher| {
            bencher.iter(|| {
                let producer = async || {
                    for _ in 0..EACH {
                        let outcome = partition.append(&batch, NOW_MS).unwrap();
                        partition.flushed_to(outcome.last_offset.next()).await.unwrap();
                    }
                };
                let mut producers: FuturesUnordered<_> = (0..producers).map(|_| producer()).collect();
                block_on(async { while producers.next().await.is_some() {} });
            });
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let mut bare = Bare::new(dir.path());
    group.throughput(Throughput::Elements(1));
    group.bench_function("pwrite, fdatasync", |bencher| {
        bencher.iter(|| {
            bare.write(batch.bytes());
            bare.file.sync_data().unwrap();
        });
    });
}

/// 48 MiB in batches of 16 records of 1 KiB.
fn filled(root: &Path) -> (Store, Arc<Partition>) {
    let (store, partition) = open(root);
    let batch = batch(1 << 10, 16);
    while partition.len_bytes() < 48 << 20 {
        partition.append(&batch, NOW_MS).unwrap();
    }
    (store, partition)
}

/// Offsets all over the log, the same each time.
fn offsets(partition: &Partition) -> impl FnMut() -> Offset {
    let mut random = fastrand::Rng::with_seed(SEED);
    let tail = partition.tail().get();
    move || Offset::new(random.i64(0..tail)).unwrap()
}

fn bench_read(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read by offset");
    let dir = tempfile::tempdir().unwrap();
    let (store, partition) = filled(dir.path());
    for max_bytes in [1, 64 << 10, 1 << 20] {
        let mut any_offset = offsets(&partition);
        group.bench_function(BenchmarkId::new("appended by this process", max_bytes), |bencher| {
            bencher.iter(|| match partition.read(any_offset(), max_bytes).unwrap() {
                ReadStart::Ready(outcome) => black_box(outcome),
                ReadStart::Cold(_) => unreachable!("all of it was appended by this process"),
            });
        });
    }
    store.close();
    drop((partition, store));
    for max_bytes in [1, 64 << 10, 1 << 20] {
        // Opened anew for each round, so that checksums are verified; the pages are in the page cache.
        group.bench_function(BenchmarkId::new("first time after a restart", max_bytes), |bencher| {
            bencher.iter_batched(
                || open(dir.path()),
                |(store, partition)| {
                    let outcome = partition.read_blocking(Offset::new(20_000).unwrap(), max_bytes).unwrap();
                    (outcome, store, partition)
                },
                BatchSize::PerIteration,
            );
        });
    }
    let bare = Bare::new(dir.path());
    for len in [16 << 10, 64 << 10, 1 << 20] {
        let mut random = fastrand::Rng::with_seed(SEED);
        group.bench_function(BenchmarkId::new("pread", len), |bencher| {
            bencher.iter(|| {
                let mut bytes = vec![0; len];
                bare.file.read_exact_at(&mut bytes, random.u64(0..Bare::LEN_BYTES - len as u64)).unwrap();
                bytes
            });
        });
    }
}

/// The offset of a time: the index finds where to look, and the records of one batch are looked at.
fn bench_index(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("index");
    let dir = tempfile::tempdir().unwrap();
    let (_store, partition) = open(dir.path());
    const BATCHES: i64 = 3_000;
    for n in 0..BATCHES {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for record in 0..16 {
            let timestamp_ms = NOW_MS + n * 16 + record;
            builder.push(&NewRecord { timestamp_ms, value: Some(&[0; 1024]), ..NewRecord::default() }).unwrap();
        }
        partition.append(&builder.finish().unwrap(), NOW_MS).unwrap();
    }
    let mut random = fastrand::Rng::with_seed(SEED);
    group.bench_function("offset of a time, 48 MiB", |bencher| {
        bencher.iter(|| partition.offset_for_time(NOW_MS + random.i64(0..BATCHES * 16)).unwrap().unwrap());
    });
}

/// Takes what lies in a directory's files out of the page cache.
fn forget_pages(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            forget_pages(&entry.path());
        } else {
            let file = File::open(entry.path()).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    }
}

/// The whole log from the disk, a MiB at a time, and the same bytes by `read`, as `cat` has them.
fn bench_cold_read(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read 48 MiB from the disk");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(48 << 20));
    let dir = tempfile::tempdir().unwrap();
    let (store, partition) = filled(dir.path());
    store.close();
    drop((partition, store));
    let timed = |read: &dyn Fn()| {
        forget_pages(dir.path());
        let begun = Instant::now();
        read();
        begun.elapsed()
    };
    group.bench_function("log", |bencher| {
        bencher.iter_custom(|rounds| {
            let read_all = |partition: &Partition| {
                let mut at = Offset::ZERO;
                while at < partition.tail() {
                    let outcome = partition.read_blocking(at, 1 << 20).unwrap();
                    // As a socket would: each byte once.
                    black_box(outcome.bytes.iter().fold(0_u8, |sum, byte| sum ^ byte));
                    at = outcome.next;
                }
            };
            // Opened anew each time: what is mapped is not forgotten. So each checksum is verified, too.
            let round = |_| {
                let (_store, partition) = open(dir.path());
                timed(&|| read_all(&partition))
            };
            (0..rounds).map(round).sum()
        });
    });
    let log = dir.path().join(format!("topics/{}/0/{:020}.log", ID.topic, 0));
    group.bench_function("read", |bencher| {
        bencher.iter_custom(|rounds| {
            let read = || {
                let (file, mut buffer) = (File::open(&log).unwrap(), vec![0; 128 << 10]);
                let mut position = 0;
                loop {
                    let count = file.read_at(&mut buffer, position).unwrap();
                    if count == 0 {
                        return;
                    }
                    black_box(buffer[..count].iter().fold(0_u8, |sum, byte| sum ^ byte));
                    position += count as u64;
                }
            };
            (0..rounds).map(|_| timed(&read)).sum()
        });
    });
}

/// A segment that nobody flushed: every batch is verified, written again and synced. Beside it a clean start.
fn bench_recovery(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open 48 MiB");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(48 << 20));
    group.bench_function("never flushed", |bencher| {
        bencher.iter_batched(
            || {
                let dir = tempfile::tempdir().unwrap();
                drop(filled(dir.path()));
                dir
            },
            |dir| (open(dir.path()), dir),
            BatchSize::PerIteration,
        );
    });
    let dir = tempfile::tempdir().unwrap();
    let (store, partition) = filled(dir.path());
    store.close();
    drop((partition, store));
    group.bench_function("closed", |bencher| bencher.iter(|| open(dir.path())));
}

criterion_group!(
    benches,
    bench_append,
    bench_append_checked,
    bench_flush,
    bench_many_partitions,
    bench_group_commit,
    bench_read,
    bench_index,
    bench_cold_read,
    bench_recovery
);
criterion_main!(benches);
