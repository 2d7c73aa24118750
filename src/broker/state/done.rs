//! Which ticks of a schedule are done, as ranges of time.

/// The most ranges that are kept: of the stretches in between, the narrowest are given up first.
const RANGES_MAX: usize = 16;

/// Ranges of time whose ticks are done, or were never to be. What lies in between was left out: a clock that goes back
/// to there can still do it. Ordinarily there is one range; a clock that was ahead for a while leaves one behind there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DoneTicks {
    /// First and last, seconds since 1970; in order and apart.
    ranges: Vec<(i64, i64)>,
}

impl DoneTicks {
    /// None yet of a schedule that was made at this moment.
    #[must_use]
    pub fn since(made_s: i64) -> Self {
        Self { ranges: vec![(made_s, made_s)] }
    }

    /// The first and the last moment of every range, in order.
    pub fn ranges(&self) -> impl Iterator<Item = (i64, i64)> {
        self.ranges.iter().copied()
    }

    /// The end of the range that has this moment, or else of the last one before it.
    #[must_use]
    pub fn end_at(&self, moment_s: i64) -> Option<i64> {
        self.ranges.iter().rev().find(|(first_s, _)| *first_s <= moment_s).map(|(_, last_s)| *last_s)
    }

    /// A tick is done, and none was left out between it and the last one before it that is.
    pub fn extend_to(&mut self, tick_s: i64) {
        match self.ranges.iter_mut().rev().find(|(first_s, _)| *first_s <= tick_s) {
            Some((_, last_s)) => *last_s = tick_s.max(*last_s),
            None => self.add(tick_s, tick_s),
        }
    }

    /// The ticks from `first_s` to `last_s` are done.
    pub fn add(&mut self, first_s: i64, last_s: i64) {
        let mut added = (first_s, last_s);
        self.ranges.retain(|&(first_s, last_s)| {
            let is_apart = last_s < added.0 || added.1 < first_s;
            if !is_apart {
                added = (added.0.min(first_s), added.1.max(last_s));
            }
            is_apart
        });
        let at = self.ranges.partition_point(|(first_s, _)| *first_s < added.0);
        self.ranges.insert(at, added);
        while self.ranges.len() > RANGES_MAX {
            let between_s = |at: &usize| self.ranges[at + 1].0.saturating_sub(self.ranges[*at].1);
            let narrowest = (0..self.ranges.len() - 1).min_by_key(between_s).unwrap_or(0);
            let (_, last_s) = self.ranges.remove(narrowest + 1);
            self.ranges[narrowest].1 = last_s;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranges: &[(i64, i64)]) -> DoneTicks {
        DoneTicks { ranges: ranges.to_vec() }
    }

    #[test]
    fn a_tick_extends_the_range_before_it_or_begins_one() {
        let mut done = DoneTicks::since(100);
        done.extend_to(160);
        done.add(900, 900);
        assert_eq!(done, of(&[(100, 160), (900, 900)]));
        done.extend_to(960);
        done.extend_to(220);
        done.extend_to(40);
        assert_eq!(done, of(&[(40, 40), (100, 220), (900, 960)]));
        let ends = [39, 40, 99, 100, 899, 900, 961].map(|moment_s| done.end_at(moment_s));
        assert_eq!(ends, [None, Some(40), Some(40), Some(220), Some(220), Some(960), Some(960)]);
    }

    #[test]
    fn a_range_that_is_added_swallows_what_it_meets() {
        let mut done = of(&[(0, 10), (20, 30), (40, 50), (60, 70)]);
        done.add(25, 40);
        assert_eq!(done, of(&[(0, 10), (20, 50), (60, 70)]));
        done.add(45, 48);
        assert_eq!(done, of(&[(0, 10), (20, 50), (60, 70)]));
    }

    #[test]
    fn of_too_many_stretches_the_narrowest_is_given_up() {
        let mut done = DoneTicks::since(0);
        done.add(1_000_000, 1_000_000);
        for number in 1..100 {
            done.add(1_000_000 + number * 10 + number, 1_000_000 + number * 10 + number);
        }
        assert_eq!(done.ranges().count(), RANGES_MAX);
        assert_eq!(done.ranges().next(), Some((0, 0)), "the widest stays");
    }
}
