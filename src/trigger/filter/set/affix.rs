//! Texts that stand at the beginning, or at the end, of a text.

/// Beginnings, or endings kept backwards, in order.
#[derive(Debug, Default)]
pub(super) struct Affixes {
    known: Vec<Affix>,
}

#[derive(Debug)]
struct Affix {
    bytes: Box<[u8]>,
    key: u32,
    /// The longest other one that this begins with.
    within: Option<u32>,
}

impl Affixes {
    /// What `affixes` lead to. They are not empty, and each is there once.
    pub(super) fn new(affixes: impl IntoIterator<Item = (Box<[u8]>, u32)>) -> Self {
        let mut known: Vec<Affix> =
            affixes.into_iter().map(|(bytes, key)| Affix { bytes, key, within: None }).collect();
        known.sort_unstable_by(|left, right| left.bytes.cmp(&right.bytes));
        for place in 1..known.len() {
            let before = u32::try_from(place - 1).ok();
            let begins = |at: &u32| known[place].bytes.starts_with(&known[*at as usize].bytes);
            known[place].within = std::iter::successors(before, |at| known[*at as usize].within).find(begins);
        }
        Self { known }
    }

    /// Those that `text` begins with.
    pub(super) fn each_beginning(&self, text: &[u8], hit: &mut impl FnMut(u32)) {
        self.each(|affix| affix.cmp(text), |affix| text.starts_with(affix), hit);
    }

    /// Those, kept backwards, that `text` ends with.
    pub(super) fn each_ending(&self, text: &[u8], hit: &mut impl FnMut(u32)) {
        let ends = |affix: &[u8]| affix.len() <= text.len() && affix.iter().eq(text.iter().rev().take(affix.len()));
        self.each(|affix| affix.iter().cmp(text.iter().rev()), ends, hit);
    }

    /// All beginnings of a text are found from the last one that is not behind it in order: between a text and one of
    /// its beginnings stand only texts that begin so too.
    fn each(
        &self,
        order: impl Fn(&[u8]) -> std::cmp::Ordering,
        begins: impl Fn(&[u8]) -> bool,
        hit: &mut impl FnMut(u32),
    ) {
        let behind = self.known.partition_point(|affix| order(&affix.bytes).is_le());
        let mut at = behind.checked_sub(1);
        let mut all_from_here = false;
        while let Some(affix) = at.map(|at| &self.known[at]) {
            all_from_here = all_from_here || begins(&affix.bytes);
            if all_from_here {
                hit(affix.key);
            }
            at = affix.within.map(|within| within as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exactly_the_beginnings_and_endings_of_a_text_are_found(affixes in proptest::collection::btree_set("[ab]{1,5}", 0..20), text in "[ab]{0,7}") {
            let affixes: Vec<String> = affixes.into_iter().collect();
            let with_keys = |backwards: bool| Affixes::new(affixes.iter().zip(0..).map(|(affix, key)| {
                let bytes: Vec<u8> = if backwards { affix.bytes().rev().collect() } else { affix.bytes().collect() };
                (bytes.into(), key)
            }));
            let expected = |holds: fn(&str, &str) -> bool| -> BTreeSet<u32> {
                affixes.iter().zip(0..).filter(|(affix, _)| holds(&text, affix)).map(|(_, key)| key).collect()
            };
            let mut found = Vec::new();
            with_keys(false).each_beginning(text.as_bytes(), &mut |key| found.push(key));
            prop_assert_eq!(found.len(), expected(|text, affix| text.starts_with(affix)).len());
            prop_assert_eq!(BTreeSet::from_iter(found.drain(..)), expected(|text, affix| text.starts_with(affix)));
            with_keys(true).each_ending(text.as_bytes(), &mut |key| found.push(key));
            prop_assert_eq!(BTreeSet::from_iter(found), expected(|text, affix| text.ends_with(affix)));
        }
    }
}
