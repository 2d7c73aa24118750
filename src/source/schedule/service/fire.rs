//! The loop that does what is due: intent, event, done.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use tripline_storage::batch::{BatchBuilder, BatchOptions, CheckedBatch, NewRecord};
use tripline_storage::{Offset, Partition};
use uuid::Uuid;

use super::{Inner, Position, Reading, Schedule, ScheduleFired, ScheduleFiring, ScheduleTicksDone, Turn};
use crate::broker;
use crate::broker::record::JournalRecord;
use crate::source::schedule::owed::Owed;
use crate::source::schedule::planner::{Due, Planner};
use crate::source::schedule::tick::TickRecord;
use crate::topic::spec::TopicConfig;

/// The most ticks that one durable record of intent speaks of.
const ROUND_TICKS_MAX: usize = 1_000;
/// A batch of events is full with so many bytes.
const BATCH_BYTES_MAX: usize = 512 << 10;

/// A tick on its way.
struct Firing {
    due: Due,
    schedule: Arc<Schedule>,
    log: Arc<Partition>,
    from: Offset,
}

impl Firing {
    fn place(&self) -> (Uuid, u32) {
        (self.schedule.topic.id(), self.schedule.partition)
    }

    fn intent(&self) -> JournalRecord {
        let Due { id, tick } = self.due;
        let (topic, partition) = self.place();
        ScheduleFiring { id, tick_s: tick.unix_s(), topic, partition, from: self.from.get() }.into()
    }
}

/// [`run`], and says so when it panics.
pub(super) async fn guard(inner: Arc<Inner>) {
    if AssertUnwindSafe(run(Arc::clone(&inner))).catch_unwind().await.is_err() {
        inner.broke_down.store(true, Ordering::Release);
        tracing::error!("schedules broke down; restart the broker, and report this");
    }
}

/// Does ticks until it is told to stop. One timer for all schedules; none without schedules.
async fn run(inner: Arc<Inner>) {
    while !inner.stop.is_cancelled() {
        let look = inner.looks.load(Ordering::Acquire);
        let (now, wait_ms) = {
            let mut turn = inner.turn.lock().await;
            let now = inner.clock.read();
            if round(&inner, &mut turn, now).await {
                continue;
            }
            (now, turn.planner.wait_ms(now))
        };
        inner.idle.send_replace(look);
        let timer = async {
            match wait_ms {
                Some(wait_ms) => inner.clock.wait(now, wait_ms).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = inner.asked.notified() => {}
            () = inner.stop.cancelled() => {}
            () = timer => {}
        }
    }
}

/// Does what is due now, at most [`ROUND_TICKS_MAX`] ticks. Answers whether anything was.
async fn round(inner: &Inner, turn: &mut Turn, now: Reading) -> bool {
    let due = turn.planner.look(now, ROUND_TICKS_MAX);
    note_skipped(inner, &mut turn.planner);
    if due.is_empty() {
        return false;
    }
    let mut firings = firings(inner, &due);
    // What goes to one partition goes there together.
    firings.sort_by_key(Firing::place);
    if let Err(error) = begin(inner, &mut turn.owed, &firings).await {
        firings.iter().for_each(|firing| failed(firing, &mut turn.planner, now, &error.to_string()));
        return true;
    }
    for together in firings.chunk_by(|a, b| a.place() == b.place()) {
        append_all(inner, turn, now, together).await;
    }
    true
}

fn firings(inner: &Inner, due: &[Due]) -> Vec<Firing> {
    let schedules = inner.schedules.read();
    let firing = |&due: &Due| {
        let schedule = Arc::clone(schedules.by_id.get(&due.id)?);
        let log = Arc::clone(schedule.topic.partition(schedule.partition).ok()?);
        Some(Firing { due, schedule, from: log.tail(), log })
    };
    due.iter().filter_map(firing).collect()
}

/// Remembers durably what is going to be appended where. That takes the place of the last intent of each schedule, so
/// what is done by that is remembered first.
async fn begin(inner: &Inner, owed: &mut Owed, firings: &[Firing]) -> Result<(), broker::journal::JournalError> {
    owed.pay(inner.broker.journal())?;
    let intents: Vec<JournalRecord> = firings.iter().map(Firing::intent).collect();
    inner.broker.journal().commit(&intents, &[], broker::now_ms()).await
}

/// Appends the events of ticks that go to one partition, batch by batch.
async fn append_all(inner: &Inner, turn: &mut Turn, now: Reading, firings: &[Firing]) {
    let mut rest = firings;
    while !rest.is_empty() {
        let (batch, count) = batch(inner, rest);
        let (now_done, later) = rest.split_at(count);
        rest = later;
        let first = &now_done[0];
        let appended = match batch {
            Ok(batch) => inner
                .broker
                .append(&first.schedule.topic, first.schedule.partition, batch)
                .map(|appended| appended.outcome.last_offset)
                .map_err(|error| error.to_string()),
            Err(reason) => Err(reason),
        };
        match appended {
            Ok(last) => done(inner, turn, now, now_done, last.next()),
            Err(reason) => now_done.iter().for_each(|firing| failed(firing, &mut turn.planner, now, &reason)),
        }
        // A batch a poll: others have work too.
        tokio::task::yield_now().await;
    }
}

/// A batch with as many events as fit, at least one, and how many those are. An event that its topic refuses for a fault
/// of its own is alone, since a batch is refused as a whole: one too large, and one that a compacted topic wants a key of.
fn batch(inner: &Inner, firings: &[Firing]) -> (Result<CheckedBatch, String>, usize) {
    let of_topic = |config: &TopicConfig| (config.max_message_bytes as usize, config.cleanup_policy.compacts());
    let (topic_max, needs_key) = firings[0].schedule.topic.with_config(of_topic);
    let bytes_max = BATCH_BYTES_MAX.min(topic_max);
    let cluster_id = inner.broker.cluster_id();
    let timestamp_ms = broker::now_ms();
    let mut builder = BatchBuilder::new(BatchOptions::default());
    let mut count = 0;
    for firing in firings {
        let record = TickRecord::new(&firing.schedule.spec, firing.due.tick, cluster_id);
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            record.headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes()))).collect();
        let value = Some(record.value.as_slice());
        let new = NewRecord { timestamp_ms, key: record.key.as_deref(), value, headers: &headers };
        let is_alone = needs_key && record.key.is_none();
        if count > 0 && (is_alone || builder.size_bytes_with(&new) > bytes_max) {
            break;
        }
        count += 1;
        if let Err(error) = builder.push(&new) {
            return (Err(error.to_string()), count);
        }
        if is_alone {
            break;
        }
    }
    let built = match builder.finish() {
        Ok(batch) if batch.size_bytes() > topic_max => {
            Err(format!("its event has {} bytes, max.message.bytes of the topic is {topic_max}", batch.size_bytes()))
        }
        other => other.map_err(|error| error.to_string()),
    };
    (built, count)
}

