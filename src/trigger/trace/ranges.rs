//! Offsets as ranges, in the words of people: `0-4,7`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tripline_storage::Offset;

/// Offsets, ascending, as ranges: first and last of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(i64, i64)>);

impl Ranges {
    /// The ranges of ascending offsets.
    pub fn of(offsets: impl IntoIterator<Item = Offset>) -> Self {
        let mut ranges = Self::default();
        for offset in offsets {
            ranges.extend(offset.get(), offset.get());
        }
        ranges
    }

    /// Adds the offsets `first..=last`, behind all others.
    pub fn extend(&mut self, first: i64, last: i64) {
        match self.0.last_mut() {
            Some((_, before)) if *before + 1 == first => *before = last,
            _ => self.push(first, last),
        }
    }

    /// The range, if there is just one.
    #[must_use]
    pub const fn only(&self) -> Option<(i64, i64)> {
        match self.0.as_slice() {
            [only] => Some(*only),
            _ => None,
        }
    }

    /// Adds the range `first..=last`, behind all others.
    pub fn push(&mut self, first: i64, last: i64) {
        self.0.push((first, last));
    }

    /// Whether an offset is among them.
    #[must_use]
    pub fn contains(&self, offset: i64) -> bool {
        let index = self.0.partition_point(|(_, last)| *last < offset);
        self.0.get(index).is_some_and(|(first, _)| *first <= offset)
    }

    /// How many offsets there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(first, last)| last.abs_diff(*first) + 1).sum()
    }

    /// First and last of each, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (i64, i64)> + '_ {
        self.0.iter().copied()
    }

    /// The first offset and the last.
    #[must_use]
    pub fn bounds(&self) -> Option<(i64, i64)> {
        Some((self.0.first()?.0, self.0.last()?.1))
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How much memory they take, in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> usize {
        self.0.capacity() * size_of::<(i64, i64)>()
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Ranges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut ranges: Vec<(i64, i64)> = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.parse::<u64>().ok().and_then(|number| i64::try_from(number).ok());
            let (Some(first), Some(last)) = (number(first), number(last)) else {
                return Err(format!("found {part:?}, allowed: an offset, or two with `-` between them"));
            };
            if last < first || ranges.last().is_some_and(|(_, before)| *before >= first) {
                return Err(format!("{part:?} does not ascend"));
            }
            ranges.push((first, last));
        }
        Ok(Self(ranges))
    }
}

impl Serialize for Ranges {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ranges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn they_read_as_they_are_written_and_nonsense_is_refused() {
        let text = "0-4,7,9-10";
        let ranges: Ranges = text.parse().unwrap();
        assert_eq!((ranges.to_string().as_str(), ranges.count()), (text, 8));
        for wrong in ["x", "4-0", "1,1", "5,3", "-1", "1-2-3", "99999999999999999999"] {
            assert!(wrong.parse::<Ranges>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn they_hold_the_offsets_and_no_others(offsets in proptest::collection::btree_set(0i64..60, 0..40)) {
            let ranges = Ranges::of(offsets.iter().filter_map(|offset| Offset::new(*offset)));
            let held: BTreeSet<i64> = (0..60).filter(|offset| ranges.contains(*offset)).collect();
            prop_assert_eq!(&held, &offsets);
            prop_assert_eq!(ranges.count(), offsets.len() as u64);
            prop_assert_eq!(ranges.to_string().parse::<Ranges>().unwrap(), ranges);
        }
    }
}
