//! One attempt: a window's records out of the log, into the function, and what its answer says of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tripline_storage::Offset;

use super::attempt::LastError;
use super::lane::Outcome;
use super::outputs::{Invoked, Outlet, Outputs};
use super::parcel::{NoParcel, Parcel, Reach, Recipe};
use super::runner::Runner;
use super::share::Share;
use super::spec::TriggerSpec;
use super::trace::ranges::Ranges;
use super::trace::{Made, TracedEvents};
use super::window::Spot;
use crate::event::trace::TraceContext;
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
    /// The nudge that it begins under.
    pub(super) nudges: u64,
    /// From 1.
    pub(super) attempt: u32,
    /// How often the broker has stopped during an attempt on this window.
    pub(super) interrupted: u32,
    pub(super) offsets: Vec<Offset>,
    /// Where each of them was found.
    pub(super) spots: Vec<Spot>,
    /// Set when its records are read together with those of others.
    pub(super) share: Option<Share>,
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
    /// How long functions had them; `None`: none was asked, which says nothing about them.
    pub(super) took: Option<Duration>,
    /// Which functions were asked.
    pub(super) reach: Reach,
    /// What history tells of it; `None` where it is not kept.
    pub(super) made: Option<Box<Made>>,
}

impl Ended {
    /// The attempt broke down by a bug of ours.
    pub(super) fn broken() -> Self {
        Self::unread("an attempt broke down; restart the broker, and report this".to_owned())
    }

    /// The records cannot be read.
    const fn unread(reason: String) -> Self {
        Self { outcome: Err(reason), delivered: 0, expired: 0, took: None, reach: Reach::NONE, made: None }
    }

    /// This was known without asking a function.
    #[cfg(test)]
    pub(super) const fn unasked(outcome: Outcome) -> Self {
        Self { outcome: Ok(outcome), delivered: 0, expired: 0, took: None, reach: Reach::NONE, made: None }
    }

    /// This is what the target said.
    #[cfg(test)]
    pub(super) const fn answered(outcome: Outcome) -> Self {
        let took = Some(Duration::ZERO);
        Self { outcome: Ok(outcome), delivered: 0, expired: 0, took, reach: Reach::TARGET, made: None }
    }
}

