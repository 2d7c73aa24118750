//! `tripline import`: a topic that Kafka wrote becomes one of ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use tripline_storage::Offset;
use tripline_storage::fs::OsFs;
use tripline_storage::import::{CheckedSource, ImportFacts, ImportSource};

use super::failure::Failure;
use super::offline::{ProgressLine, bytes};
use super::output::{Output, print};
use crate::broker::{Broker, BrokerConfig};
use crate::topic::name::TopicName;
use crate::topic::spec::{PARTITIONS_MAX, TopicConfig, TopicSpec};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Works on a data directory that no broker has open, and on folders of a Kafka that was stopped cleanly (or on copies of them);
changes nothing of Kafka's. Everything is read and checked before anything is written.
Kept: offsets, also where compaction left some out, timestamps, headers, codecs, keys and values, byte for byte. Records of
committed transactions become ordinary ones; aborted ones are left out; a transaction without an end is refused. Message
formats before v2 are refused. Settings are not in Kafka's folders: name them with --config. Retention counts from now.
Exit code 0: done, or good in a dry run. 1: refused, failed, or the directory is in use. 2: wrong use.

Examples:
  tripline import --topic flights --from /var/lib/kafka/data
                                               the folders flights-0, flights-1 … in it
  tripline import --topic flights --from copy/flights-0,copy/flights-1 --data tripline-data --config retention.ms=-1
  tripline import --topic flights --from /var/lib/kafka/data --dry-run")]
pub(super) struct ImportArgs {
    /// The name of the new topic.
    #[arg(long, value_name = "NAME")]
    topic: String,
    /// Folders of Kafka: its data directory, or the folders TOPIC-N of one topic.
    #[arg(long, value_name = "DIR", required = true, value_delimiter = ',')]
    from: Vec<PathBuf>,
    /// The data directory; made if it is missing.
    #[arg(long, env = "TRIPLINE_DATA", value_name = "DIR", default_value = "tripline-data")]
    data: PathBuf,
    /// A setting of the new topic by Kafka's name. May be repeated.
    #[arg(long, short, value_name = "KEY=VALUE")]
    config: Vec<String>,
    /// Only read and check.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(args: &ImportArgs, output: Output) -> Result<(), Failure> {
    let spec = |partitions| -> Result<TopicSpec, Failure> {
        let name =
            TopicName::new(args.topic.clone()).map_err(|error| Failure::wrong_use(format!("--topic: {error}")))?;
        Ok(TopicSpec { name, partitions, config: config(&args.config)? })
    };
    spec(1)?;
    let sources = sources(args)?;
    let total_bytes = sources.iter().map(|source| folder_bytes(&source.dir)).sum::<u64>();
    let checked = {
        let mut line = ProgressLine::new("checking", output.json);
        let mut walked = counter(&mut line, total_bytes);
        let checked = sources.iter().map(|source| CheckedSource::check(&OsFs, source, &mut walked));
        checked.collect::<Result<Vec<_>, _>>().map_err(|error| Failure::new(error.to_string()))?
    };
    if !args.dry_run {
        let spec = spec(u32::try_from(checked.len()).expect("bounded when they were found"))?;
        let config = BrokerConfig::new(&args.data);
        let started = tokio::task::spawn_blocking(move || Broker::start(config)).await;
        let (broker, _) = started
            .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
            .map_err(|error| Failure::new(error.to_string()))?;
        let mut line = ProgressLine::new("writing", output.json);
        let mut walked = counter(&mut line, total_bytes);
        let made = broker.import_topic(spec, &checked, &mut walked).await;
        broker.close();
        made.map_err(|error| Failure::new(error.to_string()))?;
    }
    show(args, &checked, output)
}

fn counter<'a>(line: &'a mut ProgressLine, total_bytes: u64) -> impl FnMut(u64) + 'a {
    let mut done_bytes = 0;
    move |count| {
        done_bytes += count;
        line.show(done_bytes, total_bytes);
    }
}

fn config(pairs: &[String]) -> Result<TopicConfig, Failure> {
    let pair = |text: &'_ String| {
        let (key, value) = text.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    };
    let wrong = |text: &String| Failure::wrong_use(format!("--config: found {text:?}, allowed: KEY=VALUE"));
    let pairs = pairs.iter().map(|text| pair(text).ok_or_else(|| wrong(text))).collect::<Result<Vec<_>, _>>()?;
    TopicConfig::from_pairs(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())))
        .map_err(|error| Failure::wrong_use(format!("--config: {error}")))
}

