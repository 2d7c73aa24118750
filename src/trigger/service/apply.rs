//! Making, changing and ending triggers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tripline_storage::{Offset, Partition};
use uuid::Uuid;

use super::lanes::start_at;
use super::{ApplyTriggerError, TriggerService};
use crate::broker::journal::JournalError;
use crate::broker::record::{JournalRecord, LaneId, TriggerDefined, TriggerProgress, TriggerRemoved};
use crate::broker::{Broker, CreateTopicError, Topic};
use crate::function::{FunctionSpec, Instances, Payload, Runtime};
use crate::topic::name::TopicName;
use crate::topic::spec::{TopicConfig, TopicSpec};
use crate::trigger::runner::{Runner, inline_function};
use crate::trigger::spec::{FunctionRef, StartPosition, TriggerSpec};

/// What applying a definition did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// There was none with this name.
    pub created: bool,
    /// It differs from what was there.
    pub changed: bool,
    /// What its owner should know, one sentence each.
    pub warnings: Vec<String>,
}

impl TriggerService {
    /// Makes a trigger as defined, or changes the one with its name; progress is kept. Durable on return, with its start
    /// position.
    ///
    /// # Errors
    /// See [`ApplyTriggerError`].
    pub async fn apply(&self, spec: TriggerSpec) -> Result<Applied, ApplyTriggerError> {
        let service = self.clone();
        self.inner.broker.to_the_end(async move { service.apply_now(spec).await }).await
    }

    pub(super) async fn apply_now(&self, spec: TriggerSpec) -> Result<Applied, ApplyTriggerError> {
        let _changing = self.inner.changing.lock().await;
        let current = self.runner(spec.name.as_str());
        if let Some(old) = current.as_ref().map(|runner| runner.spec())
            && old.input.topic != spec.input.topic
        {
            let (found, current) = (spec.input.topic.to_string(), old.input.topic.to_string());
            return Err(ApplyTriggerError::OtherTopic { found, current });
        }
        if let Some(old) = current.as_ref().map(|runner| runner.spec())
            && old.input.cluster.is_some() != spec.input.cluster.is_some()
        {
            return Err(ApplyTriggerError::OtherPlace);
        }
        #[cfg(feature = "cluster")]
        if spec.input.cluster.is_some() {
            return self.apply_to_cluster(spec, current).await;
        }
        let topic = self.input_topic(&spec.input.topic).await?;
        self.check_function(&spec).await?;
        self.output_topics(&spec, &topic).await?;
        let warnings = spec.warnings();
        let Some(runner) = current else {
            self.create(spec, topic).await?;
            return Ok(Applied { created: true, changed: true, warnings });
        };
        let changed = *runner.spec() != spec;
        if changed {
            self.change(&runner, spec).await?;
        }
        Ok(Applied { created: false, changed, warnings })
    }

    pub(super) async fn change(&self, runner: &Runner, spec: TriggerSpec) -> Result<(), ApplyTriggerError> {
        let old = runner.spec();
        let remembered = self.remember(&[self.defined(runner.id, &spec).into()], &[]).await;
        // The function behind a URL is that of the definition in force.
        let in_force = if remembered.is_ok() { &spec } else { &*old };
        match inline_spec(in_force) {
            Some(function) => {
                self.inner.functions.deploy(function, None).await?;
            }
            None => self.remove_inline(old.name.as_str()).await,
        }
        remembered?;
        self.redefine_runs(runner.id, &spec);
        runner.redefine(spec);
        Ok(())
    }

    pub(super) async fn remove_inline(&self, trigger: &str) {
        if let Err(error) = self.inner.functions.remove(&inline_function(trigger), Duration::ZERO).await {
            tracing::warn!(trigger, %error, "function of a trigger not removed");
        }
    }

    pub(super) async fn create(&self, spec: TriggerSpec, topic: Arc<Topic>) -> Result<(), ApplyTriggerError> {
        // One that could not be started is started with what it remembers.
        let remembered = self.inner.broker.journal().look(|state| state.trigger_named(spec.name.as_str()));
        let id = remembered.unwrap_or_else(Uuid::new_v4);
        let mut records: Vec<JournalRecord> = vec![self.defined(id, &spec).into()];
        let mut sources = Vec::new();
        for (number, log) in (0..).zip(topic.partitions()) {
            if remembered.is_some() {
                break;
            }
            let start = start_offset(log, spec.input.start).await?;
            sources.push((Arc::clone(log), start));
            let lane = LaneId { trigger: id, topic: topic.id(), partition: number };
            records.push(TriggerProgress { lane, progress: start_at(start) }.into());
        }
        self.remember(&records, &sources).await?;
        self.run(id, spec, topic, false).map_err(ApplyTriggerError::Lane)
    }

