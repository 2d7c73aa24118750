//! Starting and ending the lanes of triggers.

use std::sync::Arc;
#[cfg(feature = "cluster")]
use std::time::Duration;

use tripline_storage::Offset;
use uuid::Uuid;

use super::{Running, TriggerService, stop};
use crate::broker::Topic;
use crate::broker::journal::JournalError;
use crate::broker::record::{JournalRecord, LaneId, TriggerSettled};
use crate::broker::state::{LaneState, State};
use crate::input::{EventInput, LogInput};
use crate::trigger::lane_status::LaneStatus;
use crate::trigger::poller::{self, Message, NewLane, PollerHandle, RunLane};
use crate::trigger::progress::Progress;
use crate::trigger::runner::Runner;
use crate::trigger::spec::TriggerSpec;

impl TriggerService {
    /// Starts the lanes of a trigger where the journal says.
    pub(super) fn run(&self, id: Uuid, spec: TriggerSpec, topics: Vec<Arc<Topic>>) -> Result<(), String> {
        debug_assert!(self.is_changing(), "lanes of a trigger start within a change");
        let name = spec.name.to_string();
        let (broker, functions) = (self.inner.broker.clone(), self.inner.functions.clone());
        let (clock, traces) = (self.inner.clock, self.inner.traces.clone());
        let paused_since_ms = self.paused_since_ms(id);
        let runner = Arc::new(Runner::new(id, spec, broker, functions, clock, traces, paused_since_ms));
        let lanes = topics.iter().map(|topic| self.live_lanes(&runner, topic)).collect::<Result<Vec<_>, _>>()?;
        let mut running = Running::new(runner);
        for (topic, lanes) in topics.iter().zip(lanes) {
            self.drive(&mut running, topic, lanes)?;
        }
        self.inner.running.write().insert(name, running);
        Ok(())
    }

    /// A trigger's lanes in a topic, one per partition, where the journal says.
    pub(super) fn live_lanes(&self, runner: &Arc<Runner>, topic: &Topic) -> Result<Vec<NewLane>, String> {
        self.set_back(runner.id, topic).map_err(|error| error.to_string())?;
        // What is remembered of those that are offline stays as it is.
        let lanes = topic.partitions().map(|(partition, _)| {
            let lane = LaneId { trigger: runner.id, topic: topic.id(), partition };
            self.new_lane(runner, self.log_input(topic, partition)?, lane, None)
        });
        lanes.collect()
    }

    /// Hands the lanes of a topic to the pollers of its partitions.
    pub(super) fn drive(&self, running: &mut Running, topic: &Arc<Topic>, lanes: Vec<NewLane>) -> Result<(), String> {
        let at = running.topics.partition_point(|read| read.name() < topic.name());
        running.topics.insert(at, Arc::clone(topic));
        lanes.into_iter().try_for_each(|lane| self.drive_one(running, topic, lane))
    }

    /// Hands a lane to the poller of its partition.
    pub(super) fn drive_one(&self, running: &mut Running, topic: &Topic, lane: NewLane) -> Result<(), String> {
        let poller = self.poller(topic, lane.id.partition)?;
        let status = Arc::clone(&lane.status);
        poller.send(Message::Add(Box::new(lane)));
        running.insert(status, poller);
        Ok(())
    }

    pub(super) fn new_lane(
        &self,
        runner: &Arc<Runner>,
        input: EventInput,
        id: LaneId,
        run: Option<RunLane>,
    ) -> Result<NewLane, String> {
        let journal = self.inner.broker.journal();
        let remembered: LaneState = journal.look(|state| state.lanes.get(&id).cloned().unwrap_or_default());
        let progress = match &remembered.progress {
            Some(bytes) => Progress::decode(bytes)
                .map_err(|error| format!("partition {}/{}: {error}", input.origin().topic, id.partition))?,
            None => Progress::start(Offset::ZERO),
        };
        #[cfg(feature = "cluster")]
        let (progress, remembered) = self.set_back_there((progress, remembered), &input, id)?;
        let status = Arc::new(LaneStatus::new(input, progress.committed(), run.as_ref().map(|run| run.until)));
        Ok(NewLane {
            runner: Arc::clone(runner),
            id,
            progress,
            remembered,
            status,
            run,
            #[cfg(feature = "cluster")]
            group: None,
        })
    }

    pub(super) fn log_input(&self, topic: &Topic, partition: u32) -> Result<EventInput, String> {
        let input = LogInput::new(&self.inner.broker, topic, partition);
        input.map(EventInput::Log).map_err(|error| error.to_string())
    }

