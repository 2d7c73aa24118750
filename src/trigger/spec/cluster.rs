//! The address of a cluster in a definition: `cluster: { bootstrap_servers: "host:9092", session_timeout: 10s }`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::config::fields::Fields;
use crate::config::units::display_duration;
use crate::input::ClusterAddress;

const SERVERS: &str = "1 to 16 brokers as host:port, in a list or a text with commas";
const SERVERS_MAX: usize = 16;
const HOST_BYTES_MAX: usize = 255;

pub(super) fn cluster(fields: &mut Fields<'_>) -> Option<ClusterAddress> {
    fields.value("cluster")?;
    if !cfg!(feature = "cluster") {
        fields.wrong("cluster", "nothing: this build reads its own topics only (cargo feature `cluster`)");
        return None;
    }
    fields.object("cluster", |fields| {
        fields.not_yet(&["security", "tls", "sasl"]);
        let servers = servers(fields.value("bootstrap_servers"));
        if servers.is_none() {
            fields.wrong("bootstrap_servers", SERVERS);
        }
        let allowed = Duration::from_secs(6)..=Duration::from_secs(30 * 60);
        let session_timeout = fields.duration("session_timeout", allowed, ClusterAddress::SESSION_TIMEOUT);
        Some(ClusterAddress { bootstrap_servers: servers?, session_timeout })
    })
}

pub(super) fn print(address: &ClusterAddress) -> Value {
    json!({
        "bootstrap_servers": address.bootstrap_servers,
        "session_timeout": display_duration(address.session_timeout),
    })
}

fn servers(value: Option<&Value>) -> Option<Vec<String>> {
    let written: Vec<&str> = match value? {
        Value::String(text) => text.split(',').map(str::trim).collect(),
        Value::Array(servers) => servers.iter().map(Value::as_str).collect::<Option<_>>()?,
        _ => return None,
    };
    let right = (1..=SERVERS_MAX).contains(&written.len()) && written.iter().all(|server| is_server(server));
    right.then(|| written.into_iter().map(str::to_owned).collect())
}

fn is_server(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_is_right = (1..=HOST_BYTES_MAX).contains(&host.len())
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_[]:".contains(&byte));
    host_is_right && port.parse::<u16>().is_ok_and(|port| port > 0) && port.bytes().all(|byte| byte.is_ascii_digit())
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
        for servers in [json!("a:9092, [::1]:1"), json!(["a:9092", "[::1]:1"])] {
            let written = with(&json!({ "bootstrap_servers": servers }));
            let spec = TriggerSpec::from_json(&written).unwrap();
            let address = spec.input.cluster.clone().unwrap();
            assert_eq!(address.bootstrap_servers, ["a:9092", "[::1]:1"]);
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
    }

    #[cfg(not(feature = "cluster"))]
    #[test]
    fn a_build_without_clusters_says_so() {
        let errors = TriggerSpec::from_json(&with(&json!({ "bootstrap_servers": "h:1" }))).unwrap_err();
        assert_eq!(errors.0[0].path, "trigger.input.cluster");
        assert!(errors.0[0].allowed.contains("cargo feature `cluster`"), "{errors}");
    }
}
