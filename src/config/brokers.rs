//! A list of brokers: `"kafka1:9092, kafka2:9092"`, or the same as a list.

use serde_json::Value;

use super::fields::Fields;

const ALLOWED: &str = "1 to 16 brokers as host:port, in a list or a text with commas";
const BROKERS_MAX: usize = 16;
const HOST_BYTES_MAX: usize = 255;

/// The brokers in field `bootstrap_servers`, which must be there.
pub(crate) fn bootstrap_servers(fields: &mut Fields<'_>) -> Option<Vec<String>> {
    let brokers = brokers(fields.value("bootstrap_servers"));
    if brokers.is_none() {
        fields.wrong("bootstrap_servers", ALLOWED);
    }
    brokers
}

fn brokers(value: Option<&Value>) -> Option<Vec<String>> {
    let written: Vec<&str> = match value? {
        Value::String(text) => text.split(',').map(str::trim).collect(),
        Value::Array(brokers) => brokers.iter().map(Value::as_str).collect::<Option<_>>()?,
        _ => return None,
    };
    let right = (1..=BROKERS_MAX).contains(&written.len()) && written.iter().all(|broker| is_broker(broker));
    right.then(|| written.into_iter().map(str::to_owned).collect())
}

fn is_broker(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_is_right = (1..=HOST_BYTES_MAX).contains(&host.len())
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_[]:".contains(&byte));
    host_is_right && port.parse::<u16>().is_ok_and(|port| port > 0) && port.bytes().all(|byte| byte.is_ascii_digit())
}
