//! Which addresses an http function may reach.
//!
//! The broker stands where private services trust it, so by default only public addresses are targets, and loopback
//! ones while nobody from outside can reach us. The check is made on the address that is then connected to, not on the
//! name.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::IpNet;

/// The rules of outgoing requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    /// Loopback targets are allowed: true while all our listeners are loopback. Default false.
    pub allow_loopback: bool,
    /// Our own listeners: never a target, whatever `allow` says, so that a function cannot feed itself.
    pub own_listeners: Vec<SocketAddr>,
    /// Networks allowed in addition (`--egress-allow`).
    pub allow: Vec<IpNet>,
}

/// Why an address is no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {kind}")]
pub struct AddressRefused {
    /// The address.
    pub address: SocketAddr,
    /// What it is.
    pub kind: &'static str,
}

impl EgressPolicy {
    /// Whether `address` may be connected to.
    ///
    /// # Errors
    /// Says what kind of address it is.
    pub fn check(&self, address: SocketAddr) -> Result<(), AddressRefused> {
        let refused = |kind| Err(AddressRefused { address, kind });
        let ip = canonical(address.ip());
        if self.is_own(ip, address.port()) {
            return refused("a listener of this broker");
        }
        if self.allow.iter().any(|network| network.contains(&ip)) {
            return Ok(());
        }
        match special_kind(ip) {
            None => Ok(()),
            Some(LOOPBACK) if self.allow_loopback => Ok(()),
            Some(kind) => refused(kind),
        }
    }

    fn is_own(&self, ip: IpAddr, port: u16) -> bool {
        // A connection to no address in particular goes to loopback.
        let ip = match ip {
            IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            _ => ip,
        };
        self.own_listeners.iter().any(|own| {
            let own_ip = canonical(own.ip());
            port == own.port()
                && (ip == own_ip
                    || (ip.is_loopback() && own_ip.is_loopback())
                    || (own_ip.is_unspecified() && is_of_this_machine(ip)))
        })
    }
}

/// Whether `ip` is an address of this machine: the system reaches those from themselves. Connecting a datagram socket
/// asks for the way there, and sends nothing. What cannot be told counts as ours.
fn is_of_this_machine(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    match source {
        Ok(source) => ip.is_loopback() || source.ip() == ip,
        // There is no way to it, so there is none to us.
        Err(cause) => !matches!(cause.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable),
    }
}

const LOOPBACK: &str = "a loopback address, allowed while all listeners are loopback, or by `--egress-allow`";
const PRIVATE: &str = "a private address, allowed by `--egress-allow NETWORK` only";
const LINK_LOCAL: &str = "a link-local or metadata address, allowed by `--egress-allow NETWORK` only";
const UNUSABLE: &str = "a reserved address, allowed by `--egress-allow NETWORK` only";

/// An IPv4 address in its own form where an IPv6 address only wraps one.
fn canonical(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    let [a, b, c, d, e, f, high, low] = v6.segments();
    let embedded = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match [a, b, c, d, e, f] {
        // IPv4-mapped, and the well-known prefix of NAT64.
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => embedded(high, low),
        // 6to4.
        [0x2002, high, low, ..] => embedded(high, low),
        _ => ip,
    }
}

/// What makes an address no ordinary public one.
fn special_kind(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6),
    }
}

fn special_v4(ip: Ipv4Addr) -> Option<&'static str> {
    match ip.octets() {
        [127, ..] => Some(LOOPBACK),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Some(PRIVATE),
        [169, 254, ..] => Some(LINK_LOCAL),
        [0 | 224..=255, ..]
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _] => Some(UNUSABLE),
        _ => None,
    }
}

