//! The cluster in a definition: `cluster: prod`, or `cluster: { bootstrap_servers: "host:9092", session_timeout: 10s }`.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::config::brokers::bootstrap_servers;
use crate::config::fields::Fields;
use crate::config::units::display_duration;
use crate::input::{ClusterAddress, ClusterBrokers};
use crate::topic::name::{ClusterName, NAME_BYTES_MAX, allowed_name};

const ONE_OF: &str = "either `name`, or `bootstrap_servers`";
const SECURITY: &str =
    "nothing: what protects connections stands in the settings of the process, under a name for the cluster";

pub(super) fn cluster(fields: &mut Fields<'_>) -> Option<ClusterAddress> {
    let value = fields.value("cluster")?;
    if !cfg!(feature = "cluster") {
        fields.wrong_unseen("cluster", "nothing: this build reads its own topics only (cargo feature `cluster`)");
        return None;
    }
    if let Value::String(text) = value {
        let Ok(name) = ClusterName::new(text.as_str()) else {
            fields.wrong("cluster", format!("the name of a cluster, {}; or an object", allowed_name(NAME_BYTES_MAX)));
            return None;
        };
        let brokers = ClusterBrokers::Named(name);
        return Some(ClusterAddress { brokers, session_timeout: ClusterAddress::SESSION_TIMEOUT });
    }
    fields.object("cluster", |fields| {
        let brokers = brokers(fields);
        fields.elsewhere(&["security", "tls", "sasl"], SECURITY);
        let allowed = Duration::from_secs(6)..=Duration::from_secs(30 * 60);
        let session_timeout = fields.duration("session_timeout", allowed, ClusterAddress::SESSION_TIMEOUT);
        Some(ClusterAddress { brokers: brokers?, session_timeout })
    })
}

fn brokers(fields: &mut Fields<'_>) -> Option<ClusterBrokers> {
    if fields.value("name").is_none() {
        return bootstrap_servers(fields).map(ClusterBrokers::Listed);
    }
    if fields.value("bootstrap_servers").is_some() {
        fields.wrong("bootstrap_servers", ONE_OF);
    }
    let name = fields.name("name", ClusterName::new, &allowed_name(NAME_BYTES_MAX))?;
    Some(ClusterBrokers::Named(name))
}

pub(super) fn print(address: &ClusterAddress) -> Value {
    let (field, brokers) = match &address.brokers {
        ClusterBrokers::Listed(brokers) => ("bootstrap_servers", json!(brokers)),
        ClusterBrokers::Named(name) => ("name", json!(name)),
    };
    let session_timeout = display_duration(address.session_timeout).into();
    Map::from_iter([(field.to_owned(), brokers), ("session_timeout".to_owned(), session_timeout)]).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trigger::spec::TriggerSpec;

    fn with(cluster: &Value) -> Value {
        json!({ "trigger": "t", "input": { "topic": "in", "cluster": cluster }, "function": "f" })
    }

    #[cfg(feature = "cluster")]
    #[test]
    fn an_address_reads_back_as_it_was_written() {
        let listed = ClusterBrokers::Listed(vec!["a:9092".to_owned(), "[::1]:1".to_owned()]);
        let named = ClusterBrokers::Named(ClusterName::new("prod").unwrap());
        for (written, brokers) in [
            (json!({ "bootstrap_servers": "a:9092, [::1]:1" }), &listed),
            (json!({ "bootstrap_servers": ["a:9092", "[::1]:1"] }), &listed),
            (json!({ "name": "prod" }), &named),
            (json!("prod"), &named),
        ] {
            let spec = TriggerSpec::from_json(&with(&written)).unwrap();
            let address = spec.input.cluster.clone().unwrap();
            assert_eq!(address.brokers, *brokers);
            assert_eq!(address.session_timeout, Duration::from_secs(10));
            assert_eq!(TriggerSpec::from_json(&spec.to_json()).unwrap(), spec);
        }
    }

    #[cfg(feature = "cluster")]
    #[test]
    fn wrong_addresses_are_refused_by_name() {
        let servers = |servers: Value| json!({ "bootstrap_servers": servers });
        let many: Vec<String> = (0..17).map(|index| format!("h{index}:1")).collect();
        for wrong in [
            json!(""),
            json!("host"),
            json!("host:0"),
            json!("host:+1"),
            json!("host:70000"),
            json!("ho st:1"),
            json!([1]),
            json!([]),
            json!(many),
        ] {
            let errors = TriggerSpec::from_json(&with(&servers(wrong.clone()))).unwrap_err();
            assert_eq!(errors.0[0].path, "trigger.input.cluster.bootstrap_servers", "{wrong}");
        }
        let paths = |cluster: Value| {
            let errors = TriggerSpec::from_json(&with(&cluster)).unwrap_err();
            errors.0.into_iter().map(|error| error.path).collect::<Vec<_>>()
        };
        assert_eq!(paths(json!({})), ["trigger.input.cluster.bootstrap_servers"]);
        let short = json!({ "bootstrap_servers": "h:1", "session_timeout": "1s" });
        assert_eq!(paths(short), ["trigger.input.cluster.session_timeout"]);
        let unknown = json!({ "bootstrap_servers": "h:1", "acks": 1 });
        assert_eq!(paths(unknown), ["trigger.input.cluster.acks"]);
        assert_eq!(paths(json!("h:1")), ["trigger.input.cluster"]);
        assert_eq!(paths(json!(1)), ["trigger.input.cluster"]);
        assert_eq!(paths(json!({ "name": "h:1" })), ["trigger.input.cluster.name"]);
        let both = json!({ "name": "prod", "bootstrap_servers": "h:1" });
        assert_eq!(paths(both), ["trigger.input.cluster.bootstrap_servers"]);
    }

    #[cfg(feature = "cluster")]
    #[test]
    fn secrets_in_a_definition_are_refused_and_not_repeated() {
        let written = with(&json!({ "bootstrap_servers": "h:1", "sasl": { "password": "hush" } }));
        let errors = TriggerSpec::from_json(&written).unwrap_err();
        assert_eq!(errors.0[0].path, "trigger.input.cluster.sasl");
        assert!(!errors.to_string().contains("hush") && errors.to_string().contains("settings of the process"));
    }

    #[cfg(not(feature = "cluster"))]
    #[test]
    fn a_build_without_clusters_says_so() {
        let errors = TriggerSpec::from_json(&with(&json!({ "bootstrap_servers": "h:1" }))).unwrap_err();
        assert_eq!(errors.0[0].path, "trigger.input.cluster");
        assert!(errors.0[0].allowed.contains("cargo feature `cluster`"), "{errors}");
    }
}
