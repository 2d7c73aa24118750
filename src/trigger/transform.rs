//! Transforms: what a function gets instead of the record's event.
//!
//! | step | gives |
//! |---|---|
//! | `original` | the record as a CloudEvent |
//! | `{jsonpath: $.data.x}` | the value there; a list when there are several, null when there is none (a failure with `strict: true`) |
//! | `{constant: …}` | always that |
//! | `{template: '{"a": <a>}', values: {a: $.data.a}}` | the template with values in place of `<name>` |
//! | `{set: {$.data.x: 1}}`, `{delete: [$.data.y]}` | the event with fields set or taken away |
//! | `{function: name}` | what that function returns: no event, one or many |
//! | a list of these | one after another |
//!
//! **What the last step gives is what the function gets**, not wrapped into anything. In the first step a path sees
//! what filters see ([`EventView::for_matching`](crate::event::EventView::for_matching)); in later ones `$` is what the
//! step before gave, and the reserved names of a template (`<tripline.topic>` …) still speak of the record.
//!
//! A definition is compiled once. Pure steps that follow each other are one [`PureChain`], which needs no runtime; a
//! function step is a [`Stage`] of its own, and whoever makes the attempt invokes it. A record costs at most
//! [`PATH_STEPS_MAX`] steps for each chain and gives at most [`OUTPUT_BYTES_MAX`]. Whatever fails here fails again: it
//! depends on the definition and the record alone.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::config::fields::{FieldErrors, Fields, read};
use crate::topic::name::FunctionName;

mod edit;
mod extract;
mod origin;
mod output;
mod parse;
pub mod path;
mod results;
mod step;
mod template;

#[cfg(test)]
mod tests;

pub use origin::Origin;
pub use output::OUTPUT_BYTES_MAX;
pub use results::{RESULTS_MAX, parse_function_result};
pub use template::{RESERVED, TEMPLATE_CHARS_MAX, VALUES_MAX};

use path::Budget;
use step::{Current, Step};

/// How many steps a transform may have.
pub const CHAIN_STEPS_MAX: usize = 16;
/// How many places one step may set or delete.
pub const PLACES_MAX: usize = 100;
/// How large a constant may be, as JSON without blanks.
pub const CONSTANT_BYTES_MAX: usize = 64 << 10;
/// What the paths of a [`PureChain`] may do together for one record: visit so many nodes, or compare so much.
pub const PATH_STEPS_MAX: u64 = 2_000_000;

/// Why a record has no result. Another try would fail as well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("transform step {step}: {message}")]
pub struct TransformError {
    /// Which step of the definition, from 0.
    pub step: usize,
    /// What kind of failure.
    pub code: TransformCode,
    /// What happened, with names and limits.
    pub message: String,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransformCode {
    /// A path of a strict step leads to nothing.
    MissingValue,
    /// A field cannot be set: what is above it is no object, or has no such element.
    NotSettable,
    /// Looking for values takes more than [`PATH_STEPS_MAX`].
    TooCostly,
    /// More than [`OUTPUT_BYTES_MAX`].
    TooLarge,
    /// Nested deeper than JSON readers allow.
    TooDeep,
    /// More events than [`RESULTS_MAX`].
    TooManyEvents,
    /// A function returned something other than events.
    BadResult,
}

impl TransformCode {
    /// Its name in dead letters, logs and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MissingValue => "transform-missing-value",
            Self::NotSettable => "transform-not-settable",
            Self::TooCostly => "transform-too-costly",
            Self::TooLarge => "transform-too-large",
            Self::TooDeep => "transform-too-deep",
            Self::TooManyEvents => "transform-too-many-events",
            Self::BadResult => "transform-bad-result",
        }
    }
}

/// A failure whose step is not known yet.
#[derive(Debug)]
struct Failure {
    code: TransformCode,
    message: String,
}

impl Failure {
    fn new(code: TransformCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn at(self, step: usize) -> TransformError {
        TransformError { step, code: self.code, message: self.message }
    }
}

/// A checked transform.
#[derive(Clone)]
pub struct Transform {
    source: Arc<Value>,
    stages: Arc<[Stage]>,
}

/// What is done as one.
#[derive(Clone, Debug)]
pub enum Stage {
    /// Steps that need nothing but the record.
    Pure(PureChain),
    /// A registered function; its place among the steps, from 0.
    Function {
        /// Which one.
        name: FunctionName,
        /// For [`parse_function_result`].
        step: usize,
    },
}

/// Pure steps, one after another: one event in, one out.
#[derive(Clone, Debug)]
pub struct PureChain {
    /// The place of the first one in the whole transform.
    first: usize,
    /// At least one.
    steps: Arc<[Step]>,
}

/// A result as people see it.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// As it is.
    Whole(Value),
    /// It is too large to show.
    TooLarge {
        /// As JSON.
        size_bytes: usize,
    },
}

