//! Which records go to the function together.
//!
//! A window closes at the first of its limits: count, bytes, interval (since its first record was taken) and `max_wait`
//! (age of its oldest record). Time is handed in as the distance from any fixed start; there is no clock here.

use std::time::Duration;

use tripline_storage::Offset;

/// The most records that a window has.
pub const WINDOW_COUNT_MAX: u32 = 10_000;

/// The limits of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSpec {
    /// Records at most. 1–10,000, default 100.
    pub count: u32,
    /// How long the window waits for more after its first record; 0 delivers what is there at once. 0–300 s, default 0.
    pub interval: Duration,
    /// Bytes of keys, values and headers at most, except that a window takes at least one record. 1 B–32 MiB, default 1
    /// MiB.
    pub bytes: u64,
    /// The greatest age of its oldest record, if one is set. 1 ms–24 h.
    pub max_wait: Option<Duration>,
}

impl Default for WindowSpec {
    fn default() -> Self {
        Self { count: 100, interval: Duration::ZERO, bytes: 1 << 20, max_wait: None }
    }
}

/// Where a record was found: how to come to it again without a walk over those before it. It holds for the very batch
/// that it was found in, which its checksum tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    batch_crc: u32,
    /// In the unpacked records of the batch; [`u32::MAX`] where it is not known.
    position: u32,
}

impl Spot {
    /// Not known: whoever wants the record looks for it.
    pub const UNKNOWN: Self = Self { batch_crc: 0, position: u32::MAX };

    /// Of a record that begins at `position` in a batch with this checksum.
    #[must_use]
    pub fn new(batch_crc: u32, position: usize) -> Self {
        Self { batch_crc, position: u32::try_from(position).unwrap_or(u32::MAX) }
    }

    /// Where the record begins in a batch with this checksum.
    #[must_use]
    pub fn position_in(self, batch_crc: u32) -> Option<usize> {
        (self.batch_crc == batch_crc && self.position != u32::MAX).then_some(self.position as usize)
    }
}

/// What a window needs to know of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordFacts {
    /// Where it stands; greater than that of the record before.
    pub offset: Offset,
    /// The hash of its key; whatever, where keys do not matter.
    pub key: u64,
    /// Size of key, value and headers.
    pub size_bytes: u64,
    /// How long ago it was appended or, where unknown, 0.
    pub age: Duration,
    /// Where it was found.
    pub spot: Spot,
}

/// Which limit closed a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// It holds `count` records.
    Count,
    /// The next record would not fit.
    Bytes,
    /// `interval` has passed since its first record, or nothing more was there and the interval is 0.
    Interval,
    /// Its oldest record reached `max_wait`.
    MaxWait,
    /// The trigger stops or changes.
    Flush,
}

/// A window that goes to the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedWindow {
    /// The offset of its first record.
    pub first: Offset,
    /// The offset after its last record.
    pub next: Offset,
    /// How many records it holds, at least 1.
    pub records: u32,
    /// Their size.
    pub size_bytes: u64,
    /// What closed it.
    pub reason: CloseReason,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// It is in the window, which stays open.
    Taken,
    /// It is in the window, and that closed it.
    TakenAndClosed(ClosedWindow),
    /// It is **not** taken: the window closed without it. Push it again, into the next one.
    ClosedBefore(ClosedWindow),
}

/// A window that may be filling.
#[derive(Clone, Debug)]
pub struct Window {
    spec: WindowSpec,
    open: Option<OpenWindow>,
}

#[derive(Clone, Copy, Debug)]
struct OpenWindow {
    first: Offset,
    last: Offset,
    records: u32,
    size_bytes: u64,
    interval_deadline: Duration,
    wait_deadline: Option<Duration>,
}

impl Window {
    /// An empty window.
    #[must_use]
    pub const fn new(spec: WindowSpec) -> Self {
        Self { spec, open: None }
    }