    pub(super) fn defined(&self, id: Uuid, spec: &TriggerSpec) -> TriggerDefined {
        let definition = spec.to_json().to_string();
        TriggerDefined { id, name: spec.name.to_string(), definition, created_ms: self.inner.clock.now_ms() }
    }

    pub(super) async fn input_topic(&self, name: &TopicName) -> Result<Arc<Topic>, ApplyTriggerError> {
        let topic = self.inner.broker.topic_or_create(name).await?;
        topic.ok_or_else(|| ApplyTriggerError::UnknownTopic(name.to_string()))
    }

    /// Topics that the trigger writes to are made where they are missing, with as many partitions as the input.
    pub(super) async fn output_topics(&self, spec: &TriggerSpec, input: &Topic) -> Result<(), ApplyTriggerError> {
        let names = spec.dead_letter.iter().chain(spec.destinations.topics().map(|(_, topic)| topic));
        for name in names {
            if self.inner.broker.topic(name.as_str()).is_some() {
                continue;
            }
            let partitions = input.partition_count();
            let made = TopicSpec { name: name.clone(), partitions, config: TopicConfig::default() };
            match self.inner.broker.create_topic(made).await {
                Ok(_) | Err(CreateTopicError::Exists(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(super) async fn check_function(&self, spec: &TriggerSpec) -> Result<(), ApplyTriggerError> {
        for step in spec.transform.functions() {
            let known = self.inner.functions.describe(step.as_str());
            known.ok_or_else(|| ApplyTriggerError::UnknownStep(step.to_string()))?;
        }
        if let Some(function) = inline_spec(spec) {
            // That of an existing trigger changes with its definition, not before.
            if self.runner(spec.name.as_str()).is_none() {
                self.inner.functions.deploy(function, None).await?;
            }
            return Ok(());
        }
        let name = spec.function.label();
        let function = self.inner.functions.describe(name);
        let function = function.ok_or_else(|| ApplyTriggerError::UnknownFunction(name.to_owned()))?;
        spec.check_function(&function.spec).map_err(|error| ApplyTriggerError::Unfit(error.to_string()))
    }

    /// Ends a trigger and forgets its progress. `false` when there is none with this name.
    ///
    /// # Errors
    /// [`JournalError`]: it could not be remembered.
    pub async fn remove(&self, name: &str) -> Result<bool, JournalError> {
        let (service, name) = (self.clone(), name.to_owned());
        self.inner.broker.to_the_end(async move { service.remove_now(&name).await }).await
    }

    pub(super) async fn remove_now(&self, name: &str) -> Result<bool, JournalError> {
        let _changing = self.inner.changing.lock().await;
        // Also one that could not be started.
        let Some(id) = self.inner.broker.journal().look(|state| state.trigger_named(name)) else { return Ok(false) };
        // Remembered first: what the lanes still say of themselves then is nobody's.
        self.remember(&[TriggerRemoved { id }.into()], &[]).await?;
        self.end_lanes(name).await;
        self.end_runs(id).await;
        self.remove_inline(name).await;
        Ok(true)
    }
}

/// The function behind a trigger's URL.
pub(super) fn inline_spec(spec: &TriggerSpec) -> Option<FunctionSpec> {
    let FunctionRef::Http { url } = &spec.function else { return None };
    Some(FunctionSpec {
        name: inline_function(spec.name.as_str()),
        runtime: Runtime::Http { url: url.clone() },
        instances: Instances {
            min: 0,
            max: spec.concurrency.clamp(1, 1_000),
            concurrency: 1,
            idle: Duration::from_secs(60),
        },
        timeout: Duration::from_secs(30),
        memory_bytes: 256 << 20,
        environment: BTreeMap::new(),
        payload: Payload::Events,
    })
}

pub(super) async fn start_offset(
    log: &Arc<Partition>,
    start: StartPosition,
) -> Result<Offset, tripline_storage::error::ReadError> {
    Ok(match start {
        StartPosition::Earliest => log.log_start(),
        StartPosition::Latest => log.tail(),
        StartPosition::Offset(offset) => offset.clamp(log.log_start(), log.tail()),
        StartPosition::Time(time) => {
            let found = Broker::offset_for_time(log, time.as_millisecond()).await?;
            found.map_or_else(|| log.tail(), |(offset, _)| offset)
        }
    })
}
