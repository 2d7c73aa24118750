//! Setting a trigger on a cluster to another position. Its progress is its group's, and a cluster takes offsets for a
//! group from outside only while the group has no members: so this process leaves it first, and joins it again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;
use tripline_storage::Offset;
use uuid::Uuid;

use super::super::topics::meant;
use super::super::{ChoiceError, LaneChoice, ResetTriggerError, TriggerService};
use super::starts::{Starts, at};
use super::{Client, ClusterError, ClusterPartition, ClusterTopic, Committed, Start, group, selection};
use crate::trigger::commit_metadata;
use crate::trigger::runner::Runner;
use crate::trigger::spec::{StartPosition, TriggerSpec};

/// How long the commit may take: all other changes of triggers wait for it, as they do for the leaving.
const COMMIT_MAX: Duration = Duration::from_secs(15);

type Offsets = BTreeMap<ClusterPartition, Committed>;

impl TriggerService {
    /// As [`TriggerService::reset_to`], for a trigger on a cluster. This process must be the only member of its group.
    pub(in crate::trigger::service) async fn reset_there(
        &self,
        name: &str,
        choice: LaneChoice<'_>,
        to: StartPosition,
    ) -> Result<Vec<(String, u32, Offset)>, ResetTriggerError> {
        let (runner, spec) = self.paused_there(name)?;
        let client = self.inner.client(&spec).map_err(|error| ResetTriggerError::Cluster(error.to_string()))?;
        // A cluster takes its time: nobody waits for that.
        let offsets = offsets(&client, &spec, choice, to).await?;
        if client.member_count(&group(&spec)).await? > 1 {
            return Err(ResetTriggerError::Members(name.to_owned()));
        }
        let answer =
            offsets.iter().map(|(partition, commit)| (partition.topic().to_owned(), partition.number(), commit.offset));
        let answer = answer.collect();
        let (service, name) = (self.clone(), name.to_owned());
        let reset = async move { service.reset_group(&name, (runner.id, &spec), client, &offsets).await };
        self.inner.broker.to_the_end(reset).await?;
        Ok(answer)
    }

    /// `looked_up`: of which trigger and definition the offsets are.
    async fn reset_group(
        &self,
        name: &str,
        looked_up: (Uuid, &TriggerSpec),
        client: Arc<Client>,
        offsets: &Offsets,
    ) -> Result<(), ResetTriggerError> {
        let _changing = self.inner.changing.lock().await;
        // Deleted and made anew, resumed, or changed meanwhile: what was looked up does not hold.
        let (runner, spec) = self.paused_there(name)?;
        if (runner.id, &*spec) != looked_up {
            return Err(ResetTriggerError::Changed(name.to_owned()));
        }
        if offsets.is_empty() {
            return Ok(());
        }
        let place = self.inner.running.write().get_mut(name).and_then(|running| running.place.take());
        let starts = match place {
            Some(place) => {
                let starts = Arc::clone(&place.starts);
                place.leave(Duration::ZERO).await;
                starts
            }
            None => Arc::new(Mutex::new(Starts::new(&spec))),
        };
        let committed = timeout(COMMIT_MAX, client.commit_outside(&group(&spec), offsets)).await;
        if let Some(running) = self.inner.running.write().get_mut(name) {
            // Of a driver that had to be cut off.
            running.take(|_| true);
            runner.change(|holds| holds.unblock(|_| true));
            running.place = Some(self.join_group(&runner, client, starts));
        }
        match committed {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(ResetTriggerError::Members(name.to_owned())),
            Ok(Err(error)) => Err(ResetTriggerError::Unclear(error.to_string())),
            Err(_) => Err(ResetTriggerError::Unclear(format!("no answer after {} s", COMMIT_MAX.as_secs()))),
        }
    }

    fn paused_there(&self, name: &str) -> Result<(Arc<Runner>, Arc<TriggerSpec>), ResetTriggerError> {
        let runner = self.runner(name).ok_or_else(|| ResetTriggerError::Unknown(name.to_owned()))?;
        if !runner.holds(|holds| holds.paused) {
            return Err(ResetTriggerError::NotPaused(name.to_owned()));
        }
        let spec = runner.spec();
        Ok((runner, spec))
    }
}

