//! Making, changing and ending triggers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tripline_storage::{Offset, Partition};
use uuid::Uuid;

use super::lanes::start_at;
use super::topics::selected;
use super::{ApplyTriggerError, Changes, NoChanges, TriggerService};
use crate::broker::journal::JournalError;
use crate::broker::record::{
    JournalRecord, LaneId, TriggerDefined, TriggerProgress, TriggerRemoved, TriggerTopicForgotten,
};
use crate::broker::state::State;
use crate::broker::{Broker, CreateTopicError, Topic};
use crate::config::planned::Planned;
use crate::function::registry::UnregisterError;
use crate::function::{FunctionSpec, Instances, Payload, RemoveError, Runtime};
use crate::topic::spec::{TopicConfig, TopicSpec};
use crate::trigger::runner::{Runner, inline_function};
use crate::trigger::spec::{FunctionRef, StartPosition, TopicSelection, TriggerSpec};

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
    /// Makes a trigger as defined, or changes the one with its name; progress is kept. Durable on return, with its
    /// start position.
    ///
    /// # Errors
    /// See [`ApplyTriggerError`].
    pub async fn apply(&self, spec: TriggerSpec) -> Result<Applied, ApplyTriggerError> {
        let service = self.clone();
        self.inner.broker.to_the_end(async move { service.apply_now(spec).await }).await
    }

    pub(super) async fn apply_now(&self, spec: TriggerSpec) -> Result<Applied, ApplyTriggerError> {
        self.check_change(&spec, &Planned::default()).await?;
        // What takes its time is done before the others have to wait: what it finds holds then too.
        #[cfg(feature = "cluster")]
        if spec.input.cluster.is_some() {
            return self.apply_to_cluster(spec).await;
        }
        let starts = Starts::look_up(&spec, selected(&self.inner.broker, &spec.input.topics)).await?;
        let changing = self.inner.changing.lock().await;
        changing.goes_on()?;
        let current = self.check_change(&spec, &Planned::default()).await?;
        let topics = self.input_topics(&spec.input.topics).await?;
        self.output_topics(&spec, &topics).await?;
        let mut warnings = warnings(&spec, topics.is_empty());
        warnings.extend(self.warning_of_results(&spec));
        let Some(runner) = current else {
            self.create(spec, topics, &starts).await?;
            return Ok(Applied { created: true, changed: true, warnings });
        };
        let changed = *runner.spec() != spec;
        if changed {
            self.change_here(&runner, spec, &topics, &starts).await?;
        }
        Ok(Applied { created: false, changed, warnings })
    }

    /// What the owner of a trigger should know of the topic that its results go to.
    pub(super) fn warning_of_results(&self, spec: &TriggerSpec) -> Option<String> {
        let results = spec.destinations.results.as_ref()?;
        let topic = self.inner.broker.topic(results.as_str())?;
        topic.with_config(|config| config.cleanup_policy.compacts()).then(|| {
            let needs = "results without a key, the `partitionkey` of a CloudEvent, fail their attempt";
            format!("trigger {}: topic {results} of its results is compacted: {needs}", spec.name)
        })
    }

    /// Changes a trigger on topics of this broker: lanes of topics that stay go on, the others end, and those of more
    /// topics begin where the new definition says.
    async fn change_here(
        &self,
        runner: &Runner,
        spec: TriggerSpec,
        topics: &[Arc<Topic>],
        starts: &Starts,
    ) -> Result<(), ApplyTriggerError> {
        let name = spec.name.to_string();
        let mut more = Remembered::default();
        for topic in self.starts_in(&spec, Some(runner), topics) {
            more.start(runner.id, topic, starts).await?;
        }
        let mut left = self.topics_of(&name);
        left.retain(|topic| !spec.input.topics.selects(topic.name().as_str()));
        for topic in &left {
            more.records.push(TriggerTopicForgotten { trigger: runner.id, topic: topic.id() }.into());
            // The lanes end first: what they remember at their end must not come behind that.
            self.leave(&name, topic.id()).await;
        }
        let changed = self.change(runner, spec, more).await;
        // What is new is joined; where nothing was remembered, what was left.
        self.follow_one(&name).await;
        changed
    }

    /// Everything that may refuse the definition was asked before. `more`: what is remembered in the same moment.
    pub(super) async fn change(
        &self,
        runner: &Runner,
        spec: TriggerSpec,
        mut more: Remembered,
    ) -> Result<(), ApplyTriggerError> {
        more.records.insert(0, self.defined(runner.id, &spec).into());
        self.remember(&more.records, &more.sources).await?;
        let deployed = self.deploy_inline(&spec).await;
        let (name, has_inline) = (spec.name.to_string(), inline_spec(&spec).is_some());
        self.redefine_runs(runner.id, &spec);
        runner.redefine(spec);
        // The function behind the URL of the old definition goes when nothing begins by that any more.
        if !has_inline {
            self.remove_inline(&name).await;
        }
        deployed
    }

    /// The function behind a trigger's URL, if there is one, is that of this definition from now on.
    pub(super) async fn deploy_inline(&self, spec: &TriggerSpec) -> Result<(), ApplyTriggerError> {
        if let Some(function) = inline_spec(spec) {
            self.inner.functions.deploy(function, None).await?;
        }
        Ok(())
    }

    pub(super) async fn remove_inline(&self, trigger: &str) {
        match self.inner.functions.remove(&inline_function(trigger), Duration::ZERO).await {
            // It ends with all the others, and it is not remembered.
            Ok(_) | Err(RemoveError::Stopping) => {}
            Err(error) => tracing::warn!(trigger, %error, "function of a trigger not removed"),
        }
    }

    async fn create(
        &self,
        spec: TriggerSpec,
        topics: Vec<Arc<Topic>>,
        starts: &Starts,
    ) -> Result<(), ApplyTriggerError> {
        // One that could not be started is started with what it remembers, its pause and its runs included.
        let journal = self.inner.broker.journal();
        let remembered = journal.look(|state| state.trigger_named(spec.name.as_str()));
        let id = remembered.unwrap_or_else(Uuid::new_v4);
        let mut more = Remembered { records: vec![self.defined(id, &spec).into()], sources: Vec::new() };
        for topic in self.starts_in(&spec, None, &topics) {
            more.start(id, topic, starts).await?;
        }
        let known = self.topics_remembered(id);
        let left = known.iter().filter(|known| !topics.iter().any(|topic| topic.id() == **known));
        more.records.extend(left.map(|topic| TriggerTopicForgotten { trigger: id, topic: *topic }.into()));
        self.remember(&more.records, &more.sources).await?;
        self.deploy_inline(&spec).await?;
        let name = spec.name.to_string();
        self.run(id, spec, topics).map_err(ApplyTriggerError::Lane)?;
        self.go_on_with_runs(id, name);
        Ok(())
    }

    /// Those of the selected topics in which a trigger would start where its definition says. In the others it goes on,
    /// or starts at 0. `current`: where it runs.
    pub(super) fn starts_in<'a>(
        &self,
        spec: &TriggerSpec,
        current: Option<&Runner>,
        selected: &'a [Arc<Topic>],
    ) -> Vec<&'a Arc<Topic>> {
        if let Some(old) = current.map(Runner::spec) {
            // One that the old pattern selected was made a moment ago, and nobody has joined it yet: it starts at 0.
            return selected.iter().filter(|topic| !old.input.topics.selects(topic.name().as_str())).collect();
        }
        let remembered = self.inner.broker.journal().look(|state| state.trigger_named(spec.name.as_str()));
        match (remembered, &spec.input.topics) {
            (None, _) => selected.iter().collect(),
            // What a pattern has selected since it was last started begins at 0.
            (Some(_), TopicSelection::Pattern(_)) => Vec::new(),
            (Some(id), _) => {
                let known = self.topics_remembered(id);
                selected.iter().filter(|topic| !known.contains(&topic.id())).collect()
            }
        }
    }

    /// The topics in which something is remembered of a trigger.
    fn topics_remembered(&self, id: Uuid) -> BTreeSet<Uuid> {
        self.inner.broker.journal().look(|state| {
            let lanes = state.lanes.keys().filter(|lane| lane.trigger == id);
            lanes.map(|lane| lane.topic).collect()
        })
    }

    /// Those that a trigger which could not be started had.
    pub(super) fn go_on_with_runs(&self, id: Uuid, name: String) {
        for failed in self.restore_runs(&HashMap::from([(id, name)])) {
            tracing::error!(%failed, "a run does not go on");
        }
    }

    /// Since when a person has a trigger paused, as the journal says, ms since 1970.
    pub(super) fn paused_since_ms(&self, id: Uuid) -> Option<i64> {
        self.inner.broker.journal().look(|state: &State| state.triggers.get(&id)?.paused_since_ms)
    }

    pub(super) fn defined(&self, id: Uuid, spec: &TriggerSpec) -> TriggerDefined {
        let definition = spec.to_json().to_string();
        TriggerDefined { id, name: spec.name.to_string(), definition, created_ms: self.inner.clock.now_ms() }
    }

    /// The topics that a definition selects, those that it names made where topics may be made so.
    async fn input_topics(&self, selection: &TopicSelection) -> Result<Vec<Arc<Topic>>, ApplyTriggerError> {
        for name in selection.named() {
            let (field, topic) = (selection.field(), name.to_string());
            let found = self.inner.broker.topic_or_create(name).await?;
            found.ok_or(ApplyTriggerError::UnknownTopic { field, topic })?;
        }
        Ok(selected(&self.inner.broker, selection))
    }

    /// Topics that the trigger writes to are made where they are missing.
    async fn output_topics(&self, spec: &TriggerSpec, inputs: &[Arc<Topic>]) -> Result<(), ApplyTriggerError> {
        for missing in self.missing_outputs(spec, inputs) {
            match self.inner.broker.create_topic(missing).await {
                Ok(_) | Err(CreateTopicError::Exists(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The topics that the trigger writes to and that are not there, with as many partitions as the widest of its
    /// input.
    pub(super) fn missing_outputs(&self, spec: &TriggerSpec, inputs: &[Arc<Topic>]) -> Vec<TopicSpec> {
        let partitions = inputs.iter().map(|input| input.partition_count()).max().unwrap_or(1);
        let names: BTreeSet<_> =
            spec.dead_letter.iter().chain(spec.destinations.topics().map(|(_, topic)| topic)).collect();
        let missing = names.into_iter().filter(|name| self.inner.broker.topic(name.as_str()).is_none());
        missing.map(|name| TopicSpec { name: name.clone(), partitions, config: TopicConfig::default() }).collect()
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

impl TriggerService {
    /// Keeps a function without triggers, for as long as what is answered lives: for whoever deletes it. A trigger that
    /// is applied meanwhile waits, and finds it there or not.
    ///
    /// # Errors
    /// [`UnregisterError`]: a trigger invokes it, or nobody can say any more.
    pub async fn keep_unused(&self, function: &str) -> Result<NoChanges, UnregisterError> {
        let changing = Arc::clone(&self.inner.changing).lock_owned().await;
        if *changing == Changes::HaveEnded {
            return Err(RemoveError::Stopping.into());
        }
        match self.using_function(function) {
            Some(user) => Err(UnregisterError::InUse { name: function.to_owned(), user: format!("trigger {user}") }),
            None => Ok(NoChanges { _changing: changing }),
        }
    }
}

/// What is remembered in one moment, and what must be durable before it.
#[derive(Default)]
pub(super) struct Remembered {
    records: Vec<JournalRecord>,
    sources: Vec<(Arc<Partition>, Offset)>,
}

impl Remembered {
    /// These records, which are about nobody's data here.
    #[cfg(feature = "cluster")]
    pub(super) const fn of(records: Vec<JournalRecord>) -> Self {
        Self { records, sources: Vec::new() }
    }

    /// Where a trigger starts in a topic.
    async fn start(&mut self, trigger: Uuid, topic: &Topic, starts: &Starts) -> Result<(), ApplyTriggerError> {
        // Where it would start in one that is offline nobody can say.
        topic.is_whole()?;
        for (partition, log) in topic.partitions() {
            let at = starts.at(topic.id(), partition, log).await?;
            self.sources.push((Arc::clone(log), at));
            let lane = LaneId { trigger, topic: topic.id(), partition };
            self.records.push(TriggerProgress { lane, progress: start_at(at) }.into());
        }
        Ok(())
    }
}

/// Where a trigger starts.
struct Starts {
    position: StartPosition,
    /// By topic and partition, where a time was looked up.
    found: HashMap<(Uuid, u32), Offset>,
}

impl Starts {
    /// A time is looked for in every segment of a log: the more there are, the longer that takes.
    async fn look_up(spec: &TriggerSpec, topics: Vec<Arc<Topic>>) -> Result<Self, ApplyTriggerError> {
        let (position, mut found) = (spec.input.start, HashMap::new());
        if matches!(position, StartPosition::Time(_)) {
            for topic in topics {
                for (partition, log) in topic.partitions() {
                    found.insert((topic.id(), partition), start_offset(log, position).await?);
                }
            }
        }
        Ok(Self { position, found })
    }

    /// In a topic that was made meanwhile, there is not much to look through.
    async fn at(&self, topic: Uuid, partition: u32, log: &Arc<Partition>) -> Result<Offset, ApplyTriggerError> {
        match self.found.get(&(topic, partition)) {
            Some(found) => Ok((*found).max(log.log_start())),
            None => Ok(start_offset(log, self.position).await?),
        }
    }
}

/// What the owner of a trigger that selects no topic yet, or some, should know.
pub(super) fn warnings(spec: &TriggerSpec, selects_none: bool) -> Vec<String> {
    let mut warnings = spec.warnings();
    if selects_none {
        let (name, pattern) = (&spec.name, &spec.input.topics);
        warnings.push(format!("trigger {name}: no topic matches {pattern} yet; it joins those that are made later"));
    }
    warnings
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
