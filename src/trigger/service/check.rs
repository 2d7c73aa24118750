//! What a definition is refused for, and trying one without doing anything.

use std::sync::Arc;

use serde_json::Value;

use super::apply::{inline_spec, warnings};
use super::topics::selected;
use super::{Applied, ApplyTriggerError, TriggerService};
use crate::config::planned::Planned;
use crate::trigger::runner::Runner;
use crate::trigger::spec::TriggerSpec;

impl TriggerService {
    /// What [`TriggerService::apply`] would answer, and refuse; nothing is done. `planned`: what will be there by then.
    /// A cluster is not asked.
    ///
    /// # Errors
    /// See [`ApplyTriggerError`].
    pub async fn check(&self, spec: &TriggerSpec, planned: &Planned) -> Result<Applied, ApplyTriggerError> {
        let current = self.check_change(spec, planned).await?;
        if spec.input.cluster.is_none() {
            self.check_input(spec, current.as_deref(), planned)?;
            self.check_outputs(spec, planned)?;
        }
        let changed = current.as_ref().is_none_or(|current| *current.spec() != *spec);
        let mut warnings = warnings(spec, spec.input.cluster.is_none() && self.selects_none(spec, planned));
        if spec.input.cluster.is_none() {
            warnings.extend(self.warning_of_results(spec));
        }
        Ok(Applied { created: current.is_none(), changed, warnings })
    }

    /// Refuses what cannot be made of what there is, or will be; nothing is done. Answers the trigger as it is.
    pub(super) async fn check_change(
        &self,
        spec: &TriggerSpec,
        planned: &Planned,
    ) -> Result<Option<Arc<Runner>>, ApplyTriggerError> {
        let current = self.runner(spec.name.as_str());
        match current.as_ref().map(|runner| runner.spec()) {
            Some(old) => self.check_moves(&old, spec)?,
            None => self.check_moves_of_stopped(spec)?,
        }
        #[cfg(feature = "cluster")]
        if let Some(address) = &spec.input.cluster {
            self.inner.access(address).map_err(ApplyTriggerError::UnknownCluster)?;
        }
        self.check_functions(spec, planned).await?;
        Ok(current)
    }

    /// A trigger that the journal knows and that could not be started stays where it is: here, or on a cluster.
    fn check_moves_of_stopped(&self, new: &TriggerSpec) -> Result<(), ApplyTriggerError> {
        let definition = self.inner.broker.journal().look(|state| {
            let entry = state.triggers.values().find(|entry| entry.defined.name == new.name.as_str());
            entry.map(|entry| entry.defined.definition.clone())
        });
        // As it is written: this build may not know what it says.
        let written = definition.and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let on_cluster = written.map(|written| !written["input"]["cluster"].is_null());
        match on_cluster {
            Some(on_cluster) if on_cluster != new.input.cluster.is_some() => Err(ApplyTriggerError::OtherPlace),
            _ => Ok(()),
        }
    }

    /// An update keeps progress: at least one of the topics that are read stays.
    fn check_moves(&self, old: &TriggerSpec, new: &TriggerSpec) -> Result<(), ApplyTriggerError> {
        let on_cluster = new.input.cluster.is_some();
        if old.input.cluster.is_some() != on_cluster {
            return Err(ApplyTriggerError::OtherPlace);
        }
        let stays = if on_cluster { self.stays_there(old, new) } else { self.stays_here(old, new) };
        if old.input.topics == new.input.topics || stays {
            return Ok(());
        }
        let (found, current) = (new.input.topics.to_string(), old.input.topics.to_string());
        Err(ApplyTriggerError::OtherTopic { field: new.input.topics.field(), found, current })
    }

    /// Also where nothing is read yet.
    fn stays_here(&self, old: &TriggerSpec, new: &TriggerSpec) -> bool {
        let joined = self.topics_of(old.name.as_str());
        joined.is_empty() || joined.iter().any(|topic| new.input.topics.selects(topic.name().as_str()))
    }

    /// By the names in the definitions; where both have patterns, by what this process reads.
    fn stays_there(&self, old: &TriggerSpec, new: &TriggerSpec) -> bool {
        let (before, after) = (&old.input.topics, &new.input.topics);
        let both = |name: &str| before.selects(name) && after.selects(name);
        let mut named = before.named().iter().chain(after.named()).peekable();
        if named.peek().is_some() {
            return named.any(|name| both(name.as_str()));
        }
        let running = self.inner.running.read();
        let lanes = running.get(old.name.as_str()).map(|running| running.lanes.as_slice()).unwrap_or_default();
        lanes.is_empty() || lanes.iter().any(|lane| both(&lane.origin().topic))
    }

    fn check_input(
        &self,
        spec: &TriggerSpec,
        current: Option<&Runner>,
        planned: &Planned,
    ) -> Result<(), ApplyTriggerError> {
        for topic in spec.input.topics.named() {
            if !planned.has_topic(topic.as_str()) && !self.inner.broker.has_or_would_create(topic)? {
                let (field, topic) = (spec.input.topics.field(), topic.to_string());
                return Err(ApplyTriggerError::UnknownTopic { field, topic });
            }
        }
        // Where it would start in a partition that is offline nobody can say.
        let selected = selected(&self.inner.broker, &spec.input.topics);
        Ok(self.starts_in(spec, current, &selected).iter().try_for_each(|topic| topic.is_whole())?)
    }

    /// Whether the topics that it writes to are there or can be made.
    fn check_outputs(&self, spec: &TriggerSpec, planned: &Planned) -> Result<(), ApplyTriggerError> {
        let inputs = selected(&self.inner.broker, &spec.input.topics);
        let missing = self.missing_outputs(spec, &inputs);
        for missing in missing.iter().filter(|missing| !planned.has_topic(missing.name.as_str())) {
            self.inner.broker.check_new_topic(missing)?;
        }
        Ok(())
    }

    fn selects_none(&self, spec: &TriggerSpec, planned: &Planned) -> bool {
        let topics = &spec.input.topics;
        topics.named().is_empty()
            && selected(&self.inner.broker, topics).is_empty()
            && !planned.topics().any(|topic| topics.selects(topic))
    }

    async fn check_functions(&self, spec: &TriggerSpec, planned: &Planned) -> Result<(), ApplyTriggerError> {
        // None of them is there any more then, but none is unknown.
        if self.inner.functions.is_stopping() {
            return Err(ApplyTriggerError::Stopping);
        }
        for step in spec.transform.functions().map(|step| step.as_str()) {
            if !planned.has_function(step) && self.inner.functions.describe(step).is_none() {
                return Err(ApplyTriggerError::UnknownStep(step.to_owned()));
            }
        }
        if let Some(function) = inline_spec(spec) {
            self.inner.functions.check(&function, None).await?;
            return Ok(());
        }
        let name = spec.function.label();
        if planned.has_function(name) {
            return Ok(());
        }
        let function = self.inner.functions.describe(name);
        let function = function.ok_or_else(|| ApplyTriggerError::UnknownFunction(name.to_owned()))?;
        spec.check_function(&function.spec).map_err(|error| ApplyTriggerError::Unfit(error.to_string()))
    }
}