/// The folders of the partitions, by number: all from 0 on.
fn sources(args: &ImportArgs) -> Result<Vec<ImportSource>, Failure> {
    let mut found = BTreeMap::new();
    for from in &args.from {
        let own = from.file_name().and_then(|name| partition_of(&name.to_string_lossy()));
        let folders = match own {
            Some((topic, number)) if holds_log(from) => vec![(topic, number, from.clone())],
            _ => folders_in(from, &args.topic)?,
        };
        for (topic, number, dir) in folders {
            let log_dir = dir.parent().unwrap_or_else(|| Path::new("."));
            refuse_running(log_dir)?;
            let log_start = log_start_of(log_dir, &topic, number);
            if let Some(other) = found.insert(number, ImportSource { dir: dir.clone(), log_start }) {
                let (one, two) = (other.dir.display().to_string(), dir.display().to_string());
                return Err(Failure::wrong_use(format!("--from: partition {number} is in {one} and in {two}")));
            }
        }
    }
    let missing = (0..).zip(found.keys()).find(|(expected, number)| expected != *number);
    if let Some((missing, _)) = missing {
        return Err(Failure::new(format!("--from: there is no folder of partition {missing}, but of later ones")));
    }
    if found.len() > PARTITIONS_MAX as usize {
        return Err(Failure::new(format!("--from: {} partitions, allowed are {PARTITIONS_MAX}", found.len())));
    }
    if found.is_empty() {
        return Err(Failure::new(format!("--from: no folder {}-0 there", args.topic)));
    }
    Ok(found.into_values().collect())
}

/// `topic-3` is partition 3 of topic `topic`.
fn partition_of(name: &str) -> Option<(String, u32)> {
    let (topic, number) = name.rsplit_once('-')?;
    let parsed: u32 = number.parse().ok()?;
    (parsed.to_string() == number && !topic.is_empty()).then(|| (topic.to_owned(), parsed))
}

fn holds_log(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|extension| extension == "log"))
}

fn folders_in(dir: &Path, topic: &str) -> Result<Vec<(String, u32, PathBuf)>, Failure> {
    let entries =
        std::fs::read_dir(dir).map_err(|error| Failure::wrong_use(format!("--from {}: {error}", dir.display())))?;
    let folders = entries.flatten().filter_map(|entry| {
        let (found, number) = partition_of(&entry.file_name().to_string_lossy())?;
        (found == topic && entry.path().is_dir()).then(|| (found, number, entry.path()))
    });
    Ok(folders.collect())
}

/// Kafka's data directory, unless Kafka said that it has left it.
fn refuse_running(log_dir: &Path) -> Result<(), Failure> {
    let is_kafkas = log_dir.join("meta.properties").exists();
    if !is_kafkas || log_dir.join(".kafka_cleanshutdown").exists() {
        return Ok(());
    }
    let log_dir = log_dir.display();
    Err(Failure::new(format!(
        "{log_dir}: Kafka runs in it or was not stopped cleanly (.kafka_cleanshutdown is missing); stop it, or import a copy of the folders"
    )))
}

/// What Kafka noted as the first offset that it serves.
fn log_start_of(log_dir: &Path, topic: &str, partition: u32) -> Option<Offset> {
    let text = std::fs::read_to_string(log_dir.join("log-start-offset-checkpoint")).ok()?;
    // Version, number of lines, then: topic partition offset.
    text.lines().skip(2).find_map(|line| match line.split(' ').collect::<Vec<_>>().as_slice() {
        [found, number, offset] if *found == topic && *number == partition.to_string() => {
            Offset::new(offset.parse().ok()?)
        }
        _ => None,
    })
}

fn folder_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let logs = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"));
    logs.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn show(args: &ImportArgs, checked: &[CheckedSource], output: Output) -> Result<(), Failure> {
    let facts = || (0..).zip(checked.iter().map(CheckedSource::facts));
    if output.json {
        let partitions: Vec<_> = facts().map(|(number, facts): (u32, _)| json_of(number, facts)).collect();
        let answer = json!({ "topic": args.topic, "imported": !args.dry_run, "partitions": partitions });
        return output.show(&answer, |_| String::new());
    }
    let mut text = String::new();
    for (number, facts) in facts() {
        text.push_str(&line_of(&args.topic, number, facts));
    }
    let records: u64 = checked.iter().map(|source| source.facts().records).sum();
    let done = if args.dry_run { "can be imported (dry run)" } else { "imported" };
    print(&format!("{text}topic {}: {records} records {done}\n", args.topic))
}

fn line_of(topic: &str, number: u32, facts: &ImportFacts) -> String {
    let ImportFacts { log_start, tail, records, batches, log_bytes, .. } = facts;
    let size = bytes(*log_bytes);
    let mut line =
        format!("{topic}/{number}: offsets {log_start}..{tail}, {records} records in {batches} batches, {size}");
    for (count, what) in [
        (facts.missing_offsets, "offsets between batches that compaction left out"),
        (facts.committed_transactions, "committed transactions"),
        (facts.aborted_transactions, "aborted transactions left out"),
    ] {
        if count > 0 {
            line.push_str(&format!(", {count} {what}"));
        }
    }
    line + "\n"
}

fn json_of(number: u32, facts: &ImportFacts) -> serde_json::Value {
    json!({
        "partition": number,
        "log_start": facts.log_start.get(),
        "tail": facts.tail.get(),
        "batches": facts.batches,
        "records": facts.records,
        "bytes": facts.log_bytes,
        "missing_offsets": facts.missing_offsets,
        "committed_transactions": facts.committed_transactions,
        "aborted_transactions": facts.aborted_transactions,
    })
}
