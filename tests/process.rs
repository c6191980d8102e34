//! The server as a process: command line, startup and exit.

mod harness;

use harness::frames::{
    CONTINUATION, END, END_STREAM, HEADERS, METHOD_GET, frame, http2_head, http2_without_window,
};
use harness::{
    CHUNKED_POST, Connection, Killed, PROGRAM, RAW, Server, TIMEOUT, WASI, assert_error, command,
    command_words, listen, refusing_address, run, wait_until,
};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn help_lists_commands_and_settings() {
    let help = run(&["--help"], &[]);
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.status.success());
    for word in [
        "serve",
        "compile",
        "healthcheck",
        "--listen",
        "--output",
        "--target",
        "TARGETARCH",
        "--version",
    ] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
    assert_eq!(run(&["-h"], &[]).stdout, help.stdout);
}

#[test]
fn readme_lists_the_settings_of_help() {
    let help = String::from_utf8(run(&["--help"], &[]).stdout).expect("UTF-8");
    let (_, help) = help
        .split_once("Settings, from the environment:")
        .expect("settings");
    let listed = help
        .lines()
        .filter_map(|it| it.strip_prefix("  ")?.split(' ').next());
    let page = fs::read_to_string("../README.md").expect("the page");
    let (_, table) = page.split_once("\n## Configuration\n").expect("a section");
    let (table, _) = table.split_once("\n## ").expect("another section");
    let documented = table
        .lines()
        .filter_map(|it| it.strip_prefix("| `")?.split('`').next());
    assert_eq!(
        documented.collect::<BTreeSet<_>>(),
        listed.collect::<BTreeSet<_>>()
    );
}

#[test]
fn version_includes_wasmtime() {
    let version = run(&["--version"], &[]);
    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    let expected = concat!(
        "wasi-essentials ",
        env!("CARGO_PKG_VERSION"),
        " (wasmtime 48."
    );
    assert!(text.starts_with(expected), "{text}");
    assert_eq!(run(&["-V"], &[]).stdout, version.stdout);
}

#[test]
fn invalid_arguments_exit_with_2() {
    for (arguments, line) in [
        (
            &["--frobnicate"][..],
            "invalid option '--frobnicate'; see --help",
        ),
        (
            &["--listen"],
            "missing argument for option '--listen'; see --help",
        ),
        (
            &["healthcheck", "--target=x86_64"],
            "`healthcheck` takes no --target; see --help",
        ),
        (
            &["--listen", "here"],
            "--listen=here: not an IP address and port (such as 0.0.0.0:5000 or [::]:5000)",
        ),
    ] {
        assert_error(&run(arguments, &[]), 2, line);
    }
}

#[test]
fn invalid_settings_exit_with_2() {
    for (name, value, expected) in [
        ("PORT", "abc", "not a port number (0–65535)"),
        ("LOG_FORMAT", "xml", "not a log format (text or json)"),
        (
            "MAX_CONNECTIONS",
            "-1",
            "not a whole number from 1 to 1000000",
        ),
    ] {
        assert_error(
            &run(&[], &[(name, value)]),
            2,
            &format!("{name}={value}: {expected}"),
        );
    }
}

#[test]
fn address_in_use_exits_with_1() {
    let (_other, address) = listen();
    let address = address.to_string();
    let line = format!(
        "cannot listen on {address}: the address is in use; choose another with PORT, LISTEN or --listen"
    );
    let component = WASI.cwasm();
    let component = component.to_str().expect("UTF-8");
    let output = run(&[component, "--listen", &address], &[]);
    assert_error(&output, 1, &line);
    assert_error(&run(&[component], &[("LISTEN", &address)]), 1, &line);
}

#[test]
fn idle_server_exits_immediately() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let mut server = Server::start(WASI, &[]);
        server.signal(signal);
        let line = server.line();
        assert!(
            line.ends_with(&format!("{name}: shutting down, 0 connections open")),
            "{line}"
        );
        assert_eq!(server.wait().code(), Some(0));
    }
}

