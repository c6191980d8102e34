//! Shared by the tests: server processes, guests, and clients with full control of the bytes.

#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

pub mod frames;
mod guest;
mod http1;
pub mod http2;
mod resources;
mod server;

pub use guest::{Guest, RAW, SERVICES, SPIN, WASI};
pub use http1::{CHUNKED_POST, Connection, Response, get, read_until};
pub use resources::{established, raise_fd_limit};
pub use server::{
    Killed, MANAGEMENT, NO_ACCESS_LOG, PROGRAM, Server, assert_error, command, command_words, run,
    run_trials,
};

use rustix::net::{AddressFamily, SocketType};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest wait for what a test expects.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// Waits until a condition holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < TIMEOUT, "timed out waiting: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Makes tests that load the machine, or measure it, run one at a time: each holds the guard until its end.
pub fn serialize_tests() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens on a free port of 127.0.0.1.
pub fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

/// An address of 127.0.0.1 that refuses connections while the socket is kept: no other can have its port.
pub fn refusing_address() -> (OwnedFd, SocketAddr) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None);
    let socket = socket.expect("a socket");
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
    let address = rustix::net::getsockname(&socket).expect("an address");
    (socket, address.try_into().expect("an internet address"))
}

/// The address in the URL of a variable, which is of the form `http://host:port`.
pub fn resolve(variable: &str, url: &str) -> SocketAddr {
    let host = url.strip_prefix("http://");
    let host = host.map(|rest| rest.trim_end_matches('/'));
    let address = host.and_then(|host| host.to_socket_addrs().ok()?.next());
    address.unwrap_or_else(|| panic!("{variable}={url}: not of the form http://host:port"))
}
