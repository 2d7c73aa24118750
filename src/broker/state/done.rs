//! Which ticks of a schedule are done, as ranges of time.

/// Ranges of time whose ticks are done, or were never to be. What lies in between was left out: a clock that goes back
/// to there can still do it. Ordinarily there is one range; a clock that was ahead for a while leaves one behind there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DoneTicks {
    /// First and last, seconds since 1970; in order and apart.
    ranges: Vec<(i64, i64)>,
}

impl DoneTicks {
    /// The most ranges that are kept.
    pub const RANGES_MAX: usize = 16;

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

    /// The end of the range that has this moment.
    #[must_use]
    pub fn end_of(&self, moment_s: i64) -> Option<i64> {
        self.end_at(moment_s).filter(|end_s| moment_s <= *end_s)
    }

    /// A tick is done, and none was left out between it and the last one before it that is.
    pub fn extend_to(&mut self, tick_s: i64) {
        match self.ranges.iter_mut().rev().find(|(first_s, _)| *first_s <= tick_s) {
            Some((_, last_s)) => *last_s = tick_s.max(*last_s),
            None => self.add(tick_s, tick_s),
        }
    }

    /// What is done of a schedule whose times change at `now_s`: of ranges that go on after that, the last ticks alone,
    /// since what lies between was done by the times of before. `fired_s` is the tick that was done last.
    #[must_use]
    pub fn with_new_times(&self, now_s: i64, fired_s: Option<i64>) -> Self {
        let mut done = Self::default();
        for &(first_s, last_s) in &self.ranges {
            if first_s <= now_s {
                done.add(first_s, last_s.min(now_s));
            }
            if last_s > now_s {
                done.add(last_s, last_s);
            }
        }
        fired_s.filter(|fired_s| *fired_s > now_s).into_iter().for_each(|fired_s| done.add(fired_s, fired_s));
        done
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
        while self.ranges.len() > Self::RANGES_MAX {
            self.give_one_up(first_s);
        }
    }

    /// Takes what was left out between two ranges for done: where that is least for how far the clock would have to go
    /// back to come to it. What outages of long ago left out goes before what a clock left out that is ahead, and that
    /// before what still lies ahead of `now_s`.
    fn give_one_up(&mut self, now_s: i64) {
        let worth = |between: &[(i64, i64)]| {
            let (left_out_s, back_s) = (between[1].0.saturating_sub(between[0].1), now_s.saturating_sub(between[1].0));
            left_out_s as f64 / (back_s.max(0) as f64 + 1.0)
        };
        let worths = self.ranges.windows(2).map(worth).enumerate();
        let Some((least, _)) = worths.min_by(|a, b| a.1.total_cmp(&b.1)) else { return };
        let (_, last_s) = self.ranges.remove(least + 1);
        self.ranges[least].1 = last_s;
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
    fn of_a_schedule_whose_times_change_only_ticks_are_done_ahead() {
        let done = of(&[(0, 10), (20, 60), (70, 90)]);
        assert_eq!(done.with_new_times(50, Some(80)), of(&[(0, 10), (20, 50), (60, 60), (80, 80), (90, 90)]));
        assert_eq!(done.with_new_times(100, Some(90)), done);
        assert_eq!(done.with_new_times(-5, None), of(&[(10, 10), (60, 60), (90, 90)]));
    }

    #[test]
    fn nights_that_were_left_out_go_before_a_year_that_a_clock_left_out() {
        let (night_s, day_s, year_s) = (8 * 3600, 86_400, 366 * 86_400);
        let mut done = DoneTicks::since(0);
        for day in 1..100 {
            done.extend_to(day * day_s - night_s);
            done.add(day * day_s, day * day_s);
        }
        assert_eq!(done.ranges().count(), DoneTicks::RANGES_MAX);
        // Ahead by an hour, then by a year, and down each night there too.
        let today_s = 99 * day_s + 60;
        done.extend_to(today_s);
        done.add(today_s + 3600, today_s + 3660);
        assert_eq!(done.end_at(today_s + 1800), Some(today_s), "an hour ahead goes after old nights");
        for day in 0..100 {
            let first_s = today_s + year_s + day * day_s;
            done.add(first_s, first_s + day_s - night_s);
        }
        assert_eq!(done.end_at(today_s + 3660 + 60), Some(today_s + 3660), "the year goes after a hundred nights");
        assert_eq!(done.ranges().count(), DoneTicks::RANGES_MAX);
    }

    #[test]
    fn what_lies_ahead_of_the_clock_is_given_up_last() {
        let mut done = DoneTicks::since(0);
        done.add(1_000_000, 1_000_000);
        for number in 1..100 {
            done.add(number * 100, number * 100 + 10);
        }
        assert_eq!(done.ranges().count(), DoneTicks::RANGES_MAX);
        assert_eq!(done.end_at(999_999), Some(9_910));
    }
}
