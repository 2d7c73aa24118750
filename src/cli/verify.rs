//! `tripline verify`: every record of a data directory, offline and read-only.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::json;
use tripline_storage::batch::header::HEADER_BYTES;
use tripline_storage::batch::{BatchHeader, BatchLimits, CheckedBatch, Validation};

use super::failure::Failure;
use super::output::Output;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tripline verify tripline-data")]
pub(super) struct VerifyArgs {
    /// The data directory.
    directory: PathBuf,
}

/// What was found.
#[derive(Debug, Default)]
struct Found {
    segments: u64,
    batches: u64,
    records: u64,
    damage: Vec<String>,
}

pub(super) fn run(args: &VerifyArgs, output: Output) -> Result<(), Failure> {
    let directory = &args.directory;
    if !directory.join("FORMAT").is_file() {
        return Err(Failure::wrong_use(format!("{} is no data directory: it has no FORMAT file", directory.display())));
    }
    let mut found = Found::default();
    for partition in partitions(directory)? {
        verify_partition(&partition, &mut found)?;
    }
    let Found { segments, batches, records, damage } = &found;
    let answer = json!({ "segments": segments, "batches": batches, "records": records, "damage": damage });
    output.show(&answer, |_| {
        let mut text = format!("{segments} segments, {batches} batches, {records} records: ");
        text.push_str(if damage.is_empty() { "all good\n" } else { "damaged\n" });
        damage.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        text
    })?;
    if damage.is_empty() { Ok(()) } else { Err(Failure::new(format!("{} damaged place(s)", damage.len()))) }
}

/// The folders with segments: of the topics, and of the state journal.
fn partitions(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut folders = vec![directory.join("state")];
    for topic in subfolders(&directory.join("topics"))? {
        folders.extend(subfolders(&topic)?);
    }
    folders.retain(|folder| folder.is_dir());
    Ok(folders)
}

fn subfolders(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| at(folder, &error))?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.map_err(|error| at(folder, &error))?;
    paths.retain(|path| path.is_dir());
    paths.sort();
    Ok(paths)
}

fn at(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}

fn verify_partition(folder: &Path, found: &mut Found) -> Result<(), Failure> {
    let entries =
        fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(|error| at(folder, &error))?;
    let mut logs: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.sort();
    let last = logs.len().saturating_sub(1);
    let mut next = None;
    for (index, log) in logs.iter().enumerate() {
        found.segments += 1;
        let base = log.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<i64>().ok());
        let Some(base) = base else {
            found.damage.push(format!("{}: the name is no offset", log.display()));
            continue;
        };
        if next.is_some_and(|next| next != base) {
            let expected = next.unwrap_or(0);
            found.damage.push(format!("{}: offsets {expected}..{base} are missing before it", log.display()));
        }
        next = Some(verify_segment(log, base, index == last, found)?);
    }
    Ok(())
}

/// Walks one file; answers the next offset. Room that was reserved behind the last batch of the newest segment is zeros.
fn verify_segment(log: &Path, base: i64, newest: bool, found: &mut Found) -> Result<i64, Failure> {
    let limits = BatchLimits { batch_bytes_max: BatchLimits::DECOMPRESSED_BYTES_MAX * 4, ..BatchLimits::default() };
    let file = File::open(log).map_err(|error| at(log, &error))?;
    let length = file.metadata().map_err(|error| at(log, &error))?.len();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let (mut next, mut position) = (base, 0);
    while length - position >= HEADER_BYTES as u64 {
        let mut bytes = vec![0; HEADER_BYTES];
        reader.read_exact(&mut bytes).map_err(|error| at(log, &error))?;
        if newest && bytes.iter().all(|&byte| byte == 0) {
            return Ok(next);
        }
        let mut damaged = |reason: String| {
            found.damage.push(format!("{}: byte {position}, offset {next}: {reason}", log.display()));
        };
        let header = match BatchHeader::parse(&bytes) {
            Ok(header) => header,
            Err(reason) => {
                damaged(reason.to_string());
                return Ok(next);
            }
        };
        let size_bytes = header.size_bytes() as u64;
        if size_bytes > length - position || size_bytes > limits.batch_bytes_max as u64 {
            damaged(format!("a batch of {size_bytes} bytes, {} are left in the file", length - position));
            return Ok(next);
        }
        bytes.resize(header.size_bytes(), 0);
        reader.read_exact(&mut bytes[HEADER_BYTES..]).map_err(|error| at(log, &error))?;
        if header.base_offset.get() < next {
            damaged(format!("the batch begins at offset {}", header.base_offset));
        }
        if let Err(reason) = check(bytes, &header, &limits) {
            damaged(reason);
        }
        position += size_bytes;
        next = header.next_offset().get();
        found.batches += 1;
        found.records += u64::from(header.record_count.unsigned_abs());
    }
    if position < length && !newest {
        found.damage.push(format!("{}: {} bytes behind the last batch", log.display(), length - position));
    }
    Ok(next)
}

/// The CRC and every record. Control batches are the broker's own and have no producer's rules.
fn check(bytes: Vec<u8>, header: &BatchHeader, limits: &BatchLimits) -> Result<(), String> {
    let bytes = Bytes::from(bytes);
    let (view, _) = tripline_storage::batch::BatchView::parse(&bytes).map_err(|reason| reason.to_string())?;
    view.verify_crc().map_err(|reason| reason.to_string())?;
    if header.attributes.is_control() {
        return Ok(());
    }
    CheckedBatch::check(bytes.clone(), limits, Validation::Records).map(|_| ()).map_err(|reason| reason.to_string())
}
