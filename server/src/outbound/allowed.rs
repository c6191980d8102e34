//! Destinations that guests may send requests to (`ALLOWED_OUTBOUND_HOSTS`), and the destination of a request.

use http::Uri;
use http::uri::Scheme;
use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Destinations that guests may send requests to, in the form of Spin's `allowed_outbound_hosts`: `scheme://host[:port]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllowedHost {
    /// As given, for the log.
    text: String,
    /// `None` for HTTP and HTTPS.
    scheme: Option<Scheme>,
    host: Host,
    /// `None` for all ports.
    port: Option<u16>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Host {
    Any,
    /// A name, in lower case.
    Name(String),
    /// The end of a name, in lower case, such as `.example.com`.
    Suffix(String),
    Address(IpAddr),
    Network(IpNet),
}

/// Destination of a request.
pub struct Destination<'a> {
    scheme: &'a Scheme,
    /// In lower case. An IPv6 address is without its brackets.
    pub host: String,
    pub port: u16,
}

impl AllowedHost {
    /// Parses `scheme://host[:port]`.
    ///
    /// # Errors
    /// The expected form of the value.
    pub fn parse(value: &str) -> Result<Self, String> {
        let expected = || {
            "not scheme://host[:port] (such as https://api.example.com, https://*.example.com, http://10.0.0.0/8:8080 \
             or *://*:*)"
        };
        let (scheme, rest) = value.split_once("://").ok_or_else(expected)?;
        let scheme = match scheme {
            "http" => Some(Scheme::HTTP),
            "https" => Some(Scheme::HTTPS),
            "*" => None,
            _ => return Err("its scheme is not http, https or *".into()),
        };
        if rest.contains(['{', '}']) {
            return Err("templates are not supported".into());
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        // The last colon of an IPv6 address in brackets does not begin a port.
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (rest, None),
        };
        let lower = host.to_lowercase();
        if lower == "self" || lower == "spin.internal" || lower.ends_with(".spin.internal") {
            return Err("a server has no other components to call: name a host".into());
        }
        let host = Host::parse(host).ok_or_else(expected)?;
        let port = match (port, &scheme) {
            (Some("*"), _) => None,
            (Some(port), _) => {
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                let number = port.parse().ok().filter(|&number| digits && number != 0);
                Some(number.ok_or("its port is neither * nor a number from 1 to 65535")?)
            }
            (None, Some(scheme)) => Some(default_port(scheme)),
            (None, None) => return Err("with the scheme *, name a port or *".into()),
        };
        Ok(Self {
            text: value.to_owned(),
            scheme,
            host,
            port,
        })
    }

    pub fn allows(&self, destination: &Destination) -> bool {
        let scheme = self.scheme.as_ref();
        scheme.is_none_or(|scheme| scheme == destination.scheme)
            && self.port.is_none_or(|port| port == destination.port)
            && self.host.allows(&destination.host)
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Host {
    fn parse(host: &str) -> Option<Self> {
        if host == "*" {
            return Some(Self::Any);
        }
        if let Some(domain) = host.strip_prefix("*.") {
            return is_name(domain).then(|| Self::Suffix(format!(".{}", domain.to_lowercase())));
        }
        // Brackets are for IPv6 addresses alone (RFC 3986, section 3.2.2).
        let bare = without_brackets(host);
        let is_v6 = bare.is_some();
        let bare = bare.unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return (address.is_ipv6() == is_v6).then_some(Self::Address(address));
        }
        if let Ok(network) = bare.parse::<IpNet>() {
            let is_network_v6 = matches!(network, IpNet::V6(_));
            return (is_network_v6 == is_v6).then_some(Self::Network(network));
        }
        is_name(host).then(|| Self::Name(host.to_lowercase()))
    }

    fn allows(&self, host: &str) -> bool {
        // An IPv4-mapped IPv6 address connects to the IPv4 address.
        let address = host.parse::<IpAddr>().map(|address| address.to_canonical());
        match (self, address) {
            (Self::Any, _) => true,
            (Self::Name(name), Err(_)) => host == name,
            (Self::Suffix(suffix), Err(_)) => host.ends_with(suffix),
            (Self::Address(allowed), Ok(address)) => allowed.to_canonical() == address,
            (Self::Network(network), Ok(address)) => network.contains(&address),
            _ => false,
        }
    }
}

/// Returns an IPv6 address or network without its brackets.
fn without_brackets(host: &str) -> Option<&str> {
    host.strip_prefix('[')?.strip_suffix(']')
}

/// Returns true if all labels consist of letters, digits, `-` and `_`, which container networks have in names. The last
/// label must not be a number, because the C library parses 127.1 and 0x7f000001 as addresses.
fn is_name(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default().to_lowercase();
    if last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    host.split('.').all(is_label)
}

fn default_port(scheme: &Scheme) -> u16 {
    if *scheme == Scheme::HTTPS { 443 } else { 80 }
}

impl<'a> Destination<'a> {
    /// Returns the destination of a request with this URI; `None` if it is ambiguous, for example with userinfo.
    pub fn of(uri: &'a Uri) -> Option<Self> {
        let (scheme, authority) = (uri.scheme()?, uri.authority()?);
        if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS {
            return None;
        }
        // `default_send_request` connects to the whole authority, so that it must consist of host and port alone.
        let plain = match authority.port() {
            Some(port) => format!("{}:{port}", authority.host()),
            None => authority.host().to_owned(),
        };
        if *authority != *plain {
            return None;
        }
        let host = match without_brackets(authority.host()) {
            Some(address) => address.parse::<Ipv6Addr>().ok()?.to_string(),
            None => authority.host().to_lowercase(),
        };
        if host.is_empty() {
            return None;
        }
        Some(Self {
            scheme,
            host,
            port: authority.port_u16().unwrap_or_else(|| default_port(scheme)),
        })
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &str, uri: &str) -> bool {
        let host = AllowedHost::parse(list).expect(list);
        let uri = uri.parse().expect(uri);
        Destination::of(&uri).is_some_and(|destination| host.allows(&destination))
    }

