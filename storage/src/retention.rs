//! Which segments may go. Pure: facts in, a number of segments out.

use std::time::Duration;

use crate::config::LogConfig;
use crate::offset::Offset;

/// What retention looks at in a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentAge {
    /// One after its last offset.
    pub next: Offset,
    /// Length in bytes.
    pub len_bytes: u64,
    /// When its last batch was appended, ms since 1970, broker time.
    pub last_append_ms: i64,
}

/// How many of the `sealed` segments, oldest first, may be removed at `now_ms`.
///
/// `active_bytes` counts towards [`LogConfig::retention_bytes`] but the active segment itself never goes. Nothing at or
/// above `hold` goes, because somebody still needs it, before [`LogConfig::hold_max`] is over.
#[must_use]
pub fn removable(
    sealed: &[SegmentAge],
    active_bytes: u64,
    config: &LogConfig,
    now_ms: i64,
    hold: Option<Offset>,
) -> usize {
    let mut total_bytes = sealed.iter().map(|segment| segment.len_bytes).sum::<u64>() + active_bytes;
    sealed
        .iter()
        .take_while(|segment| {
            let oversize = config.retention_bytes.is_some_and(|limit| total_bytes - segment.len_bytes >= limit);
            let expired = config.retention_age.is_some_and(|age| is_older(segment.last_append_ms, now_ms, age));
            let held = hold.is_some_and(|hold| segment.next > hold) && !is_overdue(segment, config, oversize, now_ms);
            let goes = (oversize || expired) && !held;
            if goes {
                total_bytes -= segment.len_bytes;
            }
            goes
        })
        .count()
}

/// Whether a segment was held for as long as it may be: beyond its age, or since it was written where its size is too
/// much.
fn is_overdue(segment: &SegmentAge, config: &LogConfig, oversize: bool, now_ms: i64) -> bool {
    let Some(hold_max) = config.hold_max else { return false };
    let age = if oversize { Some(Duration::ZERO) } else { config.retention_age };
    age.is_some_and(|age| is_older(segment.last_append_ms, now_ms, age.saturating_add(hold_max)))
}

/// Whether `then_ms` is at least `age` before `now_ms`.
#[must_use]
pub fn is_older(then_ms: i64, now_ms: i64, age: Duration) -> bool {
    i128::from(now_ms) - i128::from(then_ms) >= i128::try_from(age.as_millis()).unwrap_or(i128::MAX)
}

/// What is to be remembered of a clock from one start to the next: a clock that is wrong stamps what is appended, so
/// that what is found on disk agrees with it at the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenClock {
    /// What was believed last, ms since 1970.
    pub believed_ms: i64,
    /// Of a clock further ahead that was not believed: what it showed last, ms since 1970, and how long it had run.
    pub distrusted: Option<(i64, Duration)>,
}

impl SeenClock {
    /// One that was believed.
    #[must_use]
    pub const fn believed(believed_ms: i64) -> Self {
        Self { believed_ms, distrusted: None }
    }

    /// Whether it is worth remembering in place of what `is_known`: an hour of the clock more or less is not.
    #[must_use]
    pub fn is_news(&self, is_known: Option<Self>) -> bool {
        let Some(known) = is_known else { return true };
        let is_far = |a_ms: i64, b_ms: i64| a_ms.abs_diff(b_ms) >= NEWS_MS;
        let distrusted = match (self.distrusted, known.distrusted) {
            (None, None) => false,
            (Some((now_ms, _)), Some((then_ms, _))) => is_far(now_ms, then_ms),
            _ => true,
        };
        distrusted || is_far(self.believed_ms, known.believed_ms)
    }

    /// Whether a clock that shows `wall_ms` is suspiciously far ahead.
    const fn is_far_behind(&self, wall_ms: i64) -> bool {
        wall_ms.saturating_sub(self.believed_ms) > JUMP_MAX_MS
    }

