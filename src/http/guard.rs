//! Who may speak to a broker on this machine: no web page does, by whatever name it reaches us.
//!
//! A page in a browser on the same machine can send requests to loopback addresses (CSRF), and a name that changes its
//! address (DNS rebinding) even lets it read the answers. Such requests carry a foreign `Host` or `Origin`.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, StatusCode, Uri, header};

use super::problem::Problem;

/// The names by which this listener may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHosts {
    names: Vec<String>,
    /// The listener is open to the network: it may be called by any of the machine's addresses, which no rebinding
    /// forges.
    any_address: bool,
}

impl AllowedHosts {
    /// `localhost` and loopback addresses, the listener's own address, and `more` names from the operator.
    #[must_use]
    pub fn new(listener: SocketAddr, more: &[String]) -> Self {
        let mut names: Vec<String> = more.iter().map(|name| name.to_ascii_lowercase()).collect();
        names.push("localhost".to_owned());
        names.push(listener.ip().to_string());
        Self { names, any_address: listener.ip().is_unspecified() }
    }

    fn allows(&self, host: &str) -> bool {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.any_address || address.is_loopback() || self.has(&address.to_string());
        }
        self.has(&host.to_ascii_lowercase())
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    /// Checks `Host`, `Origin` and `Sec-Fetch-Site` of a request.
    ///
    /// # Errors
    /// 421 for a foreign host, 403 for a foreign origin.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| uri.authority().map(http::uri::Authority::as_str));
        let host = host
            .and_then(host_of)
            .ok_or_else(|| Problem::bad_request("host-missing", "the request has no usable Host header"))?;
        if !self.allows(host) {
            let detail = format!(
                "the Host {host:?} is none of this broker's names; call it localhost, or start it with `--allow-host {host}`"
            );
            return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "host-not-allowed", detail));
        }
        let foreign = |what: String| {
            let detail = format!("{what}; start the broker with `--allow-host NAME` to let pages of that host in");
            Problem::new(StatusCode::FORBIDDEN, "origin-not-allowed", detail)
        };
        if let Some(origin) = headers.get(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or("null");
            let allowed =
                origin.split_once("://").and_then(|(_, rest)| host_of(rest)).is_some_and(|host| self.allows(host));
            if !allowed {
                return Err(foreign(format!("the Origin {origin:?} may not call this broker")));
            }
        } else if headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
            return Err(foreign("pages of other sites may not call this broker".to_owned()));
        }
        Ok(())
    }
}

/// The host of `host[:port]`.
fn host_of(authority: &str) -> Option<&str> {
    let end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, rest) = authority.split_at(end);
    let port = rest.strip_prefix(':');
    let good = !host.is_empty()
        && (rest.is_empty() || port.is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit())));
    good.then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(listener: &str, host: &str, more: &[(&'static str, &str)]) -> Result<(), &'static str> {
        let allowed = AllowedHosts::new(listener.parse().unwrap(), &["broker.example".to_owned()]);
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        more.iter().for_each(|(name, value)| drop(headers.insert(*name, value.parse().unwrap())));
        allowed.check(&Uri::from_static("/"), &headers).map_err(|problem| problem.code)
    }

    #[test]
    fn own_names_are_let_in_with_any_port() {
        for host in ["localhost", "LOCALHOST:7080", "127.0.0.1:1", "[::1]:7080", "[::1]", "127.9.9.9", "Broker.Example"]
        {
            assert_eq!(check("127.0.0.1:7080", host, &[]), Ok(()), "{host}");
        }
        assert_eq!(check("10.0.0.7:7080", "10.0.0.7:99", &[]), Ok(()));
        assert_eq!(check("0.0.0.0:7080", "192.168.1.2:7080", &[]), Ok(()));
    }

    #[test]
    fn foreign_names_are_turned_away() {
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io", "0.0.0.0"] {
            assert_eq!(check("127.0.0.1:7080", host, &[]), Err("host-not-allowed"), "{host}");
        }
        assert_eq!(check("0.0.0.0:7080", "evil.example", &[]), Err("host-not-allowed"));
        for host in ["", ":80", "[::1", "localhost:x"] {
            assert_eq!(check("127.0.0.1:7080", host, &[]), Err("host-missing"), "{host}");
        }
    }

    #[test]
    fn pages_of_other_sites_are_turned_away_even_with_our_host() {
        let with = |name, value| check("127.0.0.1:7080", "localhost:7080", &[(name, value)]);
        assert_eq!(with("origin", "http://localhost:3000"), Ok(()));
        assert_eq!(with("origin", "http://evil.example"), Err("origin-not-allowed"));
        assert_eq!(with("origin", "null"), Err("origin-not-allowed"));
        assert_eq!(with("sec-fetch-site", "cross-site"), Err("origin-not-allowed"));
        assert_eq!(with("sec-fetch-site", "same-origin"), Ok(()));
    }
}
