//! Where clients are told to find this broker.
//!
//! A client connects twice: to the address that a person gave it, and then to the one that Metadata names. The second
//! must lead back here from where the client is, so the best guess is the address that it has just used. Only a
//! published port of a container hides that address: there the client seems to come from the default gateway, and
//! `localhost` is right.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::str::FromStr;

use parking_lot::RwLock;
use thiserror::Error;

use super::handler::ConnectionContext;

/// Longest host name in bytes.
pub const HOST_BYTES_MAX: usize = 253;

/// A host, as a name or an address without brackets, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address.
    pub host: String,
    /// Port, 1–65,535.
    pub port: u16,
}

/// Text that is no host and port.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "found {found:?}, allowed: HOST:PORT with a host name or IPv4 address of at most {HOST_BYTES_MAX} bytes, or [IPV6]:PORT"
)]
pub struct HostPortError {
    /// What was found, cut to 300 characters.
    pub found: String,
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        parse(text).ok_or_else(|| HostPortError { found: text.chars().take(300).collect() })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(formatter, "[{host}]:{port}") } else { write!(formatter, "{host}:{port}") }
    }
}

fn parse(text: &str) -> Option<HostPort> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(literal) => literal.parse::<std::net::Ipv6Addr>().ok()?.to_string(),
        None => host.to_owned(),
    };
    let is_name = |host: &str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let good = !host.is_empty() && host.len() <= HOST_BYTES_MAX && (text.starts_with('[') || is_name(&host));
    good.then_some(HostPort { host, port })
}

/// The rule, and the override that a person may set while the broker runs.
#[derive(Debug, Default)]
pub struct Advertised {
    fixed: RwLock<Option<HostPort>>,
    /// The default gateways, inside a container only: who comes from there came through a published port.
    gateways: Vec<IpAddr>,
}

impl Advertised {
    /// The rule for this machine; `fixed` goes above it.
    #[must_use]
    pub fn detect(fixed: Option<HostPort>) -> Self {
        let in_container = ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists());
        let routes = if in_container { fs::read_to_string("/proc/net/route") } else { Ok(String::new()) };
        Self { fixed: RwLock::new(fixed), gateways: default_gateways(&routes.unwrap_or_default()) }
    }

    /// Sets or lifts the override.
    pub fn set(&self, fixed: Option<HostPort>) {
        *self.fixed.write() = fixed;
    }

    /// The override in force.
    #[must_use]
    pub fn fixed(&self) -> Option<HostPort> {
        self.fixed.read().clone()
    }

    /// What this client is told.
    #[must_use]
    pub fn for_connection(&self, connection: &ConnectionContext) -> HostPort {
        if let Some(fixed) = self.fixed() {
            return fixed;
        }
        let port = connection.local.port();
        if self.gateways.contains(&connection.peer.ip().to_canonical()) {
            return HostPort { host: "localhost".to_owned(), port };
        }
        HostPort { host: connection.local.ip().to_canonical().to_string(), port }
    }
}

/// The default gateways in the kernel's IPv4 routing table, as `/proc/net/route` prints it.
fn default_gateways(routes: &str) -> Vec<IpAddr> {
    let gateway = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let bits = u32::from_str_radix(gateway, 16).ok().filter(|bits| *bits != 0)?;
        // Printed as the number that the bytes make in memory.
        (destination == "00000000").then(|| IpAddr::V4(Ipv4Addr::from(bits.to_ne_bytes())))
    };
    routes.lines().skip(1).filter_map(gateway).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;

    fn connection(peer: &str, local: &str) -> ConnectionContext {
        let (peer, local) = (peer.parse().unwrap(), local.parse().unwrap());
        ConnectionContext { id: 1, peer, local, software: OnceLock::new() }
    }

    #[test]
    fn clients_are_told_the_address_that_they_connected_to() {
        let advertised = Advertised::default();
        for (local, told) in
            [("127.0.0.1:9092", "127.0.0.1:9092"), ("[::1]:9092", "[::1]:9092"), ("[::ffff:10.0.0.7]:1", "10.0.0.7:1")]
        {
            assert_eq!(advertised.for_connection(&connection("9.9.9.9:1", local)).to_string(), told);
        }
    }

    #[test]
    fn a_client_through_the_gateway_of_a_container_is_told_localhost() {
        let advertised = Advertised { gateways: vec!["172.17.0.1".parse().unwrap()], ..Advertised::default() };
        let told = |peer| advertised.for_connection(&connection(peer, "172.17.0.2:9092")).to_string();
        assert_eq!(told("172.17.0.1:5000"), "localhost:9092");
        assert_eq!(told("[::ffff:172.17.0.1]:5000"), "localhost:9092");
        assert_eq!(told("172.17.0.3:5000"), "172.17.0.2:9092");
    }

    #[test]
    fn the_override_goes_above_all_and_can_be_lifted() {
        let advertised = Advertised::default();
        let told =
            |advertised: &Advertised| advertised.for_connection(&connection("1.1.1.1:1", "2.2.2.2:2")).to_string();
        advertised.set(Some("kafka.example:19092".parse().unwrap()));
        assert_eq!(told(&advertised), "kafka.example:19092");
        advertised.set(None);
        assert_eq!(told(&advertised), "2.2.2.2:2");
    }

    #[test]
    fn hosts_and_ports_are_checked() {
        for good in ["a:1", "127.0.0.1:65535", "[::1]:9092", "my-host.example_x:9"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in ["", "a", ":1", "a:0", "a:65536", "a:b", "::1:9092", "[a]:1", "a b:1", "[::1]", "a/b:1"] {
            assert_eq!(bad.parse::<HostPort>(), Err(HostPortError { found: bad.to_owned() }), "{bad}");
        }
    }

    #[test]
    fn default_gateways_are_read_from_the_routing_table() {
        let gateway = u32::from_ne_bytes([172, 17, 0, 1]);
        let table = format!(
            "Iface\tDestination\tGateway\tFlags\neth0\t00000000\t{gateway:08X}\t0003\neth0\t000011AC\t00000000\t0001\n"
        );
        assert_eq!(default_gateways(&table), ["172.17.0.1".parse::<IpAddr>().unwrap()]);
        assert!(default_gateways("").is_empty() && default_gateways("x\ny\nz 1").is_empty());
    }
}
