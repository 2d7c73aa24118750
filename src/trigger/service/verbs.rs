//! What people do to a trigger besides defining it: pause, resume, reset, skip.

use std::sync::Arc;

use tripline_storage::Offset;
use uuid::Uuid;

use super::apply::start_offset;
use super::{LaneChoice, ResetTriggerError, TriggerError, TriggerService};
use crate::broker::NoPartition;
use crate::broker::record::{JournalRecord, LaneId, TriggerSwitched};
use crate::trigger::runner::Runner;
use crate::trigger::spec::StartPosition;
use crate::trigger::status::set;

impl TriggerService {
    /// Stops reading and invoking until somebody resumes; an invocation under way ends first.
    ///
    /// # Errors
    /// See [`TriggerError`].
    pub async fn pause(&self, name: &str) -> Result<(), TriggerError> {
        self.switch(name, true).await
    }

    /// Goes on after a pause, a failure or in an outage, at once.
    ///
    /// # Errors
    /// See [`TriggerError`].
    pub async fn resume(&self, name: &str) -> Result<(), TriggerError> {
        self.switch(name, false).await
    }

    async fn switch(&self, name: &str, paused: bool) -> Result<(), TriggerError> {
        let (service, name) = (self.clone(), name.to_owned());
        self.inner.broker.to_the_end(async move { service.switch_now(&name, paused).await }).await
    }

    async fn switch_now(&self, name: &str, paused: bool) -> Result<(), TriggerError> {
        let _changing = self.inner.changing.lock().await;
        let runner = self.runner(name).ok_or_else(|| TriggerError::Unknown(name.to_owned()))?;
        if runner.holds(|holds| holds.paused) != paused {
            let since_ms = self.inner.clock.now_ms();
            self.remember(&[TriggerSwitched { id: runner.id, paused, since_ms }.into()], &[]).await?;
            runner.change(|holds| set(&mut holds.paused, paused));
        }
        if !paused {
            self.retry_function(&runner);
        }
        Ok(())
    }

    /// Sets partitions of a paused trigger, by the ids of their topics, to other offsets; attempts there begin anew.
    /// Durable on return.
    ///
    /// # Errors
    /// See [`ResetTriggerError`]; nothing has changed then.
    pub async fn reset(&self, name: &str, offsets: &[(Uuid, u32, Offset)]) -> Result<(), ResetTriggerError> {
        let (service, name, offsets) = (self.clone(), name.to_owned(), offsets.to_vec());
        self.inner.broker.to_the_end(async move { service.reset_now(&name, &offsets).await }).await
    }

    /// As [`TriggerService::reset`], to a position: of those partitions that are chosen. Answers the offsets that it
    /// meant, with their topics.
    ///
    /// # Errors
    /// See [`ResetTriggerError`]; nothing has changed then. An offset that one partition does not have is an error; of
    /// all partitions each takes the nearest that it has.
    pub async fn reset_to(
        &self,
        name: &str,
        choice: LaneChoice<'_>,
        to: StartPosition,
    ) -> Result<Vec<(String, u32, Offset)>, ResetTriggerError> {
        #[cfg(feature = "cluster")]
        if self.runner(name).is_some_and(|runner| runner.spec().input.cluster.is_some()) {
            return self.reset_there(name, choice, to).await;
        }
        if self.runner(name).is_none() {
            return Err(ResetTriggerError::Unknown(name.to_owned()));
        }
        let topics = self.topics_meant(name, choice)?;
        let tails = || topics.iter().flat_map(|topic| topic.partitions()).map(|(_, log)| log.tail());
        match (to, tails().max()) {
            (StartPosition::Offset(found), Some(tail)) if choice.partition.is_none() && found > tail => {
                return Err(ResetTriggerError::Beyond { name: name.to_owned(), found, tail });
            }
            _ => {}
        }
        let mut chosen = Vec::new();
        for topic in &topics {
            let all = 0..topic.partition_count();
            let numbers = choice.partition.map_or(all, |number| number..number.saturating_add(1));
            for number in numbers {
                let log = match topic.partition(number) {
                    Err(error @ NoPartition::Offline { .. }) => return Err(error.into()),
                    found => found.ok(),
                };
                let offset = match (log, to) {
                    (Some(log), StartPosition::Offset(_)) if choice.partition.is_none() => start_offset(log, to).await,
                    (_, StartPosition::Offset(offset)) => Ok(offset),
                    (Some(log), _) => start_offset(log, to).await,
                    (None, _) => Ok(Offset::ZERO),
                };
                let offset = offset.map_err(|error| ResetTriggerError::Lane(error.to_string()))?;
                chosen.push((topic, number, offset));
            }
        }
        let offsets: Vec<_> = chosen.iter().map(|(topic, number, offset)| (topic.id(), *number, *offset)).collect();
        self.reset(name, &offsets).await?;
        Ok(chosen.into_iter().map(|(topic, number, offset)| (topic.name().to_string(), number, offset)).collect())
    }