    #[test]
    fn list_allows_what_it_names() {
        for (list, uri) in [
            ("http://example.com", "http://example.com/path?query"),
            ("http://example.com", "http://EXAMPLE.com:80/"),
            ("http://Example.COM/", "http://example.com/"),
            ("https://example.com", "https://example.com:443/"),
            ("https://example.com:8443", "https://example.com:8443/"),
            ("*://example.com:8080", "http://example.com:8080/"),
            ("*://example.com:*", "https://example.com/"),
            ("https://*.example.com", "https://a.b.example.com/"),
            ("*://*:*", "http://[::1]:8080/"),
            ("http://*:*", "http://example.com/"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/"),
            ("http://10.0.0.0/8:8080", "http://10.255.0.1:8080/"),
            ("http://10.1.2.3/8", "http://10.9.9.9/"),
            ("http://[::1]", "http://[::1]/"),
            ("http://[::1]:81", "http://[0:0:0:0:0:0:0:1]:81/"),
            ("http://[fd00::/8]:81", "http://[fd12::1]:81/"),
            ("http://under_score", "http://under_score/"),
            ("http://127.0.0.1", "http://[::ffff:127.0.0.1]/"),
            ("http://[::ffff:127.0.0.1]", "http://127.0.0.1/"),
        ] {
            assert!(allows(list, uri), "{list} and {uri}");
        }
    }

    #[test]
    fn ambiguous_address_is_rejected() {
        for list in [
            "http://127.1",
            "http://*.0.0.1",
            "http://0x7f000001",
            "http://256.256.256.256",
            "http://::1",
            "http://fd00::/8:81",
            "http://[127.0.0.1]",
            "http://a:+80",
            "http://SELF",
            "http://Other.Spin.Internal",
        ] {
            AllowedHost::parse(list).expect_err(list);
        }
    }

    #[test]
    fn list_allows_nothing_else() {
        for (list, uri) in [
            ("http://example.com", "https://example.com/"),
            ("http://example.com", "http://example.com:8080/"),
            ("http://example.com", "http://example.com.evil.example/"),
            ("http://example.com", "http://example.com./"),
            ("http://example.com", "http://a.example.com/"),
            ("https://*.example.com", "https://example.com/"),
            ("https://*.example.com", "https://evilexample.com/"),
            ("https://*.example.com", "https://a.example.com:444/"),
            ("http://*:80", "http://example.com:81/"),
            ("*://*:*", "ftp://example.com/"),
            ("*://*:*", "http://user@example.com/"),
            ("*://*:*", "http://user:password@example.com/"),
            ("*://*:*", "http://example.com:/"),
            ("http://127.0.0.1", "http://127.1/"),
            ("http://127.0.0.1", "http://2130706433/"),
            ("http://127.0.0.0/8", "http://128.0.0.1/"),
            ("http://[::/0]", "http://[::ffff:127.0.0.1]/"),
            ("http://localhost", "http://[localhost]/"),
            ("*://*:*", "http://[127.0.0.1]/"),
            ("http://127.0.0.0/8", "http://127.0.0.1.example.com/"),
            ("http://0.0.0.0/0", "http://example.com/"),
            ("http://[::/0]", "http://127.0.0.1/"),
        ] {
            assert!(!allows(list, uri), "{list} and {uri}");
        }
    }
}
