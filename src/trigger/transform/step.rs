//! One pure step.

use std::borrow::Cow;

use serde_json::Value;

use super::edit::Edit;
use super::extract::{Extracted, missing};
use super::output::{Output, read_back};
use super::path::{Budget, Path};
use super::template::Template;
use super::{Failure, Origin};

#[derive(Debug)]
pub(super) enum Step {
    JsonPath { path: Path, strict: bool },
    Constant { value: Value, text: Box<[u8]> },
    Template(Template),
    Edit(Edit),
}

/// What a step works on.
pub(super) enum Current<'a> {
    /// The record itself: paths see more than the event.
    Record,
    /// What the step before gave.
    Value(Cow<'a, Value>),
}

impl Current<'_> {
    fn seen<'s>(&'s self, origin: &Origin<'s>) -> &'s Value {
        match self {
            Self::Record => origin.seen(),
            Self::Value(value) => value,
        }
    }

    fn into_event(self, origin: &Origin<'_>) -> Value {
        match self {
            Self::Record => origin.event(),
            Self::Value(value) => value.into_owned(),
        }
    }
}

impl Step {
    /// A constant; its text is made once.
    pub(super) fn constant(value: Value) -> Self {
        Self::Constant { text: value.to_string().into_bytes().into(), value }
    }

    /// Gives a value for the next step.
    pub(super) fn apply<'a>(
        &'a self,
        origin: &Origin<'a>,
        current: Current<'a>,
        budget: &mut Budget,
    ) -> Result<Cow<'a, Value>, Failure> {
        match (self, current) {
            (Self::Constant { value, .. }, _) => Ok(Cow::Borrowed(value)),
            (Self::JsonPath { path, strict }, Current::Record) => {
                pick(path, *strict, origin.seen(), budget)?.into_value()
            }
            (Self::JsonPath { path, strict }, Current::Value(Cow::Borrowed(input))) => {
                pick(path, *strict, input, budget)?.into_value()
            }
            (Self::JsonPath { path, strict }, Current::Value(Cow::Owned(input))) => {
                let picked = pick(path, *strict, &input, budget)?.into_value()?;
                Ok(Cow::Owned(picked.into_owned()))
            }
            (Self::Template(template), current) => {
                let mut text = Vec::new();
                template.write(origin, current.seen(origin), budget, &mut Output::new(&mut text))?;
                read_back(&text).map(Cow::Owned)
            }
            (Self::Edit(edit), current) => edit.apply(current.into_event(origin), budget).map(Cow::Owned),
        }
    }

    /// Writes what [`Step::apply`] would give.
    pub(super) fn write(
        &self,
        origin: &Origin<'_>,
        current: Current<'_>,
        budget: &mut Budget,
        output: &mut Output<'_>,
    ) -> Result<(), Failure> {
        match self {
            Self::Constant { text, .. } => output.raw(text),
            Self::JsonPath { path, strict } => pick(path, *strict, current.seen(origin), budget)?.write(output),
            Self::Template(template) => template.write(origin, current.seen(origin), budget, output),
            Self::Edit(edit) => output.value(&edit.apply(current.into_event(origin), budget)?),
        }
    }
}

fn pick<'v>(path: &Path, strict: bool, event: &'v Value, budget: &mut Budget) -> Result<Extracted<'v>, Failure> {
    match Extracted::of(path, event, budget)? {
        Extracted::Nothing if strict => Err(missing(path.source())),
        found => Ok(found),
    }
}
