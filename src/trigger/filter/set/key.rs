//! What an index can be asked for.

use ipnet::IpNet;

use super::super::clause::{Clause, NumericRange, Test, TextTest};

/// Text that must be inside is looked for up to this length: enough to be rare, little enough to bound the search tree.
const INSIDE_BYTES_MAX: usize = 32;

/// Something that is true of every value that a test holds for; equal keys at one path share what they lead to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// Nothing is known of the value.
    Any,
    /// There is no value.
    Absent,
    Null,
    Bool(bool),
    /// The bits of the double.
    Number(u64),
    /// The bits of both ends, which are inside.
    Range {
        low: u64,
        high: u64,
    },
    Text(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    /// In lower case, as the next two.
    Folded(Box<str>),
    FoldedPrefix(Box<str>),
    FoldedSuffix(Box<str>),
    Inside(Box<[u8]>),
    Network(IpNet),
}

impl Key {
    /// One for each test of a clause; a value that satisfies the clause has one of them.
    pub(super) fn of(clause: &Clause) -> impl Iterator<Item = Self> + '_ {
        clause.tests.iter().map(Self::of_test)
    }

    /// The key of a number.
    pub(super) fn number(number: f64) -> u64 {
        // Both zeros are one number.
        (number + 0.0).to_bits()
    }

    fn of_test(test: &Test) -> Self {
        match test {
            Test::Null => Self::Null,
            Test::Bool(wanted) => Self::Bool(*wanted),
            Test::Number(wanted) => Self::Number(Self::number(wanted.as_double())),
            Test::Numeric(range) => Self::of_range(range),
            Test::Text(test) => Self::of_text(test),
            Test::Cidr(network) => Self::Network(network.trunc()),
            Test::Absent => Self::Absent,
            Test::Exists | Test::ButNumbers(_) | Test::ButTexts(_) => Self::Any,
        }
    }

    fn of_range(range: &NumericRange) -> Self {
        let low = range.low.map_or(f64::NEG_INFINITY, |low| low.value);
        let high = range.high.map_or(f64::INFINITY, |high| high.value);
        if low == high {
            Self::Number(Self::number(low))
        } else {
            Self::Range { low: low.to_bits(), high: high.to_bits() }
        }
    }

    fn of_text(test: &TextTest) -> Self {
        match test {
            TextTest::Equal(text) => Self::Text(text.clone()),
            TextTest::EqualFolded(text) => Self::Folded(text.clone()),
            TextTest::Prefix(text) => Self::unless_empty(text, Self::Prefix),
            TextTest::PrefixFolded(text) => Self::unless_empty(text, Self::FoldedPrefix),
            TextTest::Suffix(text) => Self::unless_empty(text, Self::Suffix),
            TextTest::SuffixFolded(text) => Self::unless_empty(text, Self::FoldedSuffix),
            TextTest::Contains(text) => Self::inside(text),
            TextTest::Wildcard(wildcard) => Self::of_wildcard(wildcard.pieces()),
        }
    }

    /// The longest piece, which is likely the rarest; of equal ones that at an end, which is found faster.
    fn of_wildcard(pieces: &[Box<str>]) -> Self {
        let [first, middle @ .., last] = pieces else {
            return pieces.first().map_or(Self::Any, |only| Self::Text(only.clone()));
        };
        let inside =
            middle.iter().max_by_key(|piece| piece.len()).filter(|piece| piece.len() > first.len().max(last.len()));
        match inside {
            Some(piece) => Self::inside(piece),
            None if first.len() >= last.len() => Self::unless_empty(first, Self::Prefix),
            None => Self::Suffix(last.clone()),
        }
    }

    fn inside(text: &str) -> Self {
        let bytes = &text.as_bytes()[..text.len().min(INSIDE_BYTES_MAX)];
        if bytes.is_empty() { Self::Any } else { Self::Inside(bytes.into()) }
    }

    fn unless_empty(text: &str, key: fn(Box<str>) -> Self) -> Self {
        if text.is_empty() { Self::Any } else { key(text.into()) }
    }

    /// How many alternatives, about, an event leads to through this key, when `uses` alternatives share it and `ranges`
    /// have a range at its path.
    pub(super) fn cost(&self, uses: u64, ranges: u64) -> u64 {
        match self {
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::Folded(_) | Self::Network(_) => uses,
            Self::Prefix(_) | Self::Suffix(_) | Self::FoldedPrefix(_) | Self::FoldedSuffix(_) | Self::Inside(_) => {
                1 + 2 * uses
            }
            Self::Range { low, high } => {
                let half_open = f64::from_bits(*low).is_infinite() || f64::from_bits(*high).is_infinite();
                4 + ranges / if half_open { 2 } else { 8 }
            }
            Self::Any => 8 + uses,
            Self::Absent => 16 + uses,
        }
    }
}
