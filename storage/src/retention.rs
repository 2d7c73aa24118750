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

/// The wall clock as retention believes it: it follows the machine's clock but never runs ahead of real time, so that a
/// clock that jumps into the future deletes nothing for a day. After that it is believed, as one is that was ahead at a
/// start: it may have been behind before.
#[derive(Clone, Copy, Debug)]
pub struct RetentionClock {
    believed_ms: i64,
    at: Duration,
    /// Set at a start whose clock is suspiciously far ahead: until then (monotonic), age deletes nothing.
    distrusted_until: Option<Duration>,
    /// Since when (monotonic) the machine's clock has been ahead without a break.
    ahead_since: Option<Duration>,
}

/// A clock that is less ahead than this may just be measured a little later.
const AHEAD_MIN_MS: i64 = 1_000;

/// A start whose clock is further ahead than this of the newest append is not believed at first.
pub(crate) const JUMP_MAX_MS: i64 = 7 * 24 * 60 * 60 * 1000;
/// A clock that shows less has not been set: nothing of this log was written before 2023.
pub(crate) const BELIEVABLE_FROM_MS: i64 = 1_672_531_200_000;
/// How long it is not believed.
const DISTRUST: Duration = Duration::from_secs(24 * 60 * 60);

impl RetentionClock {
    /// Starts the clock. `monotonic` counts from an arbitrary moment; `newest_append_ms` is the newest append found on
    /// disk.
    #[must_use]
    pub fn start(wall_ms: i64, monotonic: Duration, newest_append_ms: Option<i64>) -> Self {
        let jumped = newest_append_ms.is_some_and(|newest| wall_ms.saturating_sub(newest) > JUMP_MAX_MS);
        let distrusted_until = jumped.then(|| monotonic + DISTRUST);
        Self { believed_ms: wall_ms, at: monotonic, distrusted_until, ahead_since: None }
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
        match self.distrusted_until {
            Some(until) if monotonic < until => None,
            _ => Some(self.believed_ms),
        }
    }

    /// Somebody says that the clock is right.
    pub fn trust(&mut self) {
        self.distrusted_until = None;
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
        let mut clock = RetentionClock::start(year_ms, Duration::ZERO, Some(0));
        assert_eq!(clock.now_ms(year_ms, HOUR), None);
        assert!(clock.now_ms(year_ms + 86_400_000, 24 * HOUR).is_some());
        let mut trusted = RetentionClock::start(year_ms, Duration::ZERO, Some(0));
        trusted.trust();
        assert_eq!(trusted.now_ms(year_ms, Duration::ZERO), Some(year_ms));
    }
}