impl Work {
    /// Boxed: a task is copied where it begins, and aligned in a way that makes large ones dear.
    pub(super) fn run(self) -> BoxFuture<'static, Ended> {
        async move { self.attempt().await }.boxed()
    }

    async fn attempt(&self) -> Ended {
        let id = self.id();
        let recipe = Recipe {
            transform: &self.spec.transform,
            shape: self.runner.payload(&self.spec),
            functions: &self.runner.functions,
            id: &id,
            attempt: self.attempt,
        };
        let began_ms = self.runner.clock.now_ms();
        let mut parcel = match self.parcel(recipe).await {
            Ok(parcel) => parcel,
            Err(NoParcel::Records(error)) => return Ended::unread(error.to_string()),
            Err(NoParcel::Step(reach, error)) => {
                let outcome = Outcome::failed(self.offsets.clone(), error);
                let made = self.made(began_ms, Duration::ZERO, &outcome, None, TracedEvents::default());
                let took = Some(Duration::ZERO);
                return Ended { outcome: Ok(outcome), delivered: 0, expired: 0, took, reach, made };
            }
        };
        let expired = self.offsets.len() - parcel.seen();
        let started = Instant::now();
        // A window of one is a span of its record's trace.
        let cause = if let [only] = self.offsets[..] { parcel.traced.context(only).cloned() } else { None };
        let span = cause.as_ref().map(|cause| cause.child(fastrand::u64(..)));
        let sent = match parcel.too_large() {
            Some(error) => Outcome::failed(parcel.offsets(), error),
            None => self.invoke(&parcel, &id, cause.as_ref(), span.as_ref()).await,
        };
        let delivered = parcel.record_count() - sent.failed.len();
        let outcome = parcel.outcome(sent);
        let took = started.elapsed();
        let traced = std::mem::take(&mut parcel.traced);
        let made = self.made(began_ms, took, &outcome, span, traced);
        let reach = parcel.reach();
        Ended { outcome: Ok(outcome), delivered, expired, took: (reach > Reach::NONE).then_some(took), reach, made }
    }

    async fn parcel(&self, recipe: Recipe<'_>) -> Result<Parcel, NoParcel> {
        if let Some(share) = &self.share
            && let Some(parcel) = share.take(&self.input, recipe).await
        {
            return Ok(parcel);
        }
        // Boxed: what is rare takes no room in the task of each attempt, which is copied where it begins.
        Box::pin(Parcel::build(&self.input, &self.offsets, &self.spots, recipe)).await
    }

    /// What history tells of this attempt.
    fn made(
        &self,
        began_ms: i64,
        took: Duration,
        outcome: &Outcome,
        span: Option<TraceContext>,
        events: TracedEvents,
    ) -> Option<Box<Made>> {
        let error = outcome.error.as_ref().or_else(|| outcome.rejected.values().next());
        self.spec.keeps_trace(&self.input.origin().topic, error.is_some()).then(|| {
            Box::new(Made {
                spec: Arc::clone(&self.spec),
                trigger: self.runner.id,
                run: self.runner.run,
                input: self.input.clone(),
                name: self.name,
                attempt: self.attempt,
                interrupted: self.interrupted,
                began_ms,
                took,
                offsets: Ranges::of(self.offsets.iter().copied()),
                failed: Ranges::of(outcome.failed.iter().copied()),
                rejected: Ranges::of(outcome.rejected.keys().copied()),
                error: error.map(LastError::of),
                traceparent: span.map(|span| span.parent().to_owned()),
                events,
            })
        })
    }

    /// Hands the records to the function, and what it returns to where results go.
    async fn invoke(
        &self,
        parcel: &Parcel,
        id: &str,
        cause: Option<&TraceContext>,
        span: Option<&TraceContext>,
    ) -> Outcome {
        let function = self.runner.function_name(&self.spec);
        for payload in &parcel.payloads {
            let invocation = Invocation {
                id: id.to_owned(),
                attempt: self.attempt,
                payload: payload.clone(),
                content_type: parcel.content_type,
                record_count: u32::try_from(parcel.record_count()).unwrap_or(u32::MAX),
                trace: span.cloned(),
            };
            let answer = self.runner.functions.invoke(&function, invocation).await.map(|success| success.body);
            let body = answer.as_ref().ok().cloned();
            let outcome = self.judge(parcel, answer);
            if outcome.error.is_some() {
                return outcome;
            }
            if let Some(body) = body
                && self.leaves_behind()
                && let Err(error) = Box::pin(self.leave_behind(parcel, &body, cause)).await
            {
                return Outcome::failed(parcel.offsets(), error);
            }
        }
        Outcome::done()
    }

    fn leaves_behind(&self) -> bool {
        self.spec.destinations.results.is_some() || self.spec.destinations.on_success.is_some()
    }

    /// What a successful invocation leaves behind is in its topics before progress passes the window: what the disk, or
    /// the cluster, refuses is tried again until it is there.
    async fn leave_behind(
        &self,
        parcel: &Parcel,
        body: &[u8],
        cause: Option<&TraceContext>,
    ) -> Result<(), InvocationError> {
        let (id, offsets): (String, Vec<Offset>) = (self.id(), parcel.offsets().collect());
        let origin = self.input.origin();
        let invoked = Invoked {
            id: &id,
            trigger: self.spec.name.as_str(),
            function: self.spec.function.label(),
            topic: &origin.topic,
            partition: origin.partition,
            offsets: &offsets,
            attempts: self.attempt,
            now_ms: self.runner.clock.now_ms(),
            cause,
        };
        let outlet = Outlet::of(&self.runner.broker, &self.input);
        let mut destinations = self.spec.destinations.clone();
        let mut outputs = Outputs::of_success(&destinations, &invoked, body);
        loop {
            let Err(error) = outputs.leave(&outlet, &invoked).await else { return Ok(()) };
            let reason = error.to_string();
            if let Some(code) = error.fails_attempt() {
                return Err(InvocationError::new(ErrorClass::Failed, code, reason));
            }
            if self.runner.blocked(origin, &reason).await.is_err() {
                return Err(InvocationError::new(ErrorClass::Interrupted, "interrupted", reason));
            }
            let spec = self.runner.spec();
            if spec.destinations != destinations {
                // A topic that the definition does not name any more may be gone for good.
                destinations = spec.destinations.clone();
                outputs = Outputs::of_success(&destinations, &invoked, body);
            }
        }
    }

    fn id(&self) -> String {
        self.runner.invocation_id(self.input.origin(), self.name)
    }

    /// What the answer says of the records in hand.
    fn judge(&self, parcel: &Parcel, answer: Result<Bytes, InvocationError>) -> Outcome {
        let all = || parcel.offsets();
        let body = match answer {
            Ok(body) => body,
            Err(mut error) => {
                error.class = self.runner.class_of(&error, self.nudges);
                return Outcome::failed(all(), error);
            }
        };
        self.runner.target_answered(self.nudges);
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
