//! One attempt: a window's records out of the log, into the function, and what its answer says of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tripline_storage::Offset;

use super::lane::Outcome;
use super::outputs::{self, Invoked, OutputError};
use super::parcel::{NoParcel, Parcel, Recipe};
use super::runner::Runner;
use super::spec::TriggerSpec;
use crate::function::{ErrorClass, Invocation, InvocationError};
use crate::input::EventInput;

/// An attempt to make.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) runner: Arc<Runner>,
    pub(super) spec: Arc<TriggerSpec>,
    pub(super) input: EventInput,
    /// What the window is called: the first offset that it had.
    pub(super) name: Offset,
    /// From 1.
    pub(super) attempt: u32,
    pub(super) offsets: Vec<Offset>,
}

/// An attempt that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// What became of the records, or why they could not be read.
    pub(super) outcome: Result<Outcome, String>,
    /// Records that the function took.
    pub(super) delivered: usize,
    /// Records that retention had removed.
    pub(super) expired: usize,
    /// How long the function had them.
    pub(super) took: Duration,
}

impl Ended {
    /// The attempt broke down by a bug of ours.
    pub(super) fn broken() -> Self {
        let reason = "an attempt broke down; restart the broker, and report this".to_owned();
        Self { outcome: Err(reason), delivered: 0, expired: 0, took: Duration::ZERO }
    }
}

impl Work {
    pub(super) async fn run(self) -> Ended {
        let id = self.id();
        let recipe = Recipe {
            transform: &self.spec.transform,
            shape: self.runner.payload(&self.spec),
            functions: &self.runner.functions,
            id: &id,
            attempt: self.attempt,
        };
        let ended = |outcome, delivered, expired, took| Ended { outcome, delivered, expired, took };
        let mut parcel = match Parcel::build(&self.input, &self.offsets, recipe).await {
            Ok(parcel) => parcel,
            Err(NoParcel::Records(error)) => return ended(Err(error.to_string()), 0, 0, Duration::ZERO),
            Err(NoParcel::Step(error)) => {
                let outcome = Outcome::failed(self.offsets.clone(), error);
                return ended(Ok(outcome), 0, 0, Duration::ZERO);
            }
        };
        let expired = self.offsets.len() - parcel.seen();
        let started = Instant::now();
        let mut outcome = self.invoke(&parcel, &id).await;
        let delivered = parcel.record_count() - outcome.failed.len();
        outcome.rejected = std::mem::take(&mut parcel.rejected);
        if !parcel.failed.is_empty() {
            outcome.failed.extend(&parcel.failed);
            outcome.failed.sort_unstable();
            outcome.error = outcome.error.or_else(|| parcel.step_error.take());
        }
        ended(Ok(outcome), delivered, expired, started.elapsed())
    }

    /// Hands the records to the function, and what it returns to where results go.
    async fn invoke(&self, parcel: &Parcel, id: &str) -> Outcome {
        let function = self.runner.function_name(&self.spec);
        for payload in &parcel.payloads {
            let invocation = Invocation {
                id: id.to_owned(),
                attempt: self.attempt,
                payload: payload.clone(),
                content_type: parcel.content_type,
                record_count: u32::try_from(parcel.record_count()).unwrap_or(u32::MAX),
            };
            let answer = self.runner.functions.invoke(&function, invocation).await.map(|success| success.body);
            let body = answer.as_ref().ok().cloned();
            let outcome = self.judge(parcel, answer);
            if outcome.error.is_some() {
                return outcome;
            }
            if let Some(body) = body
                && let Err(error) = self.leave_behind(parcel, &body).await
            {
                return Outcome::failed(parcel.offsets().collect(), error);
            }
        }
        Outcome::done()
    }

    /// What a successful invocation leaves behind is in its topics before progress passes the window: what the disk refuses
    /// is tried again until it is there.
    async fn leave_behind(&self, parcel: &Parcel, body: &[u8]) -> Result<(), InvocationError> {
        if self.spec.destinations.results.is_none() && self.spec.destinations.on_success.is_none() {
            return Ok(());
        }
        let (id, offsets): (String, Vec<Offset>) = (self.id(), parcel.offsets().collect());
        let origin = self.input.origin();
        loop {
            let invoked = Invoked {
                id: &id,
                trigger: self.spec.name.as_str(),
                function: self.spec.function.label(),
                topic: &origin.topic,
                partition: origin.partition,
                offsets: &offsets,
                attempts: self.attempt,
                now_ms: self.runner.clock.now_ms(),
            };
            match outputs::succeeded(&self.runner.broker, &self.spec.destinations, &invoked, body) {
                Ok(()) => return Ok(()),
                Err(error @ OutputError::TooLarge { .. }) => {
                    return Err(InvocationError::new(ErrorClass::Failed, "result-too-large", error.to_string()));
                }
                Err(error) => {
                    let reason = error.to_string();
                    if self.runner.blocked(origin.partition, &reason).await.is_err() {
                        return Err(InvocationError::new(ErrorClass::Interrupted, "interrupted", reason));
                    }
                }
            }
        }
    }

    fn id(&self) -> String {
        self.runner.invocation_id(self.input.origin(), self.name)
    }

    /// What the answer says of the records in hand.
    fn judge(&self, parcel: &Parcel, answer: Result<Bytes, InvocationError>) -> Outcome {
        let all = || parcel.offsets().collect();
        let body = match answer {
            Ok(body) => body,
            Err(mut error) => {
                error.class = self.runner.health.lock().class_of(&error);
                return Outcome::failed(all(), error);
            }
        };
        self.runner.health.lock().success();
        let sent = parcel.record_count();
        match parcel.failures(self.input.origin(), &body) {
            Err(reason) => {
                let error = InvocationError::new(ErrorClass::Failed, "bad-batch-item-failures", reason);
                Outcome::failed(all(), error)
            }
            Ok(failed) if failed.is_empty() => Outcome::done(),
            Ok(failed) => {
                let message = format!("the function reported {} of {sent} records as failed", failed.len());
                let error = InvocationError::new(ErrorClass::Failed, "batch-item-failures", message);
                Outcome::failed(failed, error)
            }
        }
    }
}
