//! The walk through an event.
//!
//! Depth first: what comes after a segment is applied to each of its nodes as it is found. Every segment maps one node
//! to a list and the lists are joined in order, so the order is that of the standard. Each segment goes down a level at
//! least, so the stack is as deep as the event, once for each filter around.

use std::ops::ControlFlow;

use serde_json::{Number, Value};

use super::compare::holds;
use super::pattern::Scratch;
use super::{Budget, Comparable, Found, Logical, PathFailure, Query, Segment, Selector, Slice, Start};

/// Deeper than what the JSON reader lets in, with room for what wraps it and what edits add.
const DEPTH_MAX: u32 = 300;

/// Why a walk ends early.
enum Stop {
    /// Whoever asked has enough.
    Enough,
    Failed(PathFailure),
}

impl From<PathFailure> for Stop {
    fn from(failure: PathFailure) -> Self {
        Self::Failed(failure)
    }
}

type Sink<'s, 'v> = dyn FnMut(&'v Value) -> ControlFlow<()> + 's;

pub(super) fn each<'v>(
    query: &Query,
    root: &'v Value,
    budget: &mut Budget,
    sink: &mut Sink<'_, 'v>,
) -> Result<(), PathFailure> {
    Walk { root, budget, scratch: Scratch::default() }.each(query, root, sink)
}

struct Walk<'v, 'b> {
    root: &'v Value,
    budget: &'b mut Budget,
    scratch: Scratch,
}

impl<'v> Walk<'v, '_> {
    fn each(&mut self, query: &Query, current: &'v Value, sink: &mut Sink<'_, 'v>) -> Result<(), PathFailure> {
        let start = match query.start {
            Start::Root => self.root,
            Start::Current => current,
        };
        match self.follow(&query.segments, start, 0, sink) {
            Ok(()) | Err(Stop::Enough) => Ok(()),
            Err(Stop::Failed(failure)) => Err(failure),
        }
    }

    /// Pays for going to a node at `depth`.
    fn enter(&mut self, depth: u32) -> Result<(), PathFailure> {
        self.budget.spend(1)?;
        if depth > DEPTH_MAX { Err(PathFailure::TooDeep) } else { Ok(()) }
    }

    fn follow(
        &mut self,
        segments: &[Segment],
        node: &'v Value,
        depth: u32,
        sink: &mut Sink<'_, 'v>,
    ) -> Result<(), Stop> {
        self.enter(depth)?;
        match segments {
            [] if sink(node).is_break() => Err(Stop::Enough),
            [] => Ok(()),
            [segment, rest @ ..] if segment.descendants => self.descend(segment, rest, node, depth, sink),
            [segment, rest @ ..] => self.select_all(segment, rest, node, depth, sink),
        }
    }

    fn descend(
        &mut self,
        segment: &Segment,
        rest: &[Segment],
        node: &'v Value,
        depth: u32,
        sink: &mut Sink<'_, 'v>,
    ) -> Result<(), Stop> {
        self.enter(depth)?;
        self.select_all(segment, rest, node, depth, sink)?;
        try_for_each_child(node, |child| self.descend(segment, rest, child, depth + 1, sink))
    }

    fn select_all(
        &mut self,
        segment: &Segment,
        rest: &[Segment],
        node: &'v Value,
        depth: u32,
        sink: &mut Sink<'_, 'v>,
    ) -> Result<(), Stop> {
        segment.selectors.iter().try_for_each(|selector| self.select(selector, rest, node, depth + 1, sink))
    }

    fn select(
        &mut self,
        selector: &Selector,
        rest: &[Segment],
        node: &'v Value,
        depth: u32,
        sink: &mut Sink<'_, 'v>,
    ) -> Result<(), Stop> {
        match (selector, node) {
            (Selector::Name(name), Value::Object(fields)) => match fields.get(&**name) {
                Some(child) => self.follow(rest, child, depth, sink),
                None => Ok(self.budget.spend(1)?),
            },
            (Selector::Index(index), Value::Array(elements)) => match element(elements, *index) {
                Some(child) => self.follow(rest, child, depth, sink),
                None => Ok(self.budget.spend(1)?),
            },
            (Selector::Slice(slice), Value::Array(elements)) => {
                slice.indexes(elements.len()).try_for_each(|index| self.follow(rest, &elements[index], depth, sink))
            }
            (Selector::All, Value::Array(_) | Value::Object(_)) => {
                try_for_each_child(node, |child| self.follow(rest, child, depth, sink))
            }
            (Selector::Filter(filter), Value::Array(_) | Value::Object(_)) => {
                try_for_each_child(node, |child| self.follow_if(filter, rest, child, depth, sink))
            }
            _ => Ok(self.budget.spend(1)?),
        }
    }

    fn follow_if(
        &mut self,
        filter: &Logical,
        rest: &[Segment],
        child: &'v Value,
        depth: u32,
        sink: &mut Sink<'_, 'v>,
    ) -> Result<(), Stop> {
        if self.is_true(filter, child)? { self.follow(rest, child, depth, sink) } else { Ok(()) }
    }

    fn is_true(&mut self, logical: &Logical, current: &'v Value) -> Result<bool, PathFailure> {
        self.budget.spend(1)?;
        match logical {
            Logical::Any(terms) => self.first_that_is(true, terms, current),
            Logical::All(terms) => Ok(!self.first_that_is(false, terms, current)?),
            Logical::Not(term) => Ok(!self.is_true(term, current)?),
            Logical::Exists(query) => {
                let mut exists = false;
                self.each(query, current, &mut |_| {
                    exists = true;
                    ControlFlow::Break(())
                })?;
                Ok(exists)
            }
            Logical::Compare { left, comparison, right } => {
                let (left, right) = (self.value(left, current)?, self.value(right, current)?);
                holds(&left, *comparison, &right, self.budget)
            }
            Logical::Matches { text, pattern } => {
                let text = self.value(text, current)?;
                let dynamic = match pattern.operand() {
                    Some(operand) => self.value(operand, current)?,
                    None => Found::Nothing,
                };
                let Some(text) = text.as_str() else { return Ok(false) };
                pattern.is_match(text, dynamic.as_str(), &mut self.scratch, self.budget)
            }
        }
    }

    /// Whether one of the terms is `wanted`; what comes after it is not looked at.
    fn first_that_is(&mut self, wanted: bool, terms: &[Logical], current: &'v Value) -> Result<bool, PathFailure> {
        for term in terms {
            if self.is_true(term, current)? == wanted {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn value<'a>(&mut self, comparable: &'a Comparable, current: &'v Value) -> Result<Found<'a>, PathFailure>
    where
        'v: 'a,
    {
        match comparable {
            Comparable::Literal(literal) => Ok(Found::Value(literal)),
            Comparable::Query(query) => {
                let mut found = Found::Nothing;
                self.each(query, current, &mut |node| {
                    found = Found::Value(node);
                    ControlFlow::Break(())
                })?;
                Ok(found)
            }
            Comparable::Length(inner) => {
                let inner = self.value(inner, current)?;
                length(&inner, self.budget)
            }
            Comparable::Count(query) => {
                let mut count = 0_u64;
                self.each(query, current, &mut |_| {
                    count += 1;
                    ControlFlow::Continue(())
                })?;
                Ok(Found::Number(Number::from(count)))
            }
            Comparable::OnlyValue(query) => self.only_value(query, current),
        }
    }

    fn only_value<'a>(&mut self, query: &Query, current: &'v Value) -> Result<Found<'a>, PathFailure>
    where
        'v: 'a,
    {
        let mut found = Found::Nothing;
        self.each(query, current, &mut |node| match found {
            Found::Nothing => {
                found = Found::Value(node);
                ControlFlow::Continue(())
            }
            _ => {
                found = Found::Nothing;
                ControlFlow::Break(())
            }
        })?;
        Ok(found)
    }
}

/// Visits the elements of an array or the values of an object, in their order; nothing else has children.
fn try_for_each_child<'v>(node: &'v Value, visit: impl FnMut(&'v Value) -> Result<(), Stop>) -> Result<(), Stop> {
    match node {
        Value::Array(elements) => elements.iter().try_for_each(visit),
        Value::Object(fields) => fields.values().try_for_each(visit),
        _ => Ok(()),
    }
}

/// The length of a text in characters, of an array or object in children; of nothing else.
fn length<'a>(value: &Found<'_>, budget: &mut Budget) -> Result<Found<'a>, PathFailure> {
    let Found::Value(value) = value else { return Ok(Found::Nothing) };
    let length = match value {
        Value::String(text) => {
            budget.spend_text(text.len())?;
            text.chars().count()
        }
        Value::Array(elements) => elements.len(),
        Value::Object(fields) => fields.len(),
        _ => return Ok(Found::Nothing),
    };
    Ok(Found::Number(Number::from(length)))
}