    /// Offers a record at `now`.
    pub fn push(&mut self, record: RecordFacts, now: Duration) -> Push {
        if let Some(closed) = self.close_if_too_small_for(record) {
            return Push::ClosedBefore(closed);
        }
        let wait_deadline = self.spec.max_wait.map(|max_wait| now.saturating_add(max_wait.saturating_sub(record.age)));
        let open = self.open.get_or_insert_with(|| OpenWindow {
            first: record.offset,
            last: record.offset,
            records: 0,
            size_bytes: 0,
            interval_deadline: now.saturating_add(self.spec.interval),
            wait_deadline,
        });
        assert!(open.records == 0 || record.offset > open.last, "a window's records come in offset order");
        open.last = record.offset;
        open.records += 1;
        open.size_bytes = open.size_bytes.saturating_add(record.size_bytes);
        open.wait_deadline = open.wait_deadline.min(wait_deadline);
        let (records, size_bytes) = (open.records, open.size_bytes);
        let reason = if records >= self.spec.count {
            Some(CloseReason::Count)
        } else if size_bytes >= self.spec.bytes {
            Some(CloseReason::Bytes)
        } else {
            None
        };
        match reason.and_then(|reason| self.close(reason)) {
            Some(closed) => Push::TakenAndClosed(closed),
            None => Push::Taken,
        }
    }

    /// Says that nothing more can be read right now: a window with interval 0 closes.
    pub fn caught_up(&mut self) -> Option<ClosedWindow> {
        if self.spec.interval.is_zero() { self.close(CloseReason::Interval) } else { None }
    }

