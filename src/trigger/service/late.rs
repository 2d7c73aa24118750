//! Partitions that had no room at the start and are opened late: what triggers and runs remember there, and their
//! lanes.

use std::sync::Arc;

use uuid::Uuid;

use super::{Changes, TriggerService};
use crate::broker::Topic;
use crate::broker::journal::JournalError;
use crate::broker::late::Late;
use crate::broker::record::{JournalRecord, LaneId};
use crate::trigger::runner::Runner;

impl TriggerService {
    /// Serves a partition that was opened late, with the lanes of whoever reads its topic.
    ///
    /// # Errors
    /// [`JournalError`]: what is remembered beyond its tail could not be set back, and the partition stays offline.
    pub async fn serve(&self, late: Late) -> Result<(), JournalError> {
        let service = self.clone();
        self.inner.broker.to_the_end(async move { service.serve_now(&late).await }).await
    }

    async fn serve_now(&self, late: &Late) -> Result<(), JournalError> {
        let changing = self.inner.changing.lock().await;
        if *changing == Changes::HaveEnded {
            return Ok(());
        }
        let Late { topic, number, log } = late;
        // Of all that was ever said of it, also by triggers that do not run: before anything can be appended there.
        let lanes = self.inner.broker.journal().look(|state| {
            let here = state.lanes.keys().filter(|lane| lane.topic == topic.id() && lane.partition == *number);
            here.copied().collect::<Vec<LaneId>>()
        });
        let back = lanes.into_iter().filter_map(|lane| self.beyond_tail(topic, lane, log.tail()));
        let back: Vec<JournalRecord> = back.collect();
        if !back.is_empty() {
            self.remember(&back, &[]).await?;
        }
        if self.inner.broker.serve(late).await? {
            self.start_lanes_in(topic, *number);
        }
        Ok(())
    }

    /// What cannot go on there goes on elsewhere.
    fn start_lanes_in(&self, topic: &Arc<Topic>, partition: u32) {
        let triggers: Vec<(String, Arc<Runner>)> = {
            let running = self.inner.running.read();
            let readers = running.iter().filter(|(_, running)| running.reads(topic.id()));
            readers.map(|(name, running)| (name.clone(), Arc::clone(&running.runner))).collect()
        };
        for (name, runner) in triggers {
            if let Err(reason) = self.join_in(&name, &runner, topic, partition) {
                tracing::error!(trigger = name, topic = %topic.name(), partition, reason, "partition not joined");
            }
        }
        let runs: Vec<(Uuid, Uuid)> = {
            let runs = self.inner.runs.read();
            let readers = runs.iter().filter(|(_, active)| active.running.reads(topic.id()));
            readers.map(|(id, active)| (*id, active.trigger)).collect()
        };
        for (run, trigger) in runs {
            let owner = self.runner_of(trigger).ok_or_else(|| "its trigger does not run".to_owned());
            if let Err(reason) = owner.and_then(|owner| self.go_on_in(run, &owner, topic, partition)) {
                tracing::error!(%run, topic = %topic.name(), partition, reason, "partition not joined");
            }
        }
    }

    fn join_in(&self, name: &str, runner: &Arc<Runner>, topic: &Topic, partition: u32) -> Result<(), String> {
        let lane = LaneId { trigger: runner.id, topic: topic.id(), partition };
        let lane = self.new_lane(runner, self.log_input(topic, partition)?, lane, None)?;
        let mut running = self.inner.running.write();
        let running = running.get_mut(name).ok_or("it does not run any more")?;
        self.drive_one(running, topic, lane)
    }
}
