//! Fields set and taken away.

use serde_json::{Map, Value};

use super::output::{OUTPUT_BYTES_MAX, too_large};
use super::path::{Budget, Path, PlaceStep, element_index};
use super::{Failure, TransformCode};

/// How many names, indexes and wildcards lead to a place at most.
pub(super) const PLACE_STEPS_MAX: usize = 32;

#[derive(Debug)]
pub(super) enum Edit {
    /// In the order of the places.
    Set(Box<[(Place, Value, usize)]>),
    Delete(Box<[Place]>),
}

/// One place of an event, or several that lie alike.
#[derive(Debug)]
pub(super) struct Place {
    source: Box<str>,
    steps: Box<[PlaceStep]>,
}

impl Place {
    /// `None` for the whole event, and for paths with filters, slices, several names or `..`.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let steps = path.place().filter(|steps| (1..=PLACE_STEPS_MAX).contains(&steps.len()))?;
        Some(Self { source: path.source().into(), steps: steps.into() })
    }
}

impl Edit {
    pub(super) fn set(values: Vec<(Place, Value)>) -> Self {
        let with_size = |(place, value): (Place, Value)| {
            let size_bytes = value.to_string().len();
            (place, value, size_bytes)
        };
        Self::Set(values.into_iter().map(with_size).collect())
    }

    pub(super) fn apply(&self, mut event: Value, budget: &mut Budget) -> Result<Value, Failure> {
        match self {
            Self::Set(values) => {
                let mut set = Setting { bytes_left: OUTPUT_BYTES_MAX, budget };
                for (place, value, size_bytes) in values {
                    set.at(&mut event, place, &place.steps, value, *size_bytes)?;
                }
            }
            Self::Delete(places) => {
                for place in places {
                    delete(&mut event, place, &place.steps, budget)?;
                }
            }
        }
        Ok(event)
    }
}

/// Sets values. What is copied into the event counts: one wildcard can copy a constant a hundred thousand times.
struct Setting<'b> {
    bytes_left: usize,
    budget: &'b mut Budget,
}

impl Setting<'_> {
    fn at(
        &mut self,
        target: &mut Value,
        place: &Place,
        steps: &[PlaceStep],
        value: &Value,
        size_bytes: usize,
    ) -> Result<(), Failure> {
        spend(self.budget, place)?;
        let Some((step, rest)) = steps.split_first() else {
            self.bytes_left = self.bytes_left.checked_sub(size_bytes).ok_or_else(too_large)?;
            *target = value.clone();
            return Ok(());
        };
        match (step, target) {
            (PlaceStep::Name(name), Value::Object(fields)) => {
                // Objects on the way are made where there are none.
                let child = fields.entry(&**name).or_insert_with(|| Value::Object(Map::new()));
                self.at(child, place, rest, value, size_bytes)
            }
            (PlaceStep::Index(index), Value::Array(elements)) => {
                let index = element_index(*index, elements.len())
                    .ok_or_else(|| not_settable(place, &format!("there is no element {index}")))?;
                self.at(&mut elements[index], place, rest, value, size_bytes)
            }
            (PlaceStep::All, Value::Array(elements)) => {
                elements.iter_mut().try_for_each(|child| self.at(child, place, rest, value, size_bytes))
            }
            (PlaceStep::All, Value::Object(fields)) => {
                fields.values_mut().try_for_each(|child| self.at(child, place, rest, value, size_bytes))
            }
            (PlaceStep::Name(name), _) => Err(not_settable(place, &format!("what should hold {name} is no object"))),
            (PlaceStep::Index(_) | PlaceStep::All, _) => Err(not_settable(place, "a value on the way has no elements")),
        }
    }
}

/// Takes a place away; one that is not there is as wanted already.
fn delete(target: &mut Value, place: &Place, steps: &[PlaceStep], budget: &mut Budget) -> Result<(), Failure> {
    spend(budget, place)?;
    let Some((step, rest)) = steps.split_first() else { return Ok(()) };
    let is_last = rest.is_empty();
    match (step, target) {
        (PlaceStep::Name(name), Value::Object(fields)) if is_last => {
            fields.remove(&**name);
        }
        (PlaceStep::Name(name), Value::Object(fields)) => {
            if let Some(child) = fields.get_mut(&**name) {
                delete(child, place, rest, budget)?;
            }
        }
        (PlaceStep::Index(index), Value::Array(elements)) => match element_index(*index, elements.len()) {
            Some(index) if is_last => drop(elements.remove(index)),
            Some(index) => delete(&mut elements[index], place, rest, budget)?,
            None => {}
        },
        (PlaceStep::All, Value::Array(elements)) if is_last => elements.clear(),
        (PlaceStep::All, Value::Object(fields)) if is_last => fields.clear(),
        (PlaceStep::All, Value::Array(elements)) => {
            elements.iter_mut().try_for_each(|child| delete(child, place, rest, budget))?;
        }
        (PlaceStep::All, Value::Object(fields)) => {
            fields.values_mut().try_for_each(|child| delete(child, place, rest, budget))?;
        }
        _ => {}
    }
    Ok(())
}

fn spend(budget: &mut Budget, place: &Place) -> Result<(), Failure> {
    budget.spend(1).map_err(|failure| Failure::new(TransformCode::TooCostly, format!("{}: {failure}", place.source)))
}

fn not_settable(place: &Place, reason: &str) -> Failure {
    Failure::new(TransformCode::NotSettable, format!("{} cannot be set: {reason}", place.source))
}
