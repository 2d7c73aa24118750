//! The list at a leaf of a pattern: what a single value must be.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

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

/// A value of an event that is no list or object.
#[derive(Clone, Copy, Debug)]
pub(super) enum Plain<'v> {
    Null,
    Bool(bool),
    Number(Number),
    Text(&'v str),
}

/// A number as JSON has them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    /// Whole, and small enough for this.
    Signed(i64),
    /// Whole, and too great for the other.
    Great(u64),
    Double(f64),
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

    /// Whether it holds for a plain value.
    pub(super) fn matches_value(&self, value: Plain<'_>) -> bool {
        self.tests.iter().any(|test| test.matches(value))
    }
}

impl<'v> Plain<'v> {
    /// `None` for lists and objects.
    pub(super) fn of(value: &'v Value) -> Option<Self> {
        match value {
            Value::Null => Some(Self::Null),
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Number(number) => Some(Self::Number(Number::of(number))),
            Value::String(text) => Some(Self::Text(text)),
            Value::Array(_) | Value::Object(_) => None,
        }
    }
}

impl Number {
    pub(super) fn of(number: &serde_json::Number) -> Self {
        match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Self::Signed(number),
            (None, Some(number)) => Self::Great(number),
            (None, None) => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
        }
    }

    /// Reads what a JSON text has; not a number for what is none.
    pub(super) fn read(text: &str) -> Self {
        // Digits without sign, dot and exponent, few enough for any whole number.
        if text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Self::Signed(text.bytes().fold(0, |number, digit| number * 10 + i64::from(digit - b'0')));
        }
        serde_json::from_str(text).map_or(Self::Double(f64::NAN), |number| Self::of(&number))
    }

    pub(super) const fn as_double(self) -> f64 {
        match self {
            Self::Signed(number) => number as f64,
            Self::Great(number) => number as f64,
            Self::Double(number) => number,
        }
    }

    /// Whole numbers are compared exactly, others as doubles: 300 is 300.0, but 2^53 is not 2^53 + 1.
    fn is(self, other: Self) -> bool {
        match (self, other) {
            (Self::Signed(left), Self::Signed(right)) => left == right,
            (Self::Great(left), Self::Great(right)) => left == right,
            (Self::Signed(_), Self::Great(_)) | (Self::Great(_), Self::Signed(_)) => false,
            _ => self.as_double() == other.as_double(),
        }
    }
}

impl Test {
    fn matches(&self, value: Plain<'_>) -> bool {
        match (self, value) {
            (Self::Null, Plain::Null) | (Self::Exists, _) => true,
            (Self::Bool(wanted), Plain::Bool(found)) => *wanted == found,
            (Self::Number(wanted), Plain::Number(found)) => wanted.is(found),
            (Self::Numeric(range), Plain::Number(found)) => range.contains(found.as_double()),
            (Self::Text(test), Plain::Text(found)) => test.matches(found),
            (Self::Cidr(network), Plain::Text(found)) => {
                found.parse::<IpAddr>().is_ok_and(|address| network.contains(&address))
            }
            (Self::ButNumbers(unwanted), Plain::Number(found)) => !unwanted.iter().any(|unwanted| unwanted.is(found)),
            (Self::ButTexts(unwanted), Plain::Text(found)) => !unwanted.iter().any(|test| test.matches(found)),
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
pub(super) fn folded(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().flat_map(char::to_lowercase)
}

/// Lower case as the folded tests hold it.
pub(super) fn fold(text: &str) -> Box<str> {
    folded(text).collect::<String>().into_boxed_str()
}

fn begins_with(mut text: impl Iterator<Item = char>, mut wanted: impl Iterator<Item = char>) -> bool {
    wanted.all(|character| text.next() == Some(character))
}
