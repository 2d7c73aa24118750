//! Metrics as Prometheus text, made from the rooms when they are asked for.
//!
//! Topics and groups have the names of `kafka_exporter`, so that dashboards made for it light up; our own begin with
//! `tripline_`. Labels are names of topics, groups, triggers, functions and fixed words, never keys or ids of events.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::net::SocketAddr;

use parking_lot::Mutex;
use tripline_storage::PartitionId;

use crate::broker::{Broker, Topic};
use crate::function::{DURATION_BOUNDS_MS, DurationsSnapshot, FunctionReport, FunctionService};
use crate::group::service::{GroupListing, GroupService};
use crate::source::schedule::service::{ScheduleReport, ScheduleService, ScheduleState};
use crate::topic::name::TriggerName;
use crate::trigger::run::RunKind;
use crate::trigger::service::{LaneReport, TriggerReport, TriggerService, TriggerState};
use crate::trigger::trace::TRACE_TOPIC;

/// What HTTP counts by itself.
#[derive(Debug, Default)]
pub struct HttpCounts {
    by_topic: Mutex<BTreeMap<String, (u64, u64)>>,
}

impl HttpCounts {
    /// Counts what one request appended.
    pub fn records_in(&self, topic: &str, records: u64, bytes: u64) {
        let mut by_topic = self.by_topic.lock();
        // There are as many entries as topics; deleted ones stay, as a counter must.
        let counts = by_topic.entry(topic.to_owned()).or_default();
        counts.0 += records;
        counts.1 += bytes;
    }
}

/// Where the numbers come from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Topics, and what groups have committed.
    pub broker: &'a Broker,
    /// Members of groups.
    pub groups: &'a GroupService,
    /// Functions.
    pub functions: &'a FunctionService,
    /// Triggers.
    pub triggers: &'a TriggerService,
    /// Schedules.
    pub schedules: &'a ScheduleService,
    /// Records that came in by HTTP.
    pub counts: &'a HttpCounts,
    /// The release.
    pub version: &'a str,
    /// Its commit.
    pub commit: &'a str,
    /// Where Kafka clients connect.
    pub kafka_address: Option<SocketAddr>,
}

/// All metrics.
#[must_use]
pub fn render(source: &Source<'_>) -> String {
    let mut text = Text::default();
    build(&mut text, source);
    topics(&mut text, &source.broker.topics());
    scrubber(&mut text, source.broker);
    groups(&mut text, source.broker);
    members(&mut text, source.groups.list(), source.broker.groups_with_offsets());
    incoming(&mut text, source);
    compaction(&mut text, source.broker);
    let reports = source.triggers.list();
    triggers(&mut text, &reports);
    runs(&mut text, &reports, &source.triggers.runs_going_on());
    schedules(&mut text, &source.schedules.list());
    traces(&mut text, source);
    functions(&mut text, &source.functions.list());
    text.finish()
}

/// Metrics by name: the text format wants all samples of a name together.
#[derive(Debug, Default)]
struct Text {
    families: BTreeMap<&'static str, (&'static str, &'static str, String)>,
}

impl Text {
    fn sample(
        &mut self,
        kind: (&'static str, &'static str, &'static str),
        suffix: &str,
        labels: &[(&str, &dyn Display)],
        value: impl Display,
    ) {
        let (name, kind, help) = kind;
        let (_, _, samples) = self.families.entry(name).or_insert_with(|| (kind, help, String::new()));
        let _ = write!(samples, "{name}{suffix}");
        for (index, (label, value)) in labels.iter().enumerate() {
            let value = escaped(&value.to_string());
            let _ = write!(samples, "{}{label}=\"{value}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(samples, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.sample((name, "gauge", help), "", labels, value);
    }

    fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &dyn Display)],
        value: impl Display,
    ) {
        self.sample((name, "counter", help), "", labels, value);
    }

    fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: (&str, &dyn Display),
        durations: &DurationsSnapshot,
    ) {
        let kind = (name, "histogram", help);
        let mut below = 0;
        for (bound_ms, count) in DURATION_BOUNDS_MS.iter().zip(durations.buckets) {
            below += count;
            self.sample(kind, "_bucket", &[label, ("le", &(*bound_ms as f64 / 1e3))], below);
        }
        self.sample(kind, "_bucket", &[label, ("le", &"+Inf")], durations.count());
        self.sample(kind, "_sum", &[label], durations.sum_us as f64 / 1e6);
        self.sample(kind, "_count", &[label], durations.count());
    }

    fn finish(self) -> String {
        let mut text = String::new();
        for (name, (kind, help, samples)) in self.families {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        text
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn compaction(text: &mut Text, broker: &Broker) {
    let (records, bytes) = broker.compacted();
    let help = "Records that compaction has removed since the start.";
    text.counter("tripline_compaction_removed_records_total", help, &[], records);
    let help = "Bytes by which compaction has made segments smaller since the start.";
    text.counter("tripline_compaction_removed_bytes_total", help, &[], bytes);
}

fn build(text: &mut Text, source: &Source<'_>) {
    let labels: [(&str, &dyn Display); 2] = [("version", &source.version), ("commit", &source.commit)];
    text.gauge("tripline_build_info", "The release that runs.", &labels, 1);
    text.gauge("kafka_brokers", "Brokers of the cluster.", &[], 1);
    if let Some(address) = source.kafka_address {
        text.gauge("kafka_broker_info", "The brokers.", &[("id", &1), ("address", &address)], 1);
    }
    if let Ok(free_bytes) = source.broker.free_bytes() {
        text.gauge("tripline_disk_free_bytes", "Bytes free on the data directory's file system.", &[], free_bytes);
    }
    let full = u8::from(source.broker.is_disk_full());
    text.gauge("tripline_disk_full", "1 while appends are refused because the disk is full.", &[], full);
    let held_bytes = source.broker.reserve_held_bytes();
    text.gauge("tripline_disk_reserve_bytes", "Bytes kept back for a full disk.", &[], held_bytes);
}

fn topics(text: &mut Text, topics: &[std::sync::Arc<Topic>]) {
    for topic in topics {
        let name: (&str, &dyn Display) = ("topic", topic.name());
        text.gauge("kafka_topic_partitions", "Partitions of a topic.", &[name], topic.partition_count());
        let mut data_bytes = 0;
        let offline = "1 while a partition is offline: at the start its disk did not give it back, or had no room.";
        for number in 0..topic.partition_count() {
            let labels: [(&str, &dyn Display); 2] = [name, ("partition", &number)];
            let partition = topic.partition(number);
            text.gauge("tripline_partition_offline", offline, &labels, u8::from(partition.is_err()));
            let Ok(partition) = partition else { continue };
            let (oldest, newest) = (partition.log_start(), partition.tail());
            data_bytes += partition.len_bytes();
            text.gauge("kafka_topic_partition_current_offset", "One after the newest offset.", &labels, newest);
            text.gauge("kafka_topic_partition_oldest_offset", "The oldest offset.", &labels, oldest);
            text.gauge("kafka_topic_partition_leader", "The leader's id.", &labels, 1);
            text.gauge("kafka_topic_partition_leader_is_preferred", "Always.", &labels, 1);
            text.gauge("kafka_topic_partition_replicas", "Replicas.", &labels, 1);
            text.gauge("kafka_topic_partition_in_sync_replica", "Replicas in sync.", &labels, 1);
            text.gauge("kafka_topic_partition_under_replicated_partition", "Never.", &labels, 0);
            let stopped = u8::from(partition.stopped().is_some());
            let help = "1 when a partition takes no writes until a restart, after an I/O error.";
            text.gauge("tripline_partition_stopped", help, &labels, stopped);
        }
        text.gauge("tripline_data_bytes", "Bytes of a topic's records.", &[name], data_bytes);
    }
}

fn scrubber(text: &mut Text, broker: &Broker) {
    let report = broker.scrub_report();
    let help = "Bytes of sealed segments read again to find damage.";
    text.counter("tripline_scrub_read_bytes_total", help, &[], report.read_bytes);
    text.counter("tripline_scrub_rounds_total", "Rounds over all partitions that ended.", &[], report.rounds);
    let help = "Ranges of offsets that are damaged on disk.";
    for topic in broker.topics() {
        for number in 0..topic.partition_count() {
            let id = PartitionId { topic: topic.id(), partition: number };
            let ranges = report.damaged.get(&id).map_or(0, Vec::len);
            let labels: [(&str, &dyn Display); 2] = [("topic", topic.name()), ("partition", &number)];
            text.gauge("tripline_partition_damaged_ranges", help, &labels, ranges);
        }
    }
}

fn groups(text: &mut Text, broker: &Broker) {
    for group in broker.groups_with_offsets() {
        let mut sums = BTreeMap::<String, (i64, i64)>::new();
        for ((topic, partition), committed) in broker.committed_offsets(&group) {
            let Some(topic) = broker.topic_by_id(topic) else { continue };
            let Ok(tail) = topic.partition(partition).map(|log| log.tail().get()) else { continue };
            let offset = committed.offset.get();
            let lag = (tail - offset).max(0);
            let labels: [(&str, &dyn Display); 3] =
                [("consumergroup", &group), ("topic", topic.name()), ("partition", &partition)];
            text.gauge("kafka_consumergroup_current_offset", "The committed offset.", &labels, offset);
            text.gauge("kafka_consumergroup_lag", "Records behind the tail.", &labels, lag);
            let sum = sums.entry(topic.name().to_string()).or_default();
            *sum = (sum.0 + offset, sum.1 + lag);
        }
        for (topic, (offset, lag)) in sums {
            let labels: [(&str, &dyn Display); 2] = [("consumergroup", &group), ("topic", &topic)];
            text.gauge("kafka_consumergroup_current_offset_sum", "Committed offsets of a topic.", &labels, offset);
            text.gauge("kafka_consumergroup_lag_sum", "Records behind in a topic.", &labels, lag);
        }
    }
}

/// Groups of which there are committed offsets alone have no members.
fn members(text: &mut Text, known: Vec<GroupListing>, with_offsets: Vec<String>) {
    let mut counts: BTreeMap<_, _> = with_offsets.into_iter().map(|group| (group, 0)).collect();
    counts.extend(known.into_iter().map(|group| (group.id.to_string(), group.members)));
    for (group, count) in counts {
        text.gauge("kafka_consumergroup_members", "Members of a group.", &[("consumergroup", &group)], count);
    }
}

fn incoming(text: &mut Text, source: &Source<'_>) {
    for (topic, (records, bytes)) in &*source.counts.by_topic.lock() {
        let labels: [(&str, &dyn Display); 2] = [("topic", topic), ("protocol", &"http")];
        text.counter("tripline_records_in_total", "Records appended.", &labels, records);
        text.counter("tripline_bytes_in_total", "Bytes of requests that appended.", &labels, bytes);
    }
    let (records, bytes) = source.broker.appended();
    text.counter(
        "tripline_appended_records_total",
        "Records appended by everybody, the broker itself too.",
        &[],
        records,
    );
    text.counter("tripline_appended_bytes_total", "Bytes of batches appended by everybody.", &[], bytes);
}

fn traces(text: &mut Text, source: &Source<'_>) {
    let counts = source.triggers.trace_counts();
    let help = "Attempts and verdicts that events' history has got since the start.";
    text.counter("tripline_trace_facts_total", help, &[], counts.written);
    let help =
        "Attempts and verdicts that events' history misses: they came faster than the disk took them, or it took none.";
    text.counter("tripline_trace_facts_dropped_total", help, &[], counts.dropped);
    let log = source.broker.topic(TRACE_TOPIC).and_then(|topic| topic.partition(0).ok().cloned());
    let kept = log.map_or(0, |log| log.tail().since(log.log_start()));
    text.gauge("tripline_trace_records", "Records of events' history that are kept.", &[], kept);
}

fn triggers(text: &mut Text, reports: &[TriggerReport]) {
    for report in reports {
        let name: (&str, &dyn Display) = ("trigger", &report.spec.name);
        for state in TriggerState::ALL {
            let value = u8::from(report.state == state);
            text.gauge(
                "tripline_trigger_state",
                "1 for the state it is in.",
                &[name, ("state", &state.as_str())],
                value,
            );
        }
        let lag: u64 = report.lanes.iter().map(LaneReport::lag).sum();
        let in_flight: u64 = report.lanes.iter().map(|lane| u64::from(lane.in_flight_records)).sum();
        text.gauge("tripline_trigger_lag_records", "Records not finished.", &[name], lag);
        text.gauge("tripline_trigger_inflight_records", "Records in hand.", &[name], in_flight);
        let counts = &report.counts;
        for (outcome, value) in [
            ("delivered", counts.delivered),
            ("filtered", counts.filtered),
            ("dead_lettered", counts.dead_lettered),
            ("dropped", counts.dropped),
            ("expired", counts.expired),
            ("debounced", counts.debounced),
            ("skipped", counts.skipped),
        ] {
            let labels = [name, ("outcome", &outcome as &dyn Display)];
            text.counter("tripline_trigger_records_total", "Records by what became of them.", &labels, value);
        }
        for (outcome, value) in [("succeeded", counts.attempts_succeeded), ("failed", counts.attempts_failed)] {
            let labels = [name, ("outcome", &outcome as &dyn Display)];
            text.counter("tripline_trigger_attempts_total", "Attempts by how they ended.", &labels, value);
        }
        text.gauge("tripline_dead_letters", "Dead letters since the start.", &[name], counts.dead_lettered);
    }
}

fn runs(text: &mut Text, reports: &[TriggerReport], going_on: &BTreeMap<(TriggerName, RunKind), (usize, u64)>) {
    for name in reports.iter().map(|report| &report.spec.name) {
        for kind in [RunKind::Replay, RunKind::Redrive] {
            let (count, lag) = going_on.get(&(name.clone(), kind)).copied().unwrap_or_default();
            let labels: [(&str, &dyn Display); 2] = [("trigger", name), ("kind", &kind.as_str())];
            text.gauge("tripline_trigger_runs", "Replays and redrives that go on.", &labels, count);
            text.gauge("tripline_trigger_run_lag_records", "Records that they have before them.", &labels, lag);
        }
    }
}

fn schedules(text: &mut Text, reports: &[ScheduleReport]) {
    for report in reports {
        let name: (&str, &dyn Display) = ("schedule", &report.spec.name);
        for state in ScheduleState::ALL {
            let labels = [name, ("state", &state.as_str() as &dyn Display)];
            let value = u8::from(report.state == state);
            text.gauge("tripline_schedule_state", "1 for the state it is in.", &labels, value);
        }
        let counts = &report.counts;
        text.counter("tripline_schedule_ticks_total", "Ticks whose events were appended.", &[name], counts.fired);
        let help = "How often ticks that were missed were left out.";
        text.counter("tripline_schedule_skips_total", help, &[name], counts.skipped);
        let help = "Tries to append a tick that its topic did not take.";
        text.counter("tripline_schedule_failures_total", help, &[name], counts.failed);
        let help = "How late the last tick was appended.";
        text.gauge("tripline_schedule_lateness_seconds", help, &[name], counts.last_late_ms as f64 / 1e3);
        if let Some(last) = report.last {
            let help = "Time of the last tick.";
            text.gauge("tripline_schedule_last_tick_timestamp_seconds", help, &[name], last.unix_s());
        }
        if let Some((next, _)) = report.next {
            let help = "Time of the next tick.";
            text.gauge("tripline_schedule_next_tick_timestamp_seconds", help, &[name], next.unix_s());
        }
    }
}

fn functions(text: &mut Text, reports: &[FunctionReport]) {
    for report in reports {
        let name: (&str, &dyn Display) = ("function", &report.spec.name);
        let stats = &report.stats;
        let outcomes = stats.errors_by_class().map(|(class, count)| (class.as_str(), count));
        for (outcome, count) in outcomes.chain([("success", stats.succeeded)]) {
            text.counter(
                "tripline_invocations_total",
                "Invocations by outcome.",
                &[name, ("outcome", &outcome)],
                count,
            );
        }
        text.histogram("tripline_invocation_seconds", "Time in the function.", name, &stats.run);
        text.histogram("tripline_cold_start_seconds", "Time to start an instance.", name, &stats.cold_start);
        text.counter("tripline_cold_starts_total", "Instances started.", &[name], stats.cold_start.count());
        let instances = &report.status.instances;
        for (state, count) in [
            ("starting", instances.starting),
            ("idle", instances.idle),
            ("busy", instances.busy),
            ("leaving", instances.leaving),
        ] {
            text.gauge("tripline_function_instances", "Instances by what they do.", &[name, ("state", &state)], count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::id::GroupId;
    use crate::group::state::GroupState;

    #[test]
    fn samples_of_a_name_stand_together_and_labels_are_escaped() {
        let mut text = Text::default();
        text.gauge("b", "B.", &[("x", &"a\"b\\c\n")], 1);
        text.counter("a", "A.", &[], 2);
        text.gauge("b", "B.", &[("x", &"y"), ("z", &0)], 3);
        let expected = "# HELP a A.\n# TYPE a counter\na 2\n# HELP b B.\n# TYPE b gauge\nb{x=\"a\\\"b\\\\c\\n\"} 1\nb{x=\"y\",z=\"0\"} 3\n";
        assert_eq!(text.finish(), expected);
    }

    #[test]
    fn groups_are_told_with_their_members_also_those_that_have_none() {
        let listing = |id: &str, members| GroupListing {
            id: GroupId::parse(id).unwrap(),
            state: GroupState::Stable,
            protocol_type: "consumer".to_owned(),
            members,
            left: None,
        };
        let mut text = Text::default();
        members(&mut text, vec![listing("both", 2), listing("new", 1)], vec!["both".to_owned(), "gone".to_owned()]);
        let samples: Vec<_> = text.finish().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        let expected = [("both", 2), ("gone", 0), ("new", 1)]
            .map(|(group, count)| format!("kafka_consumergroup_members{{consumergroup=\"{group}\"}} {count}"));
        assert_eq!(samples, expected);
    }

    #[test]
    fn a_histogram_counts_upwards_and_ends_with_all() {
        let mut text = Text::default();
        let mut durations = DurationsSnapshot::default();
        durations.buckets[0] = 2;
        durations.buckets[2] = 3;
        durations.sum_us = 1_500_000;
        text.histogram("h", "H.", ("function", &"f"), &durations);
        let text = text.finish();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("h_")).collect();
        assert!(lines[1].ends_with(" 2") && lines[2].ends_with(" 5"), "{text}");
        assert_eq!(lines[lines.len() - 3], "h_bucket{function=\"f\",le=\"+Inf\"} 5");
        assert_eq!(lines[lines.len() - 2], "h_sum{function=\"f\"} 1.5");
    }
}
