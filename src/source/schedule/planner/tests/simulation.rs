//! Random schedules under clocks that jump, brokers that die at any step, disks that lose what was not flushed and
//! topics that take nothing, against a simple model: no tick twice; every tick whose time came while the broker lived;
//! and of missed ones what the policy says, once for each time that some were missed. Clocks are up to a year ahead for
//! a while, also over deaths. The steps are the service's, over the real tables of the journal.

use std::collections::HashSet;

use super::*;
use crate::broker::record::{
    JournalRecord, ScheduleDefined, ScheduleFired, ScheduleFiring, ScheduleSwitched, ScheduleTicksDone,
};
use crate::broker::state::State;

/// Where a round ends early: the process dies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    BeforeIntent,
    AfterIntent,
    AfterAppend,
    AfterDone,
}

struct World {
    random: fastrand::Rng,
    now: Reading,
    specs: Vec<(Uuid, Arc<ScheduleSpec>)>,
    /// Records, and how much of the log has to be durable before each.
    journal: Vec<(JournalRecord, usize)>,
    journal_durable: usize,
    /// What the journal says.
    state: State,
    log: Vec<Due>,
    /// How much of the log was checked, and the ticks in it.
    checked: (usize, HashSet<(Uuid, Tick)>),
    log_durable: usize,
    planner: Planner,
    paused: Vec<bool>,
    /// Whether a tick of it waits for a topic that took nothing.
    failing: Vec<bool>,
    /// Ticks up to here were past when a clock was set back while the broker lived; ms since 1970.
    left_behind_ms: i64,
    missed: Vec<Missed>,
    /// The moments of the last two looks, by the monotonic clock.
    looks_ms: (i64, i64),
}

