use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::outcome::ErrorClass;
use super::Effect::{Abort, Assign, Refuse, Start, Stop};
use super::*;

const IDLE: Duration = Duration::from_secs(60);

fn limits(min: u32, max: u32) -> Instances {
    Instances { min, max, concurrency: 1, idle: IDLE }
}

fn pool(min: u32, max: u32) -> PoolState {
    PoolState::new(limits(min, max), false)
}

fn at(seconds: u64) -> Moment {
    Moment::from_secs(seconds)
}

fn broken() -> InvocationError {
    InvocationError::new(ErrorClass::BrokenCode, "SyntaxError", "line 1")
}

fn no_process() -> InvocationError {
    InvocationError::new(ErrorClass::Unavailable, "spawn-failed", "out of processes")
}

/// A pool with one idle instance, number 1.
fn warm(min: u32, max: u32) -> PoolState {
    let mut pool = pool(min, max);
    assert_eq!(pool.submit(1, 0, at(0)), [Start(1)]);
    assert_eq!(pool.ready(1, at(0)), [Assign(1, 1)]);
    assert_eq!(pool.finished(1, true, at(0)), []);
    pool
}

#[test]
fn a_waiting_invocation_starts_an_instance_and_gets_it_when_it_is_ready() {
    let mut pool = pool(0, 4);
    assert_eq!(pool.submit(1, 0, at(0)), [Start(1)]);
    assert_eq!(pool.counts().starting, 1);
    assert_eq!(pool.ready(1, at(1)), [Assign(1, 1)]);
    assert_eq!(pool.finished(1, true, at(2)), []);
    assert_eq!(pool.submit(2, 0, at(3)), [Assign(1, 2)], "a warm instance is used again");
}

#[test]
fn an_instance_that_leaves_by_plan_holds_nobody_up() {
    let mut pool = warm(0, 2);
    assert_eq!(pool.leaves(1, None, at(0)), []);
    assert_eq!(pool.submit(2, 5, at(0)), [Start(2)], "at once, and not on the one that leaves");
    assert_eq!(pool.ready(2, at(0)), [Assign(2, 2)]);
    // It had not begun with what it was given.
    assert_eq!(pool.leaves(2, Some((2, 5)), at(0)), []);
    assert_eq!(pool.gone(1, at(0)), [Start(3)]);
    assert_eq!(pool.gone(2, at(0)), []);
    assert_eq!(pool.ready(3, at(0)), [Assign(3, 2)]);
}

#[test]
fn what_an_instance_of_older_code_gives_back_is_refused_when_the_new_code_is_broken() {
    let mut pool = pool(0, 2);
    assert_eq!(pool.submit(1, 1, at(0)), [Start(1)]);
    assert_eq!(pool.ready(1, at(0)), [Assign(1, 1)]);
    assert_eq!(pool.replace(limits(0, 2), at(0)), [Start(2)]);
    assert_eq!(pool.start_failed(2, broken(), true, at(0)), []);
    assert_eq!(pool.returned(1, Some((1, 1)), at(0)), [Refuse(1, Refusal::NoInstance(broken()))]);
}

#[test]
fn at_the_quota_invocations_wait_in_order() {
    let mut pool = pool(0, 2);
    assert_eq!(pool.submit(1, 0, at(0)), [Start(1)]);
    assert_eq!(pool.submit(2, 0, at(0)), [Start(2)]);
    assert_eq!(pool.submit(3, 0, at(0)), []);
    assert_eq!(pool.submit(4, 0, at(0)), []);
    assert_eq!(pool.ready(2, at(1)), [Assign(2, 1)]);
    assert_eq!(pool.ready(1, at(1)), [Assign(1, 2)]);
    assert_eq!(pool.finished(1, true, at(2)), [Assign(1, 3)]);
    assert_eq!(pool.finished(1, true, at(2)), [Assign(1, 4)]);
}

