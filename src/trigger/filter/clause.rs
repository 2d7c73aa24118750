//! The list at a leaf of a pattern: what a single value must be.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Number, Value};

use super::wildcard::Wildcard;

/// A leaf of a pattern.
#[derive(Debug)]
pub(super) struct Clause {
    /// Keys joined with dots.
    pub(super) path: String,
    /// The list as written.
    pub(super) source: Value,
    /// One of these must hold.
    pub(super) tests: Vec<Test>,
}

/// One element of the list.
#[derive(Debug)]
pub(super) enum Test {
    Null,
    Bool(bool),
    Number(Number),
    Text(TextTest),
    Numeric(NumericRange),
    Cidr(IpNet),
    Exists,
    Absent,
    ButNumbers(Vec<Number>),
    ButTexts(Vec<TextTest>),
}

/// A test of a text. Folded texts are in lower case.
#[derive(Debug)]
pub(super) enum TextTest {
    Equal(Box<str>),
    EqualFolded(Box<str>),
    Prefix(Box<str>),
    PrefixFolded(Box<str>),
    Suffix(Box<str>),
    SuffixFolded(Box<str>),
    Contains(Box<str>),
    Wildcard(Wildcard),
}

/// Numbers between two bounds, compared as IEEE doubles.
#[derive(Clone, Copy, Debug)]
pub(super) struct NumericRange {
    pub(super) low: Option<Bound>,
    pub(super) high: Option<Bound>,
}

/// One end of a range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bound {
    pub(super) value: f64,
    pub(super) inclusive: bool,
}

impl Clause {
    /// Whether the clause holds where no value stands.
    pub(super) fn matches_nothing(&self) -> bool {
        self.tests.iter().any(|test| matches!(test, Test::Absent))
    }

    /// Whether it holds for a value that is no list or object.
    pub(super) fn matches_value(&self, value: &Value) -> bool {
        self.tests.iter().any(|test| test.matches(value))
    }
}

impl Test {
    fn matches(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Null, Value::Null) | (Self::Exists, _) => true,
            (Self::Bool(wanted), Value::Bool(found)) => wanted == found,
            (Self::Number(wanted), Value::Number(found)) => same_number(wanted, found),
            (Self::Numeric(range), Value::Number(found)) => found.as_f64().is_some_and(|found| range.contains(found)),
            (Self::Text(test), Value::String(found)) => test.matches(found),
            (Self::Cidr(network), Value::String(found)) => {
                found.parse::<IpAddr>().is_ok_and(|address| network.contains(&address))
            }
            (Self::ButNumbers(unwanted), Value::Number(found)) => {
                !unwanted.iter().any(|unwanted| same_number(unwanted, found))
            }
            (Self::ButTexts(unwanted), Value::String(found)) => !unwanted.iter().any(|test| test.matches(found)),
            // Anything of another kind is anything but those.
            (Self::ButNumbers(_) | Self::ButTexts(_), _) => true,
            _ => false,
        }
    }
}

impl TextTest {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Equal(wanted) => **wanted == *text,
            Self::EqualFolded(wanted) => folded(text).eq(wanted.chars()),
            Self::Prefix(wanted) => text.starts_with(&**wanted),
            Self::PrefixFolded(wanted) => begins_with(folded(text), wanted.chars()),
            Self::Suffix(wanted) => text.ends_with(&**wanted),
            Self::SuffixFolded(wanted) => {
                begins_with(text.chars().rev().flat_map(|c| c.to_lowercase().rev()), wanted.chars().rev())
            }
            Self::Contains(wanted) => text.contains(&**wanted),
            Self::Wildcard(wildcard) => wildcard.matches(text),
        }
    }
}

impl NumericRange {
    fn contains(&self, number: f64) -> bool {
        let above = |low: Bound| number > low.value || (low.inclusive && number == low.value);
        let below = |high: Bound| number < high.value || (high.inclusive && number == high.value);
        self.low.is_none_or(above) && self.high.is_none_or(below)
    }

    /// Whether any number can be inside.
    pub(super) fn is_empty(&self) -> bool {
        match (self.low, self.high) {
            (Some(low), Some(high)) => {
                low.value > high.value || (low.value == high.value && !(low.inclusive && high.inclusive))
            }
            _ => false,
        }
    }
}

/// Lower case, character by character.
fn folded(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().flat_map(char::to_lowercase)
}

/// Lower case as the folded tests hold it.
pub(super) fn fold(text: &str) -> Box<str> {
    folded(text).collect::<String>().into_boxed_str()
}

fn begins_with(mut text: impl Iterator<Item = char>, mut wanted: impl Iterator<Item = char>) -> bool {
    wanted.all(|character| text.next() == Some(character))
}

/// Whole numbers are compared exactly, others as doubles: 300 is 300.0, but 2^53 is not 2^53 + 1.
fn same_number(left: &Number, right: &Number) -> bool {
    match (left.as_i64(), right.as_i64(), left.as_u64(), right.as_u64()) {
        (Some(left), Some(right), ..) => left == right,
        (.., Some(left), Some(right)) => left == right,
        _ => left.as_f64() == right.as_f64(),
    }
}
