//! Trying a definition without doing anything.

use super::apply::{inline_spec, warnings};
use super::topics::selected;
use super::{Applied, ApplyTriggerError, TriggerService};
use crate::config::planned::Planned;
use crate::topic::spec::{TopicConfig, TopicSpec};
use crate::trigger::spec::TriggerSpec;

impl TriggerService {
    /// What [`TriggerService::apply`] would answer, and refuse; nothing is done. `planned`: what will be there by then. A cluster
    /// is not asked.
    ///
    /// # Errors
    /// See [`ApplyTriggerError`].
    pub async fn check(&self, spec: &TriggerSpec, planned: &Planned) -> Result<Applied, ApplyTriggerError> {
        let current = self.runner(spec.name.as_str()).map(|runner| runner.spec());
        if let Some(old) = &current {
            self.check_moves(old, spec)?;
        }
        self.check_input(spec, planned)?;
        self.check_functions(spec, planned).await?;
        self.check_outputs(spec, planned)?;
        let changed = current.as_ref().is_none_or(|current| **current != *spec);
        Ok(Applied { created: current.is_none(), changed, warnings: warnings(spec, self.selects_none(spec, planned)) })
    }

    fn check_input(&self, spec: &TriggerSpec, planned: &Planned) -> Result<(), ApplyTriggerError> {
        if spec.input.cluster.is_some() {
            return Ok(());
        }
        for topic in spec.input.topics.named() {
            if !planned.has_topic(topic.as_str()) && !self.inner.broker.has_or_would_create(topic)? {
                let (field, topic) = (spec.input.topics.field(), topic.to_string());
                return Err(ApplyTriggerError::UnknownTopic { field, topic });
            }
        }
        Ok(())
    }

    /// Whether the topics that it writes to are there or can be made.
    fn check_outputs(&self, spec: &TriggerSpec, planned: &Planned) -> Result<(), ApplyTriggerError> {
        let broker = &self.inner.broker;
        let partitions = spec.input.topics.named().iter().filter_map(|name| broker.topic(name.as_str()));
        let partitions = partitions.map(|topic| topic.partition_count()).max().unwrap_or(1);
        let names = spec.dead_letter.iter().chain(spec.destinations.topics().map(|(_, topic)| topic));
        for name in names.filter(|name| !planned.has_topic(name.as_str()) && broker.topic(name.as_str()).is_none()) {
            broker.check_new_topic(&TopicSpec { name: name.clone(), partitions, config: TopicConfig::default() })?;
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
