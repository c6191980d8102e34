//! Sends bytes to a server over a socket. The server has to respond or close the connection, and to continue. Every line of its
//! log has to be valid. If the first byte is 0x80 or more, which no HTTP/1 request starts with, the others follow the preface of
//! HTTP/2.
//!
//! `COMPONENT=… cargo fuzz run --sanitizer none connection DIRECTORY`, with the service's `.cwasm`; a panic on any
//! thread ends the run. The directory starts with the contents of `corpus.tar.gz`. After a longer run, merge it into a new
//! directory (`-set_cover_merge=1 -max_len=4096 NEW OLD`), and pack that by
//! `tar --sort=name --mtime=@0 --owner=0 --group=0 -C NEW -c . | gzip -9n`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use server::component::file::Component;
use server::config::settings::Config;
use server::listener::descriptors::FdLimits;
use server::listener::server::Server;
use server::listener::worker::build_runtime;
use server::telemetry::line::LogFormat;
use server::telemetry::log::Log;
use std::env;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc;

/// The preface and SETTINGS (RFC 9113, section 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The longest wait for the server.
const TIMEOUT: Duration = Duration::from_secs(5);

static SERVER: LazyLock<SocketAddr> = LazyLock::new(|| {
    let config = Config::read(Some("127.0.0.1:0".into()), |_| None, None).expect("defaults");
    let log = Log::new(LogFormat::Text);
    log.start_writer(CheckedLog::default()).expect("a thread");
    let path = env::var_os("COMPONENT").expect("COMPONENT names the service's .cwasm");
    let component = Component::open(path.as_ref()).expect("a component");
    let fds = FdLimits::divide(&config, 2).expect("file descriptors");
    let runtime = build_runtime(false).expect("a runtime");
    let (mut server, work) =
        Server::bind(&component, config, fds, &log, runtime).expect("a server");
    let address = server.address().expect("an address");
    thread::spawn(work);
    server.start_workers(2).expect("threads");
    thread::spawn(move || {
        let runtime = build_runtime(false).expect("a runtime");
        let (_never, stop) = mpsc::channel(1);
        runtime.block_on(server.run(stop)).expect("the server runs");
    });
    address
});

fuzz_target!(|bytes: &[u8]| {
    let mut stream = TcpStream::connect(*SERVER).expect("a connection");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a socket");
    stream.set_write_timeout(Some(TIMEOUT)).expect("a socket");
    // The server may close the connection before it has received everything.
    let (preface, bytes) = match bytes {
        [0x80..=0xff, bytes @ ..] => (HTTP2, bytes),
        bytes => (&[][..], bytes),
    };
    let sent = stream.write_all(&[preface, bytes].concat());
    let _ = sent.and_then(|()| stream.shutdown(Shutdown::Write));
    let mut response = Vec::new();
    match stream.read_to_end(&mut response) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            panic!(
                "neither responded nor closed; received: {}",
                response.escape_ascii()
            );
        }
        _ => {}
    }
});

/// Checks each line of the log.
#[derive(Default)]
struct CheckedLog(Vec<u8>);

impl Write for CheckedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            check(&self.0[..end]);
            self.0.drain(..=end);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Checks that a line is printable, and that a line of a request has eight fields, followed by ids.
fn check(line: &[u8]) {
    let line = str::from_utf8(line).expect("UTF-8");
    let prints = |c: char| c.is_ascii_punctuation() || c.escape_debug().len() == 1;
    assert!(line.chars().all(prints), "{}", line.escape_debug());
    let fields: Vec<_> = line.split(' ').collect();
    let is_request = fields.get(2).is_some_and(|it| it.starts_with("127.0.0.1:"));
    if !is_request {
        assert!(!line.contains("the guest"), "{line}");
        return;
    }
    let [time, "INFO", _, method, path, status, size, took, ids @ ..] = &fields[..] else {
        panic!("{line}");
    };
    assert!(time.len() == 24 && time.ends_with('Z'), "{line}");
    assert!(path.starts_with(['/', '*', '-']), "{line}");
    assert!(size.ends_with('B') && took.ends_with("us"), "{line}");
    let may_be = |status: u16| match status {
        // A stream over the limit.
        503 => *method == "-",
        status => status < 500 || status == 501,
    };
    assert!(status.parse().is_ok_and(may_be), "{line}");
    let is_id = |id: &str| match id.split_once('=') {
        Some(("trace", id)) => id.len() == 32,
        Some(("span", id)) => id.len() == 16,
        Some(("request", id)) => (1..=128).contains(&id.len()),
        _ => false,
    };
    assert!(ids.iter().all(|id| is_id(id)), "{line}");
}