#[test]
fn an_instance_that_is_freed_serves_what_waited_for_a_start() {
    let mut pool = warm(0, 2);
    assert_eq!(pool.submit(2, 0, at(1)), [Assign(1, 2)]);
    assert_eq!(pool.submit(3, 0, at(1)), [Start(2)]);
    assert_eq!(pool.finished(1, true, at(2)), [Assign(1, 3)]);
    assert_eq!(pool.ready(2, at(3)), [], "nothing is left for the new one: it grows idle");
    assert_eq!(pool.counts().idle, 1);
}

#[test]
fn idle_instances_go_down_to_the_reserve_and_the_last_used_one_stays() {
    let mut pool = pool(1, 3);
    assert_eq!(pool.tick(at(0)), [Start(1)], "the reserve starts by itself");
    assert_eq!(pool.submit(1, 0, at(0)), []);
    assert_eq!(pool.submit(2, 0, at(0)), [Start(2)]);
    assert_eq!(pool.ready(1, at(1)), [Assign(1, 1)]);
    assert_eq!(pool.ready(2, at(1)), [Assign(2, 2)]);
    assert_eq!(pool.finished(2, true, at(5)), []);
    assert_eq!(pool.finished(1, true, at(6)), []);
    assert_eq!(pool.next_tick(), Some(at(5) + IDLE));
    assert_eq!(pool.tick(at(5) + IDLE - Duration::from_millis(1)), []);
    assert_eq!(pool.tick(at(5) + IDLE), [Stop(2)]);
    assert_eq!(pool.next_tick(), None, "the reserve never goes");
    assert_eq!(pool.gone(2, at(70)), []);
    assert_eq!(pool.counts(), InstanceCounts { idle: 1, ..Default::default() });
}

#[test]
fn a_killed_instance_counts_until_it_is_gone_and_is_then_replaced() {
    let mut pool = warm(0, 1);
    pool.submit(2, 0, at(1));
    assert_eq!(pool.submit(3, 0, at(1)), []);
    assert_eq!(pool.finished(1, false, at(2)), [], "F1: its process may still be there");
    assert_eq!(pool.gone(1, at(2)), [Start(2)]);
    assert_eq!(pool.ready(2, at(3)), [Assign(2, 3)]);
}

#[test]
fn broken_code_refuses_everything_without_starting_again() {
    let mut pool = pool(1, 4);
    pool.tick(at(0));
    assert_eq!(pool.submit(1, 0, at(0)), []);
    let effects = pool.start_failed(1, broken(), true, at(1));
    assert_eq!(effects, [Refuse(1, Refusal::NoInstance(broken()))]);
    assert_eq!(pool.gone(1, at(1)), []);
    assert_eq!(pool.submit(2, 0, at(2)), [Refuse(2, Refusal::NoInstance(broken()))]);
    assert_eq!((pool.tick(at(9999)), pool.next_tick()), (vec![], None), "not even the reserve");
    assert_eq!(pool.resume(at(10_000)), [Start(2)]);
    assert_eq!(pool.resume(at(10_000)), [], "nothing is broken any more");
    assert_eq!(pool.ready(2, at(10_001)), []);
    assert_eq!(pool.broken(), None);
}

#[test]
fn new_code_ends_the_failure_and_is_probed() {
    let mut pool = pool(0, 4);
    pool.submit(1, 0, at(0));
    pool.start_failed(1, broken(), true, at(1));
    pool.gone(1, at(1));
    assert_eq!(pool.replace(limits(0, 4), at(2)), [Start(2)]);
    assert!(pool.is_probing());
    assert_eq!(pool.ready(2, at(3)), []);
    assert!(!pool.is_probing());
    assert_eq!(pool.submit(2, 0, at(4)), [Assign(2, 2)]);
}