/// What became of ticks that one schedule missed.
#[derive(Clone, Copy, Debug, Default)]
struct Missed {
    /// How often there may have been some.
    times: usize,
    made_up: usize,
    left_out: usize,
    /// Whether it has come to the most ranges of done ticks, of which some are given up then.
    is_full: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let now = Reading { wall_ms: T0_MS + random.i64(0..100_000), monotonic_ms: random.i64(0..1_000_000) };
        let count = random.u128(1..3);
        let specs: Vec<_> = (0..count).map(|number| (id(number), random_spec(&mut random, number))).collect();
        let mut world = Self {
            random,
            now,
            journal: Vec::new(),
            journal_durable: 0,
            state: State::default(),
            log: Vec::new(),
            checked: (0, HashSet::new()),
            log_durable: 0,
            planner: Planner::start(now),
            paused: vec![false; specs.len()],
            failing: vec![false; specs.len()],
            left_behind_ms: i64::MIN,
            missed: vec![Missed::default(); specs.len()],
            looks_ms: (now.monotonic_ms, now.monotonic_ms),
            specs,
        };
        for (id, spec) in world.specs.clone() {
            let since_ms = now.wall_ms;
            let defined = ScheduleDefined {
                id,
                name: spec.name.to_string(),
                topic: Uuid::nil(),
                definition: String::new(),
                created_ms: since_ms,
                since_ms,
            };
            world.remember(defined, 0);
            let done = world.state.schedules[&id].done.clone();
            world.planner.put(id, spec, Position { since_ms, done, ..Position::default() }, now);
        }
        world.flush_journal();
        world
    }

    fn remember(&mut self, record: impl Into<JournalRecord>, needed: usize) {
        let record = record.into();
        self.state.apply(&record);
        self.journal.push((record, needed));
    }

    fn remember_fired(&mut self, Due { id, tick }: Due, left_out: bool) {
        let tick_s = tick.unix_s();
        if left_out {
            self.remember(ScheduleTicksDone { id, first_s: tick_s, last_s: tick_s }, self.log.len());
        }
        self.remember(ScheduleFired { id, tick_s }, self.log.len());
    }

    fn flush_journal(&mut self) {
        // Invariant S8.
        let needed = self.journal[self.journal_durable..].iter().map(|(_, needed)| *needed).max().unwrap_or(0);
        self.log_durable = self.log_durable.max(needed);
        self.journal_durable = self.journal.len();
    }

    /// One round of the service. Answers whether there was anything to do, and `None` when the process died.
    fn round(&mut self, death: Option<Death>, refuses: bool) -> Option<bool> {
        let max = self.random.usize(1..5);
        if self.looks_ms.1 != self.now.monotonic_ms {
            self.looks_ms = (self.looks_ms.1, self.now.monotonic_ms);
        }
        let due = self.planner.look(self.now, max);
        for id in self.planner.take_skipped() {
            self.missed[id.as_u128() as usize].left_out += 1;
        }
        due.iter().for_each(|due| self.note_made_up(*due));
        if due.is_empty() {
            return Some(false);
        }
        if death == Some(Death::BeforeIntent) {
            return None;
        }
        for &Due { id, tick } in &due {
            let from = self.log.len() as i64;
            let firing = ScheduleFiring { id, tick_s: tick.unix_s(), topic: Uuid::nil(), partition: 0, from };
            self.remember(firing, 0);
        }
        self.flush_journal();
        if death == Some(Death::AfterIntent) {
            return None;
        }
        if refuses {
            for &one in &due {
                self.planner.failed(one);
                self.failing[one.id.as_u128() as usize] = true;
            }
            return Some(true);
        }
        let appended = if death == Some(Death::AfterAppend) { self.random.usize(0..=due.len()) } else { due.len() };
        self.log.extend(&due[..appended]);
        if death == Some(Death::AfterAppend) {
            return None;
        }
        for &one in &due {
            let left_out = self.planner.fired(one);
            self.remember_fired(one, left_out);
            let number = one.id.as_u128() as usize;
            // What came while its topic took nothing was missed.
            self.missed[number].times += usize::from(std::mem::take(&mut self.failing[number]));
        }
        if self.random.bool() {
            self.flush_journal();
        }
        (death != Some(Death::AfterDone)).then_some(true)
    }

    fn note_made_up(&mut self, Due { id, tick }: Due) {
        let (number, entry) = (id.as_u128() as usize, &self.state.schedules[&id]);
        let late_ms = self.now.wall_ms - self.specs[number].1.fire_ms(tick);
        // Nobody looked meanwhile, and a clock that runs goes forward by so much.
        let (before_ms, now_ms) = self.looks_ms;
        if entry.firing.is_none() && late_ms > now_ms - before_ms + LATE_MAX_S * 1000 {
            assert!(tick.unix_ms() > entry.since_ms, "{tick:?} is of before its schedule, or of a pause");
            self.missed[number].made_up += 1;
        }
    }

    /// Looks and works for so long by both clocks.
    fn live(&mut self, length_ms: i64, refuses: bool) {
        let end_ms = self.now.monotonic_ms + length_ms;
        loop {
            while self.round(None, refuses) == Some(true) {}
            let left_ms = end_ms - self.now.monotonic_ms;
            if left_ms <= 0 {
                return;
            }
            let wait_ms = self.planner.wait_ms(self.now).map_or(left_ms, u64::cast_signed);
            // Sometimes the machine is busy.
            let stall_ms = if self.random.u8(..8) == 0 { self.random.i64(0..30_000) } else { 0 };
            let step_ms = (wait_ms + stall_ms).clamp(1, left_ms);
            self.now.wall_ms += step_ms;
            self.now.monotonic_ms += step_ms;
        }
    }

    fn die(&mut self, with_the_power: bool) {
        if with_the_power {
            let kept = self.random.usize(self.journal_durable..=self.journal.len());
            self.journal.truncate(kept);
            self.flush_journal();
            self.state = State::default();
            self.journal.iter().for_each(|(record, _)| self.state.apply(record));
            let kept = self.random.usize(self.log_durable..=self.log.len());
            self.log.truncate(kept);
            self.checked = (0, HashSet::new());
        }
        (self.journal_durable, self.log_durable) = (self.journal.len(), self.log.len());
    }

    fn start(&mut self) {
        let mut rewritten = State::default();
        self.state.record_groups().iter().flatten().for_each(|record| rewritten.apply(record));
        assert_eq!(rewritten.schedules, self.state.schedules, "a rewritten journal says the same");
        self.planner = Planner::start(self.now);
        self.looks_ms = (self.now.monotonic_ms, self.now.monotonic_ms);
        self.left_behind_ms = i64::MIN;
        self.missed.iter_mut().for_each(|missed| missed.times += 1);
        for (number, (id, spec)) in self.specs.clone().into_iter().enumerate() {
            let entry = self.state.schedules[&id].clone();
            let mut position = Position {
                since_ms: entry.since_ms,
                fired: entry.fired_s.map(Tick::new),
                done: entry.done.clone(),
                pending: None,
            };
            if let Some(firing) = &entry.firing {
                let begun = Due { id, tick: Tick::new(firing.tick_s) };
                let from = usize::try_from(firing.from).unwrap().min(self.log.len());
                if self.log[from..].contains(&begun) {
                    let left_out = was_left_out_before(&entry.done, &spec.timing, begun.tick);
                    self.remember_fired(begun, left_out);
                    position.fired = Some(begun.tick);
                    position.done = self.state.schedules[&id].done.clone();
                } else {
                    position.pending = Some(begun.tick);
                }
            }
            (self.paused[number], self.failing[number]) = (entry.paused, false);
            if !entry.paused {
                self.planner.put(id, spec, position, self.now);
            }
        }
    }

    fn switch(&mut self, number: usize) {
        let (id, spec) = self.specs[number].clone();
        let (paused, since_ms) = (!self.paused[number], self.now.wall_ms);
        self.remember(ScheduleSwitched { id, paused, since_ms }, 0);
        self.flush_journal();
        self.paused[number] = paused;
        if paused {
            self.planner.remove(id);
        } else {
            let entry = &self.state.schedules[&id];
            let pending = entry.firing.as_ref().map(|firing| Tick::new(firing.tick_s));
            let (fired, done) = (entry.fired_s.map(Tick::new), entry.done.clone());
            self.planner.put(id, spec, Position { since_ms, fired, done, pending }, self.now);
        }
    }

    fn count(&self, due: Due) -> usize {
        self.log.iter().filter(|done| **done == due).count()
    }

    /// Lives, and checks that every tick whose time came is there.
    fn live_and_check(&mut self, length_ms: i64) {
        let from_ms = self.now.wall_ms;
        let were_failing = self.failing.clone();
        self.live(length_ms, false);
        for (number, (id, spec)) in self.specs.iter().enumerate() {
            if self.paused[number] || were_failing[number] {
                continue;
            }
            let entry = &self.state.schedules[id];
            let is_set_back = entry.since_ms - from_ms > LATE_MAX_S * 1000;
            let since_s = if is_set_back { from_ms } else { entry.since_ms }.div_euclid(1000);
            let made_s = entry.defined.created_ms.div_euclid(1000);
            let mut tick_s = since_s.max(from_ms / 1000 - spec.timing.jitter.as_secs() as i64 - 1);
            while let Some(tick) = spec.timing.next_after(tick_s).filter(|tick| tick.unix_ms() <= self.now.wall_ms) {
                tick_s = tick.unix_s();
                // The moment it was made is not its own, also when it comes again.
                let is_its_own = tick_s != made_s;
                if is_its_own && (from_ms + 1..=self.now.wall_ms).contains(&spec.fire_ms(tick)) {
                    let is_given_up = self.missed[number].is_full && entry.done.end_of(tick_s).is_some();
                    let is_done = is_given_up || self.count(Due { id: *id, tick }) == 1;
                    assert!(is_done, "{spec:?} {tick:?} came while the broker lived");
                }
            }
        }
    }

    fn check(&mut self) {
        let (from, all) = (&mut self.checked.0, &mut self.checked.1);
        for done in &self.log[*from..] {
            let number = done.id.as_u128() as usize;
            let tick_s = done.tick.unix_s();
            assert!(all.insert((done.id, done.tick)), "{done:?} is repeated");
            let rule = &self.specs[number].1.timing;
            assert_eq!(rule.next_after(tick_s - 1), Some(done.tick), "there is no such tick");
        }
        *from = self.log.len();
        for (number, (id, spec)) in self.specs.iter().enumerate() {
            let missed = &mut self.missed[number];
            missed.is_full |= self.state.schedules[id].done.ranges().count() == DoneTicks::RANGES_MAX;
            assert!(missed.made_up <= missed.times && missed.left_out <= missed.times, "{spec:?} {missed:?}");
            if self.paused[number] || self.failing[number] {
                continue;
            }
            // The last one that is due is done, if the policy makes up for it.
            let since_s = self.state.schedules[id].since_ms.div_euclid(1000);
            let due = spec.timing.last_in(since_s, self.now.wall_ms / 1000);
            let due = due.filter(|tick| (self.left_behind_ms + 1..=self.now.wall_ms).contains(&spec.fire_ms(*tick)));
            let is_wanted = |tick: &Tick| {
                spec.catch_up == CatchUp::Once || spec.fire_ms(*tick) >= self.now.wall_ms - LATE_MAX_S * 1000
            };
            if let Some(tick) = due.filter(is_wanted) {
                // Not one of before others that a clock did that was ahead, and that came meanwhile.
                let end_s = self.state.schedules[id].done.end_at(self.now.wall_ms / 1000);
                assert!(end_s >= Some(tick.unix_s()), "{spec:?} {tick:?} is due, what is done ends at {end_s:?}");
            }
        }
    }

    fn step(&mut self) {
        match self.random.u8(..13) {
            0..=4 => {
                let length_ms = self.random.i64(0..100_000);
                self.live_and_check(length_ms);
            }
            5 => self.jump(1..7_200_000),
            6 => self.jump(-7_200_000..0),
            7 => self.jump(-9_000..9_000),
            8 | 9 => self.death_and_restart(0),
            10 => {
                let length_ms = self.random.i64(0..30_000);
                self.live(length_ms, true);
                let length_ms = self.random.i64(60_000..70_000);
                self.live(length_ms, false);
            }
            11 => self.switch_one(),
            12 if self.random.bool() => {
                for _ in 0..20 {
                    self.jump(1..100_000);
                    let length_ms = self.random.i64(0..30_000);
                    self.live(length_ms, false);
                }
            }
            _ => self.be_ahead(),
        }
        self.check();
    }

    fn switch_one(&mut self) {
        let number = self.random.usize(..self.specs.len());
        self.switch(number);
        self.live(0, false);
    }

    /// The clock is ahead for a while, and is put right while the broker lives or while it does not.
    fn be_ahead(&mut self) {
        let ahead_ms = [600_000, 86_400_000, 31_622_400_000][self.random.usize(..3)] + self.random.i64(0..60_000);
        self.set_clock(ahead_ms);
        let length_ms = self.random.i64(0..100_000);
        self.live(length_ms, false);
        if self.random.bool() {
            self.switch_one();
        }
        if self.random.bool() {
            self.set_clock(-ahead_ms);
        } else {
            self.death_and_restart(-ahead_ms);
        }
    }

    fn jump(&mut self, range_ms: std::ops::Range<i64>) {
        let by_ms = self.random.i64(range_ms);
        self.set_clock(by_ms);
    }

    fn set_clock(&mut self, by_ms: i64) {
        self.now.wall_ms += by_ms;
        if by_ms < 0 {
            self.left_behind_ms = self.now.wall_ms;
        }
        if by_ms > LATE_MAX_S * 1000 {
            self.missed.iter_mut().for_each(|missed| missed.times += 1);
        }
        self.live(0, false);
    }

    /// The clock is set by so much while nobody lives.
    fn death_and_restart(&mut self, set_ms: i64) {
        let pass_ms = self.random.i64(0..120_000);
        self.now.wall_ms += pass_ms;
        self.now.monotonic_ms += pass_ms;
        let deaths = [Death::BeforeIntent, Death::AfterIntent, Death::AfterAppend, Death::AfterDone];
        let death = deaths[self.random.usize(..deaths.len())];
        self.round(Some(death), false);
        let with_the_power = self.random.bool();
        self.die(with_the_power);
        let begun: Vec<_> = self.state.schedules.values().filter(|entry| !entry.paused).cloned().collect();
        self.now.wall_ms += set_ms + self.random.i64(-100_000..4_000_000);
        self.now.monotonic_ms = self.random.i64(0..1_000_000);
        self.start();
        self.live(0, false);
        for entry in begun {
            if let Some(firing) = entry.firing {
                let begun = Due { id: firing.id, tick: Tick::new(firing.tick_s) };
                assert_eq!(self.count(begun), 1, "{begun:?} was begun and is lost or doubled after {death:?}");
            }
        }
    }
}

