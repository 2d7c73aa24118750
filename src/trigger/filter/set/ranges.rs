//! Ranges of numbers that have a number inside.

/// Ranges by their lower end: a search tree whose root is the middle of the slice, as are the roots of its halves.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    known: Vec<Range>,
}

#[derive(Debug)]
struct Range {
    low: f64,
    high: f64,
    /// The greatest upper end below this root.
    reaches: f64,
    key: u32,
}

impl Ranges {
    /// Ranges with their ends inside, no end not a number.
    pub(super) fn new(ranges: impl IntoIterator<Item = (f64, f64, u32)>) -> Self {
        let range = |(low, high, key)| Range { low, high, reaches: high, key };
        let mut known: Vec<Range> = ranges.into_iter().map(range).collect();
        known.sort_unstable_by(|left, right| left.low.total_cmp(&right.low));
        set_reaches(&mut known);
        Self { known }
    }

    /// Those with `number` inside.
    pub(super) fn each_around(&self, number: f64, hit: &mut impl FnMut(u32)) {
        each_around(&self.known, number, hit);
    }
}

fn set_reaches(ranges: &mut [Range]) -> f64 {
    let middle = ranges.len() / 2;
    let (left, rest) = ranges.split_at_mut(middle);
    let Some((root, right)) = rest.split_first_mut() else { return f64::NEG_INFINITY };
    root.reaches = root.high.max(set_reaches(left)).max(set_reaches(right));
    root.reaches
}

fn each_around(ranges: &[Range], number: f64, hit: &mut impl FnMut(u32)) {
    let (left, rest) = ranges.split_at(ranges.len() / 2);
    let Some((root, right)) = rest.split_first() else { return };
    if root.reaches < number {
        return;
    }
    each_around(left, number, hit);
    if root.low <= number {
        if number <= root.high {
            hit(root.key);
        }
        each_around(right, number, hit);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exactly_the_ranges_around_a_number_are_found(ends in proptest::collection::vec((-9i8..9, -9i8..9), 0..40), number in -10i8..10) {
            let range = |(at, (one, other)): (u32, (i8, i8))| (f64::from(one.min(other)), f64::from(one.max(other)), at);
            let ranges: Vec<_> = (0..).zip(ends).map(range).chain([(f64::NEG_INFINITY, 0.0, 90), (1.0, f64::INFINITY, 91)]).collect();
            let number = f64::from(number);
            let inside = ranges.iter().filter(|(low, high, _)| (*low..=*high).contains(&number));
            let mut expected: Vec<u32> = inside.map(|(_, _, key)| *key).collect();
            let mut found = Vec::new();
            Ranges::new(ranges).each_around(number, &mut |key| found.push(key));
            found.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
