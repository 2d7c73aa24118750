//! One partition of a trigger: read, filter, window, invoke, remember; in offset order, one window at a time (T2).
//!
//! The loop acts; what follows from an attempt is decided in [`super::attempt`], when a window closes in
//! [`super::window`], what is finished in [`super::progress`]. A window is a list of offsets while it waits: its records
//! are read again for each attempt (T3: what is held does not grow with the backlog).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tripline_storage::error::{AppendError, ReadError};
use tripline_storage::producer::SequenceError;
use tripline_storage::{Offset, Partition};

use super::attempt::{AttemptState, ExhaustedReason, Step};
use super::deliver::{DeadLetters, Origin, Parcel, READ_BYTES, RecordsError, for_each_record};
use super::progress::{Hole, Progress};
use super::runner::{Counters, Runner};
use super::service::LaneReport;
use super::spec::TriggerSpec;
use super::window::{ClosedWindow, Push, RecordFacts, Window};
use crate::broker::codec;
use crate::broker::record::{DeadLetterTarget, JournalRecord, LaneId, TriggerAttempt, TriggerProgress, TriggerVerdict};
use crate::broker::state::LaneState;
use crate::broker::{Acks, Broker, ProduceError};
use crate::function::{ErrorClass, Invocation, InvocationError, Payload};

/// Progress over records that the filter turned away is written down after so long at the latest.
const FILTERED_PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// How long a lane waits before it tries again what the disk refused.
const DISK_RETRY: Duration = Duration::from_secs(1);

/// The broker is stopping: the lane ends, and what it had in hand is done again after the next start.
#[derive(Debug)]
struct Stop;

/// What `describe` shows of a lane.
#[derive(Debug)]
pub(super) struct LaneStatus {
    partition: Arc<Partition>,
    number: u32,
    shown: Mutex<Shown>,
}

#[derive(Clone, Debug, Default)]
struct Shown {
    committed: Option<Offset>,
    in_flight_records: u32,
    attempts: u32,
    next_attempt_ms: Option<i64>,
    last_error: Option<String>,
}

impl LaneStatus {
    pub(super) fn report(&self) -> LaneReport {
        let shown = self.shown.lock().clone();
        let tail = self.partition.tail();
        LaneReport {
            partition: self.number,
            committed: shown.committed.unwrap_or(tail),
            tail,
            in_flight_records: shown.in_flight_records,
            attempts: shown.attempts,
            next_attempt_ms: shown.next_attempt_ms,
            last_error: shown.last_error,
        }
    }

    /// Everything below is finished.
    pub(super) fn committed(&self) -> Option<Offset> {
        self.shown.lock().committed
    }

    pub(super) const fn number(&self) -> u32 {
        self.number
    }
}

/// One partition of a trigger at work.
#[derive(Debug)]
pub(super) struct Lane {
    runner: Arc<Runner>,
    log: Arc<Partition>,
    id: LaneId,
    origin: Origin,
    status: Arc<LaneStatus>,
    progress: Progress,
    /// The reading point that was written down last.
    noted: Offset,
    /// When filtered records must be written down.
    note_at: Option<Instant>,
}

/// A window that goes to the function: the offsets in it that matched.
#[derive(Debug)]
struct Delivery {
    first: Offset,
    next: Offset,
    offsets: Vec<Offset>,
    state: AttemptState,
}

impl Lane {
    /// A lane that goes on where `remembered` says, or at `start`.
    pub(super) fn new(runner: Arc<Runner>, number: u32, remembered: &LaneState) -> Result<Self, String> {
        let log = runner.topic.partition(number).cloned().ok_or_else(|| format!("partition {number} is missing"))?;
        let progress = match &remembered.progress {
            Some(bytes) => Progress::decode(bytes).map_err(|error| format!("partition {number}: {error}"))?,
            None => Progress::start(Offset::ZERO),
        };
        let id = LaneId { trigger: runner.id, topic: runner.topic.id(), partition: number };
        let origin = Origin {
            topic: runner.topic.name().to_string(),
            topic_id: runner.topic.id(),
            cluster_id: runner.broker.cluster_id().to_string(),
            partition: number,
        };
        let shown = Shown { committed: Some(progress.committed()), ..Shown::default() };
        let status = Arc::new(LaneStatus { partition: Arc::clone(&log), number, shown: Mutex::new(shown) });
        let noted = progress.committed();
        Ok(Self { runner, log, id, origin, status, progress, noted, note_at: None })
    }