#[test]
fn a_failed_start_beside_a_working_instance_breaks_nothing_but_waits_before_the_next() {
    let mut pool = warm(0, 3);
    pool.submit(2, 0, at(1));
    assert_eq!(pool.submit(3, 0, at(1)), [Start(2)]);
    assert_eq!(pool.start_failed(2, broken(), true, at(1)), []);
    assert_eq!(pool.gone(2, at(1)), []);
    assert_eq!(pool.next_tick(), Some(at(1) + BACKOFF_FIRST));
    assert_eq!(pool.tick(at(1) + BACKOFF_FIRST), [Start(3)]);
    assert_eq!(pool.finished(1, true, at(2)), [Assign(1, 3)]);
}

#[test]
fn what_waits_is_refused_when_the_last_of_several_starts_has_failed_and_not_before() {
    let mut pool = pool(0, 3);
    assert_eq!((pool.submit(1, 0, at(0)), pool.submit(2, 0, at(0))), (vec![Start(1)], vec![Start(2)]));
    assert_eq!(pool.start_failed(1, broken(), true, at(1)), [], "the other one may work");
    assert_eq!((pool.broken(), pool.queue_length()), (None, 2));
    assert_eq!((pool.gone(1, at(1)), pool.next_tick(), pool.tick(at(99))), (vec![], None, vec![]), "it decides");
    let refused = Refusal::NoInstance(broken());
    assert_eq!(pool.start_failed(2, broken(), true, at(99)), [Refuse(1, refused.clone()), Refuse(2, refused)]);
    assert_eq!(pool.broken(), Some(&broken()));
}

#[test]
fn code_that_runs_in_one_instance_has_not_failed_whatever_the_others_did() {
    let mut pool = pool(0, 3);
    assert_eq!(pool.replace(limits(0, 3), at(0)), [Start(1)]);
    assert_eq!((pool.submit(1, 0, at(0)), pool.submit(2, 0, at(0))), (vec![], vec![Start(2)]));
    assert_eq!(pool.start_failed(1, broken(), true, at(1)), []);
    assert!(pool.is_probing(), "what the first start shows is not known yet");
    assert_eq!(pool.ready(2, at(2)), [Assign(2, 1), Start(3)]);
    assert_eq!((pool.broken(), pool.is_probing()), (None, false));
    assert_eq!(pool.finished(2, true, at(3)), [Assign(2, 2)]);
}

#[test]
fn an_instance_that_is_ready_ends_the_failure_of_its_code_and_not_that_of_newer_code() {
    let mut pool = pool(0, 3);
    pool.submit(1, 0, at(0));
    pool.broken = Some(broken());
    assert_eq!((pool.ready(1, at(1)), pool.broken()), (vec![Assign(1, 1)], None));
    assert_eq!(pool.replace(limits(0, 3), at(2)), [Start(2)]);
    assert_eq!(pool.start_failed(2, broken(), true, at(3)), []);
    assert_eq!(pool.finished(1, true, at(4)), [Stop(1)]);
    assert_eq!(pool.ready(1, at(5)), []);
    assert_eq!(pool.broken(), Some(&broken()));
}

#[test]
fn without_processes_what_waits_is_refused_and_later_work_tries_again_after_a_pause() {
    let mut pool = pool(0, 2);
    pool.submit(1, 0, at(0));
    let effects = pool.start_failed(1, no_process(), false, at(0));
    assert_eq!(effects, [Refuse(1, Refusal::NoInstance(no_process()))]);
    pool.gone(1, at(0));
    assert_eq!(pool.submit(2, 0, at(0)), []);
    assert_eq!(pool.next_tick(), Some(BACKOFF_FIRST));
    assert_eq!(pool.tick(BACKOFF_FIRST), [Start(2)]);
}

