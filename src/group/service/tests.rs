//! The service with its timers, on a clock that the tests move.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::group::member::Protocol;

fn service(config: GroupConfig) -> GroupService {
    let (service, timers) = GroupService::new(config);
    tokio::spawn(timers.run(CancellationToken::new()));
    service
}

fn id(name: &str) -> GroupId {
    GroupId::parse(name).unwrap()
}

fn member(name: &str) -> JoinRequest {
    JoinRequest {
        member_id: None,
        candidate_id: GroupService::candidate_id(name, None),
        instance_id: None,
        client_id: name.into(),
        client_host: "/127.0.0.1".into(),
        session_timeout: Duration::from_secs(10),
        rebalance_timeout: Some(Duration::from_secs(60)),
        protocol_type: "consumer".into(),
        protocols: vec![Protocol { name: "range".into(), metadata: Bytes::new() }],
        id_required: false,
        may_skip_assignment: false,
    }
}

fn speaker(answer: &JoinAnswer) -> Speaker {
    Speaker { member_id: answer.member_id.to_string(), instance_id: None, generation: answer.generation }
}

fn sync(answer: &JoinAnswer, parts: &[(&JoinAnswer, &'static str)]) -> SyncRequest {
    SyncRequest {
        speaker: speaker(answer),
        protocol_type: None,
        protocol: None,
        assignments: parts
            .iter()
            .map(|(to, part)| (to.member_id.to_string(), Bytes::from_static(part.as_bytes())))
            .collect(),
    }
}

fn outside() -> Speaker {
    Speaker { member_id: String::new(), instance_id: None, generation: -1 }
}

#[tokio::test(start_paused = true)]
async fn two_members_share_a_group_and_one_inherits_from_the_other_that_dies() {
    let service = service(GroupConfig::default());
    let group = id("g");
    let (one, two) = tokio::join!(service.join(&group, &member("a")), service.join(&group, &member("b")));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((one.generation, one.members.len()), (1, 2));
    let follower = service.sync(&group, &sync(&two, &[]));
    let leader = service.sync(&group, &sync(&one, &[(&one, "left"), (&two, "right")]));
    assert_eq!(leader.await.unwrap().assignment, "left");
    assert_eq!(follower.await.unwrap().assignment, "right");

    while service.heartbeat(&group, &speaker(&one)).is_ok() {
        sleep(Duration::from_secs(3)).await;
    }
    let alone = JoinRequest { member_id: Some(one.member_id.to_string()), ..member("a") };
    let alone = service.join(&group, &alone).await.unwrap();
    assert_eq!((alone.generation, alone.members.len()), (2, 1));
    assert_eq!(service.heartbeat(&group, &speaker(&two)), Err(MemberError::Unknown.into()));
}

#[tokio::test(start_paused = true)]
async fn the_first_generation_takes_the_initial_delay_and_no_more() {
    let service = service(GroupConfig::default());
    let begun = tokio::time::Instant::now();
    service.join(&id("g"), &member("a")).await.unwrap();
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(100) && waited < Duration::from_millis(110), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_join_has_happened_before_its_answer_is_awaited() {
    let service = service(GroupConfig::default());
    let waiting = service.join(&id("g"), &member("a"));
    assert_eq!(service.describe(&id("g")).unwrap().state, GroupState::PreparingRebalance);
    drop(waiting);
    assert_eq!(service.describe(&id("g")), None, "the client has gone, and with it the group");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_while_it_waits_does_not_hold_up_the_others() {
    let service = service(GroupConfig::default());
    let ghost = service.join(&id("g"), &member("ghost"));
    let stays = service.join(&id("g"), &member("stays"));
    drop(ghost);
    let answer = stays.await.unwrap();
    assert_eq!(answer.members.len(), 1);
    assert_eq!(answer.leader, answer.member_id);
}

#[tokio::test(start_paused = true)]
async fn only_a_first_join_or_a_commit_from_outside_creates_a_group() {
    let service = service(GroupConfig::default());
    let group = id("g");
    let known = JoinRequest { member_id: Some("x".into()), ..member("a") };
    assert_eq!(service.join(&group, &known).await, Err(MemberError::Unknown.into()));
    let ghost = Speaker { member_id: "x".into(), instance_id: None, generation: 1 };
    assert_eq!(service.heartbeat(&group, &ghost), Err(MemberError::Unknown.into()));
    assert_eq!(service.commit(&group, &ghost, || ()), Err(CommitError::NoSuchGroup));
    assert!(service.list().is_empty());
    assert_eq!(service.commit(&group, &outside(), || 7), Ok(7));
    assert_eq!(service.list()[0].state, GroupState::Empty, "committed offsets make a group");
}

#[tokio::test(start_paused = true)]
async fn a_refused_commit_does_not_run() {
    let service = service(GroupConfig::default());
    let answer = service.join(&id("g"), &member("a")).await.unwrap();
    let mut ran = false;
    let refused = service.commit(&id("g"), &speaker(&answer), || ran = true);
    assert_eq!(refused, Err(CommitError::Rebalancing));
    assert!(!ran);
    service.sync(&id("g"), &sync(&answer, &[])).await.unwrap();
    service.commit(&id("g"), &speaker(&answer), || ran = true).unwrap();
    assert!(ran);
}

#[tokio::test(start_paused = true)]
async fn a_group_is_deleted_only_without_members() {
    let service = service(GroupConfig::default());
    let answer = service.join(&id("g"), &member("a")).await.unwrap();
    assert_eq!(service.delete(&id("g"), || panic!("not deleted")), Err(DeleteError::NotEmpty(1)));
    let leaver = Leaver { member_id: Some(answer.member_id.to_string()), instance_id: None };
    assert_eq!(service.leave(&id("g"), &[leaver]), [Ok(())]);
    assert_eq!(service.list()[0].state, GroupState::Empty);
    assert_eq!(service.delete(&id("g"), || "offsets"), Ok("offsets"));
    assert!(service.list().is_empty());
}

#[tokio::test(start_paused = true)]
async fn empty_groups_give_way_and_full_ones_do_not() {
    let service = service(GroupConfig { groups_max: 2, ..GroupConfig::default() });
    let _one = service.join(&id("one"), &member("a")).await.unwrap();
    service.commit(&id("two"), &outside(), || ()).unwrap();
    let _three = service.join(&id("three"), &member("c")).await.unwrap();
    assert_eq!(service.describe(&id("two")), None);
    assert_eq!(service.join(&id("four"), &member("d")).await, Err(JoinError::TooManyGroups(2)));
    assert_eq!(service.commit(&id("four"), &outside(), || ()), Err(CommitError::TooManyGroups(2)));
}

#[tokio::test(start_paused = true)]
async fn groups_that_have_only_given_out_ids_give_way() {
    let service = service(GroupConfig { groups_max: 2, ..GroupConfig::default() });
    let asks = JoinRequest { id_required: true, ..member("m") };
    let mut given = Vec::new();
    for group in ["a", "b"] {
        let Err(JoinError::MemberIdRequired(own)) = service.join(&id(group), &asks).await else { panic!("an id") };
        given.push(own.to_string());
    }
    assert_eq!(service.join(&id("c"), &member("m")).await.unwrap().generation, 1);
    let joins = JoinRequest { member_id: given.pop(), ..asks.clone() };
    assert_eq!(service.join(&id("b"), &joins).await, Err(MemberError::Unknown.into()), "it asks for another id");
    assert!(matches!(service.join(&id("b"), &asks).await, Err(JoinError::MemberIdRequired(_))));
    service.commit(&id("b"), &outside(), || ()).unwrap();
    assert_eq!(service.join(&id("d"), &member("m")).await.unwrap().generation, 1, "offsets are kept elsewhere");
    assert!(matches!(service.join(&id("e"), &asks).await, Err(JoinError::TooManyGroups(2))));
}

#[tokio::test(start_paused = true)]
async fn an_id_is_kept_for_a_minute_at_most() {
    let service = service(GroupConfig::default());
    let asks = JoinRequest { id_required: true, session_timeout: Duration::from_secs(1800), ..member("m") };
    assert!(matches!(service.join(&id("g"), &asks).await, Err(JoinError::MemberIdRequired(_))));
    sleep(Duration::from_secs(59)).await;
    assert_eq!(service.list().len(), 1);
    sleep(Duration::from_secs(2)).await;
    assert!(service.list().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_id_asked_for_and_never_used_leaves_nothing_behind() {
    let service = service(GroupConfig::default());
    for number in 0..50 {
        let request = JoinRequest { id_required: true, ..member("a") };
        let refused = service.join(&id(&format!("g{number}")), &request).await;
        assert!(matches!(refused, Err(JoinError::MemberIdRequired(_))));
    }
    assert_eq!(service.list().len(), 50);
    sleep(Duration::from_secs(11)).await;
    assert!(service.list().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_there_at_once_needs_no_second_look() {
    let service = service(GroupConfig { initial_rebalance_delay: Duration::ZERO, ..GroupConfig::default() });
    let answer = service.join(&id("g"), &member("a")).now_or_never();
    assert_eq!(answer.unwrap().unwrap().generation, 1);
}

/// Many threads, one group: whatever happens between them, a commit runs only in the generation it was checked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commits_and_rebalances_from_many_tasks_keep_their_order() {
    let config = GroupConfig { initial_rebalance_delay: Duration::ZERO, ..GroupConfig::default() };
    let service = service(config);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let workers = (0..8).map(|number| {
        let (service, seen) = (service.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            for _ in 0..50 {
                // Leaving at once keeps the group rebalancing; an answer may say that it is too late.
                let Ok(answer) = tokio::time::timeout(
                    Duration::from_millis(5),
                    service.join(&id("g"), &member(&format!("m{number}"))),
                )
                .await
                else {
                    continue;
                };
                let answer = answer.unwrap();
                let parts: Vec<_> = answer.members.iter().map(|m| (m.member_id.to_string(), Bytes::new())).collect();
                let request = SyncRequest { assignments: parts, ..sync(&answer, &[]) };
                let _ = tokio::time::timeout(Duration::from_millis(5), service.sync(&id("g"), &request)).await;
                let _ = service.commit(&id("g"), &speaker(&answer), || seen.lock().push(answer.generation));
                let leaver = Leaver { member_id: Some(answer.member_id.to_string()), instance_id: None };
                let _ = service.leave(&id("g"), &[leaver]);
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    let seen = seen.lock();
    assert!(seen.windows(2).all(|pair| pair[0] <= pair[1]), "G2: no commit of an earlier generation after a later one");
    assert!(!seen.is_empty(), "some commits were let through");
}

#[tokio::test(start_paused = true)]
async fn all_groups_together_have_a_limit_and_who_leaves_makes_room() {
    let held_bytes_max = 250_000;
    let config = GroupConfig { held_bytes_max, initial_rebalance_delay: Duration::ZERO, ..GroupConfig::default() };
    let service = service(config);
    let with = |name: &str, count| {
        let metadata = Bytes::from(vec![0; count]);
        JoinRequest { protocols: vec![Protocol { name: "range".into(), metadata }], ..member(name) }
    };
    let one = service.join(&id("one"), &with("a", 100_000)).await.unwrap();
    let two = service.join(&id("two"), &with("b", 100_000)).await.unwrap();
    let refused = service.join(&id("three"), &with("c", 100_000)).await.unwrap_err();
    assert!(matches!(refused, JoinError::NoRoom { found, max } if found > max && max == held_bytes_max), "{refused}");
    assert!(service.describe(&id("three")).is_none(), "nothing is left of it");
    // As much as before is no growth.
    let again = JoinRequest { member_id: Some(one.member_id.to_string()), ..with("a", 100_000) };
    let one = service.join(&id("one"), &again).await.unwrap();
    let assignment = Bytes::from(vec![0; 60_000]);
    let assigns = |answer: &JoinAnswer| SyncRequest {
        assignments: vec![(answer.member_id.to_string(), assignment.clone())],
        ..sync(answer, &[])
    };
    let refused = service.sync(&id("one"), &assigns(&one)).await.unwrap_err();
    assert!(matches!(refused, SyncError::NoRoom { found, max } if found > max && max == held_bytes_max), "{refused}");
    let leaver = Leaver { member_id: Some(two.member_id.to_string()), instance_id: None };
    assert_eq!(service.leave(&id("two"), &[leaver]), [Ok(())]);
    assert_eq!(service.sync(&id("one"), &assigns(&one)).await.unwrap().assignment.len(), 60_000);
    service.join(&id("three"), &with("c", 50_000)).await.unwrap();
}