    /// When the window closes by itself; `None` while it is empty, or when its interval is 0 and [`Window::caught_up`]
    /// closes it.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let open = self.open.as_ref()?;
        let interval = (!self.spec.interval.is_zero()).then_some(open.interval_deadline);
        interval.into_iter().chain(open.wait_deadline).min()
    }

    /// Closes the window if its deadline has come.
    pub fn expire(&mut self, now: Duration) -> Option<ClosedWindow> {
        if self.deadline()? > now {
            return None;
        }
        let waited = self.open.as_ref()?.wait_deadline.is_some_and(|deadline| Some(deadline) == self.deadline());
        self.close(if waited { CloseReason::MaxWait } else { CloseReason::Interval })
    }

    /// Closes the window as it is, because the trigger stops or changes.
    pub fn flush(&mut self) -> Option<ClosedWindow> {
        self.close(CloseReason::Flush)
    }

    /// Forgets what was taken; the records are read again later.
    pub fn give_back(&mut self) {
        self.open = None;
    }

    /// Records and bytes taken so far.
    #[must_use]
    pub fn held(&self) -> (u32, u64) {
        self.open.as_ref().map_or((0, 0), |open| (open.records, open.size_bytes))
    }

    fn close_if_too_small_for(&mut self, record: RecordFacts) -> Option<ClosedWindow> {
        let open = self.open.as_ref()?;
        let fits = open.size_bytes.saturating_add(record.size_bytes) <= self.spec.bytes;
        if fits { None } else { self.close(CloseReason::Bytes) }
    }

    fn close(&mut self, reason: CloseReason) -> Option<ClosedWindow> {
        let open = self.open.take()?;
        let OpenWindow { first, last, records, size_bytes, .. } = open;
        Some(ClosedWindow { first, next: last.next(), records, size_bytes, reason })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::from_secs(1000);

    fn at(ms: u64) -> Duration {
        START + Duration::from_millis(ms)
    }

    fn offset(value: i64) -> Offset {
        Offset::new(value).unwrap()
    }

    fn record(value: i64, size_bytes: u64) -> RecordFacts {
        RecordFacts { offset: offset(value), key: 0, size_bytes, age: Duration::ZERO, spot: Spot::UNKNOWN }
    }

    fn closed(first: i64, next: i64, records: u32, size_bytes: u64, reason: CloseReason) -> ClosedWindow {
        ClosedWindow { first: offset(first), next: offset(next), records, size_bytes, reason }
    }

    #[test]
    fn three_records_make_a_full_window_at_once_and_a_second_after_the_interval() {
        let spec = WindowSpec { count: 2, interval: Duration::from_secs(10), ..WindowSpec::default() };
        let mut window = Window::new(spec);
        assert_eq!(window.push(record(0, 5), at(0)), Push::Taken);
        assert_eq!(window.push(record(1, 5), at(1)), Push::TakenAndClosed(closed(0, 2, 2, 10, CloseReason::Count)));
        assert_eq!(window.deadline(), None);
        assert_eq!(window.push(record(2, 5), at(2)), Push::Taken);
        assert_eq!(window.caught_up(), None);
        assert_eq!(window.deadline(), Some(at(10_002)));
        assert_eq!(window.expire(at(10_001)), None);
        assert_eq!(window.expire(at(10_002)), Some(closed(2, 3, 1, 5, CloseReason::Interval)));
        assert_eq!(window.expire(at(99_999)), None);
    }

    #[test]
    fn interval_zero_delivers_what_is_there_at_once() {
        let mut window = Window::new(WindowSpec::default());
        assert_eq!(window.caught_up(), None);
        assert_eq!(window.push(record(7, 1), at(0)), Push::Taken);
        assert_eq!(window.push(record(9, 1), at(0)), Push::Taken);
        assert_eq!((window.deadline(), window.expire(at(1_000_000))), (None, None));
        assert_eq!(window.caught_up(), Some(closed(7, 10, 2, 2, CloseReason::Interval)));
    }

    #[test]
    fn a_record_that_does_not_fit_closes_the_window_before_it() {
        let mut window = Window::new(WindowSpec { bytes: 10, ..WindowSpec::default() });
        assert_eq!(window.push(record(0, 6), at(0)), Push::Taken);
        assert_eq!(window.push(record(1, 5), at(0)), Push::ClosedBefore(closed(0, 1, 1, 6, CloseReason::Bytes)));
        assert_eq!(window.held(), (0, 0));
        assert_eq!(window.push(record(1, 5), at(0)), Push::Taken);
        assert_eq!(window.push(record(2, 5), at(0)), Push::TakenAndClosed(closed(1, 3, 2, 10, CloseReason::Bytes)));
    }

    #[test]
    fn a_window_takes_at_least_one_record_however_large() {
        let mut window = Window::new(WindowSpec { bytes: 10, ..WindowSpec::default() });
        assert_eq!(window.push(record(3, 999), at(0)), Push::TakenAndClosed(closed(3, 4, 1, 999, CloseReason::Bytes)));
    }

    #[test]
    fn the_age_of_the_oldest_record_closes_a_window_before_its_interval() {
        let spec = WindowSpec {
            interval: Duration::from_secs(10),
            max_wait: Some(Duration::from_secs(3)),
            ..WindowSpec::default()
        };
        let mut window = Window::new(spec);
        window.push(RecordFacts { age: Duration::from_secs(1), ..record(0, 1) }, at(0));
        assert_eq!(window.deadline(), Some(at(2000)));
        window.push(RecordFacts { age: Duration::from_secs(60), ..record(1, 1) }, at(100));
        assert_eq!(window.deadline(), Some(at(100)), "an older record later in the log counts too");
        assert_eq!(window.expire(at(100)), Some(closed(0, 2, 2, 2, CloseReason::MaxWait)));
    }

    #[test]
    fn an_open_window_can_be_flushed_or_given_back() {
        let spec = WindowSpec { interval: Duration::from_secs(10), ..WindowSpec::default() };
        let mut window = Window::new(spec);
        window.push(record(0, 1), at(0));
        assert_eq!(window.flush(), Some(closed(0, 1, 1, 1, CloseReason::Flush)));
        window.push(record(1, 1), at(0));
        window.give_back();
        assert_eq!((window.flush(), window.held()), (None, (0, 0)));
    }

    #[test]
    #[should_panic(expected = "offset order")]
    fn a_record_out_of_order_is_a_mistake_of_ours() {
        let mut window = Window::new(WindowSpec::default());
        window.push(record(5, 1), at(0));
        window.push(record(5, 1), at(0));
    }

    proptest! {
        #[test]
        fn every_record_is_in_exactly_one_window_and_no_window_breaks_its_limits(
            sizes in proptest::collection::vec(0u64..40, 1..200), count in 1u32..8, bytes in 1u64..60,
        ) {
            let mut window = Window::new(WindowSpec { count, bytes, interval: Duration::from_secs(1), max_wait: None });
            let mut windows = Vec::new();
            for (index, size_bytes) in sizes.iter().enumerate() {
                let facts = record(i64::try_from(index).unwrap(), *size_bytes);
                let first_push = window.push(facts, START);
                let push = match first_push {
                    Push::ClosedBefore(closed) => { windows.push(closed); window.push(facts, START) }
                    other => other,
                };
                match push {
                    Push::Taken => {}
                    Push::TakenAndClosed(closed) => windows.push(closed),
                    Push::ClosedBefore(_) => prop_assert!(false, "an empty window takes any record"),
                }
            }
            windows.extend(window.flush());
            let mut next = 0i64;
            for closed in &windows {
                prop_assert_eq!(closed.first.get(), next);
                next = closed.next.get();
                prop_assert!(closed.records >= 1 && closed.records <= count);
                prop_assert!(closed.size_bytes <= bytes || closed.records == 1);
            }
            prop_assert_eq!(next, i64::try_from(sizes.len()).unwrap());
        }
    }
}
