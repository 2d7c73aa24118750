//! Values that a path leads to.

use std::borrow::Cow;
use std::ops::ControlFlow;

use serde_json::Value;

use super::output::{OUTPUT_BYTES_MAX, Output, too_large};
use super::path::{Budget, Path, PathFailure};
use super::{Failure, TransformCode};

/// More values than this do not fit into any result: each takes two bytes at least.
const NODES_MAX: usize = OUTPUT_BYTES_MAX / 2;

/// What a path leads to.
#[derive(Debug)]
pub(super) enum Extracted<'v> {
    Nothing,
    One(&'v Value),
    Many(Vec<&'v Value>),
}

impl<'v> Extracted<'v> {
    /// Walks `event`.
    pub(super) fn of(path: &Path, event: &'v Value, budget: &mut Budget) -> Result<Self, Failure> {
        let mut found = Self::Nothing;
        let mut count = 0_usize;
        let walked = path.each(event, budget, |node| {
            count += 1;
            match &mut found {
                Self::Nothing => found = Self::One(node),
                Self::One(first) => found = Self::Many(vec![first, node]),
                Self::Many(nodes) => nodes.push(node),
            }
            if count > NODES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        walked.map_err(|failure| failed(path, failure))?;
        if count > NODES_MAX { Err(too_large()) } else { Ok(found) }
    }

    /// The one value, the list of several, or null.
    pub(super) fn write(&self, output: &mut Output<'_>) -> Result<(), Failure> {
        match self {
            Self::Nothing => output.raw(b"null"),
            Self::One(value) => output.value(value),
            Self::Many(values) => self::each_between(values, output, Output::raw, Output::value),
        }
    }

    /// The same inside a string literal.
    pub(super) fn write_content(&self, output: &mut Output<'_>) -> Result<(), Failure> {
        match self {
            Self::Nothing => output.raw(b"null"),
            Self::One(value) => output.value_content(value),
            Self::Many(values) => each_between(values, output, Output::text_content, |output, value| match value {
                Value::String(_) => output.text_content(value.to_string().as_bytes()),
                other => output.value_content(other),
            }),
        }
    }

    /// The same as a value, which is no larger than any result may be.
    pub(super) fn into_value(self) -> Result<Cow<'v, Value>, Failure> {
        match self {
            Self::Nothing => Ok(Cow::Owned(Value::Null)),
            Self::One(value) => Ok(Cow::Borrowed(value)),
            Self::Many(values) => {
                // Nodes may lie in each other, so their copies may be far larger than the event.
                each_between(&values, &mut Output::new(&mut Vec::new()), Output::raw, Output::value)?;
                Ok(Cow::Owned(Value::Array(values.into_iter().cloned().collect())))
            }
        }
    }
}

fn each_between<'o>(
    values: &[&Value],
    output: &mut Output<'o>,
    mark: fn(&mut Output<'o>, &[u8]) -> Result<(), Failure>,
    each: impl Fn(&mut Output<'o>, &Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    mark(output, b"[")?;
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            mark(output, b",")?;
        }
        each(output, value)?;
    }
    mark(output, b"]")
}

fn failed(path: &Path, failure: PathFailure) -> Failure {
    let code = match failure {
        PathFailure::TooCostly => TransformCode::TooCostly,
        PathFailure::TooDeep => TransformCode::TooDeep,
    };
    Failure::new(code, format!("{}: {failure}", path.source()))
}

/// What a strict step says of a path that leads to nothing.
pub(super) fn missing(what: &str) -> Failure {
    Failure::new(TransformCode::MissingValue, format!("there is nothing at {what}, and the step is strict"))
}