/// As process 1 of a container, the server would not get a signal that it has no handler for.
#[test]
fn signal_during_startup_exits_immediately() {
    let pipe = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pipe.cwasm");
    let _ = fs::remove_file(&pipe);
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    // The server waits for the component's first byte.
    let mut process = command(PROGRAM);
    process.arg(&pipe).stdout(Stdio::piped());
    let mut process = Killed(process.spawn().expect("the server starts"));
    let pid = rustix::process::Pid::from_child(&process.0);
    wait_until("SIGTERM is handled", || {
        let status = fs::read_to_string(format!("/proc/{}/status", process.0.id()));
        let status = status.expect("a running server");
        // A mask of the signals that are handled, in hexadecimal (proc(5)); SIGTERM is 15.
        let mask = status.lines().find_map(|it| it.strip_prefix("SigCgt:"));
        let mask = mask.and_then(|it| u64::from_str_radix(it.trim(), 16).ok());
        mask.expect("a mask") & 1 << 14 != 0
    });
    rustix::process::kill_process(pid, Signal::TERM).expect("a running server");
    assert_eq!(process.0.wait().expect("it ends").code(), Some(0));
    let log = process.0.stdout.take().expect("a pipe");
    let log = io::read_to_string(log).expect("UTF-8");
    assert!(log.ends_with(" SIGTERM: exited before serving\n"), "{log}");
}

/// On one core, whose thread loads the component. The first client's guest computes until it is stopped.
#[test]
fn clients_that_wait_for_the_load_are_served() {
    // An address of this test alone, because the port has to be known before the server says it. Neither a server on the default
    // port nor the system's free ports (ip(7), ip_local_port_range) can have it.
    let listen = "127.0.0.97:15097";
    let address = listen.parse().expect("an address");
    let mut process = command("taskset");
    process
        .args(["--cpu-list", "0", PROGRAM])
        .arg(RAW.wasm())
        .args(["--listen", listen])
        .env("GUEST_TIMEOUT", "3s")
        .stdout(Stdio::piped());
    let mut process = Killed(process.spawn().expect("the server starts"));
    let mut computing = None;
    wait_until("the server listens", || {
        let ended = process.0.try_wait().expect("a child");
        assert_eq!(ended, None, "the server ends");
        computing = Connection::try_open(address).ok();
        computing.is_some()
    });
    let mut computing = computing.expect("a connection");
    computing.send_request("GET", "/loop").expect("sent");
    let mut other = Connection::open(address);
    other.send_request("GET", "/").expect("sent");
    assert_eq!(other.response("GET").expect("a response").body, b"fine");
    let stopped = computing.response("GET").expect("a response");
    assert_eq!(stopped.status, 504);
    let pid = rustix::process::Pid::from_child(&process.0);
    rustix::process::kill_process(pid, Signal::TERM).expect("a running server");
    assert_eq!(process.0.wait().expect("it ends").code(), Some(0));
}

/// As many clients may wait to be accepted as may be open, up to the limit of the system.
#[test]
fn backlog_equals_max_connections() {
    let server = Server::start(WASI, &[("MAX_CONNECTIONS", "1000")]);
    let port = format!(":{}", server.address.port());
    let output = Command::new("ss")
        .args(["-tlnH", "sport", "=", &port])
        .output();
    let output = output.expect("`ss` shows sockets");
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    // Of a socket that listens, the third field is the backlog.
    assert_eq!(line.split_whitespace().nth(2), Some("1000"), "{line}");
}

/// Settings under which only the shutdown closes a connection.
const LONG_TIMEOUTS: [(&str, &str); 3] = [
    ("HEADER_TIMEOUT", "1h"),
    ("GUEST_TIMEOUT", "1h"),
    ("IDLE_TIMEOUT", "1h"),
];