fn random_spec(random: &mut fastrand::Rng, number: u128) -> Arc<ScheduleSpec> {
    let mut definition = match random.u8(..16) {
        0 => json!({"cron": "*/2 * * * *", "timezone": "Europe/Berlin"}),
        1 => json!({"cron": "*/20 * * * * *"}),
        2 => json!({"at": "2026-12-01T07:20:00"}),
        _ => json!({"rate": format!("{}s", [7, 30, 60, 97, 600, 3600, 1][random.usize(..13) / 2])}),
    };
    definition["schedule"] = format!("s{number}").into();
    definition["catch_up"] = ["skip", "once"][random.usize(..2)].into();
    if random.u8(..4) == 0 {
        definition["jitter"] = format!("{}s", random.u32(1..100)).into();
    }
    if random.u8(..8) == 0 {
        definition["end"] = "2026-12-01T07:30:00".into();
    }
    spec(definition)
}

/// `TRIPLINE_SEED` runs one seed alone, `TRIPLINE_CASES` so many.
#[test]
fn every_tick_is_done_once_whatever_clocks_deaths_and_topics_do() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let cases = number("TRIPLINE_CASES").unwrap_or(10_000);
    let seeds = number("TRIPLINE_SEED").map_or(0..cases, |seed| seed..seed + 1);
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..8 {
                world.step();
            }
        });
        assert!(outcome.is_ok(), "seed {seed}: run it alone with TRIPLINE_SEED={seed}");
    }
}