    pub(super) fn status(&self) -> Arc<LaneStatus> {
        Arc::clone(&self.status)
    }

    /// Runs until the broker stops.
    pub(super) async fn run(mut self, remembered: LaneState) {
        let Err(Stop) = self.work(remembered).await;
        self.show(|shown| shown.in_flight_records = 0);
    }

    async fn work(&mut self, remembered: LaneState) -> Result<std::convert::Infallible, Stop> {
        let LaneState { verdict, attempt, .. } = remembered;
        if let Some(verdict) = verdict {
            // Invokes nothing, so a pause does not hold it up: its records and its producer may not last.
            self.carry_out(&verdict).await?;
        }
        self.may_run(None).await?;
        self.runner.change(|holds| holds.started = true);
        self.finish_remembered(attempt).await?;
        loop {
            let spec = self.runner.spec();
            self.read_with(&spec).await?;
        }
    }

    /// Goes on with the window that was in hand when the broker stopped.
    async fn finish_remembered(&mut self, attempt: Option<TriggerAttempt>) -> Result<(), Stop> {
        let holes: Vec<Hole> = self.progress.holes().collect();
        let in_holes = holes.first().zip(holes.last()).map(|(first, last)| (first.first, last.next));
        let in_attempt =
            attempt.as_ref().and_then(|attempt| Some((Offset::new(attempt.first)?, Offset::new(attempt.next)?)));
        let Some((first, next)) = in_attempt.or(in_holes) else { return Ok(()) };
        let first = first.max(self.progress.committed());
        if next <= first {
            return Ok(());
        }
        let state = attempt.map_or_else(AttemptState::default, |attempt| self.decode_attempts(&attempt.attempts));
        let mut offsets = self.matching(first, next).await?;
        offsets.retain(|offset| holes.is_empty() || holes.iter().any(|hole| (hole.first..hole.next).contains(offset)));
        self.deliver(Delivery { first, next, offsets, state }).await
    }

    fn decode_attempts(&self, bytes: &[u8]) -> AttemptState {
        codec::decode_part(bytes).unwrap_or_else(|reason| {
            tracing::error!(lane = ?self.id, reason, "attempts in the journal do not decode; they start anew");
            AttemptState::default()
        })
    }

    /// The offsets of `first..next` that match the filter.
    async fn matching(&mut self, first: Offset, next: Offset) -> Result<Vec<Offset>, Stop> {
        let spec = self.runner.spec();
        let mut matching = Vec::new();
        let mut at = first;
        while at < next {
            let Some(outcome) = self.read_chunk(at).await? else {
                at = self.log.log_start().max(at);
                continue;
            };
            let origin = &self.origin;
            let read = for_each_record(&outcome.bytes, |record, epoch| {
                let inside = record.offset() >= at && record.offset() < next;
                let matches = || {
                    spec.filter
                        .as_ref()
                        .is_none_or(|filter| origin.with_event(record, epoch, |event| filter.matches(event)))
                };
                if inside && matches() {
                    matching.push(record.offset());
                }
            });
            if let Err(error) = read {
                self.blocked(&error.to_string()).await?;
                continue;
            }
            at = outcome.next;
        }
        Ok(matching)
    }

    /// Reads and delivers until the definition changes or the trigger is held.
    async fn read_with(&mut self, spec: &Arc<TriggerSpec>) -> Result<(), Stop> {
        self.may_run(None).await?;
        let mut window = Window::new(spec.window);
        let mut offsets: Vec<Offset> = Vec::new();
        let mut at = self.progress.reading_point();
        loop {
            if !self.goes_on(spec) {
                // What the open window holds is read again.
                return Ok(());
            }
            if let Some(closed) = window.expire(self.runner.clock.elapsed()) {
                self.deliver_closed(closed, &mut offsets).await?;
                continue;
            }
            if at >= self.log.tail() {
                if let Some(closed) = window.caught_up() {
                    self.deliver_closed(closed, &mut offsets).await?;
                    continue;
                }
                if window.held().0 == 0 {
                    self.pass(at).await?;
                }
                self.wait(spec, at, &window).await;
                continue;
            }
            at = self.read_into(spec, &mut window, &mut offsets, at).await?;
        }
    }