#[test]
fn drain_timeout_closes_unfinished_request() {
    let env = [&LONG_TIMEOUTS[..], &[("DRAIN_TIMEOUT", "400ms")]].concat();
    let mut server = Server::start(WASI, &env);
    let mut connection = Connection::open(server.address);
    connection.send("GET / HTTP/1.1\r\n").expect("sent");
    server.signal(Signal::TERM);
    server.lines_until("shutting down, 1 connections open");
    server.lines_until("drain timed out (DRAIN_TIMEOUT): closing 1 connection with 0 requests");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn request_cut_by_drain_is_logged() {
    for format in ["text", "json"] {
        let env = [
            &LONG_TIMEOUTS[..],
            &[("DRAIN_TIMEOUT", "400ms"), ("LOG_FORMAT", format)],
        ];
        let mut server = Server::start(RAW, &env.concat());
        let mut connection = Connection::open(server.address);
        connection.send_request("GET", "/wait").expect("sent");
        server.lines_until("waiting");
        server.signal(Signal::TERM);
        server.lines_until("drain timed out (DRAIN_TIMEOUT): closing 1 connection with 1 request");
        let line = server.line();
        let (request, end) = match format {
            "text" => (" GET /wait 503 0B ", "us cut"),
            _ => (
                r#""http.request.method":"GET","url.path":"/wait","http.response.status_code":503,"#,
                r#","cut":true}"#,
            ),
        };
        assert!(line.contains(request) && line.ends_with(end), "{line}");
        assert_eq!(server.wait().code(), Some(0));
    }
}

/// Requests that hyper rejects, and those that stay incomplete, are logged, too.
#[test]
fn request_without_valid_head_is_logged() {
    let mut server = Server::start(RAW, &[("HEADER_TIMEOUT", "200ms")]);
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(40 << 10));
    for (bytes, status) in [
        ("GET / HTTP/1.1\r\n:\r\n\r\n", 400),
        (&long, 431),
        ("GET /", 408),
    ] {
        let mut connection = Connection::open(server.address);
        // The server may close the connection before it has received everything.
        let _ = connection.send(bytes);
        let line = server.line();
        assert!(line.contains(&format!(" - - {status} 0B ")), "{line}");
    }
    // A field of the connection is malformed (RFC 9113, section 8.2.2), and a head may have 32 KiB.
    let malformed = [&http2_head(METHOD_GET, "/")[..], b"\x00\x0aconnection\x01x"].concat();
    // A value of 40,000 bytes (RFC 7541, section 5.1).
    let large = [
        &http2_head(METHOD_GET, "/")[..],
        b"\x00\x01x\x7f\xc1\xb7\x02",
    ]
    .concat();
    let good = http2_head(METHOD_GET, "/wait");
    let mut connection = Connection::open(server.address);
    connection.send(http2_without_window(0)).expect("sent");
    connection
        .send(frame(HEADERS, END, 1, &good))
        .expect("sent");
    server.lines_until("guest: waiting");
    connection
        .send(frame(HEADERS, END, 3, &malformed))
        .expect("sent");
    let line = server.line();
    assert!(line.contains(" - - 400 0B "), "{line}");
    let rest = [0, 0, 4].map(|flags| {
        let bytes = if flags == 0 { 16_000 } else { 8_000 };
        frame(CONTINUATION, flags, 5, &vec![b'x'; bytes])
    });
    let large = [frame(HEADERS, END_STREAM, 5, &large), rest.concat()].concat();
    connection.send(large).expect("sent");
    let line = server.line();
    assert!(line.contains(" - - 431 0B "), "{line}");
}

