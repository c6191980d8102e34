//! The client of a request that came through proxies: the nearest address that is not one of theirs.

use http::{HeaderMap, HeaderName, header::FORWARDED};
use ipnet::{IpNet, Ipv4Net};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Proxies whose word is taken for where a request comes from.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<IpNet>);

/// The address of a client, and its port where that is known.
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
    ///
    /// Each proxy appends the address that it sees, so that the list is read from its end for as long as the addresses are
    /// those of trusted proxies; what stands before the first other one is what that client claims. `x-forwarded-for` comes
    /// before `forwarded` (RFC 7239), as nearly all proxies set it, and few remove the other one.
    pub fn client(&self, peer: SocketAddr, fields: &HeaderMap) -> Client {
        let mut client = Client::from(peer);
        if !self.trusts(client.address) {
            return client;
        }
        let (name, read): (_, Read) = match fields.contains_key(&X_FORWARDED_FOR) {
            true => (&X_FORWARDED_FOR, addresses),
            false => (&FORWARDED, forwarded),
        };
        let lines = fields.get_all(name).iter();
        let list: Vec<_> = lines.flat_map(|line| read(line.as_bytes())).collect();
        for before in list.into_iter().rev() {
            // What is no address ends the list: those before it cannot be told from forged ones.
            let Some(before) = before else {
                break;
            };
            client = before;
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

/// Reads an address or a network, such as `10.0.0.0/8`.
///
/// # Errors
/// What the value has to be.
pub fn network(value: &str) -> Result<IpNet, String> {
    let address = || value.parse::<IpAddr>().map(IpNet::from);
    let network = value.parse::<IpNet>().or_else(|_| address());
    let wanted = "neither an IP address nor a network (such as 10.0.0.0/8)";
    match network.map_err(|_| wanted)? {
        // Addresses are compared as IPv4 where they stand for it (RFC 4291, section 2.5.5.2).
        IpNet::V6(network) if let Some(address) = network.addr().to_ipv4_mapped() => {
            let bits = network.prefix_len().checked_sub(96).ok_or(wanted)?;
            let network = Ipv4Net::new(address, bits).map_err(|_| wanted)?;
            Ok(network.into())
        }
        network => Ok(network),
    }
}

/// Reads a line of a field to a list, in which `None` stands for what is no address.
type Read = fn(&[u8]) -> Vec<Option<Client>>;

/// Reads a line of `x-forwarded-for`.
fn addresses(line: &[u8]) -> Vec<Option<Client>> {
    line.split(|byte| *byte == b',').map(node).collect()
}

/// Reads a line of `forwarded`.
fn forwarded(line: &[u8]) -> Vec<Option<Client>> {
    match split(line, b',') {
        Some(elements) => elements.into_iter().map(forwarded_for).collect(),
        None => vec![None],
    }
}

/// Splits a value at a byte that stands outside of quoted strings (RFC 9110, section 5.6.4). Returns `None` if a string has
/// no end: a client may have left it open for what its proxy appends.
fn split(value: &[u8], separator: u8) -> Option<Vec<&[u8]>> {
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

/// Reads the parameter `for`, which is there once, of an element of `forwarded`: `for=192.0.2.1;proto=https`.
fn forwarded_for(element: &[u8]) -> Option<Client> {
    let pairs = split(element, b';')?.into_iter();
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
    node(quoted.unwrap_or(value))
}

/// Reads an address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn node(text: &[u8]) -> Option<Client> {
    let text = str::from_utf8(text.trim_ascii()).ok()?;
    let bare = |address: IpAddr| Client {
        address,
        port: None,
    };
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(bare(address));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.into());
    }
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let address: Ipv6Addr = inner.parse().ok()?;
    Some(bare(address.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    /// The client, by what the proxy at 10.0.0.1 says.
    fn client(fields: &[(HeaderName, &str)]) -> String {
        client_of("10.0.0.1:4711", fields)
    }

    fn client_of(peer: &str, fields: &[(HeaderName, &str)]) -> String {
        let networks = ["10.0.0.0/8", "192.0.2.7", "fd00::/8"];
        let networks = networks.map(|it| network(it).expect("a network"));
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
            // What a client claims stands before what the proxies saw.
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
    fn forwarded_says_the_same_where_there_is_no_x_forwarded_for() {
        for (value, expected) in [
            ("for=203.0.113.9", "203.0.113.9"),
            (
                "proto=https;For=\"203.0.113.9:80\";by=10.0.0.1",
                "203.0.113.9:80",
            ),
            ("for=1.2.3.4, for=\"[2001:db8::1]:80\"", "[2001:db8::1]:80"),
            ("for=203.0.113.9, for=10.1.1.1", "203.0.113.9"),
            ("for=_hidden", "10.0.0.1:4711"),
            // A proxy may pass on, in quotes, what a client says of its host.
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
        let mapped = network("::ffff:10.0.0.0/104").expect("a network");
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
    fn others_are_not_believed() {
        let fields = [
            (X_FORWARDED_FOR.clone(), "1.2.3.4"),
            (FORWARDED, "for=1.2.3.4"),
        ];
        assert_eq!(client_of("203.0.113.9:80", &fields), "203.0.113.9:80");
        // An IPv4 address is the same when a socket of IPv6 receives it.
        assert_eq!(client_of("[::ffff:10.0.0.1]:80", &fields), "1.2.3.4");
    }
}