    /// Reads one chunk into the window, delivering what closes. Answers where to read on.
    async fn read_into(
        &mut self,
        spec: &Arc<TriggerSpec>,
        window: &mut Window,
        offsets: &mut Vec<Offset>,
        at: Offset,
    ) -> Result<Offset, Stop> {
        let Some(outcome) = self.read_chunk(at).await? else { return Ok(self.log.log_start().max(at)) };
        let mut taken: Vec<RecordFacts> = Vec::new();
        let (origin, now_ms) = (&self.origin, self.runner.clock.now_ms());
        let mut filtered = 0;
        let read = for_each_record(&outcome.bytes, |record, epoch| {
            if record.offset() < at {
                return;
            }
            if spec
                .filter
                .as_ref()
                .is_some_and(|filter| !origin.with_event(record, epoch, |event| filter.matches(event)))
            {
                filtered += 1;
                return;
            }
            let age_ms = now_ms.saturating_sub(record.timestamp_ms()).max(0).unsigned_abs();
            let known = record.timestamp_ms() >= 0;
            let age = if known { Duration::from_millis(age_ms) } else { Duration::ZERO };
            taken.push(RecordFacts { offset: record.offset(), size_bytes: size_bytes(record), age });
        });
        if let Err(error) = read {
            self.blocked(&error.to_string()).await?;
            return Ok(at);
        }
        // Small next to the chunk that they came from; that is given back before anything is invoked.
        let next = outcome.next;
        drop(outcome);
        Counters::add(&self.runner.counters.filtered, filtered);
        for facts in taken {
            if !self.take(spec, facts, window, offsets).await? {
                return Ok(self.progress.reading_point());
            }
        }
        if window.held().0 == 0 {
            self.pass(next).await?;
        }
        tokio::task::yield_now().await;
        Ok(next)
    }

    /// Offers one record to the window, delivering what closes. `false` when the definition changed or the trigger is held:
    /// the rest is read again.
    async fn take(
        &mut self,
        spec: &Arc<TriggerSpec>,
        facts: RecordFacts,
        window: &mut Window,
        offsets: &mut Vec<Offset>,
    ) -> Result<bool, Stop> {
        loop {
            match window.push(facts, self.runner.clock.elapsed()) {
                Push::Taken => offsets.push(facts.offset),
                Push::TakenAndClosed(closed) => {
                    offsets.push(facts.offset);
                    self.deliver_closed(closed, offsets).await?;
                    return Ok(self.goes_on(spec));
                }
                Push::ClosedBefore(closed) => {
                    self.deliver_closed(closed, offsets).await?;
                    if self.goes_on(spec) {
                        continue;
                    }
                    return Ok(false);
                }
            }
            return Ok(true);
        }
    }

    /// Whether the definition is the same and nothing holds the trigger.
    fn goes_on(&self, spec: &Arc<TriggerSpec>) -> bool {
        Arc::ptr_eq(spec, &self.runner.spec()) && self.runner.may_run()
    }

    async fn deliver_closed(&mut self, closed: ClosedWindow, offsets: &mut Vec<Offset>) -> Result<(), Stop> {
        let offsets = std::mem::take(offsets);
        assert_eq!(offsets.len(), closed.records as usize, "a window holds the records that it took");
        // What was filtered out before the window's first record is settled with it.
        self.progress.pass(closed.first);
        let state = AttemptState::default();
        self.deliver(Delivery { first: closed.first, next: closed.next, offsets, state }).await
    }

    /// Tries until the window is finished: delivered, dead-lettered or dropped.
    async fn deliver(&mut self, mut delivery: Delivery) -> Result<(), Stop> {
        if self.progress.holes().next().is_none() {
            let first = delivery.first.max(self.progress.reading_point());
            if let Err(error) = self.progress.open(first, delivery.next) {
                tracing::error!(lane = ?self.id, %error, "window out of place");
            }
        }
        let span = (delivery.first, delivery.next);
        if delivery.state.running {
            let error =
                InvocationError::new(ErrorClass::Interrupted, "interrupted", "the broker stopped during the attempt");
            let step = self.end(&mut delivery, Err(&error));
            if self.follow(&mut delivery, step, None).await? {
                return Ok(());
            }
        } else if let Some(at_ms) = delivery.state.next_attempt_ms {
            self.show_waiting(&delivery, Some(at_ms));
            self.sleep_until(at_ms, &mut delivery.state).await?;
        }
        loop {
            if delivery.offsets.is_empty() {
                return self.finish(span).await;
            }
            let probing = self.hold_for_outage(&mut delivery.state).await?;
            let outcome = self.attempt(&mut delivery).await?;
            let step = self.end(&mut delivery, outcome.as_ref().copied());
            if step == Step::Done && !delivery.offsets.is_empty() {
                // A function that takes one record at a time has the next one coming.
                self.runner.change(|holds| holds.outage = None);
                delivery.state = AttemptState::default();
                self.remember_attempt(&delivery).await?;
                continue;
            }
            if self.follow(&mut delivery, step, probing).await? {
                return Ok(());
            }
        }
    }

