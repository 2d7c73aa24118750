//! JSONPath as RFC 9535 has it, compiled once and bounded in what one record may cost.
//!
//! Known crates pick nodes without a limit: three descendant wildcards on an event of one kilobyte give 800,000 nodes,
//! a filter inside a filter is quadratic in an array's length, and a regular expression is compiled anew for each node.
//! A definition comes from outside and an event may have a megabyte, so the walk here spends from a [`Budget`] at every
//! node, comparison and match, and stops with [`PathFailure`] when that is used up. It hands nodes over one by one, in
//! the order of the standard, and holds no list of its own.

use std::fmt;
use std::ops::ControlFlow;

use serde_json::{Number, Value};

use pattern::TextPattern;

mod compare;
mod eval;
mod parse;
mod pattern;
mod quoted;

#[cfg(test)]
mod tests;

pub use pattern::{PATTERN_BYTES_MAX, PATTERN_POSITIONS_MAX};

pub(super) use eval::element_index;

/// The longest path, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// How deep filters may stand in filters. A path in a filter may begin at the root again, so each may take the stack
/// for a whole event.
pub const FILTERS_NESTED_MAX: u32 = 4;
/// How deep parentheses, negations and functions may be nested.
pub const NESTING_MAX: u32 = 32;

/// Why a path is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at character {position}")]
pub struct PathError {
    /// Where, in characters from 1.
    pub position: usize,
    /// What is wrong there and what is allowed.
    pub reason: String,
}

/// Why a path has no answer for an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFailure {
    /// The budget is used up.
    #[error("looking for values took more steps than allowed")]
    TooCostly,
    /// The event is nested deeper than any that this process reads.
    #[error("the event is nested too deep")]
    TooDeep,
}

/// What is left of the steps that the paths of one record may take.
#[derive(Debug)]
pub struct Budget {
    steps_left: u64,
}

impl Budget {
    /// So many steps: visits of a node, comparisons, and bytes of text looked through by the eight.
    #[must_use]
    pub const fn of_steps(steps: u64) -> Self {
        Self { steps_left: steps }
    }

    /// The steps that are left.
    #[must_use]
    pub const fn steps_left(&self) -> u64 {
        self.steps_left
    }

    pub(super) const fn spend(&mut self, steps: u64) -> Result<(), PathFailure> {
        match self.steps_left.checked_sub(steps) {
            Some(left) => {
                self.steps_left = left;
                Ok(())
            }
            None => {
                self.steps_left = 0;
                Err(PathFailure::TooCostly)
            }
        }
    }

    /// Spends what looking through `bytes` of text costs.
    const fn spend_text(&mut self, bytes: usize) -> Result<(), PathFailure> {
        self.spend(1 + bytes as u64 / 8)
    }
}

/// A compiled path.
#[derive(Clone)]
pub struct Path {
    source: Box<str>,
    query: Query,
}

/// What one segment of a path that always leads to one place is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaceStep {
    /// A field of an object.
    Name(Box<str>),
    /// An element of an array; from the end when negative.
    Index(i64),
    /// All fields or elements.
    All,
}

impl Path {
    /// Compiles a path such as `$.data.flights[?@.delay > 60].origin`.
    ///
    /// # Errors
    /// The first place that is not RFC 9535, and paths that are longer or nested deeper than allowed.
    pub fn parse(source: &str) -> Result<Self, PathError> {
        let query = parse::whole(source)?;
        Ok(Self { source: source.into(), query })
    }

    /// The path as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Hands every node to `sink`, in the order of the standard, until that breaks off.
    ///
    /// # Errors
    /// When the budget is used up, or the event is too deep.
    pub fn each<'v>(
        &self,
        event: &'v Value,
        budget: &mut Budget,
        mut sink: impl FnMut(&'v Value) -> ControlFlow<()>,
    ) -> Result<(), PathFailure> {
        eval::each(&self.query, event, budget, &mut sink)
    }

    /// The path as plain steps, when it has nothing but names, indexes and wildcards.
    #[must_use]
    pub fn place(&self) -> Option<Vec<PlaceStep>> {
        self.query.segments.iter().map(Segment::place_step).collect()
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Path({})", self.source)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// `$`
    Root,
    /// `@`
    Current,
}

#[derive(Clone, Debug)]
struct Query {
    start: Start,
    segments: Box<[Segment]>,
}

#[derive(Clone, Debug)]
struct Segment {
    /// `..`: applied to the node and all below it.
    descendants: bool,
    selectors: Box<[Selector]>,
}

#[derive(Clone, Debug)]
enum Selector {
    Name(Box<str>),
    Index(i64),
    Slice(Slice),
    All,
    Filter(Logical),
}

#[derive(Clone, Copy, Debug)]
struct Slice {
    start: Option<i64>,
    end: Option<i64>,
    step: i64,
}

/// What is true or false for a node.
#[derive(Clone, Debug)]
enum Logical {
    Any(Box<[Self]>),
    All(Box<[Self]>),
    Not(Box<Self>),
    Exists(Query),
    Compare { left: Comparable, comparison: Comparison, right: Comparable },
    Matches { text: Comparable, pattern: TextPattern },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What stands beside a comparison, or is an argument that must be one value.
#[derive(Clone, Debug)]
enum Comparable {
    Literal(Value),
    /// A singular query: at most one node.
    Query(Query),
    Length(Box<Self>),
    Count(Query),
    OnlyValue(Query),
}

/// A value while a path is walked: of the event, or a number that a function made.
#[derive(Clone, Debug)]
enum Found<'a> {
    Nothing,
    Value(&'a Value),
    Number(Number),
}

impl Segment {
    /// Whether it leads to one node at most.
    fn is_singular(&self) -> bool {
        !self.descendants && matches!(*self.selectors, [Selector::Name(_) | Selector::Index(_)])
    }

    fn place_step(&self) -> Option<PlaceStep> {
        if self.descendants {
            return None;
        }
        match &*self.selectors {
            [Selector::Name(name)] => Some(PlaceStep::Name(name.clone())),
            [Selector::Index(index)] => Some(PlaceStep::Index(*index)),
            [Selector::All] => Some(PlaceStep::All),
            _ => None,
        }
    }
}

impl Query {
    fn is_singular(&self) -> bool {
        self.segments.iter().all(Segment::is_singular)
    }
}