impl Default for Transform {
    /// The original.
    fn default() -> Self {
        Self { source: Arc::new(Value::from("original")), stages: Arc::new([]) }
    }
}

impl Transform {
    /// Checks and compiles a transform that stands alone.
    ///
    /// # Errors
    /// Everything that is wrong with it, with paths that begin with `transform`.
    pub fn parse(source: &Value) -> Result<Self, FieldErrors> {
        let definition = serde_json::json!({ "transform": source });
        read(&definition, "transform", |fields| Self::field(fields, "transform"))
    }

    /// Reads the field `name` of a definition; the original when it is left out. `None` after errors were reported.
    pub fn field(fields: &mut Fields<'_>, name: &'static str) -> Option<Self> {
        parse::field(fields, name)
    }

    /// The transform as written.
    #[must_use]
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// Whether the function gets the record's event as it is.
    #[must_use]
    pub fn is_original(&self) -> bool {
        self.stages.is_empty()
    }

    /// What is done, in order; nothing for the original. No two pure chains follow each other.
    #[must_use]
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The functions that it invokes.
    pub fn functions(&self) -> impl Iterator<Item = &FunctionName> {
        self.stages.iter().filter_map(|stage| match stage {
            Stage::Function { name, .. } => Some(name),
            Stage::Pure(_) => None,
        })
    }
}

impl PureChain {
    /// Appends the result for one record to `out`, as JSON text of at most [`OUTPUT_BYTES_MAX`]. `input` is what the
    /// stage before gave for this record; `None` in the first stage, which takes the record's event.
    ///
    /// # Errors
    /// The first step that fails; `out` is as it was then.
    pub fn write_json(
        &self,
        origin: &Origin<'_>,
        input: Option<&Value>,
        out: &mut Vec<u8>,
    ) -> Result<(), TransformError> {
        let start = out.len();
        let written = self.write(origin, input, out);
        if written.is_err() {
            out.truncate(start);
        }
        written
    }

    /// What [`PureChain::write_json`] writes, as a value.
    ///
    /// # Errors
    /// Those, and results that are nested deeper than JSON readers allow.
    pub fn apply(&self, origin: &Origin<'_>, input: Option<&Value>) -> Result<Value, TransformError> {
        let mut text = Vec::new();
        self.write(origin, input, &mut text)?;
        let last = self.first + self.steps.len() - 1;
        output::read_back(&text).map_err(|failure| failure.at(last))
    }

    /// The same, for people: results of more than `bytes_max` bytes of JSON are not made values of.
    ///
    /// # Errors
    /// Those of [`PureChain::apply`].
    pub fn show(&self, origin: &Origin<'_>, bytes_max: usize) -> Result<Shown, TransformError> {
        let mut text = Vec::new();
        self.write(origin, None, &mut text)?;
        let shown = if text.len() > bytes_max {
            output::check(&text).map(|()| Shown::TooLarge { size_bytes: text.len() })
        } else {
            output::read_back(&text).map(Shown::Whole)
        };
        shown.map_err(|failure| failure.at(self.first + self.steps.len() - 1))
    }

    fn write(&self, origin: &Origin<'_>, input: Option<&Value>, out: &mut Vec<u8>) -> Result<(), TransformError> {
        let (last, before) = self.steps.split_last().expect("a chain has a step");
        let mut budget = Budget::of_steps(PATH_STEPS_MAX);
        let mut current = input.map_or(Current::Record, |input| Current::Value(Cow::Borrowed(input)));
        for (index, step) in before.iter().enumerate() {
            let result = step.apply(origin, current, &mut budget).map_err(|failure| failure.at(self.first + index))?;
            current = Current::Value(result);
        }
        let mut output = output::Output::new(out);
        let written = last.write(origin, current, &mut budget, &mut output);
        written.map_err(|failure| failure.at(self.first + before.len()))
    }
}

impl PartialEq for Transform {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Transform {}

impl fmt::Debug for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transform({})", self.source)
    }
}
