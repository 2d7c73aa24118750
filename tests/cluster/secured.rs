//! A cluster behind TLS that wants to know who we are: Apache Kafka, and a trigger that reads it by the name that the
//! settings give it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tripline::config::secret::Secret;
use tripline::input::ClusterAddress;
use tripline::input::cluster::{Client, ClusterAccess, Mechanism, Sasl, Security, Tls, TlsFiles};

use crate::harness::{Kafka, LOOK, PATIENCE, Process, Receiver, batch, read_all};

const PASSWORD: &str = "hush hush";
/// How long Kafka believes who somebody is.
const BELIEVED: Duration = Duration::from_secs(2);

/// What a broker needs to know of its listener `SECURED`.
fn properties(dir: &Path) -> String {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let broker = dir.join("broker.pem");
    fs::write(&broker, made.signing_key.serialize_pem() + &made.cert.pem()).unwrap();
    fs::write(dir.join("ca.pem"), made.cert.pem()).unwrap();
    let (broker, believed_ms) = (broker.display(), BELIEVED.as_millis());
    let module = "org.apache.kafka.common.security";
    format!(
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
         connections.max.reauth.ms={believed_ms}\n\
         listener.name.secured.ssl.keystore.type=PEM\n\
         listener.name.secured.ssl.keystore.location={broker}\n\
         listener.name.secured.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_tripline=\"{PASSWORD}\";\n\
         listener.name.secured.scram-sha-256.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
         listener.name.secured.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required;\n"
    )
}

fn client(kafka: &Kafka, dir: &Path, mechanism: Mechanism, password: &str) -> Arc<Client> {
    let tls = Tls::new(&TlsFiles { ca: Some(dir.join("ca.pem")), identity: None }).unwrap();
    let sasl = Sasl::new(mechanism, "tripline", Secret::resolve(password).unwrap());
    let bootstrap_servers = vec![kafka.secured().to_owned()];
    let access = ClusterAccess { bootstrap_servers, security: Security { tls: Some(tls), sasl: Some(sasl) } };
    Arc::new(Client::new(access, ClusterAddress::SESSION_TIMEOUT, "test"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_reads_a_cluster_behind_tls_and_passwords() {
    let dir = tempfile::tempdir().unwrap();
    let scram = |hash: &str| format!("SCRAM-SHA-{hash}=[name=tripline,password=\"{PASSWORD}\"]");
    let Some(kafka) = Kafka::secured_by(&properties(dir.path()), &[scram("256"), scram("512")]) else { return };
    let topic = |mechanism| {
        let client = client(&kafka, dir.path(), mechanism, PASSWORD);
        async move {
            let begin = Instant::now();
            while let Err(error) = client.create_topic("in", 1).await {
                assert!(begin.elapsed() < PATIENCE, "{error}");
                tokio::time::sleep(LOOK).await;
            }
            client
        }
    };
    // Each way to say it; the topic is there from the first on.
    let mut producer = topic(Mechanism::ScramSha512).await;
    for (_, mechanism) in Mechanism::ALL {
        producer = client(&kafka, dir.path(), mechanism, PASSWORD);
        assert_eq!(producer.topic("in").await.unwrap().partition_count(), 1, "{}", mechanism.name());
        let wrong = client(&kafka, dir.path(), mechanism, "guess");
        let said = wrong.topic("in").await.unwrap_err().to_string();
        assert!(said.contains("not authenticated as \"tripline\""), "{said}");
    }

    let receiver = Receiver::start(|delivery| (if delivery.records[0].1 == 0 { 400 } else { 200 }, Duration::ZERO));
    let password = dir.path().join("password");
    fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    let settings = format!(
        "[clusters.prod]\nbootstrap_servers = \"{}\"\ntls = {{ ca = \"{}\" }}\n\
         sasl = {{ mechanism = \"SCRAM-SHA-512\", username = \"tripline\", password = \"${{file:{}}}\" }}\n",
        kafka.secured(),
        dir.path().join("ca.pem").display(),
        password.display()
    );
    let mut process = Process::with_settings(&settings);
    let definition = |cluster: &str| {
        let trigger = json!({
            "trigger": "t",
            "input": { "topic": "in", "start": "earliest", "cluster": cluster },
            "window": { "count": 1 },
            "function": { "http": { "url": receiver.url } },
            "dead_letter": { "topic": "dead" },
        });
        trigger.to_string()
    };
    let (taken, said) = process.try_apply(&definition("prd"));
    assert!(!taken && said.contains("did you mean `prod`?"), "{said}");
    process.apply(&definition("prod"));
    // For longer than Kafka believes anybody.
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < 2 * BELIEVED {
        producer.append("in", 0, &mut batch(&[format!("v{sent}")], None)).await.unwrap();
        sent += 1;
        receiver.wait_for("the record", |deliveries| deliveries.len() >= sent);
    }
    assert_eq!(read_all(&producer, "dead", 0).await.len(), 1, "the first was refused for good");
    let described = process.trigger("t").to_string();
    assert!(described.contains("\"prod\"") && !described.contains(PASSWORD), "{described}");
    assert!(!process.log().contains(PASSWORD), "{}", process.log());
    // It is found again, and goes on; without its settings it is missed, and does not become another trigger.
    process.stop();
    process.restart_with("");
    let (taken, said) = process.try_apply(&definition("prod"));
    assert!(!taken && said.contains("has no [clusters.NAME] in its settings"), "{said}");
    let here = "trigger: t\ninput: { topic: in }\nfunction: { http: { url: \"http://127.0.0.1:1/\" } }\n";
    let (taken, said) = process.try_apply(&format!("topic: in\n---\n{here}"));
    assert!(!taken && said.contains("does not move between this broker and a cluster"), "{said}");
    process.stop();
    process.restart_with(&settings);
    producer.append("in", 0, &mut batch(&["last".to_owned()], None)).await.unwrap();
    let deliveries = receiver.wait_for("the last record", |deliveries| deliveries.len() > sent);
    assert_eq!(deliveries.len(), sent + 1, "each once");
}
