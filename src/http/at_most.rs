//! Lists of a request that may be long: a body of few megabytes can hold millions of elements.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

/// The first `MAX` elements of a list, and how many there are. What is behind them is read over and takes no memory.
#[derive(Debug)]
pub(crate) struct AtMost<const MAX: usize, T> {
    pub(crate) items: Vec<T>,
    pub(crate) found: usize,
}

impl<'de, const MAX: usize, T: Deserialize<'de>> Deserialize<'de> for AtMost<MAX, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Reader(PhantomData))
    }
}

struct Reader<const MAX: usize, T>(PhantomData<T>);

impl<'de, const MAX: usize, T: Deserialize<'de>> Visitor<'de> for Reader<MAX, T> {
    type Value = AtMost<MAX, T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while items.len() < MAX {
            let Some(item) = list.next_element()? else {
                let found = items.len();
                return Ok(AtMost { items, found });
            };
            items.push(item);
        }
        let mut found = MAX;
        while list.next_element::<IgnoredAny>()?.is_some() {
            found += 1;
        }
        Ok(AtMost { items, found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_counted_and_not_kept() {
        let read = |text: &str| serde_json::from_str::<AtMost<3, u8>>(text).map(|list| (list.items, list.found));
        assert_eq!(read("[]").unwrap(), (vec![], 0));
        assert_eq!(read("[1, 2, 3]").unwrap(), (vec![1, 2, 3], 3));
        // Nobody looks what the others are.
        assert_eq!(read("[1, 2, 3, {\"a\": []}, 5]").unwrap(), (vec![1, 2, 3], 5));
        assert!(read("[1, {}]").is_err() && read("[1, 2, 3, oops]").is_err() && read("{}").is_err());
    }
}