    /// The poller of a partition, started if there is none at work: one that broke down drives nothing any more.
    pub(super) fn poller(&self, topic: &Topic, partition: u32) -> Result<PollerHandle, String> {
        let mut pollers = self.inner.pollers.lock();
        let known = pollers.get(&(topic.id(), partition));
        if let Some((poller, _)) = known.filter(|(poller, _)| !poller.has_ended()) {
            return Ok(poller.clone());
        }
        let (poller, task) = poller::spawn(self.log_input(topic, partition)?, self.inner.tracker.clone());
        pollers.insert((topic.id(), partition), (poller.clone(), task));
        Ok(poller)
    }

    /// What is remembered beyond the tail of a partition is set back, durably, before anything can be appended there.
    pub(super) fn set_back(&self, id: Uuid, topic: &Topic) -> Result<(), JournalError> {
        let journal = self.inner.broker.journal();
        let lanes = topic.partitions().map(|(partition, log)| {
            let lane = LaneId { trigger: id, topic: topic.id(), partition };
            (lane, log.tail())
        });
        let records: Vec<JournalRecord> =
            lanes.filter_map(|(lane, tail)| self.beyond_tail(topic, lane, tail)).collect();
        if !records.is_empty() {
            journal.append(&records, crate::broker::now_ms())?;
            journal.flush()?;
        }
        Ok(())
    }

    /// What sets a lane back that is remembered beyond the tail of its partition.
    pub(super) fn beyond_tail(&self, topic: &Topic, lane: LaneId, tail: Offset) -> Option<JournalRecord> {
        let remembered = |state: &State| state.lanes.get(&lane).and_then(|remembered| set_back(remembered, tail));
        let to = self.inner.broker.journal().look(remembered)?;
        tracing::warn!(topic = %topic.name(), partition = lane.partition, %to, "trigger beyond the tail is set back");
        Some(self.restart(lane, to))
    }

    /// A lane begins anew at `at`: what it had in hand is forgotten.
    pub(super) fn restart(&self, lane: LaneId, at: Offset) -> JournalRecord {
        let verdicts =
            |state: &State| state.lanes.get(&lane).map(|remembered| remembered.verdicts.keys().copied().collect());
        let verdicts: Vec<i64> = self.inner.broker.journal().look(verdicts).unwrap_or_default();
        TriggerSettled { lane, progress: start_at(at), verdicts }.into()
    }

    /// Ends a trigger's lanes at once: what they are doing has no one to report to any more.
    pub(super) async fn end_lanes(&self, name: &str) {
        let ended = self.inner.running.write().remove(name);
        let Some(running) = ended else { return };
        stop(&running.runner);
        #[cfg(feature = "cluster")]
        if let Some(place) = running.place {
            place.leave(Duration::ZERO).await;
        }
        PollerHandle::remove_from_all(&running.pollers, running.runner.id).await;
        running.topics.iter().for_each(|topic| self.end_pollers(topic.id()));
    }

    /// Whether a trigger's live lanes or one of its runs read this topic.
    pub(super) fn is_read(&self, topic: Uuid) -> bool {
        self.inner.running.read().values().any(|running| running.reads(topic))
            || self.inner.runs.read().values().any(|active| active.running.reads(topic))
    }

    /// The pollers of a topic that no trigger reads any more hold on to nothing.
    pub(super) fn end_pollers(&self, topic: Uuid) {
        if self.is_read(topic) {
            return;
        }
        let ended: Vec<_> = self.inner.pollers.lock().extract_if(|(id, _), _| *id == topic).collect();
        for (_, (poller, task)) in ended {
            poller.send(Message::Stop);
            // The end of the service waits for them as for those at work.
            self.inner.tracker.spawn(async move {
                let _ = task.await;
            });
        }
    }
}

pub(super) fn start_at(at: Offset) -> Vec<u8> {
    Progress::start(at).encode().expect("a start has no holes")
}

/// What is remembered of a lane beyond the tail speaks of records that a power cut took: it goes on at the tail, or
/// where the first unfinished record was. `None` when nothing is.
fn set_back(remembered: &LaneState, tail: Offset) -> Option<Offset> {
    let progress = remembered.progress.as_deref().and_then(|bytes| Progress::decode(bytes).ok());
    let ahead = progress.as_ref().is_some_and(|progress| progress.reading_point() > tail)
        || remembered.verdicts.values().any(|verdict| verdict.next > tail.get());
    ahead.then(|| progress.map_or(tail, |progress| progress.committed().min(tail)))
}