    /// For how long a clock that shows `wall_ms` has run without being believed.
    fn distrusted_for(&self, wall_ms: i64) -> Duration {
        let goes_on = |seen_ms: i64| (0..=JUMP_MAX_MS).contains(&wall_ms.saturating_sub(seen_ms));
        self.distrusted.filter(|(seen_ms, _)| goes_on(*seen_ms)).map_or(Duration::ZERO, |(_, ran)| ran)
    }
}

/// The wall clock as retention believes it: it follows the machine's clock but never runs ahead of real time, so that a
/// clock that jumps into the future deletes nothing for a day. After that it is believed, as one is that was ahead at a
/// start: it may have been behind before. That day is one of running, also over several starts.
#[derive(Clone, Copy, Debug)]
pub struct RetentionClock {
    believed_ms: i64,
    at: Duration,
    /// Set at a start whose clock is suspiciously far ahead: until then (monotonic), age deletes nothing. With what was
    /// known of the clock before.
    distrusted: Option<(SeenClock, Duration)>,
    /// Since when (monotonic) the machine's clock has been ahead without a break.
    ahead_since: Option<Duration>,
}

/// A clock that is less ahead than this may just be measured a little later.
const AHEAD_MIN_MS: i64 = 1_000;

/// A start whose clock is further ahead than this of the newest append is not believed at first.
pub(crate) const JUMP_MAX_MS: i64 = 7 * 24 * 60 * 60 * 1000;
/// A clock that shows less has not been set: nothing of this log was written before 2023.
pub(crate) const BELIEVABLE_FROM_MS: i64 = 1_672_531_200_000;
/// What is remembered of a clock is at most so much behind it while it runs, ms.
const NEWS_MS: u64 = 60 * 60 * 1000;
/// How long it is not believed.
const DISTRUST: Duration = Duration::from_secs(24 * 60 * 60);

impl RetentionClock {
    /// Starts the clock. `monotonic` counts from an arbitrary moment; `seen` is what was remembered of it, or else the
    /// newest append found on disk.
    #[must_use]
    pub fn start(wall_ms: i64, monotonic: Duration, seen: Option<SeenClock>) -> Self {
        let distrusted = seen.filter(|seen| seen.is_far_behind(wall_ms)).map(|seen| {
            let left = DISTRUST.saturating_sub(seen.distrusted_for(wall_ms));
            (seen, monotonic + left)
        });
        Self { believed_ms: wall_ms, at: monotonic, distrusted, ahead_since: None }
    }

    /// The time that deletion by age may use; `None` while the clock is not believed.
    #[must_use]
    pub fn now_ms(&mut self, wall_ms: i64, monotonic: Duration) -> Option<i64> {
        let elapsed_ms = i64::try_from(monotonic.saturating_sub(self.at).as_millis()).unwrap_or(i64::MAX);
        let latest_ms = self.believed_ms.saturating_add(elapsed_ms);
        let is_ahead = wall_ms.saturating_sub(latest_ms) > AHEAD_MIN_MS;
        let ahead_since = self.ahead_since.unwrap_or(monotonic);
        let is_settled = is_ahead && monotonic.saturating_sub(ahead_since) >= DISTRUST;
        self.ahead_since = (is_ahead && !is_settled).then_some(ahead_since);
        self.believed_ms = if is_settled { wall_ms } else { wall_ms.min(latest_ms) };
        self.at = monotonic;
        // It is over after its time, and when the clock is put right.
        let goes_on = |seen: &SeenClock, until: Duration| monotonic < until && seen.is_far_behind(wall_ms);
        self.distrusted = self.distrusted.filter(|(seen, until)| goes_on(seen, *until));
        self.distrusted.is_none().then_some(self.believed_ms)
    }