#[test]
fn a_reserve_that_dies_unused_is_not_restarted_in_a_hot_loop() {
    let mut pool = pool(1, 2);
    let (mut now, mut pauses) = (at(0), Vec::new());
    pool.tick(now);
    for id in 1..=10 {
        pool.ready(id, now);
        assert_eq!(pool.gone(id, now), []);
        let next = pool.next_tick().unwrap();
        pauses.push(next - now);
        now = next;
        assert_eq!(pool.tick(now), [Start(id + 1)]);
    }
    assert_eq!(pauses[..3], [BACKOFF_FIRST, 2 * BACKOFF_FIRST, 4 * BACKOFF_FIRST]);
    assert_eq!(pauses.last(), Some(&BACKOFF_MAX));
}

#[test]
fn a_new_definition_takes_over_while_older_instances_finish_what_they_hold() {
    let mut pool = warm(0, 3);
    pool.submit(2, 0, at(1));
    pool.submit(3, 0, at(1));
    pool.ready(2, at(1));
    pool.submit(4, 0, at(1));
    pool.finished(2, true, at(1));
    // Instance 1 is busy, 2 has just taken 4, 3 is starting.
    assert_eq!(pool.counts(), InstanceCounts { starting: 1, busy: 2, ..Default::default() });
    assert_eq!(pool.replace(limits(0, 3), at(2)), [Abort(3)]);
    assert_eq!(pool.submit(5, 0, at(2)), [], "F1: the aborted one is not gone yet");
    assert_eq!(pool.gone(3, at(3)), [Start(4)]);
    assert_eq!(pool.finished(1, true, at(4)), [Stop(1)], "an older instance takes no new work");
    assert_eq!(pool.ready(4, at(4)), [Assign(4, 5)]);
    assert_eq!(pool.finished(2, false, at(5)), []);
    assert_eq!(pool.gone(2, at(5)), []);
}

#[test]
fn a_failed_start_of_older_code_says_nothing_about_the_new() {
    let mut pool = pool(0, 2);
    pool.submit(1, 0, at(0));
    assert_eq!(pool.replace(limits(0, 2), at(0)), [Abort(1), Start(2)]);
    assert_eq!(pool.start_failed(1, broken(), true, at(1)), []);
    assert_eq!(pool.broken(), None);
    pool.gone(1, at(1));
    assert_eq!(pool.ready(2, at(1)), [Assign(2, 1)]);
}

#[test]
fn a_lowered_quota_holds_for_what_starts_from_then_on() {
    let mut pool = pool(0, 3);
    (1..=3).for_each(|ticket| drop(pool.submit(ticket, 0, at(0))));
    (1..=3).for_each(|id| drop(pool.ready(id, at(0))));
    assert_eq!(pool.replace(limits(0, 1), at(1)), []);
    pool.submit(4, 0, at(1));
    for id in 1..=3 {
        assert_eq!(pool.finished(id, true, at(2)), [Stop(id)]);
    }
    assert_eq!((pool.gone(1, at(3)), pool.gone(2, at(3))), (vec![], vec![]));
    assert_eq!(pool.gone(3, at(3)), [Start(4)]);
}

#[test]
fn closing_refuses_what_waits_and_lets_the_rest_finish() {
    let mut pool = warm(1, 2);
    pool.submit(2, 0, at(1));
    pool.submit(3, 0, at(1));
    assert_eq!(pool.close(at(2)), [Refuse(3, Refusal::Closing), Abort(2)]);
    assert_eq!(pool.submit(4, 0, at(2)), [Refuse(4, Refusal::Closing)]);
    assert_eq!(pool.gone(2, at(3)), [], "the reserve is not restarted");
    assert_eq!(pool.finished(1, true, at(4)), [Stop(1)]);
    assert!(!pool.is_empty());
    assert_eq!(pool.gone(1, at(5)), []);
    assert!(pool.is_empty());
    assert_eq!(pool.next_tick(), None);
}