/// The events are in their topic, below `next`.
fn done(inner: &Inner, Turn { planner, owed }: &mut Turn, now: Reading, firings: &[Firing], next: Offset) {
    let mut records: Vec<JournalRecord> = Vec::new();
    for Firing { due, schedule, .. } in firings {
        let (Due { id, tick }, tick_s) = (*due, due.tick.unix_s());
        if planner.fired(*due) {
            records.push(ScheduleTicksDone { id, first_s: tick_s, last_s: tick_s }.into());
        }
        records.push(ScheduleFired { id, tick_s }.into());
        let mut status = schedule.status.lock();
        if let Some(was) = planner.position(id) {
            status.position = Position { since_ms: status.position.since_ms, ..was };
        }
        status.counts.fired += 1;
        status.counts.last_late_ms = now.wall_ms.saturating_sub(schedule.spec.fire_ms(tick)).max(0).unsigned_abs();
        if let Some((_, since_ms)) = status.blocked.take() {
            tracing::warn!(schedule = %schedule.spec.name, since_ms, "its topic takes ticks again");
        }
    }
    owed.remember(inner.broker.journal(), records, (Arc::clone(&firings[0].log), next));
}

/// A tick is known not to be in its topic.
fn failed(firing: &Firing, planner: &mut Planner, now: Reading, reason: &str) {
    planner.failed(firing.due);
    let mut status = firing.schedule.status.lock();
    status.position.pending = Some(firing.due.tick);
    status.counts.failed += 1;
    let since_ms = match &status.blocked {
        Some((_, since_ms)) => *since_ms,
        None => {
            tracing::warn!(schedule = %firing.schedule.spec.name, reason, "its topic does not take a tick");
            now.wall_ms
        }
    };
    let tick = firing.due.tick.time_text();
    let topic = firing.schedule.topic.name();
    status.blocked = Some((format!("topic {topic} does not take tick {tick}: {reason}"), since_ms));
}

fn note_skipped(inner: &Inner, planner: &mut Planner) {
    let skipped = planner.take_skipped();
    if skipped.is_empty() {
        return;
    }
    let schedules = inner.schedules.read();
    for schedule in skipped.iter().filter_map(|id| schedules.by_id.get(id)) {
        schedule.status.lock().counts.skipped += 1;
        tracing::info!(schedule = %schedule.spec.name, "missed ticks are left out");
    }
}
