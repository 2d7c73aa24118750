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
use tripline_storage::{Offset, Partition};

use super::attempt::{AttemptState, ExhaustedReason, Step};
use super::deliver::{DeadLetters, Origin, Parcel, READ_BYTES, RecordsError, for_each_record};
use super::progress::Progress;
use super::runner::{Counters, Runner};
use super::service::LaneReport;
use super::spec::TriggerSpec;
use super::window::{ClosedWindow, Push, RecordFacts, Window};
use crate::broker::codec;
use crate::broker::journal::JournalError;
use crate::broker::record::{DeadLetterTarget, JournalRecord, LaneId, TriggerAttempt, TriggerProgress, TriggerVerdict};
use crate::broker::state::{LaneState, sequence_after};
use crate::broker::{Acks, Broker, ProduceError};
use crate::function::{ErrorClass, Invocation, InvocationError};

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
    /// Producer id of the dead letters and the sequence of the next one.
    dead_letter_producer: Option<(i64, i32)>,
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
        let progress = set_back(progress, log.tail());
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
        let dead_letter_producer = remembered.dead_letter_producer;
        Ok(Self { runner, log, id, origin, status, progress, dead_letter_producer, noted, note_at: None })
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
        self.may_run(None).await?;
        self.runner.change(|holds| holds.started = true);
        self.finish_remembered(remembered).await?;
        loop {
            let spec = self.runner.spec();
            self.read_with(&spec).await?;
        }
    }

    /// Goes on with what was in hand when the broker stopped: a verdict first, then the window that was being tried.
    async fn finish_remembered(&mut self, remembered: LaneState) -> Result<(), Stop> {
        if let Some(verdict) =
            remembered.verdict.filter(|verdict| Offset::new(verdict.next) > Some(self.progress.committed()))
        {
            return self.carry_out(&verdict).await;
        }
        let Some(attempt) = remembered.attempt else { return Ok(()) };
        let (Some(first), Some(next)) = (Offset::new(attempt.first), Offset::new(attempt.next)) else { return Ok(()) };
        let first = first.max(self.progress.committed());
        let next = next.min(self.log.tail());
        if next <= first {
            return Ok(());
        }
        let state = codec::decode_part(&attempt.attempts).unwrap_or_else(|reason| {
            tracing::error!(lane = ?self.id, reason, "attempts in the journal do not decode; they start anew");
            AttemptState::default()
        });
        let offsets = self.matching(first, next).await?;
        let holes: Vec<_> = self.progress.holes().collect();
        let open =
            |offset: &Offset| holes.is_empty() || holes.iter().any(|hole| (hole.first..hole.next).contains(offset));
        let offsets: Vec<Offset> = offsets.into_iter().filter(open).collect();
        self.deliver(Delivery { first, next, offsets, state }).await
    }

    /// The offsets of `first..next` that match the filter.
    async fn matching(&mut self, first: Offset, next: Offset) -> Result<Vec<Offset>, Stop> {
        let spec = self.runner.spec();
        let mut matching = Vec::new();
        let mut at = first;
        while at < next {
            let Some(outcome) = self.read_chunk(at).await? else { break };
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
            if !Arc::ptr_eq(spec, &self.runner.spec()) || !self.runner.may_run() {
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
                self.wait(at, window.deadline()).await;
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
            if !self.take(facts, window, offsets).await? {
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
    async fn take(&mut self, facts: RecordFacts, window: &mut Window, offsets: &mut Vec<Offset>) -> Result<bool, Stop> {
        loop {
            match window.push(facts, self.runner.clock.elapsed()) {
                Push::Taken => offsets.push(facts.offset),
                Push::TakenAndClosed(closed) => {
                    offsets.push(facts.offset);
                    self.deliver_closed(closed, offsets).await?;
                    return Ok(self.runner.may_run());
                }
                Push::ClosedBefore(closed) => {
                    self.deliver_closed(closed, offsets).await?;
                    if self.runner.may_run() {
                        continue;
                    }
                    return Ok(false);
                }
            }
            return Ok(true);
        }
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
            let finished = self.follow(&mut delivery, step, probing).await?;
            if finished {
                return Ok(());
            }
        }
    }

    /// One attempt. Partial success leaves the failed records in the delivery.
    async fn attempt(&mut self, delivery: &mut Delivery) -> Result<Result<(), InvocationError>, Stop> {
        self.may_run(Some(&mut delivery.state)).await?;
        let runner = Arc::clone(&self.runner);
        let _slot = runner.slots.take().await;
        let spec = runner.spec();
        let parcel = loop {
            match Parcel::build(&self.log, &self.origin, &delivery.offsets, runner.payload(&spec)).await {
                Ok(parcel) => break parcel,
                Err(error) => self.blocked(&error.to_string()).await?,
            }
        };
        let expired = delivery.offsets.len() - parcel.record_count();
        if expired > 0 {
            Counters::add(&runner.counters.expired, expired);
            delivery.offsets.retain(|&offset| offset >= self.log.log_start());
            if delivery.offsets.is_empty() {
                return Ok(Ok(()));
            }
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
        let delivered = delivery.offsets.len() - failed.len();
        Counters::add(&self.runner.counters.delivered, delivered);
        if failed.is_empty() {
            return Ok(());
        }
        let message = format!("the function reported {} of {} records as failed", failed.len(), delivery.offsets.len());
        self.keep_only(delivery, failed);
        Err(InvocationError::new(ErrorClass::Failed, "batch-item-failures", message))
    }

    /// Some records of the window are finished, these are not.
    fn keep_only(&mut self, delivery: &mut Delivery, failed: Vec<Offset>) {
        let mut progress = self.progress.clone();
        let mut at = delivery.first.max(progress.committed());
        for &offset in failed.iter().chain(std::iter::once(&delivery.next)) {
            // Where it is finished already there is no hole, and nothing to do.
            if offset > at && progress.finish(at, offset).is_err() {
                tracing::debug!(lane = ?self.id, %at, %offset, "finished before");
            }
            at = offset.next();
        }
        delivery.offsets = failed;
        match progress.encode() {
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
                return Ok(None);
            }
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
        let spec = self.runner.spec();
        let dead_letters = match &spec.dead_letter {
            Some(topic) => Some(self.dead_letter_target(topic.as_str(), delivery.offsets.len()).await?),
            None => None,
        };
        let verdict = TriggerVerdict {
            lane: self.id,
            first: delivery.first.get(),
            next: delivery.next.get(),
            offsets: delivery.offsets.iter().map(|offset| offset.get()).collect(),
            reason: reason.as_str().to_owned(),
            attempts: codec::encode_part(&delivery.state),
            dead_letters,
        };
        self.remember(&verdict.clone().into()).await?;
        self.carry_out(&verdict).await
    }

    async fn dead_letter_target(&mut self, topic: &str, count: usize) -> Result<DeadLetterTarget, Stop> {
        loop {
            match self.runner.broker.topic(topic) {
                Some(topic) => {
                    let (producer_id, base_sequence) = match self.dead_letter_producer {
                        Some(known) => known,
                        None => (self.new_producer_id().await?, 0),
                    };
                    self.dead_letter_producer = Some((producer_id, sequence_after(base_sequence, count)));
                    let partition = self.id.partition % topic.partition_count();
                    return Ok(DeadLetterTarget { topic: topic.id(), partition, producer_id, base_sequence });
                }
                None => self.blocked(&format!("the dead-letter topic {topic} does not exist")).await?,
            }
        }
    }

    async fn new_producer_id(&mut self) -> Result<i64, Stop> {
        loop {
            match self.runner.broker.next_producer_id().await {
                Ok(id) => return Ok(id),
                Err(error) => self.blocked(&error.to_string()).await?,
            }
        }
    }

    async fn carry_out(&mut self, verdict: &TriggerVerdict) -> Result<(), Stop> {
        let offsets: Vec<Offset> = verdict.offsets.iter().copied().filter_map(Offset::new).collect();
        let spec = self.runner.spec();
        if let Some(target) = verdict.dead_letters {
            while let Err(error) = self.write_dead_letters(&spec, verdict, &offsets, target).await {
                self.blocked(&format!("dead letters: {error}")).await?;
            }
            self.unblock();
            Counters::add(&self.runner.counters.dead_lettered, offsets.len());
        } else {
            Counters::add(&self.runner.counters.dropped, offsets.len());
            let (first, reason) = (verdict.first, &verdict.reason);
            tracing::warn!(trigger = %spec.name, topic = self.origin.topic, partition = self.id.partition, first, records = offsets.len(), reason, "records dropped: there is no dead-letter topic");
        }
        let (Some(first), Some(next)) = (Offset::new(verdict.first), Offset::new(verdict.next)) else { return Ok(()) };
        self.finish((first, next)).await
    }

    async fn write_dead_letters(
        &self,
        spec: &TriggerSpec,
        verdict: &TriggerVerdict,
        offsets: &[Offset],
        target: DeadLetterTarget,
    ) -> Result<(), DeadLetterError> {
        let broker = &self.runner.broker;
        let topic = broker.topic_by_id(target.topic).ok_or(DeadLetterError::NoTopic)?;
        let state = codec::decode_part(&verdict.attempts).unwrap_or_default();
        let letters = DeadLetters {
            trigger: spec.name.as_str(),
            function: spec.function.label(),
            origin: &self.origin,
            state: &state,
            batch_bytes: topic.with_config(|config| config.max_message_bytes as usize),
            now_ms: self.runner.clock.now_ms(),
        };
        for batch in letters.batches(&self.log, offsets, target.producer_id, target.base_sequence).await? {
            match broker.append(&topic, target.partition, batch) {
                Ok(appended) => appended.acknowledged(Acks::All).await.map_err(ProduceError::from)?,
                // So long ago that the log forgot where: it is there.
                Err(ProduceError::Append(AppendError::Sequence(
                    tripline_storage::producer::SequenceError::Duplicate { .. },
                ))) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The window is finished: its outcome is in the page cache before the next one begins.
    async fn finish(&mut self, (first, next): (Offset, Offset)) -> Result<(), Stop> {
        let holes: Vec<_> = self.progress.holes().filter(|hole| hole.first < next && hole.next > first).collect();
        for hole in holes {
            if let Err(error) = self.progress.finish(hole.first.max(first), hole.next.min(next)) {
                tracing::error!(lane = ?self.id, %error, "window finished twice");
            }
        }
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
        let committed = self.progress.committed();
        let bytes =
            self.progress.encode().unwrap_or_else(|_| Progress::start(committed).encode().expect("no holes fit"));
        self.remember(&TriggerProgress { lane: self.id, progress: bytes }.into()).await?;
        self.noted = committed;
        self.note_at = None;
        self.show(|shown| shown.committed = Some(committed));
        Ok(())
    }

    async fn remember_attempt(&mut self, delivery: &Delivery) -> Result<(), Stop> {
        let partial =
            self.progress.holes().count() > 1 || self.progress.holes().any(|hole| hole.first > delivery.first);
        if partial && !delivery.state.running {
            self.write_progress().await?;
        }
        let (first, next) = (delivery.first.get(), delivery.next.get());
        let attempts = codec::encode_part(&delivery.state);
        self.remember(&TriggerAttempt { lane: self.id, first, next, attempts }.into()).await
    }

    /// Appends to the journal; while the disk is full, the lane waits: an attempt that is not written down is not made.
    async fn remember(&mut self, record: &JournalRecord) -> Result<(), Stop> {
        let mut blocked = false;
        loop {
            let source = [(Arc::clone(&self.log), self.progress.reading_point().min(self.log.tail()))];
            let now_ms = crate::broker::now_ms();
            match self.runner.broker.journal().append_after(std::slice::from_ref(record), &source, now_ms) {
                Ok(_) => {
                    if blocked {
                        self.unblock();
                    }
                    return Ok(());
                }
                Err(error @ (JournalError::Append(_) | JournalError::Flush(_) | JournalError::Build(_))) => {
                    blocked = true;
                    self.blocked(&error.to_string()).await?;
                }
            }
        }
    }

    /// A chunk from `at` on. `None` when retention has passed `at`: the lane moves to the log start.
    async fn read_chunk(&mut self, at: Offset) -> Result<Option<tripline_storage::partition::ReadOutcome>, Stop> {
        loop {
            match Broker::read(&self.log, at, READ_BYTES).await {
                Ok(outcome) => return Ok(Some(outcome)),
                Err(ReadError::OutOfRange { log_start, .. }) if at < log_start => {
                    let expired = usize::try_from(log_start.since(at)).unwrap_or(usize::MAX);
                    let (trigger, number) = (self.runner.id, self.id.partition);
                    tracing::warn!(%trigger, partition = number, from = %at, to = %log_start, "records expired before they were read");
                    Counters::add(&self.runner.counters.expired, expired);
                    self.progress.pass(log_start);
                    return Ok(None);
                }
                Err(error) => self.blocked(&error.to_string()).await?,
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
    async fn wait(&mut self, at: Offset, deadline: Option<Duration>) {
        let changed = self.runner.listen();
        let appended = self.log.listen_tail();
        if self.log.tail() > at || !self.runner.may_run() {
            return;
        }
        let now = self.runner.clock.elapsed();
        let deadline = deadline.map(|deadline| Instant::now() + deadline.saturating_sub(now));
        let until = deadline.into_iter().chain(self.note_at).min();
        tokio::select! {
            () = appended => {}
            () = changed => {}
            () = sleep_until_some(until) => {}
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

    /// Waits until `at_ms`, and then until the trigger may run.
    async fn sleep_until(&mut self, at_ms: i64, state: &mut AttemptState) -> Result<(), Stop> {
        let until = self.runner.clock.instant(at_ms);
        loop {
            self.may_run(Some(state)).await?;
            let changed = self.runner.listen();
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

/// Progress beyond the tail speaks of records that a power cut took.
fn set_back(progress: Progress, tail: Offset) -> Progress {
    if progress.reading_point() <= tail {
        return progress;
    }
    let committed = progress.committed().min(tail);
    tracing::warn!(reading_point = %progress.reading_point(), %tail, "progress beyond the tail is set to the tail");
    Progress::start(committed)
}