#[test]
fn the_queue_is_bounded_in_length_and_bytes() {
    let mut pool = pool(0, 1);
    for ticket in 0..QUEUE_LENGTH_MAX as u64 {
        assert!(!matches!(pool.submit(ticket, 0, at(0))[..], [Refuse(..)]));
    }
    assert_eq!(pool.submit(99_999, 0, at(0)), [Refuse(99_999, Refusal::QueueFull)]);
    let mut pool = self::pool(0, 1);
    assert_eq!(pool.submit(1, QUEUE_BYTES_MAX, at(0)), [Start(1)]);
    assert_eq!(pool.submit(2, 1, at(0)), [Refuse(2, Refusal::QueueFull)]);
    assert_eq!(pool.ready(1, at(0)), [Assign(1, 1)]);
    assert_eq!(pool.submit(3, QUEUE_BYTES_MAX, at(0)), [], "bytes in work do not count as waiting");
}

#[test]
fn what_a_dying_instance_gives_back_is_next_in_line() {
    let mut pool = warm(0, 2);
    assert_eq!(pool.submit(2, 5, at(1)), [Assign(1, 2)]);
    assert_eq!(pool.submit(3, 5, at(1)), [Start(2)]);
    assert_eq!(pool.returned(1, Some((2, 5)), at(1)), []);
    assert_eq!(pool.ready(2, at(2)), [Assign(2, 2)]);
    assert_eq!(pool.gone(1, at(2)), [Start(3)]);
    assert_eq!(pool.close(at(3)), [Refuse(3, Refusal::Closing), Abort(3)]);
    assert_eq!(pool.returned(2, Some((2, 5)), at(3)), [Refuse(2, Refusal::Closing)]);
}

/// What happens to a pool from outside.
#[derive(Clone, Debug)]
enum Event {
    Submit,
    Ready(usize),
    StartFailed(usize, bool),
    Finished(usize, bool),
    Returned(usize),
    Gone(usize),
    Replace(u32, u32),
    Resume,
    Wait(u64),
    Close,
}

fn event() -> impl Strategy<Value = Event> {
    let pick = 0usize..8;
    prop_oneof![
        8 => Just(Event::Submit),
        6 => pick.clone().prop_map(Event::Ready),
        1 => (pick.clone(), any::<bool>()).prop_map(|(pick, for_good)| Event::StartFailed(pick, for_good)),
        6 => (pick.clone(), prop::bool::weighted(0.8)).prop_map(|(pick, reusable)| Event::Finished(pick, reusable)),
        1 => pick.clone().prop_map(Event::Returned),
        4 => pick.prop_map(Event::Gone),
        1 => (0u32..3, 1u32..5).prop_map(|(min, max)| Event::Replace(min.min(max), max)),
        1 => Just(Event::Resume),
        3 => (0u64..100).prop_map(Event::Wait),
        1 => Just(Event::Close),
    ]
}

/// The world around the pool: what its effects made of the instances.
#[derive(Default)]
struct World {
    starting: BTreeSet<InstanceId>,
    ready: BTreeSet<InstanceId>,
    busy: BTreeSet<InstanceId>,
    leaving: BTreeSet<InstanceId>,
    working: BTreeMap<InstanceId, Ticket>,
    waiting: VecDeque<Ticket>,
    closing: bool,
}