    /// What the next start is to know, as of the last [`RetentionClock::now_ms`]; `None` of a clock that was not set.
    #[must_use]
    pub fn seen(&self) -> Option<SeenClock> {
        let seen = match self.distrusted {
            None => SeenClock::believed(self.believed_ms),
            Some((seen, until)) => {
                let ran = DISTRUST.saturating_sub(until.saturating_sub(self.at));
                SeenClock { distrusted: Some((self.believed_ms, ran)), ..seen }
            }
        };
        (self.believed_ms >= BELIEVABLE_FROM_MS).then_some(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn segments() -> Vec<SegmentAge> {
        (1..=4)
            .map(|i| SegmentAge { next: Offset::new(i * 10).unwrap(), len_bytes: 100, last_append_ms: i * 3_600_000 })
            .collect()
    }

    fn config(retention_bytes: Option<u64>, retention_age: Option<Duration>) -> LogConfig {
        LogConfig { retention_bytes, retention_age, hold_max: None, ..LogConfig::default() }
    }

    #[test]
    fn age_removes_exactly_the_segments_whose_last_append_is_old_enough() {
        let config = config(None, Some(2 * HOUR));
        assert_eq!(removable(&segments(), 0, &config, 3 * 3_600_000 - 1, None), 0);
        assert_eq!(removable(&segments(), 0, &config, 3 * 3_600_000, None), 1);
        assert_eq!(removable(&segments(), 0, &config, 100 * 3_600_000, None), 4);
    }

    #[test]
    fn size_keeps_at_least_the_limit() {
        for (limit, expected) in [(1_000, 0), (450, 0), (350, 1), (349, 1), (150, 3), (50, 4), (51, 3)] {
            assert_eq!(removable(&segments(), 50, &config(Some(limit), None), 0, None), expected, "limit {limit}");
        }
    }

    #[test]
    fn a_hold_keeps_everything_from_its_offset_on() {
        let config = config(None, Some(HOUR));
        let at = |hold| removable(&segments(), 0, &config, i64::MAX, Offset::new(hold));
        assert_eq!([0, 9, 10, 25, 40].map(at), [0, 0, 1, 2, 4]);
    }

    #[test]
    fn a_hold_ends_when_it_lasted_for_too_long() {
        let hold_max = Some(2 * HOUR);
        let by_age = LogConfig { hold_max, ..config(None, Some(HOUR)) };
        let at = |now_hours: i64| removable(&segments(), 0, &by_age, now_hours * 3_600_000, Some(Offset::ZERO));
        assert_eq!([2, 3, 4, 5, 7].map(at), [0, 0, 1, 2, 4]);
        let by_size = LogConfig { hold_max, ..config(Some(250), None) };
        let at = |now_hours: i64| removable(&segments(), 50, &by_size, now_hours * 3_600_000, Some(Offset::ZERO));
        assert_eq!([2, 3, 4, 7].map(at), [0, 1, 2, 2], "and size asks for two");
    }

    #[test]
    fn no_limit_removes_nothing() {
        assert_eq!(removable(&segments(), 1 << 40, &config(None, None), i64::MAX, None), 0);
    }

    #[test]
    fn a_clock_that_jumps_ahead_moves_at_monotonic_rate_and_one_that_falls_back_is_followed() {
        let mut clock = RetentionClock::start(1_000, Duration::ZERO, None);
        assert_eq!(clock.now_ms(2_000, Duration::from_secs(1)), Some(2_000));
        assert_eq!(clock.now_ms(1_000_000_000, Duration::from_secs(2)), Some(3_000));
        assert_eq!(clock.now_ms(500, Duration::from_secs(3)), Some(500));
        assert_eq!(clock.now_ms(1_000_000_000, Duration::from_secs(4)), Some(1_500));
    }

    #[test]
    fn a_clock_that_is_ahead_for_a_day_is_believed() {
        let year_ms = 365 * 24 * 3_600_000;
        let mut clock = RetentionClock::start(0, Duration::ZERO, None);
        let at = |hours: i64| (year_ms + hours * 3_600_000, HOUR * u32::try_from(hours).unwrap());
        for hours in 1..25 {
            let (wall_ms, monotonic) = at(hours);
            assert_eq!(clock.now_ms(wall_ms, monotonic), Some(hours * 3_600_000), "after {hours} h");
        }
        let (wall_ms, monotonic) = at(25);
        assert_eq!(clock.now_ms(wall_ms, monotonic), Some(wall_ms));
        // Not when it was right in between.
        let mut clock = RetentionClock::start(0, Duration::ZERO, None);
        for hours in 1..49 {
            let right_ms = hours * 3_600_000;
            let wall_ms = if hours % 20 == 0 { right_ms } else { year_ms };
            assert_eq!(clock.now_ms(wall_ms, at(hours).1), Some(right_ms), "after {hours} h");
        }
    }

    #[test]
    fn a_start_far_ahead_of_the_newest_append_deletes_nothing_for_a_day_or_until_trusted() {
        let year_ms = 365 * 24 * 3_600_000;
        let start = || RetentionClock::start(year_ms, Duration::ZERO, Some(SeenClock::believed(0)));
        let mut clock = start();
        assert_eq!(clock.now_ms(year_ms, HOUR), None);
        assert!(clock.now_ms(year_ms + 86_400_000, 24 * HOUR).is_some());
        let mut put_right = start();
        assert_eq!(put_right.now_ms(year_ms, HOUR), None);
        assert_eq!(put_right.now_ms(7_200_000, 2 * HOUR), Some(7_200_000));
    }

    #[test]
    fn a_clock_that_is_wrong_is_not_believed_for_starting_again() {
        let (day_ms, now_ms) = (24 * 3_600_000, 1_796_108_400_000);
        let ahead_ms = now_ms + 365 * day_ms;
        let mut clock = RetentionClock::start(now_ms, Duration::ZERO, None);
        assert_eq!(clock.now_ms(now_ms, Duration::ZERO), Some(now_ms));
        // It jumps while it runs, and at each of a few starts it is ahead still.
        assert_eq!(clock.now_ms(ahead_ms, HOUR), Some(now_ms + 3_600_000));
        let mut seen = clock.seen();
        assert_eq!(seen, Some(SeenClock::believed(now_ms + 3_600_000)));
        for hours in 0..3 {
            let wall_ms = ahead_ms + hours * 10 * 3_600_000;
            let mut clock = RetentionClock::start(wall_ms, Duration::ZERO, seen);
            assert_eq!(clock.now_ms(wall_ms, Duration::ZERO), None);
            let last = clock.now_ms(wall_ms + 9 * 3_600_000, 9 * HOUR);
            assert_eq!(last.is_some(), hours == 2, "27 hours of running are more than a day");
            seen = clock.seen();
        }
        // One that jumps again is another clock, and one that is put right is right.
        let unsure = SeenClock { believed_ms: now_ms, distrusted: Some((ahead_ms, 23 * HOUR)) };
        let starts = [(ahead_ms, true), (ahead_ms + 8 * day_ms, false), (ahead_ms - 1, false), (now_ms + day_ms, true)];
        for (wall_ms, soon) in starts {
            let mut clock = RetentionClock::start(wall_ms, Duration::ZERO, Some(unsure));
            assert_eq!(clock.now_ms(wall_ms + 3_600_000, HOUR).is_some(), soon, "{wall_ms}");
        }
        let later = |ms: i64| SeenClock { believed_ms: now_ms + ms, ..unsure };
        let news = [unsure, later(3_599_999), later(-3_600_000), SeenClock::believed(now_ms)];
        assert_eq!(news.map(|seen| seen.is_news(Some(unsure))), [false, false, true, true]);
        assert!(unsure.is_news(None));
        let mut unset = RetentionClock::start(0, Duration::ZERO, None);
        assert_eq!(unset.now_ms(3_600_000, HOUR), Some(3_600_000));
        assert_eq!(unset.seen(), None, "a clock that starts in 1970 says nothing");
    }
}