#[test]
fn second_signal_forces_exit() {
    let env = [&LONG_TIMEOUTS[..], &[("DRAIN_TIMEOUT", "1h")]].concat();
    let mut server = Server::start(WASI, &env);
    let mut connection = Connection::open(server.address);
    connection.send("GET / HTTP/1.1\r\n").expect("sent");
    server.signal(Signal::TERM);
    server.lines_until("shutting down");
    server.signal(Signal::TERM);
    server.lines_until("received a second signal: closing 1 connection with 0 requests");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn healthcheck_exit_status_reports_health() {
    let server = Server::start(WASI, &[]);
    let address = server.address.to_string();
    let port = server.address.port().to_string();
    assert!(
        run(&["healthcheck", "--listen", &address], &[])
            .status
            .success()
    );
    assert!(
        run(&["healthcheck"], &[("LISTEN", &address)])
            .status
            .success()
    );
    // A server on all addresses is checked on loopback.
    assert!(run(&["healthcheck"], &[("PORT", &port)]).status.success());
    let (_socket, address) = refusing_address();
    let address = address.to_string();
    let line = format!("{address} is not healthy: Connection refused (os error 111)");
    assert_error(&run(&["healthcheck"], &[("LISTEN", &address)]), 1, &line);
}

#[test]
fn healthcheck_accepts_only_http_200() {
    for (response, reason) in [
        (
            "HTTP/1.1 503 Service Unavailable\r\n\r\n",
            "/health returned 503",
        ),
        ("220 mail ready", "the response is not HTTP/1.1"),
        ("", "unexpected end of file"),
    ] {
        let (other, address) = listen();
        let address = address.to_string();
        let peer = thread::spawn(move || {
            let (mut stream, _) = other.accept()?;
            io::Write::write_all(&mut stream, response.as_bytes())?;
            stream.shutdown(std::net::Shutdown::Write)?;
            // Until the probe closes: closing first can reset the connection before the response is read.
            io::copy(&mut stream, &mut io::sink())
        });
        let output = run(&["healthcheck"], &[("LISTEN", &address)]);
        assert_error(&output, 1, &format!("{address} is not healthy: {reason}"));
        let _ = peer.join();
    }
}

#[test]
fn healthcheck_times_out() {
    let (_silent, address) = listen();
    let address = address.to_string();
    let started = Instant::now();
    let output = run(&["healthcheck"], &[("LISTEN", &address)]);
    let line = format!("{address} is not healthy: no response within 2s");
    assert_error(&output, 1, &line);
    assert!((Duration::from_secs(2)..TIMEOUT).contains(&started.elapsed()));
}

/// The command of a server with this limit of address space, in bytes.
fn with_address_space(address_space: u64) -> Command {
    let mut command = command("sh");
    let script = format!("ulimit -v {}; exec \"$@\"", address_space / 1024);
    command.args(["-c", &script, "sh"]).args(command_words());
    command.arg(WASI.cwasm());
    command
}

/// The address space of a process on many arm64 kernels (Documentation/arch/arm64/memory.rst).
const ADDRESS_SPACE_OF_39_BITS: u64 = 1 << 39;

#[test]
fn address_space_of_39_bits_suffices() {
    let server = Server::spawn(with_address_space(ADDRESS_SPACE_OF_39_BITS), &[]);
    assert_eq!(server.get("/").expect("a response").status, 200);
}

#[test]
fn small_address_space_exits_with_largest_value_that_fits() {
    for (address_space, max_requests) in [
        (ADDRESS_SPACE_OF_39_BITS, "4096"),
        (64 << 30, "64"),
        (8 << 30, "2"),
    ] {
        let mut command = with_address_space(address_space);
        command.args(["--listen", "127.0.0.1:0"]);
        let output = command
            .env("MAX_REQUESTS", max_requests)
            .output()
            .expect("it runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let rest = format!(
            "error: MAX_REQUESTS={max_requests}: too little address space, of which each guest reserves 4 GiB; \
             set MAX_REQUESTS="
        );
        let fit = stderr
            .strip_prefix(&rest)
            .and_then(|rest| rest.strip_suffix(" or less, or raise `ulimit -v`\n"));
        let fit: u64 = fit.and_then(|fit| fit.parse().ok()).expect(&stderr);
        assert_eq!(output.status.code(), Some(1));
        // Stacks of 2 MiB for each guest and what else the process needs take few of the GiB.
        let max = address_space >> 32;
        assert!(fit < max && fit >= max - max / 64 - 1, "{fit} of {max}");
        // A server with that value serves.
        let server = Server::spawn(
            with_address_space(address_space),
            &[("MAX_REQUESTS", &fit.to_string())],
        );
        assert_eq!(server.get("/").expect("a response").status, 200);
    }
}

#[test]
fn address_space_below_one_guest_exits_with_1() {
    let mut command = with_address_space(1 << 30);
    let output = command.args(["--listen", "127.0.0.1:0"]).output();
    let output = output.expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line = "error: MAX_REQUESTS=64: too little address space, of which each guest reserves 4 GiB; raise `ulimit -v`, \
                as none fits: ";
    assert!(
        stderr.starts_with(line) && stderr.lines().count() == 1,
        "{stderr}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn startup_line_has_local_url() {
    let mut command = command(PROGRAM);
    let process = command
        .arg(WASI.cwasm())
        .args(["--listen", "0.0.0.0:0"])
        .stdout(Stdio::piped())
        .spawn();
    let mut process = Killed(process.expect("the server starts"));
    let mut line = String::new();
    let log = process.0.stdout.take().expect("a pipe");
    BufReader::new(log).read_line(&mut line).expect("a line");
    let (_, addresses) = line.split_once(" listening on ").expect(&line);
    let port = addresses
        .strip_prefix("0.0.0.0:")
        .and_then(|rest| rest.split(',').next());
    let port: u16 = port.and_then(|port| port.parse().ok()).expect(&line);
    assert!(
        line.ends_with(&format!(", see http://localhost:{port}/\n")),
        "{line}"
    );
}

#[test]
fn unread_body_keeps_connection_open() {
    let server = Server::start(WASI, &[]);
    let mut connection = Connection::open(server.address);
    for _ in 0..2 {
        connection.send(CHUNKED_POST).expect("head sent");
        connection.send_16_chunks().expect("body sent");
        assert_eq!(connection.response("POST").expect("a response").status, 405);
    }
}
