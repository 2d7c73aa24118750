//! Partitions of an existing Kafka-compatible cluster, as a member of a consumer group.
//!
//! ```text
//! member ── assigned, revoked, lost ─▶ whoever drives the trigger ─▶ one input per partition ─▶ poller
//!    ▲                                                                                            │
//!    └── coordinator ◀── committer ◀────────── offset + progress as metadata ◀────────────────────┘
//! ```
//! - [`Client`] asks the cluster, and appends to its topics; [`Member`] holds the place in the group; [`Committer`]
//!   brings progress there; [`ClusterInput`] reads a partition.
//! - The client is our own, over the schemas that the Kafka listener uses too. It hands on the record batches as their
//!   producers made them, reads any offset again at the cost of one request, and needs no C library. A client that
//!   gives out records one by one (librdkafka) would have them packed into batches again, and needs a second consumer
//!   for each retry.
//! - Readers see decided records only: those of aborted transactions are left out, those of open ones wait.
//! - Connections are plain TCP, or what the operator's settings say of the cluster: TLS, SASL (PLAIN and SCRAM), both.

mod aborted;
mod access;
mod assign;
mod client;
mod commit;
mod dial;
#[cfg(test)]
pub(crate) mod fake;
mod member;
mod partition;
mod place;
mod produce;
mod refusals;
mod sasl;
#[cfg(test)]
mod secured;
mod topics;
mod wire;

pub use access::{ClusterAccess, Clusters, Mechanism, Sasl, Security, Tls, TlsError, TlsFiles};
pub use client::{Client, ClusterError, Committed, Start};
pub use commit::{CommitError, Committer};
pub use member::{GroupEvent, Member};
pub use partition::ClusterInput;
pub use place::{ClusterPartition, Selection, Tenure};
pub use produce::{Remembered, Sent, Takes};
pub use topics::ClusterTopic;
pub use wire::CallError;
