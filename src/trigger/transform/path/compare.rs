//! Comparing as section 2.3.5.2.2 of RFC 9535 says: nothing equals nothing, numbers by value, order for numbers and
//! texts only.

use std::cmp::Ordering;

use serde_json::{Number, Value};

use super::{Budget, Comparison, Found, PathFailure};

pub(super) fn holds(
    left: &Found<'_>,
    comparison: Comparison,
    right: &Found<'_>,
    budget: &mut Budget,
) -> Result<bool, PathFailure> {
    Ok(match comparison {
        Comparison::Equal => equal(left, right, budget)?,
        Comparison::NotEqual => !equal(left, right, budget)?,
        Comparison::Less => order(left, right, budget)? == Some(Ordering::Less),
        Comparison::Greater => order(left, right, budget)? == Some(Ordering::Greater),
        Comparison::LessOrEqual => order(left, right, budget)? == Some(Ordering::Less) || equal(left, right, budget)?,
        Comparison::GreaterOrEqual => {
            order(left, right, budget)? == Some(Ordering::Greater) || equal(left, right, budget)?
        }
    })
}

fn equal(left: &Found<'_>, right: &Found<'_>, budget: &mut Budget) -> Result<bool, PathFailure> {
    match (left, right) {
        (Found::Nothing, Found::Nothing) => Ok(true),
        (Found::Value(left), Found::Value(right)) => equal_values(left, right, budget),
        _ => Ok(match (left.as_number(), right.as_number()) {
            (Some(left), Some(right)) => order_numbers(left, right) == Some(Ordering::Equal),
            _ => false,
        }),
    }
}

/// Both are nested no deeper than the JSON reader allows.
fn equal_values(left: &Value, right: &Value, budget: &mut Budget) -> Result<bool, PathFailure> {
    budget.spend(1)?;
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => Ok(order_numbers(left, right) == Some(Ordering::Equal)),
        (Value::String(left), Value::String(right)) => {
            budget.spend_text(left.len().min(right.len()))?;
            Ok(left == right)
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (left, right) in left.iter().zip(right) {
                if !equal_values(left, right, budget)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (Value::Object(left), Value::Object(right)) if left.len() == right.len() => {
            for (name, left) in left {
                let Some(right) = right.get(name) else { return Ok(false) };
                if !equal_values(left, right, budget)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (Value::Null | Value::Bool(_), _) => Ok(left == right),
        _ => Ok(false),
    }
}

fn order(left: &Found<'_>, right: &Found<'_>, budget: &mut Budget) -> Result<Option<Ordering>, PathFailure> {
    if let (Some(left), Some(right)) = (left.as_number(), right.as_number()) {
        return Ok(order_numbers(left, right));
    }
    let (Found::Value(Value::String(left)), Found::Value(Value::String(right))) = (left, right) else {
        return Ok(None);
    };
    budget.spend_text(left.len().min(right.len()))?;
    // Texts are ordered by Unicode code points, which is the order of their UTF-8 bytes.
    Ok(Some(left.cmp(right)))
}

/// Whole numbers exactly, others as doubles.
fn order_numbers(left: &Number, right: &Number) -> Option<Ordering> {
    match (left.as_i128(), right.as_i128()) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        _ => left.as_f64()?.partial_cmp(&right.as_f64()?),
    }
}

impl Found<'_> {
    const fn as_number(&self) -> Option<&Number> {
        match self {
            Self::Number(number) | Self::Value(Value::Number(number)) => Some(number),
            _ => None,
        }
    }
}
