//! An HTTP/1.1 client that sends bytes as they are.

use super::TIMEOUT;
use rustix::net::SendFlags;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

/// The head of a request whose body follows.
pub const CHUNKED_POST: &str =
    "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The values of a header, in order.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(key, _)| key == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The body as text.
    pub fn text(self) -> String {
        String::from_utf8(self.body).expect("UTF-8")
    }
}

/// Status and body of the response to a request on a connection of its own.
pub fn get(address: SocketAddr, target: &str) -> (u16, String) {
    let response = Connection::open(address).request("GET", target);
    let response = response.expect("a response");
    (response.status, response.text())
}

pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        Self::try_open(address).expect("a connection")
    }

    pub fn try_open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Opens a connection with a small receive buffer.
    pub fn open_with_small_buffer(address: SocketAddr) -> Self {
        let connection = Self::open(address);
        let socket = connection.0.get_ref();
        rustix::net::sockopt::set_socket_recv_buffer_size(socket, 4096).expect("a socket");
        connection
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.0.get_mut().write_all(bytes.as_ref())
    }

    /// Sends the last bytes and the end of the stream in one segment, so that the server sees no pause between them.
    pub fn send_last(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let bytes = bytes.as_ref();
        let sent = rustix::net::send(self.0.get_ref(), bytes, SendFlags::MORE)?;
        assert_eq!(sent, bytes.len(), "the socket's buffer is full");
        self.shutdown_write()
    }

    /// Shuts down the write half.
    pub fn shutdown_write(&self) -> io::Result<()> {
        self.0.get_ref().shutdown(Shutdown::Write)
    }

    /// Sends a request without a body, and reads its response.
    pub fn request(&mut self, method: &str, target: &str) -> io::Result<Response> {
        self.send_request(method, target)?;
        self.response(method)
    }

    /// Sends a request without a body.
    pub fn send_request(&mut self, method: &str, target: &str) -> io::Result<()> {
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }

    /// Sends the body of a [`CHUNKED_POST`]: 16 chunks of 1 MiB, and the end.
    pub fn send_16_chunks(&mut self) -> io::Result<()> {
        let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
        for _ in 0..16 {
            self.send(&chunk)?;
        }
        self.send("0\r\n\r\n")
    }

    /// Reads the response to a request of this method: a head, and the body that its fields announce.
    pub fn response(&mut self, method: &str) -> io::Result<Response> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if self.0.read_until(b'\n', &mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let head = String::from_utf8(head).map_err(io::Error::other)?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let mut response = Response {
            status: status.and_then(|s| s.parse().ok()).expect(&head),
            headers: lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
                .collect(),
            body: Vec::new(),
        };
        if method != "HEAD" && response.header("transfer-encoding") == ["chunked"] {
            response.body = self.chunked_body()?;
        } else if method != "HEAD" {
            let length = response.header("content-length");
            let length = length.first().and_then(|n| n.parse().ok()).unwrap_or(0);
            response.body.resize(length, 0);
            self.0.read_exact(&mut response.body)?;
        }
        Ok(response)
    }

    /// Reads a chunked body without trailers (RFC 9112, section 7.1).
    fn chunked_body(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.read_until(b"\r\n")?;
            let size = std::str::from_utf8(&line).map(str::trim_end).ok();
            let size = size.and_then(|size| usize::from_str_radix(size, 16).ok());
            let size = size.ok_or(io::ErrorKind::InvalidData)?;
            let mut chunk = vec![0; size + 2];
            self.0.read_exact(&mut chunk)?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return Ok(body);
            }
        }
    }

    /// Reads up to and including these bytes; returns all of them.
    pub fn read_until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        read_until(&mut self.0, end)
    }

    /// Waits for the first byte of a response.
    pub fn wait_for_response(&mut self) -> io::Result<()> {
        self.0.fill_buf().map(|_| ())
    }

    /// Reads up to `limit` bytes from the kernel, without a buffer; returns how many.
    pub fn read_some(&mut self, limit: usize) -> io::Result<usize> {
        self.0.get_mut().read(&mut vec![0; limit])
    }

    /// Sends as many bytes as the kernel takes at once; returns how many.
    pub fn send_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stream = self.0.get_mut();
        stream.set_nonblocking(true)?;
        let mut sent = 0;
        let result = loop {
            match stream.write(&bytes[sent..]) {
                Ok(0) => break Ok(sent),
                Ok(more) => sent += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(sent),
                Err(error) => break Err(error),
            }
        };
        stream.set_nonblocking(false)?;
        result
    }

    /// Returns true if the server has not closed the connection. Discards what it has sent.
    pub fn is_open(&mut self) -> bool {
        self.receive(&mut Vec::new())
    }

    /// Receives what the server has sent; returns true if it has not closed the connection.
    pub fn receive(&mut self, received: &mut Vec<u8>) -> bool {
        let stream = self.0.get_mut();
        stream.set_nonblocking(true).expect("a socket");
        let ended = stream.read_to_end(received);
        stream.set_nonblocking(false).expect("a socket");
        ended.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The client's port.
    pub fn local_port(&self) -> u16 {
        self.0.get_ref().local_addr().expect("a socket").port()
    }

    /// Reads until the server closes the connection.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Reads up to and including these bytes, and no others; returns all of them.
pub fn read_until(mut stream: impl Read, end: &[u8]) -> io::Result<Vec<u8>> {
    let mut received = Vec::new();
    while !received.ends_with(end) {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        received.extend(byte);
    }
    Ok(received)
}
