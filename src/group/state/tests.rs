//! One situation after the other, each with the answer that Kafka gives.

use std::time::Duration;

use super::*;
use crate::group::member::{JoinRequest, Protocol, SyncRequest};

const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(60);

/// A group, a clock, and the answers so far.
struct Scene {
    group: Group,
    now: Instant,
    tickets: u64,
    joins: BTreeMap<Ticket, Result<JoinAnswer, JoinError>>,
    syncs: BTreeMap<Ticket, Result<SyncAnswer, SyncError>>,
}

impl Scene {
    fn new(config: GroupConfig) -> Self {
        Self {
            group: Group::new(config),
            now: Instant::now(),
            tickets: 0,
            joins: BTreeMap::new(),
            syncs: BTreeMap::new(),
        }
    }

    /// Without the initial delay.
    fn prompt() -> Self {
        Self::new(GroupConfig { initial_rebalance_delay: Duration::ZERO, ..GroupConfig::default() })
    }

    fn collect(&mut self) {
        for effect in self.group.take_effects() {
            match effect {
                Effect::Join(ticket, answer) => assert!(self.joins.insert(ticket, answer).is_none(), "answered twice"),
                Effect::Sync(ticket, answer) => assert!(self.syncs.insert(ticket, answer).is_none(), "answered twice"),
            }
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn join(&mut self, request: &JoinRequest) -> Ticket {
        let ticket = self.ticket();
        self.group.join(self.now, ticket, request);
        self.collect();
        ticket
    }

    fn joined(&mut self, request: &JoinRequest) -> JoinAnswer {
        let ticket = self.join(request);
        self.joins[&ticket].clone().unwrap()
    }

    fn refused(&mut self, request: &JoinRequest) -> JoinError {
        let ticket = self.join(request);
        self.joins[&ticket].clone().unwrap_err()
    }

    fn sync(&mut self, speaker: &Speaker, assignments: &[(&MemberId, &'static str)]) -> Ticket {
        let ticket = self.ticket();
        let assignments =
            assignments.iter().map(|(id, part)| (id.to_string(), Bytes::from_static(part.as_bytes()))).collect();
        let request = SyncRequest { speaker: speaker.clone(), protocol_type: None, protocol: None, assignments };
        self.group.sync(self.now, ticket, &request);
        self.collect();
        ticket
    }

    fn synced(&mut self, speaker: &Speaker, assignments: &[(&MemberId, &'static str)]) -> Result<String, SyncError> {
        let ticket = self.sync(speaker, assignments);
        self.part(ticket)
    }

    fn part(&self, ticket: Ticket) -> Result<String, SyncError> {
        self.syncs[&ticket].clone().map(|answer| String::from_utf8(answer.assignment.to_vec()).unwrap())
    }

    fn leave(&mut self, id: &MemberId) {
        let leaver = Leaver { member_id: Some(id.to_string()), instance_id: None };
        assert_eq!(self.group.leave(self.now, &[leaver]), [Ok(())]);
        self.collect();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.group.tick(self.now);
        self.collect();
    }

    fn heartbeat(&mut self, speaker: &Speaker) -> Result<(), HeartbeatError> {
        self.group.heartbeat(self.now, speaker)
    }

    /// Two who have joined and not yet synced; the first leads.
    fn unsynced_pair(one: &JoinRequest, two: &JoinRequest) -> (Self, JoinAnswer, JoinAnswer) {
        let mut scene = Self::new(GroupConfig::default());
        let (one, two) = (scene.join(one), scene.join(two));
        scene.pass(Duration::from_millis(100));
        scene.pass(Duration::from_millis(100));
        let (one, two) = (scene.joins[&one].clone().unwrap(), scene.joins[&two].clone().unwrap());
        (scene, one, two)
    }

    /// Two members in a stable generation; the first leads.
    fn pair() -> (Self, JoinAnswer, JoinAnswer) {
        let (mut scene, one, two) = Self::unsynced_pair(&member("a"), &member("b"));
        let waits = scene.sync(&speaker(&two), &[]);
        assert_eq!(
            scene.synced(&speaker(&one), &[(&one.member_id, "left"), (&two.member_id, "right")]).unwrap(),
            "left"
        );
        assert_eq!(scene.part(waits).unwrap(), "right");
        assert_eq!(scene.group.state(), GroupState::Stable);
        (scene, one, two)
    }
}

fn protocol(name: &str) -> Protocol {
    Protocol { name: name.into(), metadata: Bytes::from(format!("{name} metadata")) }
}

fn member(name: &str) -> JoinRequest {
    JoinRequest {
        member_id: None,
        candidate_id: MemberId::new(name, "1"),
        instance_id: None,
        client_id: name.into(),
        client_host: "/127.0.0.1".into(),
        session_timeout: SESSION,
        rebalance_timeout: Some(REBALANCE),
        protocol_type: "consumer".into(),
        protocols: vec![protocol("range")],
        id_required: false,
        may_skip_assignment: false,
    }
}

fn again(answer: &JoinAnswer, name: &str) -> JoinRequest {
    JoinRequest { member_id: Some(answer.member_id.to_string()), ..member(name) }
}

fn instance(name: &str, process: u32) -> JoinRequest {
    JoinRequest {
        candidate_id: MemberId::new(name, process),
        instance_id: Some(InstanceId::parse(name).unwrap()),
        ..member(name)
    }
}

fn speaker(answer: &JoinAnswer) -> Speaker {
    Speaker { member_id: answer.member_id.to_string(), instance_id: None, generation: answer.generation }
}

#[test]
fn a_lone_member_leads_the_first_generation() {
    let mut scene = Scene::prompt();
    let answer = scene.joined(&member("a"));
    assert_eq!((answer.generation, &*answer.protocol, &*answer.protocol_type), (1, "range", "consumer"));
    assert_eq!(answer.leader, answer.member_id);
    assert_eq!(answer.members[0].metadata, "range metadata");
    assert_eq!(scene.group.state(), GroupState::CompletingRebalance);
    assert_eq!(scene.heartbeat(&speaker(&answer)), Ok(()), "a member may live before it has its assignment");
    assert_eq!(scene.synced(&speaker(&answer), &[(&answer.member_id, "all")]).unwrap(), "all");
    assert_eq!(scene.group.state(), GroupState::Stable);
}

#[test]
fn members_that_come_together_share_the_first_generation() {
    let (_, one, two) = Scene::pair();
    assert_eq!((one.generation, two.generation), (1, 1));
    assert_eq!((one.members.len(), two.members.len()), (2, 0), "only the leader is told of all");
    assert_eq!(two.leader, one.member_id);
}

#[test]
fn an_empty_group_waits_again_for_company_each_time_it_fills() {
    let mut scene = Scene::new(GroupConfig::default());
    for generation in [1, 3] {
        let ticket = scene.join(&member("a"));
        assert!(!scene.joins.contains_key(&ticket), "generation {generation} waits");
        scene.pass(Duration::from_millis(100));
        let answer = scene.joins[&ticket].clone().unwrap();
        assert_eq!(answer.generation, generation);
        scene.leave(&answer.member_id);
        assert_eq!((scene.group.state(), scene.group.generation()), (GroupState::Empty, generation + 1));
    }
}

#[test]
fn newcomers_extend_the_first_wait_but_not_beyond_the_rebalance_time_out() {
    let mut scene = Scene::new(GroupConfig::default());
    let short = |name: &str| JoinRequest { rebalance_timeout: Some(Duration::from_millis(250)), ..member(name) };
    let first = scene.join(&short("m0"));
    for number in 1..5 {
        scene.join(&short(&format!("m{number}")));
        assert!(!scene.joins.contains_key(&first), "still waiting at {number}");
        if number < 3 {
            scene.pass(Duration::from_millis(100));
        }
    }
    scene.pass(Duration::from_millis(50));
    assert_eq!(scene.joins[&first].clone().unwrap().members.len(), 5);
}

#[test]
fn a_third_member_makes_the_others_join_again() {
    let (mut scene, one, two) = Scene::pair();
    let three = scene.join(&member("c"));
    assert_eq!(scene.heartbeat(&speaker(&one)), Err(HeartbeatError::Rebalancing));
    assert_eq!(scene.synced(&speaker(&two), &[]), Err(SyncError::Rebalancing));
    let one_again = scene.join(&again(&one, "a"));
    let two_again = scene.join(&again(&two, "b"));
    for ticket in [one_again, two_again, three] {
        assert_eq!(scene.joins[&ticket].clone().unwrap().generation, 2);
    }
    assert_eq!(scene.heartbeat(&speaker(&one)), Err(HeartbeatError::Generation { found: 1, current: 2 }));
}

#[test]
fn who_does_not_join_in_time_is_out() {
    let (mut scene, one, two) = Scene::pair();
    let three = scene.join(&member("c"));
    let one_again = scene.join(&again(&one, "a"));
    for _ in 0..7 {
        let _ = scene.heartbeat(&speaker(&two));
        assert!(!scene.joins.contains_key(&three));
        scene.pass(REBALANCE / 7 + Duration::from_millis(1));
    }
    let answer = scene.joins[&one_again].clone().unwrap();
    assert_eq!((answer.generation, answer.members.len()), (2, 2));
    assert_eq!(scene.heartbeat(&speaker(&two)), Err(MemberError::Unknown.into()));
}

#[test]
fn a_silent_member_dies_and_its_part_is_shared_anew() {
    let (mut scene, one, two) = Scene::pair();
    scene.pass(SESSION / 2);
    assert_eq!(scene.heartbeat(&speaker(&one)), Ok(()));
    scene.pass(SESSION / 2);
    assert_eq!(scene.heartbeat(&speaker(&two)), Err(MemberError::Unknown.into()));
    assert_eq!(scene.heartbeat(&speaker(&one)), Err(HeartbeatError::Rebalancing));
    assert_eq!(scene.joined(&again(&one, "a")).members.len(), 1);
}

#[test]
fn a_member_that_waits_for_us_does_not_die() {
    let (mut scene, one, two) = Scene::pair();
    let one_again = scene.join(&JoinRequest { protocols: vec![protocol("range"), protocol("x")], ..again(&one, "a") });
    for _ in 0..5 {
        scene.pass(SESSION / 2);
        assert_eq!(scene.heartbeat(&speaker(&two)), Err(HeartbeatError::Rebalancing));
    }
    assert!(!scene.joins.contains_key(&one_again));
    scene.join(&again(&two, "b"));
    assert_eq!(scene.joins[&one_again].clone().unwrap().generation, 2);
}

#[test]
fn a_new_member_is_given_its_id_first_if_it_can_take_it() {
    let mut scene = Scene::prompt();
    let request = JoinRequest { id_required: true, ..member("a") };
    let JoinError::MemberIdRequired(id) = scene.refused(&request) else { panic!("an id") };
    assert_eq!(scene.group.member_count(), 0);
    let answer = scene.joined(&JoinRequest { member_id: Some(id.to_string()), ..request });
    assert_eq!((answer.member_id, answer.generation), (id, 1));
}

#[test]
fn an_id_not_used_in_time_is_forgotten_and_holds_nobody_up_longer() {
    let (mut scene, one, two) = Scene::pair();
    let JoinError::MemberIdRequired(id) = scene.refused(&JoinRequest { id_required: true, ..member("c") }) else {
        panic!("an id")
    };
    let one_again = scene.join(&JoinRequest { protocols: vec![protocol("range"), protocol("x")], ..again(&one, "a") });
    let two_again = scene.join(&again(&two, "b"));
    assert!(!scene.joins.contains_key(&one_again), "the third is expected");
    scene.pass(SESSION);
    assert!(scene.joins[&one_again].is_ok() && scene.joins[&two_again].is_ok());
    let late = JoinRequest { member_id: Some(id.to_string()), ..member("c") };
    assert_eq!(scene.refused(&late), MemberError::Unknown.into());
}

#[test]
fn an_id_not_used_costs_no_generation_that_has_begun() {
    let unused = JoinRequest { id_required: true, ..member("c") };
    let (mut scene, one, two) = Scene::unsynced_pair(&member("a"), &member("b"));
    let JoinError::MemberIdRequired(id) = scene.refused(&unused) else { panic!("an id") };
    let waits = scene.sync(&speaker(&two), &[]);
    scene.leave(&id);
    assert_eq!(scene.group.state(), GroupState::CompletingRebalance);
    assert_eq!(scene.synced(&speaker(&one), &[(&two.member_id, "all")]).unwrap(), "");
    assert_eq!(scene.part(waits).unwrap(), "all");
    assert!(matches!(scene.refused(&unused), JoinError::MemberIdRequired(_)));
    for _ in 0..4 {
        scene.pass(SESSION / 2);
        assert_eq!((scene.heartbeat(&speaker(&one)), scene.heartbeat(&speaker(&two))), (Ok(()), Ok(())));
    }
    assert_eq!((scene.group.state(), scene.group.generation()), (GroupState::Stable, one.generation));
}

#[test]
fn an_unknown_member_is_told_so() {
    let (mut scene, one, _) = Scene::pair();
    let stranger = JoinRequest { member_id: Some("nobody".into()), ..member("n") };
    assert_eq!(scene.refused(&stranger), MemberError::Unknown.into());
    let stranger = Speaker { member_id: "nobody".into(), ..speaker(&one) };
    assert_eq!(scene.heartbeat(&stranger), Err(MemberError::Unknown.into()));
    assert_eq!(scene.synced(&stranger, &[]), Err(MemberError::Unknown.into()));
    let leaver = Leaver { member_id: Some("nobody".into()), instance_id: None };
    assert_eq!(scene.group.leave(scene.now, &[leaver]), [Err(MemberError::Unknown)]);
    assert_eq!(scene.group.state(), GroupState::Stable, "nothing happened");
}

#[test]
fn a_protocol_that_all_offer_is_chosen_by_votes() {
    let mut scene = Scene::new(GroupConfig::default());
    let with = |name: &str, protocols: &[&str]| JoinRequest {
        protocols: protocols.iter().map(|name| protocol(name)).collect(),
        ..member(name)
    };
    let one = scene.join(&with("a", &["only-a", "range", "sticky"]));
    scene.join(&with("b", &["sticky", "range", "only-b", "only-b", "only-b"]));
    scene.join(&with("c", &["sticky", "range"]));
    assert_eq!(scene.refused(&with("d", &["only-d"])), JoinError::InconsistentProtocol);
    assert_eq!(
        scene.refused(&JoinRequest { protocol_type: "connect".into(), ..member("e") }),
        JoinError::InconsistentProtocol
    );
    assert_eq!(scene.refused(&with("f", &[])), JoinError::InconsistentProtocol);
    scene.pass(Duration::from_millis(100));
    scene.pass(Duration::from_millis(100));
    assert_eq!(&*scene.joins[&one].clone().unwrap().protocol, "sticky");
}

#[test]
fn with_as_many_votes_the_leaders_order_decides() {
    let mut scene = Scene::new(GroupConfig::default());
    let with =
        |name: &str, protocols: [&str; 2]| JoinRequest { protocols: protocols.map(protocol).into(), ..member(name) };
    let one = scene.join(&with("z-leads", ["sticky", "range"]));
    scene.join(&with("a", ["range", "sticky"]));
    scene.pass(Duration::from_millis(100));
    scene.pass(Duration::from_millis(100));
    assert_eq!(&*scene.joins[&one].clone().unwrap().protocol, "sticky");
}

#[test]
fn a_lone_member_may_change_its_protocols() {
    let mut scene = Scene::prompt();
    let answer = scene.joined(&member("a"));
    let changed = JoinRequest { protocols: vec![protocol("sticky")], ..again(&answer, "a") };
    assert_eq!(&*scene.joined(&changed).protocol, "sticky");
}

#[test]
fn a_repeated_join_is_answered_with_the_generation_that_is() {
    let (mut scene, one, two) = Scene::pair();
    let repeated = scene.joined(&again(&two, "b"));
    assert_eq!((repeated.generation, repeated.members.len()), (1, 0), "a follower without news");
    let leads_again = scene.join(&again(&one, "a"));
    assert!(!scene.joins.contains_key(&leads_again), "a leader that joins again wants a rebalance");

    let mut scene = Scene::prompt();
    let one = scene.joined(&member("a"));
    let repeated = scene.joined(&again(&one, "a"));
    assert_eq!((repeated.generation, repeated.members.len()), (1, 1), "it may have missed the first answer");
}

#[test]
fn a_later_join_of_the_same_member_takes_the_place_of_the_earlier() {
    let (mut scene, one, two) = Scene::pair();
    let first = scene.join(&again(&one, "a"));
    let second = scene.join(&again(&one, "a"));
    assert_eq!(scene.joins[&first], Err(JoinError::Superseded));
    scene.join(&again(&two, "b"));
    assert_eq!(scene.joins[&second].clone().unwrap().generation, 2);
}

#[test]
fn session_time_outs_have_bounds_and_a_missing_rebalance_time_out_is_the_session_time_out() {
    let mut scene = Scene::prompt();
    for session_timeout in [Duration::ZERO, Duration::from_millis(5_999), Duration::from_millis(1_800_001)] {
        let refused = scene.refused(&JoinRequest { session_timeout, ..member("a") });
        assert!(matches!(refused, JoinError::SessionTimeout { found, .. } if found == session_timeout));
    }
    for missing in [None, Some(Duration::ZERO)] {
        let mut scene = Scene::prompt();
        let one = scene.joined(&JoinRequest { rebalance_timeout: missing, ..member("a") });
        scene.sync(&speaker(&one), &[]);
        let two = scene.join(&JoinRequest { rebalance_timeout: missing, ..member("b") });
        scene.pass(SESSION - Duration::from_millis(1));
        assert!(!scene.joins.contains_key(&two));
        scene.pass(Duration::from_millis(1));
        assert_eq!(scene.joins[&two].clone().unwrap().generation, 2);
    }
}

#[test]
fn a_full_group_takes_no_more_but_keeps_its_own() {
    let mut scene = Scene::new(GroupConfig { members_max: 2, ..GroupConfig::default() });
    let one = scene.join(&member("a"));
    assert!(matches!(scene.refused(&JoinRequest { id_required: true, ..member("b") }), JoinError::MemberIdRequired(_)));
    assert_eq!(scene.refused(&member("c")), JoinError::Full(2), "an id given away takes a place");
    scene.pass(SESSION);
    let one = scene.joins[&one].clone().unwrap();
    let two = scene.join(&member("d"));
    scene.join(&again(&one, "a"));
    assert!(scene.joins[&two].is_ok());
}

#[test]
fn metadata_and_assignments_have_limits() {
    let config = GroupConfig {
        metadata_bytes_max: 100,
        group_metadata_bytes_max: 150,
        assignment_bytes_max: 50,
        protocols_max: 2,
        ..GroupConfig::default()
    };
    let mut scene = Scene::new(config);
    let with = |name: &str, length: usize| JoinRequest {
        protocols: vec![Protocol { name: "r".into(), metadata: Bytes::from(vec![0; length]) }],
        ..member(name)
    };
    assert!(matches!(scene.refused(&with("a", 100)), JoinError::TooMuch { found: 101, max: 100, .. }));
    let one = scene.join(&with("a", 99));
    assert!(matches!(scene.refused(&with("b", 60)), JoinError::TooMuch { found: 161, max: 150, .. }));
    let three = vec![protocol("1"), protocol("2"), protocol("3")];
    assert!(matches!(scene.refused(&JoinRequest { protocols: three, ..member("c") }), JoinError::TooMuch { .. }));
    scene.pass(Duration::from_millis(100));
    let one = scene.joins[&one].clone().unwrap();
    let long = "x".repeat(51).leak();
    assert!(matches!(scene.synced(&speaker(&one), &[(&one.member_id, long)]), Err(SyncError::TooLong { max: 50, .. })));
}

#[test]
fn what_members_hold_is_counted_and_given_back() {
    let mut scene = Scene::prompt();
    assert_eq!(scene.group.held_bytes(), 0);
    let unused = JoinRequest { id_required: true, ..member("c") };
    let JoinError::MemberIdRequired(id) = scene.refused(&unused) else { panic!("an id") };
    assert!(scene.group.held_bytes() > 0);
    scene.leave(&id);
    assert_eq!(scene.group.held_bytes(), 0);
    let long = Protocol { name: "range".into(), metadata: Bytes::from(vec![0; 100_000]) };
    let request = JoinRequest { protocols: vec![long], ..member("a") };
    let growth_bytes = scene.group.growth_bytes(&request);
    assert!((100_000..103_000).contains(&growth_bytes), "{growth_bytes}");
    let answer = scene.joined(&request);
    assert_eq!(scene.group.held_bytes(), growth_bytes);
    let same = JoinRequest { member_id: Some(answer.member_id.to_string()), ..request };
    assert_eq!(scene.group.growth_bytes(&same), 0);
    assert_eq!(scene.group.growth_bytes(&again(&answer, "a")), 0, "it becomes less");
    scene.synced(&speaker(&answer), &[(&answer.member_id, "part")]).unwrap();
    assert_eq!(scene.group.held_bytes(), growth_bytes + 4);
    scene.leave(&answer.member_id);
    assert_eq!(scene.group.held_bytes(), 0);
}

#[test]
fn what_is_kept_of_a_request_is_a_copy() {
    let mut scene = Scene::prompt();
    let frame = Bytes::from(vec![7; 1_000]);
    let slice = Protocol { name: "range".into(), metadata: frame.slice(500..510) };
    let answer = scene.joined(&JoinRequest { protocols: vec![slice], ..member("a") });
    let kept = answer.members[0].metadata.as_ptr();
    assert!(!frame.as_ptr_range().contains(&kept), "a slice would keep the whole frame");
}

#[test]
fn a_sync_of_another_generation_or_protocol_is_refused() {
    let (mut scene, one, _) = Scene::pair();
    let old = Speaker { generation: 0, ..speaker(&one) };
    assert_eq!(scene.synced(&old, &[]), Err(SyncError::Generation { found: 0, current: 1 }));
    for (protocol_type, protocol) in [(Some("connect"), None), (None, Some("sticky"))] {
        let ticket = scene.ticket();
        let request = SyncRequest {
            speaker: speaker(&one),
            protocol_type: protocol_type.map(str::to_owned),
            protocol: protocol.map(str::to_owned),
            assignments: Vec::new(),
        };
        scene.group.sync(scene.now, ticket, &request);
        scene.collect();
        assert_eq!(scene.syncs[&ticket], Err(SyncError::InconsistentProtocol));
    }
}

#[test]
fn an_assignment_once_set_stands() {
    let (mut scene, one, two) = Scene::pair();
    let other = [(&one.member_id, "everything"), (&two.member_id, "nothing")];
    assert_eq!(scene.synced(&speaker(&one), &other).unwrap(), "left", "G1: one assignment per generation");
    assert_eq!(scene.synced(&speaker(&two), &[]).unwrap(), "right");
}

#[test]
fn syncs_that_wait_are_refused_when_the_next_rebalance_begins() {
    let (mut scene, one, two) = Scene::unsynced_pair(&member("a"), &member("b"));
    let waits = scene.sync(&speaker(&two), &[]);
    scene.leave(&one.member_id);
    assert_eq!(scene.part(waits), Err(SyncError::Rebalancing));
}

#[test]
fn a_member_whose_sync_is_refused_has_its_session_to_join_again() {
    let (mut scene, one, two) = Scene::unsynced_pair(&member("a"), &member("b"));
    let waits = scene.sync(&speaker(&two), &[]);
    for _ in 0..2 {
        scene.pass(SESSION * 2 / 3);
        assert_eq!(scene.heartbeat(&speaker(&one)), Ok(()));
    }
    scene.leave(&one.member_id);
    assert_eq!(scene.part(waits), Err(SyncError::Rebalancing));
    scene.pass(SESSION / 2);
    assert_eq!(scene.joined(&again(&two, "b")).generation, 2);
}

#[test]
fn who_does_not_fetch_its_assignment_in_time_is_out() {
    let (mut scene, one, two) = Scene::pair();
    scene.join(&JoinRequest { protocols: vec![protocol("range"), protocol("x")], ..again(&two, "b") });
    let leads = scene.joined(&again(&one, "a"));
    scene.sync(&speaker(&leads), &[]);
    let silent = Speaker { generation: 2, ..speaker(&two) };
    for _ in 0..10 {
        assert_eq!(scene.heartbeat(&speaker(&leads)), Ok(()));
        assert_eq!(scene.heartbeat(&silent), Ok(()), "it lives, but does not fetch");
        scene.pass(REBALANCE / 10);
    }
    assert_eq!(scene.heartbeat(&silent), Err(MemberError::Unknown.into()));
    assert_eq!(scene.heartbeat(&speaker(&leads)), Err(HeartbeatError::Rebalancing));
}

#[test]
fn a_leader_that_never_assigns_is_out_too() {
    let mut scene = Scene::prompt();
    let one = scene.joined(&member("a"));
    for _ in 0..10 {
        assert_eq!(scene.heartbeat(&speaker(&one)), Ok(()));
        scene.pass(REBALANCE / 10);
    }
    assert_eq!((scene.group.state(), scene.group.member_count()), (GroupState::Empty, 0));
}

#[test]
fn several_members_leave_at_once_each_with_its_own_result() {
    let (mut scene, one, two) = Scene::pair();
    let leavers = [
        Leaver { member_id: Some(one.member_id.to_string()), instance_id: None },
        Leaver { member_id: None, instance_id: Some("nobody".into()) },
        Leaver { member_id: Some(two.member_id.to_string()), instance_id: Some("nobody".into()) },
        Leaver { member_id: None, instance_id: None },
        Leaver { member_id: Some(two.member_id.to_string()), instance_id: None },
    ];
    let unknown = Err(MemberError::Unknown);
    assert_eq!(scene.group.leave(scene.now, &leavers), [Ok(()), unknown, unknown, unknown, Ok(())]);
    assert_eq!(scene.group.state(), GroupState::Empty);
}

#[test]
fn a_member_that_leaves_while_it_waits_is_answered() {
    let (mut scene, one, _) = Scene::pair();
    let waits = scene.join(&again(&one, "a"));
    scene.leave(&one.member_id);
    assert_eq!(scene.joins[&waits], Err(MemberError::Unknown.into()));
}

/// A static member leads, a dynamic one follows; stable.
fn static_pair() -> (Scene, JoinAnswer, JoinAnswer) {
    let (mut scene, one, two) = Scene::unsynced_pair(&instance("i", 1), &member("b"));
    scene.sync(&speaker(&one), &[(&one.member_id, "left"), (&two.member_id, "right")]);
    scene.sync(&speaker(&two), &[]);
    (scene, one, two)
}

#[test]
fn a_static_member_comes_back_as_a_new_process_without_a_rebalance() {
    let (mut scene, one, two) = static_pair();
    let back = scene.joined(&instance("i", 2));
    assert_eq!((back.generation, back.members.len(), back.skip_assignment), (1, 0, false));
    assert_eq!(back.leader, one.member_id, "it must not take itself for the leader");
    assert_eq!(scene.synced(&speaker(&back), &[]).unwrap(), "left", "the part of the old process");
    assert_eq!(scene.heartbeat(&speaker(&two)), Ok(()));

    let newest = scene.joined(&JoinRequest { may_skip_assignment: true, ..instance("i", 3) });
    assert!(newest.skip_assignment && newest.leader == newest.member_id && newest.members.len() == 2);
}

#[test]
fn the_old_process_of_a_static_member_is_fenced() {
    let (mut scene, one, _) = static_pair();
    scene.joined(&instance("i", 2));
    let old = Speaker { instance_id: Some("i".into()), ..speaker(&one) };
    assert_eq!(scene.heartbeat(&old), Err(MemberError::Fenced.into()));
    assert_eq!(scene.synced(&old, &[]), Err(MemberError::Fenced.into()));
    assert_eq!(scene.group.check_commit(scene.now, &old), Err(MemberError::Fenced.into()));
    let rejoin = JoinRequest { member_id: Some(one.member_id.to_string()), ..instance("i", 9) };
    assert_eq!(scene.refused(&rejoin), MemberError::Fenced.into());
    let leaver = Leaver { member_id: Some(one.member_id.to_string()), instance_id: Some("i".into()) };
    assert_eq!(scene.group.leave(scene.now, &[leaver]), [Err(MemberError::Fenced)]);
}

#[test]
fn a_waiting_join_of_the_old_process_is_fenced_when_the_new_one_comes() {
    let (mut scene, one, two) = static_pair();
    let old = scene.join(&JoinRequest { member_id: Some(one.member_id.to_string()), ..instance("i", 1) });
    let new = scene.join(&instance("i", 2));
    assert_eq!(scene.joins[&old], Err(MemberError::Fenced.into()));
    scene.join(&again(&two, "b"));
    assert_eq!(scene.joins[&new].clone().unwrap().generation, 2);
}

#[test]
fn an_absent_static_member_keeps_its_place_until_its_session_ends() {
    let mut scene = Scene::new(GroupConfig::default());
    let quick = |request: JoinRequest| JoinRequest { rebalance_timeout: Some(SESSION / 2), ..request };
    let one = scene.join(&quick(member("a")));
    scene.join(&quick(instance("i", 1)));
    scene.pass(Duration::from_millis(100));
    scene.pass(Duration::from_millis(100));
    let one = scene.joins[&one].clone().unwrap();
    let three = scene.join(&quick(member("c")));
    let one_again = scene.join(&quick(again(&one, "a")));
    scene.pass(SESSION / 2);
    let one = scene.joins[&one_again].clone().unwrap();
    assert_eq!((one.generation, one.members.len()), (2, 3), "the leader assigns to it as well");
    let three = scene.joins[&three].clone().unwrap();
    scene.sync(&speaker(&one), &[]);
    scene.sync(&speaker(&three), &[]);
    scene.pass(SESSION / 2);
    assert_eq!(scene.group.member_count(), 2, "its session has ended");
    assert_eq!(scene.heartbeat(&speaker(&one)), Err(HeartbeatError::Rebalancing));
}

#[test]
fn a_static_member_leaves_by_its_name_alone() {
    let (mut scene, _, _) = static_pair();
    let leaver = Leaver { member_id: None, instance_id: Some("i".into()) };
    assert_eq!(scene.group.leave(scene.now, &[leaver]), [Ok(())]);
    assert_eq!(scene.group.state(), GroupState::PreparingRebalance);
}

#[test]
fn commits_are_accepted_from_members_of_this_generation_only() {
    let (mut scene, one, two) = Scene::pair();
    let now = scene.now;
    assert_eq!(scene.group.check_commit(now, &speaker(&one)), Ok(()));
    let old = Speaker { generation: 0, ..speaker(&one) };
    assert_eq!(scene.group.check_commit(now, &old), Err(CommitError::Generation { found: 0, current: 1 }));
    let outside = Speaker { member_id: String::new(), instance_id: None, generation: -1 };
    assert_eq!(scene.group.check_commit(now, &outside), Err(MemberError::Unknown.into()));
    scene.join(&member("c"));
    assert_eq!(scene.group.check_commit(now, &speaker(&two)), Ok(()), "the last chance before joining again");
    scene.join(&again(&one, "a"));
    let next = scene.joined(&again(&two, "b"));
    assert_eq!(scene.group.check_commit(now, &speaker(&next)), Err(CommitError::Rebalancing));
    assert_eq!(scene.group.check_commit(now, &speaker(&one)), Err(CommitError::Generation { found: 1, current: 2 }));
}

#[test]
fn an_empty_group_takes_commits_from_outside_only() {
    let mut scene = Scene::prompt();
    let outside = Speaker { member_id: String::new(), instance_id: None, generation: -1 };
    assert_eq!(scene.group.check_commit(scene.now, &outside), Ok(()));
    let member = Speaker { member_id: "gone".into(), instance_id: None, generation: 3 };
    assert_eq!(scene.group.check_commit(scene.now, &member), Err(MemberError::Unknown.into()));
}

#[test]
fn a_commit_counts_as_a_heartbeat() {
    let (mut scene, one, two) = Scene::pair();
    for _ in 0..4 {
        scene.pass(SESSION / 2);
        for answer in [&one, &two] {
            assert_eq!(scene.group.check_commit(scene.now, &speaker(answer)), Ok(()));
        }
    }
}

#[test]
fn a_newcomer_whose_client_goes_away_is_no_member() {
    let (mut scene, one, two) = Scene::pair();
    let ghost = scene.join(&member("c"));
    scene.group.abandon(scene.now, ghost);
    scene.collect();
    assert_eq!(scene.group.member_count(), 2);
    scene.join(&again(&one, "a"));
    let answer = scene.joined(&again(&two, "b"));
    assert_eq!(answer.generation, 2);
}

#[test]
fn an_old_member_whose_client_goes_away_has_its_session_to_come_back() {
    let (mut scene, one, two) = Scene::pair();
    let lost = scene.join(&again(&one, "a"));
    scene.group.abandon(scene.now, lost);
    let two_again = scene.join(&again(&two, "b"));
    assert!(!scene.joins.contains_key(&two_again), "the other is expected back");
    scene.pass(SESSION / 2);
    assert_eq!(scene.joined(&again(&one, "a")).generation, 2);
    assert!(!scene.joins.contains_key(&lost), "nobody waits for that answer");
    assert!(scene.joins[&two_again].is_ok());
}

#[test]
fn a_description_tells_members_protocol_and_assignment_once_stable() {
    let (mut scene, one, _) = Scene::pair();
    let description = scene.group.describe();
    assert_eq!((description.state.as_str(), description.protocol.as_str()), ("Stable", "range"));
    let parts: Vec<_> = description.members.iter().map(|member| member.assignment.clone()).collect();
    assert_eq!(parts, ["left", "right"]);
    scene.leave(&one.member_id);
    let description = scene.group.describe();
    assert_eq!((description.state.as_str(), description.protocol.as_str()), ("PreparingRebalance", ""));
}
