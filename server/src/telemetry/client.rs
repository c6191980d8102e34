//! The client of a request that came through proxies: the nearest address that is not a trusted proxy's.
//!
//! Each proxy appends the address that it sees to `x-forwarded-for` or `forwarded` (RFC 7239). So the list is read from its
//! end, for as long as the addresses are those of trusted proxies. What precedes the first other one is a claim of that
//! client. `x-forwarded-for` has priority: nearly all proxies set it, and few remove a `forwarded` that the client has sent.

use http::{HeaderMap, HeaderName, header::FORWARDED};
use ipnet::{IpNet, Ipv4Net};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Networks of proxies whose lists of addresses are trusted.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<IpNet>);

/// The address of a client, and its port if that is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Client {
    pub address: IpAddr,
    pub port: Option<u16>,
}

impl From<SocketAddr> for Client {
    fn from(address: SocketAddr) -> Self {
        Self {
            address: address.ip(),
            port: Some(address.port()),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

impl TrustedProxies {
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Returns the client of a request that `peer` has sent.
    pub fn client(&self, peer: SocketAddr, headers: &HeaderMap) -> Client {
        let mut client = Client::from(peer);
        if !self.trusts(client.address) {
            return client;
        }
        let (name, parse): (_, ParseLine) = match headers.contains_key(&X_FORWARDED_FOR) {
            true => (&X_FORWARDED_FOR, parse_x_forwarded_for),
            false => (&FORWARDED, parse_forwarded),
        };
        let lines = headers.get_all(name).iter();
        let list: Vec<_> = lines.flat_map(|line| parse(line.as_bytes())).collect();
        for sender in list.into_iter().rev() {
            // Anything but an address ends the list, because a forged entry may precede it.
            let Some(sender) = sender else {
                break;
            };
            client = sender;
            if !self.trusts(client.address) {
                break;
            }
        }
        client
    }

    fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Parses an address or a network, such as `10.0.0.0/8`.
///
/// # Errors
/// The rule that the value breaks.
pub fn parse_network(value: &str) -> Result<IpNet, String> {
    let address = || value.parse::<IpAddr>().map(IpNet::from);
    let network = value.parse::<IpNet>().or_else(|_| address());
    let rule = "neither an IP address nor a network (such as 10.0.0.0/8)";
    match network.map_err(|_| rule)? {
        // `trusts` compares IPv4-mapped addresses (RFC 4291, section 2.5.5.2) as IPv4.
        IpNet::V6(network) if let Some(address) = network.addr().to_ipv4_mapped() => {
            let bits = network.prefix_len().checked_sub(96).ok_or(rule)?;
            let network = Ipv4Net::new(address, bits).map_err(|_| rule)?;
            Ok(network.into())
        }
        network => Ok(network),
    }
}

/// Parses a line of a header to a list that has `None` for anything but an address.
type ParseLine = fn(&[u8]) -> Vec<Option<Client>>;

fn parse_x_forwarded_for(line: &[u8]) -> Vec<Option<Client>> {
    line.split(|byte| *byte == b',').map(parse_node).collect()
}

fn parse_forwarded(line: &[u8]) -> Vec<Option<Client>> {
    match split_unquoted(line, b',') {
        Some(elements) => elements.into_iter().map(parse_for).collect(),
        None => vec![None],
    }
}

/// Splits a value at a byte outside of quoted strings (RFC 9110, section 5.6.4). Returns `None` if a string has no end: a
/// client can leave it open so that it contains what a proxy appends.
fn split_unquoted(value: &[u8], separator: u8) -> Option<Vec<&[u8]>> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let is_end = |byte: &u8| {
        let is_separator = *byte == separator && !is_quoted;
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ => {}
        }
        is_separator
    };
    let parts = value.split(is_end).collect();
    (!is_quoted).then_some(parts)
}

/// Parses the only parameter `for` of an element of `forwarded`, such as `for=192.0.2.1;proto=https`.
fn parse_for(element: &[u8]) -> Option<Client> {
    let pairs = split_unquoted(element, b';')?.into_iter();
    let mut values = pairs.filter_map(|pair| {
        let end = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (pair.get(..end)?, pair.get(end + 1..)?);
        let is_for = name.trim_ascii().eq_ignore_ascii_case(b"for");
        is_for.then_some(value.trim_ascii())
    });
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let quoted = value
        .strip_prefix(b"\"")
        .and_then(|it| it.strip_suffix(b"\""));
    parse_node(quoted.unwrap_or(value))
}

/// Parses an address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn parse_node(text: &[u8]) -> Option<Client> {
    let text = str::from_utf8(text.trim_ascii()).ok()?;
    let without_port = |address: IpAddr| Client {
        address,
        port: None,
    };
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(without_port(address));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.into());
    }
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let address: Ipv6Addr = inner.parse().ok()?;
    Some(without_port(address.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    /// The client of a request from the trusted proxy at 10.0.0.1.
    fn client(fields: &[(HeaderName, &str)]) -> String {
        client_of("10.0.0.1:4711", fields)
    }

    fn client_of(peer: &str, fields: &[(HeaderName, &str)]) -> String {
        let networks = ["10.0.0.0/8", "192.0.2.7", "fd00::/8"];
        let networks = networks.map(|it| parse_network(it).expect("a network"));
        let proxies = TrustedProxies::new(networks.to_vec());
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        let peer = peer.parse().expect("an address");
        proxies.client(peer, &map).to_string()
    }

    #[test]
    fn nearest_address_that_is_no_proxy_is_the_client() {
        for (value, expected) in [
            ("203.0.113.9", "203.0.113.9"),
            ("203.0.113.9:1234", "203.0.113.9:1234"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:1234", "[2001:db8::1]:1234"),
            // A client's claim precedes what the proxies append.
            ("1.2.3.4, 203.0.113.9", "203.0.113.9"),
            ("1.2.3.4, 203.0.113.9,192.0.2.7 , 10.9.9.9", "203.0.113.9"),
            ("10.2.2.2, 10.3.3.3", "10.2.2.2"),
            ("203.0.113.9, unknown, 10.3.3.3", "10.3.3.3"),
            ("unknown", "10.0.0.1:4711"),
            ("", "10.0.0.1:4711"),
            ("203.0.113.9,", "10.0.0.1:4711"),
        ] {
            assert_eq!(
                client(&[(X_FORWARDED_FOR.clone(), value)]),
                expected,
                "{value}"
            );
        }
        let lines = ["1.2.3.4", "203.0.113.9, 10.1.1.1"];
        let lines = lines.map(|line| (X_FORWARDED_FOR.clone(), line));
        assert_eq!(client(&lines), "203.0.113.9");
    }

    #[test]
    fn forwarded_is_read_without_x_forwarded_for() {
        for (value, expected) in [
            ("for=203.0.113.9", "203.0.113.9"),
            (
                "proto=https;For=\"203.0.113.9:80\";by=10.0.0.1",
                "203.0.113.9:80",
            ),
            ("for=1.2.3.4, for=\"[2001:db8::1]:80\"", "[2001:db8::1]:80"),
            ("for=203.0.113.9, for=10.1.1.1", "203.0.113.9"),
            ("for=_hidden", "10.0.0.1:4711"),
            // A proxy may pass on a client's `Host` in quotes.
            ("for=203.0.113.9;host=\"a,for=6.6.6.6;x\"", "203.0.113.9"),
            ("host=\"a;for=6.6.6.6;\";for=203.0.113.9", "203.0.113.9"),
            ("host=\"a\\\",for=6.6.6.6\";for=203.0.113.9", "203.0.113.9"),
            ("for=6.6.6.6;host=\"a, for=203.0.113.9", "10.0.0.1:4711"),
            ("for=203.0.113.9;for=6.6.6.6", "10.0.0.1:4711"),
            ("proto=https", "10.0.0.1:4711"),
        ] {
            assert_eq!(client(&[(FORWARDED, value)]), expected, "{value}");
        }
        let line = HeaderValue::from_bytes(b"\xff, 203.0.113.9").expect("a value");
        let fields = HeaderMap::from_iter([(X_FORWARDED_FOR.clone(), line)]);
        let mapped = parse_network("::ffff:10.0.0.0/104").expect("a network");
        let peer = "10.0.0.1:4711".parse().expect("an address");
        let client_of = TrustedProxies::new(vec![mapped]).client(peer, &fields);
        assert_eq!(client_of.to_string(), "203.0.113.9");
        let both = [
            (FORWARDED, "for=1.2.3.4"),
            (X_FORWARDED_FOR.clone(), "203.0.113.9"),
        ];
        assert_eq!(client(&both), "203.0.113.9");
    }

    #[test]
    fn untrusted_peer_is_the_client() {
        let fields = [
            (X_FORWARDED_FOR.clone(), "1.2.3.4"),
            (FORWARDED, "for=1.2.3.4"),
        ];
        assert_eq!(client_of("203.0.113.9:80", &fields), "203.0.113.9:80");
        // The peer of an IPv6 socket has an IPv4-mapped address.
        assert_eq!(client_of("[::ffff:10.0.0.1]:80", &fields), "1.2.3.4");
    }
}