    /// One attempt. What was delivered leaves the delivery: all of it, or some after partial success.
    async fn attempt(&mut self, delivery: &mut Delivery) -> Result<Result<(), InvocationError>, Stop> {
        let runner = Arc::clone(&self.runner);
        let (slot, spec, parcel) = loop {
            self.may_run(Some(&mut delivery.state)).await?;
            let slot = runner.slots.take().await;
            // While it waited for the slot, the trigger may have been held.
            if !runner.may_run() {
                continue;
            }
            let spec = runner.spec();
            let shape = runner.payload(&spec);
            // One that takes raw bytes takes one record at a time, also of a window that was made for another one.
            let sent = if shape == Payload::Raw { 1 } else { delivery.offsets.len() };
            match Parcel::build(&self.log, &self.origin, &delivery.offsets[..sent], shape).await {
                Ok(parcel) => break (slot, spec, parcel),
                Err(error) => {
                    // Others may go on while this one waits.
                    drop(slot);
                    self.blocked(&error.to_string()).await?;
                }
            }
        };
        let expired = delivery.drop_expired(&parcel);
        Counters::add(&runner.counters.expired, expired);
        if parcel.record_count() == 0 {
            return Ok(Ok(()));
        }
        delivery.state.begin(runner.clock.now_ms());
        self.remember_attempt(delivery).await?;
        self.show_waiting(delivery, None);
        let invocation = Invocation {
            id: format!("{}/{}/{}/{}", spec.name, self.origin.topic, self.id.partition, delivery.first),
            attempt: delivery.state.attempt_number(),
            payload: parcel.payload.clone(),
            content_type: parcel.content_type,
            record_count: u32::try_from(parcel.record_count()).unwrap_or(u32::MAX),
        };
        let answer = runner.functions.invoke(&runner.function_name(&spec), invocation).await;
        drop(slot);
        if self.stopping() && answer.as_ref().is_err_and(|error| error.class == ErrorClass::Interrupted) {
            return Err(Stop);
        }
        Ok(self.judge(delivery, &parcel, answer.map(|success| success.body)))
    }

    /// What the answer says of the records in hand.
    fn judge(
        &mut self,
        delivery: &mut Delivery,
        parcel: &Parcel,
        answer: Result<bytes::Bytes, InvocationError>,
    ) -> Result<(), InvocationError> {
        let body = match answer {
            Ok(body) => body,
            Err(mut error) => {
                error.class = self.runner.health.lock().class_of(&error);
                return Err(error);
            }
        };
        self.runner.health.lock().success();
        let failed = parcel
            .failures(&self.origin, &body)
            .map_err(|reason| InvocationError::new(ErrorClass::Failed, "bad-batch-item-failures", reason))?;
        let sent = parcel.record_count();
        Counters::add(&self.runner.counters.delivered, sent - failed.len());
        let message = format!("the function reported {} of {sent} records as failed", failed.len());
        let refused = !failed.is_empty();
        let rest = delivery.offsets.split_off(sent);
        self.keep_only(delivery, failed.into_iter().chain(rest).collect());
        if refused {
            return Err(InvocationError::new(ErrorClass::Failed, "batch-item-failures", message));
        }
        Ok(())
    }

    /// Some records of the window are finished, these are not.
    fn keep_only(&mut self, delivery: &mut Delivery, open: Vec<Offset>) {
        let mut progress = self.progress.clone();
        let mut at = delivery.first;
        for &offset in open.iter().chain(std::iter::once(&delivery.next)) {
            finish_between(&mut progress, at, offset);
            at = offset.next();
        }
        delivery.offsets = open;
        match progress.encode() {
            // The window's end stays open until all of it is finished.
            _ if delivery.offsets.is_empty() => {}
            Ok(_) => self.progress = progress,
            // Too many holes to write down: the whole window stays open, and is repeated after a crash.
            Err(error) => tracing::debug!(lane = ?self.id, %error, "window stays open as a whole"),
        }
    }

