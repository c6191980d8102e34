//! The health probe, for images without a shell and curl: sends a request to the server on this machine.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Timeout for the response.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Requests `path` from the server that listens on `address`.
///
/// # Errors
/// One line, unless the status of the response is 200.
pub fn check(address: SocketAddr, path: &str) -> Result<(), String> {
    let address = loopback_for(address);
    let status = fetch_status(address, path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("{address} is not healthy: no response within {TIMEOUT:?}")
        }
        _ => format!("{address} is not healthy: {error}"),
    })?;
    match status.as_str() {
        "200" => Ok(()),
        _ => Err(format!(
            "{address} is not healthy: {path} returned {status}"
        )),
    }
}

/// Returns loopback for the unspecified address, which stands for all addresses.
fn loopback_for(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// Returns the status code of the response.
fn fetch_status(address: SocketAddr, path: &str) -> io::Result<String> {
    let deadline = Instant::now() + TIMEOUT;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let fields = "Host: localhost\r\nConnection: close";
    stream.write_all(format!("GET {path} HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes())?;
    // The status line is `HTTP/1.1 200 …` (RFC 9112, section 4).
    let mut line = [0; 12];
    let mut filled = 0;
    while let Some(rest) = line.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let left = deadline.saturating_duration_since(Instant::now());
        // Zero would mean no timeout.
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(rest)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => filled += bytes,
        }
    }
    match line.strip_prefix(b"HTTP/1.1 ") {
        Some(status) => Ok(status.escape_ascii().to_string()),
        None => Err(io::Error::other("the response is not HTTP/1.1")),
    }
}