impl World {
    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Start(id) => {
                    assert!(!self.closing && self.starting.insert(id));
                }
                Assign(id, ticket) => {
                    assert_eq!(self.waiting.pop_front(), Some(ticket), "invocations run in the order they came");
                    assert!(
                        self.ready.remove(&id) && self.busy.insert(id),
                        "F2, F3: only a ready, idle instance works"
                    );
                    self.working.insert(id, ticket);
                }
                Stop(id) => {
                    assert!(self.ready.remove(&id) && self.leaving.insert(id), "only idle instances are stopped")
                }
                Abort(id) => assert!(self.starting.remove(&id) && self.leaving.insert(id)),
                Refuse(ticket, _) => {
                    let position = self.waiting.iter().position(|&waiting| waiting == ticket);
                    self.waiting.remove(position.expect("only what waits is refused"));
                }
            }
        }
    }

    fn total(&self) -> usize {
        self.starting.len() + self.ready.len() + self.busy.len() + self.leaving.len()
    }

    fn step(&mut self, pool: &mut PoolState, event: &Event, ticket: Ticket, now: Moment) -> Vec<Effect> {
        let nth = |set: &BTreeSet<InstanceId>, pick: usize| set.iter().nth(pick % set.len().max(1)).copied();
        match *event {
            Event::Submit => {
                self.waiting.push_back(ticket);
                pool.submit(ticket, 1, now)
            }
            Event::Ready(pick) => nth(&self.starting, pick).map_or_else(Vec::new, |id| {
                self.starting.remove(&id);
                self.ready.insert(id);
                pool.ready(id, now)
            }),
            Event::StartFailed(pick, for_good) => nth(&self.starting, pick).map_or_else(Vec::new, |id| {
                self.starting.remove(&id);
                self.leaving.insert(id);
                pool.start_failed(id, broken(), for_good, now)
            }),
            Event::Finished(pick, reusable) => nth(&self.busy, pick).map_or_else(Vec::new, |id| {
                self.busy.remove(&id);
                if reusable {
                    self.ready.insert(id)
                } else {
                    self.leaving.insert(id)
                };
                pool.finished(id, reusable, now)
            }),
            Event::Returned(pick) => nth(&self.busy, pick).map_or_else(Vec::new, |id| {
                self.busy.remove(&id);
                self.leaving.insert(id);
                let ticket = self.working[&id];
                self.waiting.push_front(ticket);
                pool.returned(id, Some((ticket, 1)), now)
            }),
            Event::Gone(pick) => {
                let dying: BTreeSet<InstanceId> = self.leaving.union(&self.ready).copied().collect();
                nth(&dying, pick).map_or_else(Vec::new, |id| {
                    self.leaving.remove(&id);
                    self.ready.remove(&id);
                    pool.gone(id, now)
                })
            }
            Event::Replace(min, max) => pool.replace(limits(min, max), now),
            Event::Resume => pool.resume(now),
            Event::Wait(_) => pool.tick(now),
            Event::Close => {
                self.closing = true;
                pool.close(now)
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_invariants_hold_and_nothing_is_forgotten(events in prop::collection::vec(event(), 1..200)) {
        let (mut pool, mut world, mut now) = (pool(0, 4), World::default(), at(0));
        for (ticket, event) in events.iter().enumerate() {
            if let Event::Wait(seconds) = event {
                now += at(*seconds);
            }
            let before = world.total();
            let effects = world.step(&mut pool, event, ticket as Ticket, now);
            world.apply(effects);
            prop_assert!(world.total() <= before.max(pool.limits.max as usize), "F1");
            prop_assert_eq!(pool.queue_length(), world.waiting.len());
            let counts = pool.counts();
            prop_assert_eq!(counts.starting + counts.idle + counts.busy + counts.leaving, world.total());
            prop_assert_eq!((counts.starting, counts.busy), (world.starting.len(), world.busy.len()));
        }
        // From any state: if everything goes well from now on, nothing waits for ever.
        for _ in 0..2000 {
            if world.waiting.is_empty() && (!world.closing || world.total() == 0) {
                break;
            }
            now = pool.next_tick().unwrap_or(now).max(now);
            let events = [Event::Wait(0), Event::Ready(0), Event::Finished(0, true), Event::Gone(0)];
            for event in &events[..if world.leaving.is_empty() { 3 } else { 4 }] {
                if matches!(event, Event::Gone(_)) && world.leaving.is_empty() {
                    continue;
                }
                let effects = if matches!(event, Event::Gone(_)) {
                    let id = world.leaving.pop_first().expect("checked");
                    pool.gone(id, now)
                } else {
                    world.step(&mut pool, event, 0, now)
                };
                world.apply(effects);
            }
        }
        prop_assert!(world.waiting.is_empty(), "something waits for ever: {pool:?}");
    }
}