    fn end(&self, delivery: &mut Delivery, outcome: Result<(), &InvocationError>) -> Step {
        let policies = self.runner.spec().policies();
        let counters = &self.runner.counters;
        Counters::add(if outcome.is_ok() { &counters.attempts_succeeded } else { &counters.attempts_failed }, 1);
        delivery.state.end(outcome, &policies, self.runner.clock.now_ms(), fastrand::u64(..))
    }

    /// Acts on a step; `true` when the window is finished.
    async fn follow(
        &mut self,
        delivery: &mut Delivery,
        step: Step,
        probing: Option<tokio::sync::OwnedMutexGuard<()>>,
    ) -> Result<bool, Stop> {
        let runner = Arc::clone(&self.runner);
        if !matches!(step, Step::Outage { .. } | Step::BrokenCode) {
            runner.change(|holds| holds.outage = None);
        }
        // Only an outage is probed: in any other wait, somebody else may find the target gone.
        let probing = probing.filter(|_| matches!(step, Step::Outage { .. }));
        if step == Step::Done {
            runner.slots.grow();
            self.unblock();
            self.finish((delivery.first, delivery.next)).await?;
            return Ok(true);
        }
        self.remember_attempt(delivery).await?;
        let error = delivery.state.last_error.as_ref().map_or_else(String::new, |error| error.message.clone());
        match step {
            Step::Done => {}
            Step::RetryAt { at_ms, .. } => {
                self.show_waiting(delivery, Some(at_ms));
                self.sleep_until(at_ms, &mut delivery.state).await?;
            }
            Step::Throttled { until_ms } => {
                runner.slots.halve();
                self.show_waiting(delivery, Some(until_ms));
                self.sleep_until(until_ms, &mut delivery.state).await?;
            }
            Step::Outage { probe_at_ms } => {
                runner.change(|holds| holds.outage = Some(error));
                self.show_waiting(delivery, Some(probe_at_ms));
                // A lane that was probing goes on probing; the others wait for its success.
                let Some(_probing) = probing else { return Ok(false) };
                self.sleep_until(probe_at_ms, &mut delivery.state).await?;
            }
            Step::BrokenCode => {
                self.show_waiting(delivery, None);
                runner.change(|holds| holds.failed = Some(error));
                self.may_run(Some(&mut delivery.state)).await?;
            }
            Step::Blocked { at_ms, .. } => {
                let number = self.id.partition;
                runner.change(|holds| {
                    holds.blocked.insert(number, error);
                });
                self.show_waiting(delivery, Some(at_ms));
                self.sleep_until(at_ms, &mut delivery.state).await?;
            }
            Step::Exhausted { reason } => {
                self.give_up(delivery, reason).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// In an outage, one lane at a time tries: the one that gets the probe. The others wait for its success.
    async fn hold_for_outage(
        &mut self,
        state: &mut AttemptState,
    ) -> Result<Option<tokio::sync::OwnedMutexGuard<()>>, Stop> {
        loop {
            self.may_run(Some(state)).await?;
            let runner = Arc::clone(&self.runner);
            let changed = runner.listen();
            if runner.holds(|holds| holds.outage.is_none()) {
                state.count_again(runner.clock.now_ms());
                return Ok(None);
            }
            state.suspend(runner.clock.now_ms());
            tokio::select! {
                probing = Arc::clone(&runner.probing).lock_owned() => {
                    if let Some(at_ms) = state.next_attempt_ms {
                        self.sleep_until(at_ms, state).await?;
                    }
                    return Ok(Some(probing));
                }
                () = changed => {}
            }
        }
    }

    /// The verdict, the dead letters, then progress: after a crash between them, what is missing is done and nothing twice.
    async fn give_up(&mut self, delivery: &Delivery, reason: ExhaustedReason) -> Result<(), Stop> {
        let dead_letters = self.dead_letter_target().await?;
        let verdict = TriggerVerdict {
            lane: self.id,
            first: delivery.first.get(),
            next: delivery.next.get(),
            offsets: delivery.offsets.iter().map(|offset| offset.get()).collect(),
            reason: reason.as_str().to_owned(),
            function: self.runner.spec().function.label().to_owned(),
            attempts: codec::encode_part(&delivery.state),
            dead_letters,
        };
        self.remember(&[verdict.clone().into()]).await?;
        self.carry_out(&verdict).await
    }

    /// Where dead letters go, with an idempotent producer of their own: whatever becomes of one verdict, the next is not
    /// held up by it.
    async fn dead_letter_target(&mut self) -> Result<Option<DeadLetterTarget>, Stop> {
        loop {
            // Read anew each time: a person may name another topic to end the wait.
            let Some(name) = self.runner.spec().dead_letter.clone() else { return Ok(None) };
            let Some(topic) = self.runner.broker.topic(name.as_str()) else {
                self.blocked(&format!("the dead-letter topic {name} does not exist")).await?;
                continue;
            };
            match self.runner.broker.next_producer_id().await {
                Ok(producer_id) => {
                    let partition = self.id.partition % topic.partition_count();
                    let batch_bytes = topic.with_config(|config| config.max_message_bytes);
                    return Ok(Some(DeadLetterTarget { topic: topic.id(), partition, producer_id, batch_bytes }));
                }
                Err(error) => self.blocked(&error.to_string()).await?,
            }
        }
    }

    async fn carry_out(&mut self, verdict: &TriggerVerdict) -> Result<(), Stop> {
        let offsets: Vec<Offset> = verdict.offsets.iter().copied().filter_map(Offset::new).collect();
        let counters = &self.runner.counters;
        if let Some(target) = verdict.dead_letters {
            let written = loop {
                match self.write_dead_letters(verdict, &offsets, target).await {
                    Ok(written) => break written,
                    Err(error) => self.blocked(&format!("dead letters: {error}")).await?,
                }
            };
            let counters = &self.runner.counters;
            Counters::add(&counters.dead_lettered, written);
            Counters::add(&counters.expired, offsets.len() - written);
        } else {
            Counters::add(&counters.dropped, offsets.len());
            let spec = self.runner.spec();
            let (first, reason) = (verdict.first, &verdict.reason);
            tracing::warn!(trigger = %spec.name, topic = self.origin.topic, partition = self.id.partition, first, records = offsets.len(), reason, "records dropped: there is no dead-letter topic");
        }
        self.unblock();
        let (Some(first), Some(next)) = (Offset::new(verdict.first), Offset::new(verdict.next)) else { return Ok(()) };
        self.finish((first, next)).await
    }

    /// Answers how many there are; those that retention took meanwhile are not.
    async fn write_dead_letters(
        &self,
        verdict: &TriggerVerdict,
        offsets: &[Offset],
        target: DeadLetterTarget,
    ) -> Result<usize, DeadLetterError> {
        let broker = &self.runner.broker;
        let topic = broker.topic_by_id(target.topic).ok_or(DeadLetterError::NoTopic)?;
        let state = self.decode_attempts(&verdict.attempts);
        let spec = self.runner.spec();
        let letters = DeadLetters {
            trigger: spec.name.as_str(),
            function: &verdict.function,
            origin: &self.origin,
            state: &state,
            batch_bytes: target.batch_bytes as usize,
            now_ms: self.runner.clock.now_ms(),
        };
        let mut written = 0;
        for batch in letters.batches(&self.log, offsets, target.producer_id).await? {
            written += batch.header().record_count.unsigned_abs() as usize;
            match broker.append_reserved(&topic, target.partition, batch) {
                Ok(appended) => appended.acknowledged(Acks::All).await.map_err(ProduceError::from)?,
                // So long ago that the log forgot where: it is there.
                Err(ProduceError::Append(AppendError::Sequence(SequenceError::Duplicate { .. }))) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }

    /// The window is finished: its outcome is in the page cache before the next one begins.
    async fn finish(&mut self, (first, next): (Offset, Offset)) -> Result<(), Stop> {
        finish_between(&mut self.progress, first, next);
        self.progress.pass(next);
        self.write_progress().await?;
        self.show(|shown| *shown = Shown { committed: shown.committed, ..Shown::default() });
        Ok(())
    }

    /// Everything below `at` was read and needs no invocation.
    async fn pass(&mut self, at: Offset) -> Result<(), Stop> {
        self.progress.pass(at);
        let committed = self.progress.committed();
        self.show(|shown| shown.committed = Some(committed));
        if committed == self.noted {
            return Ok(());
        }
        let due = *self.note_at.get_or_insert_with(|| Instant::now() + FILTERED_PROGRESS_EVERY);
        if due <= Instant::now() { self.write_progress().await } else { Ok(()) }
    }

    async fn write_progress(&mut self) -> Result<(), Stop> {
        let record = self.progress_record();
        self.remember(&[record]).await?;
        self.progress_noted();
        Ok(())
    }

    fn progress_record(&self) -> JournalRecord {
        let committed = self.progress.committed();
        let coarse = || Progress::start(committed).encode().expect("a start has no holes");
        TriggerProgress { lane: self.id, progress: self.progress.encode().unwrap_or_else(|_| coarse()) }.into()
    }

    fn progress_noted(&mut self) {
        let committed = self.progress.committed();
        self.noted = committed;
        self.note_at = None;
        self.show(|shown| shown.committed = Some(committed));
    }

    /// The attempts of the window, and with them what of it is finished already: one without the other would repeat or
    /// forget records after a kill.
    async fn remember_attempt(&mut self, delivery: &Delivery) -> Result<(), Stop> {
        let (first, next) = (delivery.first.get(), delivery.next.get());
        let attempts = codec::encode_part(&delivery.state);
        let attempt = TriggerAttempt { lane: self.id, first, next, attempts }.into();
        let whole = self.progress.holes().all(|hole| hole.first == delivery.first && hole.next == delivery.next);
        if whole {
            return self.remember(&[attempt]).await;
        }
        self.remember(&[self.progress_record(), attempt]).await?;
        self.progress_noted();
        Ok(())
    }

    /// Appends to the journal, all or nothing; while the disk is full, the lane waits: an attempt that is not written down
    /// is not made.
    async fn remember(&mut self, records: &[JournalRecord]) -> Result<(), Stop> {
        let mut blocked = false;
        loop {
            let source = [(Arc::clone(&self.log), self.progress.reading_point().min(self.log.tail()))];
            let now_ms = crate::broker::now_ms();
            match self.runner.broker.journal().append_after(records, &source, now_ms) {
                Ok(_) => {
                    if blocked {
                        self.unblock();
                    }
                    return Ok(());
                }
                Err(error) => {
                    blocked = true;
                    self.blocked(&error.to_string()).await?;
                }
            }
        }
    }

    /// A chunk from `at` on. `None` when retention has passed `at`: the lane moves to the log start.
    async fn read_chunk(&mut self, at: Offset) -> Result<Option<tripline_storage::partition::ReadOutcome>, Stop> {
        let mut blocked = false;
        loop {
            match Broker::read(&self.log, at, READ_BYTES).await {
                Ok(outcome) => {
                    if blocked {
                        self.unblock();
                    }
                    return Ok(Some(outcome));
                }
                Err(ReadError::OutOfRange { log_start, .. }) if at < log_start => {
                    let expired = usize::try_from(log_start.since(at)).unwrap_or(usize::MAX);
                    let (trigger, number) = (self.runner.id, self.id.partition);
                    tracing::warn!(%trigger, partition = number, from = %at, to = %log_start, "records expired before they were read");
                    Counters::add(&self.runner.counters.expired, expired);
                    self.progress.pass(log_start);
                    return Ok(None);
                }
                Err(error) => {
                    blocked = true;
                    self.blocked(&error.to_string()).await?;
                }
            }
        }
    }

    /// Shows why the partition cannot go on, and waits a little.
    async fn blocked(&mut self, reason: &str) -> Result<(), Stop> {
        let number = self.id.partition;
        self.runner.change(|holds| {
            holds.blocked.insert(number, reason.to_owned());
        });
        let until = Instant::now() + DISK_RETRY;
        loop {
            let changed = self.runner.listen();
            if self.stopping() {
                return Err(Stop);
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(()),
                () = changed => {}
            }
        }
    }

    fn unblock(&self) {
        let number = self.id.partition;
        if self.runner.holds(|holds| holds.blocked.contains_key(&number)) {
            self.runner.change(|holds| {
                holds.blocked.remove(&number);
            });
        }
    }

    /// Waits for records behind `at`, the window's deadline, or a change.
    async fn wait(&mut self, spec: &Arc<TriggerSpec>, at: Offset, window: &Window) {
        let changed = self.runner.listen();
        let appended = self.log.listen_tail();
        if self.log.tail() > at || !self.goes_on(spec) {
            return;
        }
        let now = self.runner.clock.elapsed();
        let deadline = window.deadline().map(|deadline| Instant::now() + deadline.saturating_sub(now));
        // What lies before an open window is written down with its outcome.
        let note_at = self.note_at.filter(|_| window.held().0 == 0);
        tokio::select! {
            () = appended => {}
            () = changed => {}
            () = sleep_until_some(deadline.into_iter().chain(note_at).min()) => {}
        }
    }

    /// Waits until the trigger may run. Time that a window spends here does not count towards its age.
    async fn may_run(&mut self, mut state: Option<&mut AttemptState>) -> Result<(), Stop> {
        loop {
            let changed = self.runner.listen();
            if self.stopping() {
                return Err(Stop);
            }
            if self.runner.may_run() {
                if let Some(state) = state
                    && self.runner.holds(|holds| holds.outage.is_none())
                {
                    state.count_again(self.runner.clock.now_ms());
                }
                return Ok(());
            }
            if let Some(state) = state.as_deref_mut() {
                state.suspend(self.runner.clock.now_ms());
            }
            changed.await;
        }
    }

    /// Waits until `at_ms`, and then until the trigger may run. A new definition, new code and a person who resumes end the
    /// wait.
    async fn sleep_until(&mut self, at_ms: i64, state: &mut AttemptState) -> Result<(), Stop> {
        let until = self.runner.clock.instant(at_ms);
        let nudges = self.runner.nudges();
        loop {
            self.may_run(Some(state)).await?;
            let changed = self.runner.listen();
            if self.runner.nudges() != nudges {
                return Ok(());
            }
            if !self.runner.may_run() {
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(()),
                () = changed => {}
            }
        }
    }

    fn stopping(&self) -> bool {
        self.runner.holds(|holds| holds.stopped)
    }

    fn show(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.status.shown.lock());
    }

    fn show_waiting(&self, delivery: &Delivery, next_attempt_ms: Option<i64>) {
        let state = &delivery.state;
        self.show(|shown| {
            shown.in_flight_records = u32::try_from(delivery.offsets.len()).unwrap_or(u32::MAX);
            shown.attempts = state.attempts;
            shown.next_attempt_ms = next_attempt_ms;
            shown.last_error = state.last_error.as_ref().map(|error| error.message.clone());
        });
    }
}

/// Why dead letters could not be written yet.
#[derive(Debug, thiserror::Error)]
enum DeadLetterError {
    #[error("the dead-letter topic was deleted")]
    NoTopic,
    #[error(transparent)]
    Records(#[from] RecordsError),
    #[error(transparent)]
    Produce(#[from] ProduceError),
}

async fn sleep_until_some(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn size_bytes(record: &tripline_storage::batch::RecordView<'_>) -> u64 {
    let headers: usize = record.headers().map(|header| header.name.len() + header.value.map_or(0, <[u8]>::len)).sum();
    (record.key().map_or(0, <[u8]>::len) + record.value().map_or(0, <[u8]>::len) + headers) as u64
}

/// What is remembered of a lane beyond the tail speaks of records that a power cut took: it goes on at the tail, or where
/// the first unfinished record was. `None` when nothing is.
pub(super) fn set_back(remembered: &LaneState, tail: Offset) -> Option<Progress> {
    let progress = remembered.progress.as_deref().and_then(|bytes| Progress::decode(bytes).ok());
    let beyond = |next: i64| next > tail.get();
    let ahead = progress.as_ref().is_some_and(|progress| progress.reading_point() > tail)
        || remembered.attempt.as_ref().is_some_and(|attempt| beyond(attempt.next))
        || remembered.verdict.as_ref().is_some_and(|verdict| beyond(verdict.next));
    ahead.then(|| Progress::start(progress.map_or(tail, |progress| progress.committed().min(tail))))
}

/// Finishes whatever of `first..next` is open.
fn finish_between(progress: &mut Progress, first: Offset, next: Offset) {
    let open: Vec<Hole> = progress.holes().filter(|hole| hole.first < next && hole.next > first).collect();
    for hole in open {
        let finished = progress.finish(hole.first.max(first), hole.next.min(next));
        finished.expect("a part of a hole is inside that hole");
    }
}

impl Delivery {
    /// Leaves out what retention took before it could be sent; answers how many those were.
    fn drop_expired(&mut self, parcel: &Parcel) -> usize {
        let before = self.offsets.len();
        let Some(first_sent) = parcel.offsets().next() else {
            // All that was to be sent is gone: the rest is looked at by the next attempt.
            let sent = if parcel.is_raw() { 1 } else { before };
            self.offsets.drain(..sent);
            return sent;
        };
        if parcel.is_raw() {
            self.offsets.retain(|&offset| offset >= first_sent);
        } else {
            self.offsets = parcel.offsets().collect();
        }
        before - self.offsets.len()
    }
}