/// What to commit, for the partitions that are chosen.
async fn offsets(
    client: &Client,
    spec: &TriggerSpec,
    choice: LaneChoice<'_>,
    to: StartPosition,
) -> Result<Offsets, ResetTriggerError> {
    let name = spec.name.as_str();
    let mut topics = client.selected(&selection(&spec.input.topics)).await?;
    if choice != LaneChoice::ALL {
        let names: Vec<&str> = topics.keys().map(String::as_str).collect();
        let meant = meant(name, choice.topic, &names)?;
        topics.retain(|topic, _| *topic == meant);
    }
    let mut offsets = Offsets::new();
    // The furthest that any of them goes, as far as that matters.
    let mut furthest = Offset::ZERO;
    for (topic_name, topic) in &topics {
        for number in numbers(name, topic_name, topic, choice.partition)? {
            let offset = client.start_of(topic_name, number, at(to)).await?;
            if let StartPosition::Offset(found) = to
                && found != offset
            {
                // The nearest that it has.
                let log_start = client.start_of(topic_name, number, Start::Earliest).await?;
                let tail = client.start_of(topic_name, number, Start::Latest).await?;
                if choice.partition.is_some() {
                    let (name, topic, partition) = (name.to_owned(), topic_name.clone(), number);
                    return Err(ResetTriggerError::Offset { name, topic, partition, found, log_start, tail });
                }
                furthest = furthest.max(tail);
            } else {
                furthest = furthest.max(offset);
            }
            let metadata = commit_metadata::of_start(topic.id, offset);
            offsets.insert(ClusterPartition::new(topic_name, number), Committed { offset, metadata });
        }
    }
    match to {
        StartPosition::Offset(found) if found > furthest && !offsets.is_empty() => {
            Err(ResetTriggerError::Beyond { name: name.to_owned(), found, tail: furthest })
        }
        _ => Ok(offsets),
    }
}

/// The chosen partition of a topic, or all.
fn numbers(
    trigger: &str,
    topic: &str,
    described: &ClusterTopic,
    chosen: Option<u32>,
) -> Result<std::ops::Range<u32>, ResetTriggerError> {
    let count = described.partition_count();
    match chosen {
        None => Ok(0..count),
        Some(number) if number < count => Ok(number..number + 1),
        Some(found) => Err(ResetTriggerError::Choice(ChoiceError::OtherPartition {
            trigger: trigger.to_owned(),
            topic: topic.to_owned(),
            found,
            last: count.saturating_sub(1),
        })),
    }
}

impl From<ClusterError> for ResetTriggerError {
    fn from(error: ClusterError) -> Self {
        Self::Cluster(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::super::super::tests::World;
    use super::*;
    use crate::broker::record::TriggerSwitched;

    /// A paused trigger `far` on a cluster that hangs up on everybody; what to commit.
    async fn paused() -> (World, Offsets) {
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = nobody.local_addr().unwrap().to_string();
        tokio::spawn(async move { while nobody.accept().await.is_ok() {} });
        let input = json!({"topic": "in", "cluster": {"bootstrap_servers": address}});
        let definition = json!({"trigger": "far", "input": input, "function": "f"});
        let world = World::start().await;
        let spec = TriggerSpec::from_json(&definition).unwrap();
        let id = Uuid::from_u128(1);
        let paused = TriggerSwitched { id, paused: true, since_ms: 1 };
        world.service.remember(&[world.service.defined(id, &spec).into(), paused.into()], &[]).await.unwrap();
        {
            let _changing = world.service.inner.changing.lock().await;
            world.service.restore_on_cluster(id, spec).unwrap();
        }
        let commit = Committed { offset: Offset::ZERO, metadata: String::new() };
        (world, [(ClusterPartition::new("in", 0), commit)].into())
    }

    async fn reset(world: &World, offsets: &Offsets, looked_up: &TriggerSpec) -> Result<(), ResetTriggerError> {
        let runner = world.service.runner("far").unwrap();
        let client = world.service.inner.client(looked_up).unwrap();
        world.service.reset_group("far", (runner.id, looked_up), client, offsets).await
    }

    fn is_member(world: &World) -> bool {
        world.service.inner.running.read()["far"].place.is_some()
    }

    #[tokio::test]
    async fn offsets_of_another_definition_are_not_committed() {
        let (world, offsets) = paused().await;
        let mut other = (*world.service.runner("far").unwrap().spec()).clone();
        other.concurrency += 1;
        let refused = reset(&world, &offsets, &other).await.unwrap_err();
        assert!(matches!(&refused, ResetTriggerError::Changed(name) if name == "far"), "{refused}");
        assert!(is_member(&world), "it has left for nothing");
    }

    #[tokio::test]
    async fn a_commit_that_is_not_answered_is_told_as_unclear_and_the_process_is_back_in_its_group() {
        let (world, offsets) = paused().await;
        let spec = world.service.runner("far").unwrap().spec();
        let refused = reset(&world, &offsets, &spec).await.unwrap_err();
        assert!(matches!(refused, ResetTriggerError::Unclear(_)), "{refused}");
        assert!(is_member(&world));
    }
}
