//! Members that come, go, die, repeat themselves and lose their connections, in any order: the laws hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::Config;

use super::*;
use crate::group::member::{JoinRequest, Protocol, SyncRequest};

const PARTITIONS: usize = 7;

/// What one of the clients, or time, does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Join(usize),
    Sync(usize),
    Heartbeat(usize),
    Leave(usize),
    Commit(usize),
    Disconnect(usize),
    /// The process is replaced: it forgets all it knew.
    Restart(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..6_usize;
    prop_oneof![
        4 => client.clone().prop_map(Step::Join),
        4 => client.clone().prop_map(Step::Sync),
        2 => client.clone().prop_map(Step::Heartbeat),
        1 => client.clone().prop_map(Step::Leave),
        1 => client.clone().prop_map(Step::Commit),
        1 => client.clone().prop_map(Step::Disconnect),
        1 => client.prop_map(Step::Restart),
        3 => (1..15_000_u64).prop_map(Step::Pass),
    ]
}

/// A client as it sees itself. The first two are static members, the others not; odd ones take their id first.
#[derive(Default)]
struct Client {
    member_id: Option<MemberId>,
    generation: i32,
    /// What it was told to assign.
    leads: Option<Vec<MemberId>>,
    waiting: BTreeSet<Ticket>,
}

struct World {
    group: Group,
    now: Instant,
    tickets: u64,
    ids: u64,
    clients: Vec<Client>,
    owners: HashMap<Ticket, usize>,
    /// Who owns what, as members were told: by generation and partition.
    owned: BTreeMap<(i32, u8), MemberId>,
    last_generation: i32,
}

impl World {
    fn new() -> Self {
        Self {
            group: Group::new(GroupConfig { members_max: 5, ..GroupConfig::default() }),
            now: Instant::now(),
            tickets: 0,
            ids: 0,
            clients: (0..6).map(|_| Client::default()).collect(),
            owners: HashMap::new(),
            owned: BTreeMap::new(),
            last_generation: 0,
        }
    }

