//! The clusters that triggers may read by name: `[clusters.prod]` in `tripline.toml`.
//!
//! ```toml
//! [clusters.prod]
//! bootstrap_servers = "kafka1:9093, kafka2:9093"
//! tls = { ca = "ca.pem" }        # or true: whom this machine believes
//! sasl = { mechanism = "SCRAM-SHA-512", username = "tripline", password = "${env:KAFKA_PASSWORD}" }
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use crate::config::brokers::bootstrap_servers;
use crate::config::fields::Fields;
use crate::config::secret::{SECRET_ALLOWED, Secret};
use crate::input::cluster::{ClusterAccess, Clusters, Mechanism, Sasl, Security, Tls, TlsError, TlsFiles};
use crate::topic::name::{ClusterName, NAME_BYTES_MAX, allowed_name};

const PATH: &str = "the path of a PEM file";
const PATH_BYTES_MAX: usize = 4_096;
const CLUSTERS: &str = "tables of their own, as [clusters.NAME]";
const TLS: &str = "true, false, or a table with `ca`, `certificate` and `key`";
const SASL: &str = "a table with `mechanism`, `username` and `password`";
const PLAIN_OPENLY: &str =
    "true or a table: PLAIN sends the password as it is; or false, to say that the network may be trusted with it";

/// A cluster as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct ClusterSettings {
    bootstrap_servers: Vec<String>,
    tls: Option<TlsFiles>,
    sasl: Option<SaslSettings>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct SaslSettings {
    mechanism: Mechanism,
    username: String,
    password: Secret,
}

/// Reads the table `clusters`.
pub(super) fn clusters(fields: &mut Fields<'_>) -> BTreeMap<ClusterName, ClusterSettings> {
    let mut clusters = BTreeMap::new();
    let Some(value) = fields.value("clusters") else { return clusters };
    // What stands in the wrong place may be a password.
    let Value::Object(entries) = value else {
        fields.wrong_unseen("clusters", CLUSTERS);
        return clusters;
    };
    for (name, value) in entries {
        let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
        let Ok(checked) = ClusterName::new(name.as_str()) else {
            fields.unknown_below("clusters", &shown, format!("a name of {}", allowed_name(NAME_BYTES_MAX)), None);
            continue;
        };
        let Value::Object(map) = value else {
            fields.wrong_unseen_below("clusters", &shown, CLUSTERS);
            continue;
        };
        if let Some(cluster) = fields.entry("clusters", &shown, map, cluster) {
            clusters.insert(checked, cluster);
        }
    }
    clusters
}

fn cluster(fields: &mut Fields<'_>) -> Option<ClusterSettings> {
    let bootstrap_servers = bootstrap_servers(fields);
    let tls = tls(fields);
    let sasl = match fields.value("sasl") {
        None | Some(Value::Object(_)) => fields.object("sasl", sasl),
        // It may be the password.
        Some(_) => {
            fields.wrong_unseen("sasl", SASL);
            None
        }
    };
    let is_open = tls.is_none() && sasl.as_ref().is_some_and(|sasl| sasl.mechanism == Mechanism::Plain);
    if is_open && fields.value("tls").is_none() {
        fields.wrong("tls", PLAIN_OPENLY);
    }
    Some(ClusterSettings { bootstrap_servers: bootstrap_servers?, tls, sasl })
}

fn tls(fields: &mut Fields<'_>) -> Option<TlsFiles> {
    match fields.value("tls")? {
        Value::Bool(wanted) => wanted.then(TlsFiles::default),
        Value::Object(_) => fields.object("tls", |fields| {
            let (ca, certificate, key) = (path(fields, "ca"), path(fields, "certificate"), path(fields, "key"));
            if certificate.is_some() != key.is_some() {
                let missing = if key.is_none() { "key" } else { "certificate" };
                fields.wrong(missing, "a path: `certificate` and `key` belong together");
            }
            Some(TlsFiles { ca, identity: certificate.zip(key) })
        }),
        _ => {
            fields.wrong_unseen("tls", TLS);
            None
        }
    }
}

/// A path, and not what should stand in its file: that may be a key.
fn path(fields: &mut Fields<'_>, name: &'static str) -> Option<PathBuf> {
    let written = fields.value(name)?.as_str();
    let path = written.filter(|text| {
        let is_line = (1..=PATH_BYTES_MAX).contains(&text.len()) && !text.contains(['\n', '\r', '\0']);
        is_line && !text.starts_with("-----") && !is_key_body(text)
    });
    if path.is_none() {
        fields.wrong_unseen(name, PATH);
    }
    path.map(PathBuf::from)
}

/// Whether this may be a key without the lines around it: DER in Base64, where the tag and length of the outermost
/// sequence make the first letter. The shortest in use, of Ed25519, has 64 letters.
fn is_key_body(text: &str) -> bool {
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b' ');
    text.len() >= 64 && text.starts_with('M') && text.bytes().all(is_base64)
}

