//! Who sent a request that came through proxies: the nearest address that is not one of them.

use http::{HeaderMap, HeaderName, header::FORWARDED};
use ipnet::IpNet;
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
        let (name, read): (_, fn(&str) -> Option<Client>) =
            match fields.contains_key(&X_FORWARDED_FOR) {
                true => (&X_FORWARDED_FOR, node),
                false => (&FORWARDED, forwarded_for),
            };
        let lines = fields.get_all(name);
        let lines: Vec<_> = lines.iter().map(|it| it.to_str().unwrap_or("")).collect();
        for element in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            // What is no address ends the list: those before it cannot be told from forged ones.
            let Some(before) = read(element.trim()) else {
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
    network.map_err(|_| "neither an IP address nor a network (such as 10.0.0.0/8)".into())
}

/// Reads the parameter `for` of an element of `forwarded`: `for=192.0.2.1;proto=https`.
fn forwarded_for(element: &str) -> Option<Client> {
    let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    let value = value.trim();
    let quoted = value.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
    node(quoted.unwrap_or(value))
}

/// Reads an address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn node(text: &str) -> Option<Client> {
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
            ("proto=https", "10.0.0.1:4711"),
        ] {
            assert_eq!(client(&[(FORWARDED, value)]), expected, "{value}");
        }
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