    fn ticket(&mut self, client: usize) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.clients[client].waiting.insert(ticket);
        self.owners.insert(ticket, client);
        ticket
    }

    fn instance(client: usize) -> Option<InstanceId> {
        (client < 2).then(|| InstanceId::parse(&format!("instance-{client}")).unwrap())
    }

    fn speaker(&self, client: usize) -> Option<Speaker> {
        let id = self.clients[client].member_id.as_ref()?;
        let instance_id = Self::instance(client).map(|instance| instance.to_string());
        Some(Speaker { member_id: id.to_string(), instance_id, generation: self.clients[client].generation })
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Join(client) => self.join(client),
            Step::Sync(client) => self.sync(client),
            Step::Heartbeat(client) => {
                if let Some(speaker) = self.speaker(client) {
                    let alive = self.group.heartbeat(self.now, &speaker);
                    assert!(alive.is_err() || speaker.generation == self.group.generation());
                }
            }
            Step::Commit(client) => self.commit(client),
            Step::Leave(client) => {
                if let Some(speaker) = self.speaker(client) {
                    let leaver = Leaver { member_id: Some(speaker.member_id), instance_id: speaker.instance_id };
                    let _ = self.group.leave(self.now, &[leaver]);
                    self.clients[client].member_id = None;
                }
            }
            Step::Disconnect(client) => self.disconnect(client),
            Step::Restart(client) => {
                self.disconnect(client);
                self.clients[client].member_id = None;
            }
            Step::Pass(time_ms) => self.pass(Duration::from_millis(time_ms)),
        }
        self.settle();
    }

    fn join(&mut self, client: usize) {
        let ticket = self.ticket(client);
        self.ids += 1;
        let names: &[&str] = if client.is_multiple_of(2) { &["range", "sticky"] } else { &["sticky", "range"] };
        let request = JoinRequest {
            member_id: self.clients[client].member_id.as_ref().map(ToString::to_string),
            candidate_id: MemberId::new("m", self.ids),
            instance_id: Self::instance(client),
            client_id: String::new(),
            client_host: String::new(),
            session_timeout: Duration::from_secs(6 + client as u64),
            rebalance_timeout: Some(Duration::from_secs(9)),
            protocol_type: "consumer".into(),
            protocols: names.iter().map(|name| Protocol { name: (*name).into(), metadata: Bytes::new() }).collect(),
            id_required: !client.is_multiple_of(2),
            may_skip_assignment: client.is_multiple_of(3),
        };
        self.group.join(self.now, ticket, &request);
    }

    fn sync(&mut self, client: usize) {
        let Some(speaker) = self.speaker(client) else { return };
        let ticket = self.ticket(client);
        let members = self.clients[client].leads.clone().unwrap_or_default();
        let part = |index: usize| -> Bytes {
            (0..PARTITIONS)
                .filter(|partition| partition % members.len() == index)
                .map(|partition| partition as u8)
                .collect()
        };
        let assignments = members.iter().enumerate().map(|(index, id)| (id.to_string(), part(index))).collect();
        let request = SyncRequest { speaker, protocol_type: None, protocol: None, assignments };
        self.group.sync(self.now, ticket, &request);
    }

    fn commit(&mut self, client: usize) {
        let Some(speaker) = self.speaker(client) else { return };
        if self.group.check_commit(self.now, &speaker).is_ok() {
            assert_eq!(speaker.generation, self.group.generation(), "G2: a commit of an old generation is refused");
        }
    }

    fn disconnect(&mut self, client: usize) {
        for ticket in std::mem::take(&mut self.clients[client].waiting) {
            self.owners.remove(&ticket);
            self.group.abandon(self.now, ticket);
            self.settle();
        }
    }

    /// Time passes from deadline to deadline, as the timers let it.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.group.next_deadline().filter(|next| *next <= end) {
            let before = self.group.next_deadline();
            self.now = self.now.max(next);
            self.group.tick(self.now);
            self.settle();
            assert_ne!(self.group.next_deadline(), before, "a tick at a deadline does what was due");
        }
        self.now = end;
    }

    fn settle(&mut self) {
        assert!(self.group.generation() >= self.last_generation, "generations only grow");
        self.last_generation = self.group.generation();
        for effect in self.group.take_effects() {
            match effect {
                Effect::Join(ticket, answer) => self.joined(ticket, answer),
                Effect::Sync(ticket, answer) => self.synced(ticket, answer),
            }
        }
    }

    /// The client whose answer this is, if it still listens.
    fn reader(&mut self, ticket: Ticket) -> Option<&mut Client> {
        let client = self.owners.remove(&ticket)?;
        let client = &mut self.clients[client];
        assert!(client.waiting.remove(&ticket), "each ticket is answered once");
        Some(client)
    }

    fn joined(&mut self, ticket: Ticket, answer: Result<JoinAnswer, JoinError>) {
        let Some(client) = self.reader(ticket) else { return };
        match answer {
            Ok(answer) => {
                let leads = answer.leader == answer.member_id && !answer.skip_assignment && !answer.members.is_empty();
                client.leads = leads.then(|| answer.members.into_iter().map(|member| member.member_id).collect());
                client.member_id = Some(answer.member_id);
                client.generation = answer.generation;
            }
            Err(JoinError::MemberIdRequired(id)) => client.member_id = Some(id),
            Err(JoinError::Member(_)) => client.member_id = None,
            Err(_) => {}
        }
    }

    fn synced(&mut self, ticket: Ticket, answer: Result<SyncAnswer, SyncError>) {
        let generation = self.group.generation();
        let Some(client) = self.reader(ticket) else { return };
        match answer {
            Ok(answer) => {
                assert_eq!(client.generation, generation, "an assignment is of the current generation");
                let id = client.member_id.clone().unwrap();
                for partition in answer.assignment {
                    let owner = self.owned.entry((generation, partition)).or_insert_with(|| id.clone());
                    // A static member's new process takes over the part of the old one under a new id.
                    let same = *owner == id || !self.group.members.contains_key(owner);
                    assert!(same, "G1: partition {partition} of generation {generation} has two owners");
                }
            }
            Err(SyncError::Member(_)) => client.member_id = None,
            Err(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(Config { cases: 2_000, ..Config::default() })]
    #[test]
    fn the_laws_hold_in_any_order_of_events(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
        }
        // Left alone, the group comes to rest: everyone who waits is answered, and everyone dies in the end.
        for _ in 0..4 {
            world.pass(Duration::from_secs(600));
        }
        prop_assert!(world.owners.is_empty(), "unanswered: {:?}", world.owners);
        prop_assert_eq!(world.group.state(), GroupState::Empty);
        prop_assert_eq!(world.group.next_deadline(), None, "an empty group needs no time");
    }

    /// However it went before: clients that behave come to share all partitions, each with one owner.
    #[test]
    fn members_that_behave_end_up_in_one_stable_generation(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
        }
        let behaving = [0, 2, 3];
        for gone in [1, 4, 5] {
            world.run(Step::Restart(gone));
        }
        for _ in 0..400 {
            for client in behaving {
                let idle = world.clients[client].waiting.is_empty();
                let Some(speaker) = world.speaker(client) else {
                    if idle {
                        world.run(Step::Join(client));
                    }
                    continue;
                };
                if !idle {
                    continue;
                }
                match world.group.heartbeat(world.now, &speaker) {
                    Ok(()) => world.run(Step::Sync(client)),
                    Err(HeartbeatError::Member(_)) if !world.group.pending.contains_key(speaker.member_id.as_str()) => {
                        world.clients[client].member_id = None;
                    }
                    Err(_) => world.run(Step::Join(client)),
                }
            }
            world.run(Step::Pass(1_000));
        }
        prop_assert_eq!(world.group.state(), GroupState::Stable);
        let members: BTreeSet<_> = behaving.iter().map(|client| world.clients[*client].member_id.clone()).collect();
        let generation = world.group.generation();
        let owners: BTreeSet<_> =
            (0..PARTITIONS as u8).map(|partition| world.owned.get(&(generation, partition)).cloned()).collect();
        prop_assert_eq!(owners, members);
    }
}