    pub(super) async fn reset_now(&self, name: &str, offsets: &[(Uuid, u32, Offset)]) -> Result<(), ResetTriggerError> {
        let _changing = self.inner.changing.lock().await;
        let runner = self.runner(name).ok_or_else(|| ResetTriggerError::Unknown(name.to_owned()))?;
        if !runner.holds(|holds| holds.paused) {
            return Err(ResetTriggerError::NotPaused(name.to_owned()));
        }
        is_here(&runner)?;
        let topics = self.topics_of(name);
        let (mut lanes, mut sources) = (Vec::new(), Vec::new());
        for &(topic, partition, found) in offsets {
            let topic = topics.iter().find(|read| read.id() == topic);
            let topic = topic.ok_or_else(|| ResetTriggerError::OtherTopic(name.to_owned()))?;
            let log = match topic.partition(partition) {
                Err(error @ NoPartition::Offline { .. }) => return Err(error.into()),
                found => found.ok(),
            };
            sources.extend(log.map(|log| (Arc::clone(log), found)));
            let (log_start, tail) = log.map_or((Offset::ZERO, Offset::ZERO), |log| (log.log_start(), log.tail()));
            if log.is_none() || found < log_start || found > tail {
                let (name, topic) = (name.to_owned(), topic.name().to_string());
                return Err(ResetTriggerError::Offset { name, topic, partition, found, log_start, tail });
            }
            let lane = LaneId { trigger: runner.id, topic: topic.id(), partition };
            lanes.push((lane, found));
        }
        // The lanes end first: what they remember at their end must not come behind the reset, and the reset knows of
        // it.
        self.end_lanes(name).await;
        let records: Vec<JournalRecord> = lanes.into_iter().map(|(lane, at)| self.restart(lane, at)).collect();
        let remembered = self.remember(&records, &sources).await;
        let spec = (*runner.spec()).clone();
        self.run(runner.id, spec, topics).map_err(ResetTriggerError::Lane)?;
        Ok(remembered?)
    }

    /// Gives up what a trigger waits to try again: its records become dead letters, or are dropped; and passes over
    /// damaged ranges. Answers how many records that were; those in the function's hands are not among them.
    ///
    /// # Errors
    /// [`TriggerError::Unknown`] and [`TriggerError::Choice`].
    pub async fn skip(&self, name: &str, choice: LaneChoice<'_>) -> Result<usize, TriggerError> {
        let pollers = {
            let running = self.inner.running.read();
            let running = running.get(name).ok_or_else(|| TriggerError::Unknown(name.to_owned()))?;
            let topic = choice.topic_of(name, running)?;
            let wanted = running.lanes.iter().zip(&running.pollers).filter(|(lane, _)| {
                topic.as_ref().is_none_or(|wanted| *wanted == lane.origin().topic)
                    && choice.partition.is_none_or(|wanted| wanted == lane.number())
            });
            wanted.map(|(_, poller)| (running.runner.id, poller.clone())).collect::<Vec<_>>()
        };
        let mut skipped = 0;
        for (trigger, poller) in pollers {
            skipped += poller.skip(trigger).await;
        }
        Ok(skipped)
    }

    /// A function was deployed. Where that changed it, the triggers that invoke it go on at once, and know nothing of
    /// what it was. Where it did not, so do those that failed of its code, as somebody wants it tried; the waits of all
    /// others have not lost their reason.
    pub fn function_deployed(&self, function: &str, changed: bool) {
        let mut runners: Vec<Arc<Runner>> =
            self.inner.running.read().values().map(|running| Arc::clone(&running.runner)).collect();
        runners.extend(self.inner.runs.read().values().map(|active| Arc::clone(&active.running.runner)));
        for runner in runners {
            if !runner.spec().invokes(function) {
                continue;
            }
            if changed {
                self.resume_functions(&runner);
                // What a step is says nothing of the target.
                if runner.function_name(&runner.spec()) == function { runner.renew() } else { runner.nudge() }
            } else if runner.holds(|holds| holds.failed.is_some()) {
                self.retry_function(&runner);
            }
        }
    }

    pub(super) fn retry_function(&self, runner: &Runner) {
        self.resume_functions(runner);
        runner.nudge();
    }

    fn resume_functions(&self, runner: &Runner) {
        let spec = runner.spec();
        let steps = spec.transform.functions().map(ToString::to_string);
        for name in steps.chain([runner.function_name(&spec)]) {
            if let Err(error) = self.inner.functions.resume(&name) {
                tracing::debug!(%error, "nothing to resume");
            }
        }
    }
}

/// What a reset by ids of topics needs.
fn is_here(runner: &Runner) -> Result<(), ResetTriggerError> {
    if runner.spec().input.cluster.is_none() {
        return Ok(());
    }
    let there = "it reads a cluster: its offsets are not those of topics of this broker";
    Err(ResetTriggerError::Lane(there.to_owned()))
}
