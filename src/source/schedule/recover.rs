//! What became of ticks that were begun before the broker died: are their events in their topics?

use std::collections::HashMap;
use std::sync::Arc;

use tripline_storage::batch::{BatchLimits, Batches, RecordView};
use tripline_storage::error::ReadError;
use tripline_storage::{Offset, Partition};
use uuid::Uuid;

use super::owed::Owed;
use super::planner::was_left_out_before;
use super::service::spec_of;
use super::tick::{ID_HEADER, SOURCE_HEADER, Tick, source};
use crate::broker::record::{JournalRecord, ScheduleFired, ScheduleFiring, ScheduleTicksDone};
use crate::broker::state::ScheduleEntry;
use crate::broker::{Broker, NoPartition};

/// How much of a log is read at a time.
const READ_BYTES: usize = 1 << 20;

/// Looks for the events of ticks that were begun. Those that are there are done, here and in the journal, or `owed` to
/// it; what the others had begun is known not to be there. Answers the schedules whose partition cannot be read.
pub(super) async fn complete(broker: &Broker, entries: &mut [ScheduleEntry], owed: &mut Owed) -> HashMap<Uuid, String> {
    let mut places: HashMap<(Uuid, u32), Vec<&mut ScheduleEntry>> = HashMap::new();
    for entry in entries {
        if let Some(firing) = &entry.firing {
            places.entry((firing.topic, firing.partition)).or_default().push(entry);
        }
    }
    let mut broken = HashMap::new();
    for ((topic, partition), mut begun) in places {
        let topic = broker.topic_by_id(topic);
        // In a topic that is gone there is nothing.
        let Some(topic) = topic else { continue };
        let log = match topic.partition(partition) {
            Ok(log) => log,
            Err(NoPartition::Unknown { .. }) => continue,
            Err(error) => {
                broken.extend(begun.iter().map(|entry| (entry.defined.id, error.to_string())));
                continue;
            }
        };
        let tail = log.tail();
        match find_begun(broker, log, &begun).await {
            Ok(found) => {
                begun.retain(|entry| found.contains(&entry.defined.id));
                owed.remember(broker.journal(), done(&mut begun), (Arc::clone(log), tail));
            }
            Err(error) => broken.extend(begun.iter().map(|entry| (entry.defined.id, error.to_string()))),
        }
    }
    broken
}

async fn find_begun(
    broker: &Broker,
    log: &Arc<Partition>,
    begun: &[&mut ScheduleEntry],
) -> Result<Vec<Uuid>, ReadError> {
    let firings = || begun.iter().filter_map(|entry| Some((entry, entry.firing.as_ref()?)));
    let from = |(_, firing): (_, &ScheduleFiring)| Offset::new(firing.from).unwrap_or(Offset::ZERO);
    let from = firings().map(from).min().unwrap_or(Offset::ZERO);
    let wanted = firings().map(|(entry, firing)| {
        let name = entry.defined.name.as_str();
        let event = Wanted { id: Tick::new(firing.tick_s).id(name), source: source(name, broker.cluster_id()) };
        (event, entry.defined.id)
    });
    find(log, from, wanted.collect()).await
}

/// The begun ticks of these are in their topic: what to remember of that.
fn done(entries: &mut [&mut ScheduleEntry]) -> Vec<JournalRecord> {
    let mut records: Vec<JournalRecord> = Vec::new();
    for entry in entries {
        let Some(ScheduleFiring { id, tick_s, .. }) = entry.firing.take() else { continue };
        // Where the definition cannot be read, nothing is taken for done that may not be.
        let timing = spec_of(entry).map(|spec| spec.timing);
        if timing.map_or(true, |timing| was_left_out_before(&entry.done, &timing, Tick::new(tick_s))) {
            entry.done.add(tick_s, tick_s);
            records.push(ScheduleTicksDone { id, first_s: tick_s, last_s: tick_s }.into());
        }
        entry.done.extend_to(tick_s);
        entry.fired_s = Some(tick_s);
        records.push(ScheduleFired { id, tick_s }.into());
    }
    records
}

/// An event that is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Wanted {
    /// Its `ce_id`.
    id: String,
    /// Its `ce_source`.
    source: String,
}

/// Which of the wanted events a partition has at `from` or later. One pass, however many are wanted.
///
/// # Errors
/// The disk does not answer.
async fn find(log: &Arc<Partition>, from: Offset, mut wanted: HashMap<Wanted, Uuid>) -> Result<Vec<Uuid>, ReadError> {
    let mut found = Vec::new();
    let mut at = from.max(log.log_start());
    while !wanted.is_empty() && at < log.tail() {
        let outcome = match Broker::read(log, at, READ_BYTES).await {
            Ok(outcome) => outcome,
            // What is damaged is gone; what lies behind it is not.
            Err(ReadError::Damaged { to, .. }) if to > at => {
                at = to;
                continue;
            }
            Err(error) => return Err(error),
        };
        if outcome.next <= at {
            break;
        }
        for_each_record(&outcome.bytes, |record| {
            if let Some(id) = event_of(record).and_then(|event| wanted.remove(&event)) {
                found.push(id);
            }
        });
        at = outcome.next;
    }
    Ok(found)
}

/// Batches that do not unpack were not written here: ticks are not compressed.
fn for_each_record(bytes: &[u8], mut visit: impl FnMut(&RecordView<'_>)) {
    for view in Batches::of(bytes).map_while(Result::ok) {
        if let Ok(records) = view.records(&BatchLimits::default()) {
            records.iter().map_while(Result::ok).for_each(|record| visit(&record));
        }
    }
}

fn event_of(record: &RecordView<'_>) -> Option<Wanted> {
    let text = |name: &str| {
        let header = record.headers().find(|header| header.name == name.as_bytes())?;
        std::str::from_utf8(header.value?).ok().map(str::to_owned)
    };
    Some(Wanted { id: text(ID_HEADER)?, source: text(SOURCE_HEADER)? })
}