fn sasl(fields: &mut Fields<'_>) -> Option<SaslSettings> {
    if fields.value("mechanism").is_none() {
        fields.wrong("mechanism", Mechanism::ALL.map(|(name, _)| name).join(", "));
    }
    let mechanism = fields.choice("mechanism", &Mechanism::ALL, &["OAUTHBEARER", "GSSAPI"], Mechanism::ScramSha512);
    let username = fields.text("username", "a name").filter(|name| {
        let is_one = !name.is_empty() && !name.contains('\0');
        if !is_one {
            fields.wrong("username", "a name");
        }
        is_one
    });
    let password = match fields.value("password") {
        None => {
            fields.wrong("password", SECRET_ALLOWED);
            None
        }
        Some(Value::String(written)) => Secret::resolve(written)
            .map_err(|error| fields.wrong_unseen("password", format!("{SECRET_ALLOWED}; {error}")))
            .ok(),
        Some(_) => {
            fields.wrong_unseen("password", SECRET_ALLOWED);
            None
        }
    };
    Some(SaslSettings { mechanism, username: username?.to_owned(), password: password? })
}

/// The clusters, with their files read; or which setting cannot be followed.
pub(in crate::cli) fn with_files(settings: BTreeMap<ClusterName, ClusterSettings>) -> Result<Clusters, String> {
    let access = |(name, cluster): (ClusterName, ClusterSettings)| {
        let tls = cluster.tls.map(|files| Tls::new(&files)).transpose();
        let tls = tls.map_err(|error: TlsError| format!("settings.clusters.{name}.tls.{error}"))?;
        let sasl = cluster.sasl.map(|sasl| Sasl::new(sasl.mechanism, sasl.username, sasl.password));
        let security = Security { tls, sasl };
        Ok((name, ClusterAccess { bootstrap_servers: cluster.bootstrap_servers, security }))
    };
    settings.into_iter().map(access).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings::FileSettings;

    fn wrong(cluster: &str) -> String {
        FileSettings::parse(&format!("[clusters.prod]\n{cluster}")).unwrap_err()
    }

    #[test]
    fn a_cluster_has_brokers_and_what_protects_the_way_to_them() {
        let text = "[clusters.prod]\nbootstrap_servers = [\"a:1\", \"b:2\"]\n\
            tls = { ca = \"ca.pem\", certificate = \"me.pem\", key = \"me.key\" }\n\
            sasl = { mechanism = \"SCRAM-SHA-256\", username = \"u\", password = \"${env:CARGO_PKG_NAME}\" }\n\
            [clusters.open]\nbootstrap_servers = \"c:3\"";
        let settings = FileSettings::parse(text).unwrap().clusters;
        let prod = &settings[&ClusterName::new("prod").unwrap()];
        let identity = Some((PathBuf::from("me.pem"), PathBuf::from("me.key")));
        assert_eq!(prod.tls, Some(TlsFiles { ca: Some("ca.pem".into()), identity }));
        let sasl = prod.sasl.as_ref().unwrap();
        assert_eq!((sasl.mechanism, sasl.username.as_str()), (Mechanism::ScramSha256, "u"));
        assert_eq!(sasl.password.reveal(), "tripline");
        let open = &settings[&ClusterName::new("open").unwrap()];
        assert_eq!((open.tls.as_ref(), open.sasl.as_ref()), (None, None));
        assert_eq!(prod.bootstrap_servers, ["a:1", "b:2"]);
    }

    #[test]
    fn the_settings_in_the_guide_are_read() {
        let guide = include_str!("../../../docs/clusters.md");
        let written = guide.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let settings = FileSettings::parse(&written.replace("KAFKA_PASSWORD", "CARGO_PKG_NAME")).unwrap();
        let prod = &settings.clusters[&ClusterName::new("prod").unwrap()];
        assert!(prod.tls.is_some() && prod.sasl.is_some());
    }

    #[test]
    fn wrong_clusters_are_refused_by_name() {
        let servers = "bootstrap_servers = \"a:1\"\n";
        assert!(wrong("").contains("settings.clusters.prod.bootstrap_servers: found nothing"));
        assert!(wrong("server = \"a:1\"").contains("settings.clusters.prod.server: found an unknown name"));
        assert!(FileSettings::parse("clusters = 1").unwrap_err().contains("settings.clusters: found what"));
        assert!(FileSettings::parse("clusters.a = 1").unwrap_err().contains("settings.clusters.a: found what"));
        assert!(FileSettings::parse("[clusters.\"a b\"]").unwrap_err().contains("settings.clusters.a b"));
        for (field, value) in [
            ("tls", "tls = \"yes\""),
            ("tls.key", "tls = { certificate = \"c\" }"),
            ("tls.certificate", "tls = { key = \"k\" }"),
            ("tls.ciphers", "tls = { ciphers = [] }"),
            ("sasl.mechanism", "sasl = { username = \"u\", password = \"p\" }"),
            ("sasl.mechanism", "sasl = { mechanism = \"SCRAM\", username = \"u\", password = \"p\" }"),
            ("sasl.username", "sasl = { mechanism = \"SCRAM-SHA-256\", username = \"\", password = \"p\" }"),
            ("sasl.password", "sasl = { mechanism = \"SCRAM-SHA-256\", username = \"u\" }"),
            ("tls", "sasl = { mechanism = \"PLAIN\", username = \"u\", password = \"p\" }"),
        ] {
            let said = wrong(&format!("{servers}{value}"));
            assert!(said.starts_with(&format!("settings.clusters.prod.{field}: ")), "{value}: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }

    #[test]
    fn a_password_goes_openly_where_that_is_said() {
        for tls in ["false", "true"] {
            let sasl = "sasl = { mechanism = \"PLAIN\", username = \"u\", password = \"p\" }";
            let text = format!("[clusters.prod]\nbootstrap_servers = \"a:1\"\ntls = {tls}\n{sasl}");
            assert!(FileSettings::parse(&text).is_ok(), "{tls}");
        }
    }

    #[test]
    fn no_message_shows_a_password() {
        let with = |password: &str| {
            let sasl = format!("sasl = {{ mechanism = \"SCRAM-SHA-256\", username = \"u\", password = {password} }}");
            format!("[clusters.prod]\nbootstrap_servers = \"a:1\"\n{sasl}")
        };
        for written in ["123456", "\"${hush}\"", "[\"hush\"]", "\"${file:/no/such/hush}\""] {
            let said = FileSettings::parse(&with(written)).unwrap_err();
            assert!(said.contains("sasl.password: found what is not shown here"), "{said}");
            assert!(!said.contains("123456") && !said.replace("/no/such/hush", "").contains("hush"), "{said}");
        }
        for misplaced in [
            "[[clusters.prod]]\nsasl = { password = \"hush\" }",
            "[[clusters]]\nsasl = { password = \"hush\" }",
            "[clusters]\npassword = \"hush\"",
            "[clusters.prod]\ntls = \"hush\"",
            "[clusters.prod]\ntls = { key = \"-----BEGIN PRIVATE KEY----- hush\" }",
            "[clusters.prod]\ntls = { key = \"\"\"\nhush\"\"\" }",
            // What is no TOML.
            "[clusters.prod.sasl]\npassword = hush",
            "[clusters.prod.sasl]\npassword = \"hush",
            "[clusters.prod.sasl]\npassword = \"hush\"\"",
            "[clusters.prod.sasl]\npassword = \"hush\"\npassword = \"hush\"",
        ] {
            let said = FileSettings::parse(misplaced).unwrap_err();
            assert!(!said.contains("hush"), "{misplaced}: {said}");
        }
        // As a path it would be printed once it is not found.
        let body = format!("MC4CAQAwBQYDK2VwBCIEIhush{}", "0".repeat(39));
        let said = FileSettings::parse(&format!("[clusters.prod]\ntls = {{ key = \"{body}\" }}")).unwrap_err();
        assert!(said.contains("tls.key: found what is not shown here") && !said.contains("hush"), "{said}");
        let said = FileSettings::parse("[clusters.prod]\nbootstrap_servers = \"a:1\"\nsasl = \"hush\"").unwrap_err();
        assert!(said.contains("prod.sasl: found what is not shown here") && !said.contains("hush"), "{said}");
        let settings = FileSettings::parse(&with("\"hush\"")).unwrap();
        assert!(!format!("{settings:?}").contains("hush"));
    }

    #[test]
    fn files_that_do_not_hold_what_they_should_are_told_by_their_setting() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
        let mine = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        write("cert.pem", &mine.cert.pem());
        write("key.pem", &mine.signing_key.serialize_pem());
        write("other.pem", &other.signing_key.serialize_pem());
        write("none.pem", "no certificate");
        let said = |ca: Option<&str>, identity: Option<(&str, &str)>| {
            let identity = identity.map(|(certificate, key)| (path(certificate), path(key)));
            let tls = Some(TlsFiles { ca: ca.map(path), identity });
            let cluster = ClusterSettings { bootstrap_servers: vec!["a:1".to_owned()], tls, sasl: None };
            let name = ClusterName::new("prod").unwrap();
            with_files([(name, cluster)].into()).err()
        };
        assert_eq!(said(Some("cert.pem"), Some(("cert.pem", "key.pem"))), None);
        for (ca, identity, field) in [
            ("missing.pem", None, "ca"),
            ("none.pem", None, "ca"),
            ("cert.pem", Some(("none.pem", "key.pem")), "certificate"),
            ("cert.pem", Some(("cert.pem", "none.pem")), "key"),
            ("cert.pem", Some(("cert.pem", "other.pem")), "key"),
        ] {
            let said = said(Some(ca), identity).unwrap();
            assert!(said.starts_with(&format!("settings.clusters.prod.tls.{field}: ")), "{said}");
        }
    }
}
