//! What the broker runs with: `tripline.toml`, then `TRIPLINE_*`, then flags; later wins.

#[cfg(feature = "cluster")]
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;

use super::failure::Failure;
use crate::config::fields::{Fields, read};
use crate::config::units::{parse_duration, parse_size};
#[cfg(feature = "cluster")]
use crate::topic::name::ClusterName;

/// What the scrubber's rate may be.
pub(super) const SCRUB_ALLOWED: &str = "bytes a second such as \"8MiB\", or \"0\" for none";
/// What a network may be.
pub(super) const NETWORK_ALLOWED: &str = "a network such as 10.0.0.0/8 or an address such as 192.168.1.7";
/// What the time between two rounds of housekeeping may be.
pub(super) const INTERVAL_ALLOWED: &str = "a time from 10ms to 1d such as \"30s\"";
/// The file that is read if it is there and no other is named.
pub(super) const FILE: &str = "tripline.toml";

#[cfg(feature = "cluster")]
pub(super) mod clusters;

/// What a file may set; all of it may be left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FileSettings {
    pub(super) data: Option<PathBuf>,
    pub(super) kafka: Option<SocketAddr>,
    pub(super) http: Option<SocketAddr>,
    pub(super) insecure: Option<bool>,
    pub(super) allow_host: Vec<String>,
    pub(super) egress_allow: Vec<IpNet>,
    pub(super) python3: Option<PathBuf>,
    pub(super) kafka_advertised: Option<String>,
    pub(super) scrub: Option<u64>,
    pub(super) retention_interval: Option<Duration>,
    pub(super) compaction_interval: Option<Duration>,
    #[cfg(feature = "cluster")]
    pub(super) clusters: BTreeMap<ClusterName, clusters::ClusterSettings>,
}

impl FileSettings {
    /// Reads `file`, or [`FILE`] if it is there.
    pub(super) fn load(file: Option<&Path>) -> Result<Self, Failure> {
        let path = file.unwrap_or_else(|| Path::new(FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Failure::wrong_use(format!("cannot read {}: {error}", path.display()))),
        };
        Self::parse(&text).map_err(|reason| Failure::wrong_use(format!("{}: {reason}", path.display())))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let value: Value = toml::from_str(text).map_err(|error| not_toml(text, &error))?;
        read(&value, "settings", |fields| Some(Self::read(fields))).map_err(|errors| errors.to_string())
    }

    fn read(fields: &mut Fields<'_>) -> Self {
        let path = |fields: &mut Fields<'_>, name| fields.optional_text(name, "a path").map(PathBuf::from);
        let data = path(fields, "data");
        let python3 = path(fields, "python3");
        let kafka = address(fields, "kafka");
        let http = address(fields, "http");
        let insecure = fields.value("insecure").and_then(|value| {
            let flag = value.as_bool();
            if flag.is_none() {
                fields.wrong("insecure", "true or false");
            }
            flag
        });
        let allow_host = fields.value("allow_host").map_or_else(Vec::new, |value| {
            let names =
                value.as_array().and_then(|names| names.iter().map(|name| name.as_str().map(str::to_owned)).collect());
            names.unwrap_or_else(|| {
                fields.wrong("allow_host", "a list of host names");
                Vec::new()
            })
        });
        let egress_allow = fields.value("egress_allow").map_or_else(Vec::new, |value| {
            let networks = value
                .as_array()
                .and_then(|networks| networks.iter().map(|network| network.as_str().and_then(parse_network)).collect());
            networks.unwrap_or_else(|| {
                fields.wrong("egress_allow", "a list of networks and addresses such as [\"10.0.0.0/8\", \"::1\"]");
                Vec::new()
            })
        });
        let kafka_advertised = fields.optional_text("kafka_advertised", "HOST:PORT").map(str::to_owned);
        let scrub = fields.optional_text("scrub", SCRUB_ALLOWED).and_then(|text| {
            let rate = parse_size(text).ok();
            if rate.is_none() {
                fields.wrong("scrub", SCRUB_ALLOWED);
            }
            rate
        });
        let retention_interval = interval(fields, "retention_interval");
        let compaction_interval = interval(fields, "compaction_interval");
        #[cfg(not(feature = "cluster"))]
        if fields.value("clusters").is_some() {
            fields.wrong_unseen("clusters", "nothing: this build reads its own topics only (cargo feature `cluster`)");
        }
        Self {
            data,
            kafka,
            http,
            insecure,
            allow_host,
            egress_allow,
            python3,
            kafka_advertised,
            scrub,
            retention_interval,
            compaction_interval,
            #[cfg(feature = "cluster")]
            clusters: clusters::clusters(fields),
        }
    }
}