fn special_v6(ip: Ipv6Addr) -> Option<&'static str> {
    if ip == Ipv6Addr::LOCALHOST {
        return Some(LOOPBACK);
    }
    match ip.segments() {
        [0xfc00..=0xfdff, ..] => Some(PRIVATE),
        [0xfe80..=0xfebf, ..] => Some(LINK_LOCAL),
        // Protocol assignments with Teredo, documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some(UNUSABLE),
        // Public addresses are handed out from 2000::/3 only.
        [0x2000..=0x3fff, ..] => None,
        _ => Some(UNUSABLE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 80)
    }

    const REFUSED: [&str; 46] = [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.100.100.200",
        "100.127.255.255",
        "127.0.0.1",
        "127.1.2.3",
        "169.254.0.1",
        "169.254.169.254",
        "169.254.170.2",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ];

    const PUBLIC: [&str; 12] = [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.1",
        "100.63.255.255",
        "100.128.0.1",
        "172.15.0.1",
        "172.32.0.1",
        "223.255.255.255",
        "2606:4700::1111",
        "2a00:1450::1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ];

    #[test]
    fn by_default_only_public_addresses_are_targets() {
        let policy = EgressPolicy::default();
        for text in REFUSED {
            assert!(policy.check(address(text)).is_err(), "{text}");
        }
        for text in PUBLIC {
            assert_eq!(policy.check(address(text)), Ok(()), "{text}");
        }
    }

    #[test]
    fn loopback_is_allowed_when_told_but_nothing_else_with_it() {
        let policy = EgressPolicy { allow_loopback: true, ..EgressPolicy::default() };
        for text in REFUSED {
            let is_loopback = canonical(text.parse().unwrap()).is_loopback();
            assert_eq!(policy.check(address(text)).is_ok(), is_loopback, "{text}");
        }
    }

    #[test]
    fn our_own_listeners_are_never_targets() {
        let policy = EgressPolicy {
            allow_loopback: true,
            own_listeners: vec![
                "127.0.0.1:80".parse().unwrap(),
                "0.0.0.0:81".parse().unwrap(),
                "10.0.0.5:82".parse().unwrap(),
            ],
            allow: vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()],
        };
        for own in ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "127.0.0.1:81", "10.0.0.5:82"]
        {
            let refused = policy.check(own.parse().unwrap()).unwrap_err();
            assert_eq!(refused.kind, "a listener of this broker", "{own}");
        }
        for other in ["127.0.0.1:8080", "10.0.0.5:80", "10.0.0.6:82"] {
            assert_eq!(policy.check(other.parse().unwrap()), Ok(()), "{other}");
        }
    }

    #[test]
    fn a_listener_on_all_addresses_is_no_target_at_any_of_them() {
        let everything = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        let own_listeners = vec!["0.0.0.0:81".parse().unwrap()];
        let policy = EgressPolicy { own_listeners, allow: everything, ..EgressPolicy::default() };
        // The address from which this machine reaches others; without a network it has none but loopback.
        let outward = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
            socket.connect("192.0.2.1:9")?;
            socket.local_addr()
        });
        let outward = outward.map_or_else(|_| Ipv4Addr::LOCALHOST.into(), |address| address.ip());
        for own in [outward, "127.3.2.1".parse().unwrap(), "::1".parse().unwrap()] {
            assert!(policy.check(SocketAddr::new(own, 81)).is_err(), "{own}");
            assert_eq!(policy.check(SocketAddr::new(own, 82)), Ok(()), "{own}");
        }
        assert_eq!(policy.check("192.0.2.1:81".parse().unwrap()), Ok(()));
    }

    #[test]
    fn no_address_in_particular_is_loopback_and_so_may_be_a_listener_of_ours() {
        let everything = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        let own_listeners = ["127.0.0.1:81", "[::1]:82", "0.0.0.0:83", "[::]:84"].map(|own| own.parse().unwrap());
        let policy = EgressPolicy { own_listeners: own_listeners.to_vec(), allow: everything, ..Default::default() };
        for text in ["0.0.0.0", "::", "::ffff:0.0.0.0", "64:ff9b::", "127.0.0.1", "::1"] {
            let ip = text.parse().unwrap();
            for own in 81..=84 {
                let refused = policy.check(SocketAddr::new(ip, own)).unwrap_err();
                assert_eq!(refused.kind, "a listener of this broker", "{text} {own}");
            }
            assert_eq!(policy.check(SocketAddr::new(ip, 80)), Ok(()), "{text}");
        }
    }

    #[test]
    fn an_allowed_network_is_allowed_in_every_spelling() {
        let policy = EgressPolicy { allow: vec!["10.1.0.0/16".parse().unwrap()], ..EgressPolicy::default() };
        for text in ["10.1.2.3", "::ffff:10.1.2.3"] {
            assert_eq!(policy.check(address(text)), Ok(()), "{text}");
        }
        assert!(policy.check(address("10.2.0.1")).is_err());
    }
}