impl Found<'_> {
    fn as_str(&self) -> Option<&str> {
        match self {
            Self::Value(Value::String(text)) => Some(text),
            _ => None,
        }
    }
}

/// The element at an index, from the end when it is negative.
pub(in crate::trigger::transform) fn element_index(index: i64, count: usize) -> Option<usize> {
    let index = if index < 0 { i64::try_from(count).ok()?.checked_add(index)? } else { index };
    usize::try_from(index).ok().filter(|index| *index < count)
}

fn element(elements: &[Value], index: i64) -> Option<&Value> {
    elements.get(element_index(index, elements.len())?)
}

impl Slice {
    /// The indexes of an array with `count` elements, as section 2.3.4.2.2 of the standard computes them.
    fn indexes(self, count: usize) -> impl Iterator<Item = usize> {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let place = |index: i64| if index < 0 { count + index } else { index };
        let (mut next, end) = if self.step >= 0 {
            let end = place(self.end.unwrap_or(count)).clamp(0, count);
            (place(self.start.unwrap_or(0)).clamp(0, count), end)
        } else {
            let end = self.end.map_or(-1, |end| place(end).clamp(-1, count - 1));
            (self.start.map_or(count - 1, |start| place(start).clamp(-1, count - 1)), end)
        };
        std::iter::from_fn(move || {
            let is_inside = (self.step > 0 && next < end) || (self.step < 0 && next > end);
            let index = next;
            // An index is at most an array's length, and a step at most 2^53.
            next = next.saturating_add(self.step);
            if is_inside { usize::try_from(index).ok() } else { None }
        })
    }
}