/// Where a text is no TOML, and why. Without the line itself, which may hold a password.
fn not_toml(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("line {line}, column {column}: {}", error.message())
}

/// A network, or an address as the network of it alone.
pub(super) fn parse_network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// The time between two rounds, when it is allowed.
pub(super) fn parse_interval(text: &str) -> Option<Duration> {
    let allowed = Duration::from_millis(10)..=Duration::from_secs(24 * 60 * 60);
    parse_duration(text).ok().filter(|interval| allowed.contains(interval))
}

fn interval(fields: &mut Fields<'_>, name: &'static str) -> Option<Duration> {
    let interval = parse_interval(fields.optional_text(name, INTERVAL_ALLOWED)?);
    if interval.is_none() {
        fields.wrong(name, INTERVAL_ALLOWED);
    }
    interval
}

fn address(fields: &mut Fields<'_>, name: &'static str) -> Option<SocketAddr> {
    let text = fields.optional_text(name, "ADDRESS:PORT such as 127.0.0.1:9092")?;
    let address = text.parse().ok();
    if address.is_none() {
        fields.wrong(name, "ADDRESS:PORT such as 127.0.0.1:9092");
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_sets_what_it_names() {
        let settings = FileSettings::parse(
            "data = \"d\"\nhttp = \"[::1]:0\"\ninsecure = true\nallow_host = [\"a\"]\negress_allow = [\"10.0.0.0/8\", \"::1\"]\nscrub = \"1KiB\"\ncompaction_interval = \"1m\"",
        )
        .unwrap();
        assert_eq!(settings.scrub, Some(1024));
        assert_eq!(settings.egress_allow, ["10.0.0.0/8", "::1/128"].map(|text| text.parse().unwrap()));
        assert_eq!(settings.compaction_interval, Some(Duration::from_secs(60)));
        assert_eq!(settings.data, Some(PathBuf::from("d")));
        assert_eq!(settings.http, Some("[::1]:0".parse().unwrap()));
        assert_eq!((settings.insecure, settings.allow_host, settings.kafka), (Some(true), vec!["a".to_owned()], None));
    }

    #[test]
    fn wrong_settings_name_themselves_and_the_nearest() {
        let wrong = |text| FileSettings::parse(text).unwrap_err();
        assert!(wrong("htp = \"x\"").contains("did you mean `http`?"), "{}", wrong("htp = \"x\""));
        assert!(wrong("kafka = \"9092\"").contains("settings.kafka: found \"9092\""));
        assert!(wrong("insecure = \"yes\"").contains("true or false"));
        assert!(wrong("allow_host = \"a\"").contains("a list of host names"));
        for given in ["egress_allow = \"10.0.0.0/8\"", "egress_allow = [\"10.0.0.0/33\"]", "egress_allow = [1]"] {
            assert!(wrong(given).contains("settings.egress_allow: found"), "{}", wrong(given));
        }
        assert!(wrong("scrub = \"fast\"").contains("bytes a second"));
        for given in ["retention_interval = \"9ms\"", "compaction_interval = \"2d\"", "retention_interval = \"5\""] {
            assert!(wrong(given).contains("10ms to 1d"), "{given}");
        }
        assert!(wrong("data = ").starts_with("line 1, column 8: "), "{}", wrong("data = "));
        assert!(wrong("\ninsecure = yes").starts_with("line 2, column 12: "), "{}", wrong("\ninsecure = yes"));
    }

    #[cfg(not(feature = "cluster"))]
    #[test]
    fn a_build_without_clusters_says_so_and_shows_no_password() {
        let text = "[clusters.prod]\nsasl = { password = \"hush\" }";
        let said = FileSettings::parse(text).unwrap_err();
        assert!(said.starts_with("settings.clusters: ") && said.contains("cargo feature `cluster`"), "{said}");
        assert!(!said.contains("hush"), "{said}");
    }
}
