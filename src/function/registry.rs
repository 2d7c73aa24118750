//! Functions that survive a restart: every deployment is in the state journal before it is answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard};

use super::service::Switched;
use super::{DeployError, Deployed, FunctionService, FunctionSpec, RemoveError, RestoreError, log_topic};
use crate::broker::journal::JournalError;
use crate::broker::record::{FunctionDeployed, FunctionRemoved};
use crate::broker::{Broker, CreateTopicError, now_ms};
use crate::config::fields::FieldErrors;

/// Why a definition was not remembered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// It was not accepted.
    #[error(transparent)]
    Deploy(#[from] DeployError),
    /// It runs, but a restart would not know it.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// There is no place for what it prints.
    #[error("the topic for what functions print: {0}")]
    LogTopic(#[from] CreateTopicError),
}

/// Why a function was not removed altogether.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnregisterError {
    /// Somebody needs it; nothing has changed.
    #[error("function {name} is invoked by {user}, which must be deleted first")]
    InUse {
        /// The function.
        name: String,
        /// What needs it, such as `trigger x`.
        user: String,
    },
    /// It is still remembered.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Its code is still on disk, or the broker stops.
    #[error(transparent)]
    Remove(#[from] RemoveError),
}

/// Why a remembered function does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreFailure {
    /// Its definition is not JSON.
    #[error("its definition in the state journal is damaged: {0}")]
    Json(#[from] serde_json::Error),
    /// This release does not know its definition.
    #[error("its definition in the state journal: {0}")]
    Definition(#[from] FieldErrors),
    /// Its code or its target is not there.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// The functions of a broker and what the journal knows about them. Clones are handles to the same ones.
#[derive(Clone)]
pub struct FunctionRegistry {
    broker: Broker,
    service: FunctionService,
    /// What runs and what is remembered change together.
    changing: Arc<Mutex<()>>,
    /// Whether nothing changes any more.
    have_ended: Arc<AtomicBool>,
    /// By name: one deployment follows the other when the first start of that is over, or none could tell its caller
    /// what came of its own code.
    deploying: Arc<parking_lot::Mutex<HashMap<String, Arc<Mutex<()>>>>>,
}

impl FunctionRegistry {
    /// The registry of `service`, which remembers through `broker`.
    #[must_use]
    pub fn new(broker: Broker, service: FunctionService) -> Self {
        Self { broker, service, changing: Arc::default(), have_ended: Arc::default(), deploying: Arc::default() }
    }

    /// What runs them.
    #[must_use]
    pub const fn service(&self) -> &FunctionService {
        &self.service
    }

    /// Takes up all remembered functions. Answers how many, and those that do not run, each with the reason.
    #[must_use]
    pub fn restore(&self) -> (usize, Vec<(String, RestoreFailure)>) {
        let remembered: Vec<FunctionDeployed> =
            self.broker.journal().look(|state| state.functions.values().cloned().collect());
        let mut failures = Vec::new();
        for function in &remembered {
            if let Err(failure) = self.restore_one(function) {
                failures.push((function.name.clone(), failure));
            }
        }
        (remembered.len(), failures)
    }

    fn restore_one(&self, function: &FunctionDeployed) -> Result<(), RestoreFailure> {
        let spec = FunctionSpec::from_json(&serde_json::from_str(&function.definition)?)?;
        Ok(self.service.restore(spec, function.version)?)
    }

    /// Accepts a definition as [`FunctionService::deploy`] does. Durable on return. While its code loads, others are
    /// deployed, and any is removed.
    ///
    /// # Errors
    /// See [`RegisterError`].
    pub async fn deploy(&self, spec: FunctionSpec, code: Option<Bytes>) -> Result<Deployed, RegisterError> {
        let turn = self.turn(&spec.name);
        let _in_turn = turn.lock().await;
        Ok(self.switch(spec, code).await?.started().await)
    }

    /// Brings a definition in force, and remembers it.
    async fn switch(&self, spec: FunctionSpec, code: Option<Bytes>) -> Result<Switched, RegisterError> {
        let _one_at_a_time = self.change().await.ok_or(DeployError::Stopping)?;
        let (name, definition) = (spec.name.clone(), spec.to_json().to_string());
        // Made with the first function and not at the start: a broker without functions starts sooner.
        log_topic::topic(&self.broker).await?;
        let switched = self.service.switch(spec, code).await?;
        let record = FunctionDeployed { name, version: switched.version(), definition };
        if !self.remembers(&record) {
            let next = self.broker.journal().append(&[record.into()], now_ms())?;
            self.broker.journal().durable(next).await?;
        }
        Ok(switched)
    }

    /// The right to change what runs and what is remembered; none once that has ended.
    async fn change(&self) -> Option<MutexGuard<'_, ()>> {
        let changing = self.changing.lock().await;
        (!self.have_ended.load(Ordering::Acquire)).then_some(changing)
    }

    /// What deployments of a name take turns with.
    fn turn(&self, name: &str) -> Arc<Mutex<()>> {
        let mut deploying = self.deploying.lock();
        deploying.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(deploying.entry(name.to_owned()).or_default())
    }

    fn remembers(&self, record: &FunctionDeployed) -> bool {
        self.broker.journal().look(|state| state.functions.get(&record.name) == Some(record))
    }

    /// Forgets a function, stops it and deletes its code. Durable on return; `false` when there was none.
    ///
    /// `unused` is asked when nothing else changes functions any more: it refuses, or answers what keeps new users away
    /// while it lives. That is let go when nobody finds the function any more.
    ///
    /// # Errors
    /// See [`UnregisterError`].
    pub async fn remove<U: Send + 'static>(
        &self,
        name: &str,
        grace: Duration,
        unused: impl Future<Output = Result<U, UnregisterError>> + Send + 'static,
    ) -> Result<bool, UnregisterError> {
        let (registry, name) = (self.clone(), name.to_owned());
        self.broker.to_the_end(async move { registry.remove_now(&name, grace, unused).await }).await
    }

    async fn remove_now<U>(
        &self,
        name: &str,
        grace: Duration,
        unused: impl Future<Output = Result<U, UnregisterError>>,
    ) -> Result<bool, UnregisterError> {
        let _one_at_a_time = self.change().await.ok_or(RemoveError::Stopping)?;
        let unused = unused.await?;
        let known = self.broker.journal().look(|state| state.functions.contains_key(name));
        if known {
            let record = FunctionRemoved { name: name.to_owned() };
            let next = self.broker.journal().append(&[record.into()], now_ms())?;
            self.broker.journal().durable(next).await?;
        }
        let leaving = self.service.take_out(name).await?;
        // Its instances may take all of their time to end, which keeps nobody else waiting.
        drop(unused);
        match leaving {
            Some(leaving) => leaving.end(grace).await.map(|()| true).map_err(UnregisterError::from),
            None => Ok(known),
        }
    }

    /// Refuses to deploy and to remove from here on, while what is there still runs: triggers that stop invoke
    /// functions to their end, but it cannot be seen any more that they need them.
    pub fn end_changes(&self) {
        self.have_ended.store(true, Ordering::Release);
    }

    /// Ends all changes, then stops all functions as [`FunctionService::shutdown`] does. All stay remembered.
    pub async fn shutdown(&self, grace: Duration) {
        self.end_changes();
        // A removal that is remembered is done to its end.
        drop(self.changing.lock().await);
        self.service.shutdown(grace).await;
    }
}
