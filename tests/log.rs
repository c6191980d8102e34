//! The log: its lines in both formats, traces, and the address of the client.

mod harness;

use harness::http2::Http2;
use harness::{Connection, NO_ACCESS_LOG, RAW, Server, WASI};
use rustix::process::Signal;
use serde_json::Value;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn json(server: &mut Server) -> Value {
    let line = server.line();
    serde_json::from_str(&line).expect(&line)
}

#[test]
fn each_request_is_logged() {
    let mut server = Server::start(WASI, &[]);
    server.get("/health?secret=1").expect("a response");
    let line = server.line();
    let fields: Vec<_> = line.split(' ').collect();
    let [time, "INFO", peer, "GET", "/health", "200", "2B", took] = fields[..] else {
        panic!("{line}");
    };
    assert!(humantime::parse_rfc3339(time).is_ok(), "{line}");
    assert!(peer.starts_with("127.0.0.1:"), "{line}");
    assert!(
        took.strip_suffix("us")
            .is_some_and(|n| n.parse::<u64>().is_ok()),
        "{line}"
    );
}

#[test]
fn json_log_has_documented_fields() {
    let mut server = Server::start(WASI, &[("LOG_FORMAT", "json")]);
    server.get("/%22?x").expect("a response");
    let line = json(&mut server);
    assert!(line["timestamp"].is_string() && line["duration_us"].is_u64());
    assert_eq!(line["severity_text"], "INFO");
    for end in ["client", "network.peer"] {
        assert_eq!(line[format!("{end}.address")], "127.0.0.1");
        assert!(line[format!("{end}.port")].is_u64());
    }
    assert_eq!(line["http.request.method"], "GET");
    assert_eq!(line["url.path"], "/%22");
    assert_eq!(line["http.response.status_code"], 404);
    assert_eq!(line["http.response.body.size"], 9);
    server.signal(Signal::TERM);
    let line = json(&mut server);
    assert_eq!(line["severity_text"], "INFO");
    // The client's connection may still be open.
    let body = line["body"].as_str().expect("a message");
    assert!(body.starts_with("SIGTERM: shutting down, "), "{line}");
}

#[test]
fn access_log_can_be_off() {
    let mut server = Server::start(WASI, &[("ACCESS_LOG", "off")]);
    server.get("/").expect("a response");
    server.signal(Signal::TERM);
    let line = server.line();
    assert!(line.contains("shutting down"), "{line}");
}

#[test]
fn control_characters_are_escaped() {
    let mut server = Server::start(WASI, &[]);
    let mut sent = 0;
    // Requests that the server itself rejects are logged, too.
    for byte in (0..=0x1f)
        .chain(0x7f..=0xff)
        .filter(|byte| !b"\r\n".contains(byte))
    {
        let mut connection = Connection::open(server.address);
        let request = [b"GET /x", &[byte][..], b"y HTTP/1.1\r\nHost: test\r\n\r\n"].concat();
        connection.send(request).expect("sent");
        let status = connection.response("GET").expect("a response").status;
        assert!([400, 404].contains(&status), "{status}");
        sent += 1;
    }
    // A line of one connection may come after that of a later one, on another thread.
    for _ in 0..sent {
        let line = server.line();
        assert!(
            line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{line:?}"
        );
        assert!(line.contains(" 400 ") || line.contains(" 404 "), "{line}");
    }
    server.signal(Signal::TERM);
    let line = server.line();
    assert!(line.contains("shutting down"), "{line}");
}

#[test]
fn unread_log_does_not_block_requests() {
    let mut server = Server::start(WASI, &[]);
    let target = format!("/{}", "x".repeat(8000));
    let mut connection = Connection::open(server.address);
    // 3.2 MB of lines: more than the pipe's 64 KiB and the log's 1 MiB hold.
    for _ in 0..400 {
        assert_eq!(
            connection
                .request("GET", &target)
                .expect("a response")
                .status,
            404
        );
    }
    // Once it is read again, it has the number of lost lines.
    while !server.line().ends_with("log lines: the reader is too slow") {}
    server.signal(Signal::TERM);
    while !server.line().contains("shutting down") {}
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn lines_have_trace_of_request() {
    let context = format!("traceparent: 00-{TRACE}-{SPAN}-01\r\nx-request-id: unused\r\n");
    let mut server = Server::start(RAW, &[]);
    server.get_with("/log", &context);
    let id = format!("trace={TRACE} span={SPAN}");
    let line = server.line();
    assert!(
        line.ends_with(&format!(" INFO [{id}] guest: a line")),
        "{line}"
    );
    server.line();
    let line = server.line();
    assert!(
        line.contains(" GET /log 200 ") && line.ends_with(&format!("us {id}")),
        "{line}"
    );

    server.get_with("/trap", "x-request-id: 7b1c\r\n");
    let lines = server.lines_until(" ERROR [request=7b1c] GET /trap: the guest trapped");
    assert!(
        lines
            .iter()
            .all(|it| it.contains(" WARN [request=7b1c] guest: ")),
        "{lines:?}"
    );
    let line = server.line();
    assert!(line.ends_with("us request=7b1c"), "{line}");

    let mut server = Server::start(RAW, &[("LOG_FORMAT", "json")]);
    server.get_with("/log", &context);
    let line = json(&mut server);
    assert_eq!(
        (&line["body"], &line["log.iostream"]),
        (&"a line".into(), &"stdout".into())
    );
    for line in [line, json(&mut server), json(&mut server)] {
        assert_eq!(line["trace_id"], TRACE, "{line}");
        assert_eq!(line["span_id"], SPAN, "{line}");
        assert_eq!(line["request_id"], Value::Null, "{line}");
    }
    server.get_with("/silent", "x-request-id: 7b1c\r\n");
    let line = json(&mut server);
    assert_eq!(line["body"], "GET /silent: the guest returned no response");
    assert_eq!(
        (&line["severity_text"], &line["request_id"]),
        (&"ERROR".into(), &"7b1c".into())
    );
    assert_eq!(json(&mut server)["request_id"], "7b1c");
}

/// Lines of a guest have the id of the request that it serves.
#[test]
fn lines_of_reused_guest_have_id_of_request() {
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG, ("REQUESTS_PER_SANDBOX", "10")]);
    for id in ["first", "second"] {
        server.get_with("/log", &format!("x-request-id: {id}\r\n"));
        let line = server.line();
        assert!(
            line.ends_with(&format!(" [request={id}] guest: a line")),
            "{line}"
        );
        server.line();
    }
    // An unfinished line keeps the id of its request.
    server.get_with("/log-part", "x-request-id: third\r\n");
    let line = server.line();
    assert!(
        line.ends_with(" INFO [request=third] guest: part"),
        "{line}"
    );
    server.get("/log").expect("a response");
    let line = server.line();
    assert!(line.ends_with(" INFO guest: a line"), "{line}");
}

#[test]
fn invalid_trace_is_not_logged() {
    let mut server = Server::start(WASI, &[]);
    for fields in [
        format!("traceparent: 00-{}-{SPAN}-01\r\n", "0".repeat(32)),
        "x-request-id: a b\r\n".to_owned(),
        "x-request-id: a\r\nx-request-id: b\r\n".to_owned(),
    ] {
        server.get_with("/", &fields);
        let line = server.line();
        assert!(line.ends_with("us"), "{line}");
    }
}

#[test]
fn only_trusted_proxies_set_client_address() {
    let fields = "x-forwarded-for: 192.0.2.9, 203.0.113.7, 10.1.1.1\r\n";
    let trusted = [("TRUSTED_PROXIES", "127.0.0.1,10.0.0.0/8")];
    let json_too = [trusted[0], ("LOG_FORMAT", "json")];
    let mut server = Server::start(WASI, &trusted);
    server.get_with("/", fields);
    let line = server.line();
    assert!(line.contains(" INFO 203.0.113.7 GET / 200 "), "{line}");
    server.get_with("/", "forwarded: for=\"[2001:db8::7]:4711\"\r\n");
    let line = server.line();
    assert!(
        line.contains(" INFO [2001:db8::7]:4711 GET / 200 "),
        "{line}"
    );
    let mut http2 = Http2::connect(server.address);
    assert_eq!(
        http2
            .request_with("GET", "/", &[("x-forwarded-for", "203.0.113.7")])
            .status,
        200
    );
    let line = server.line();
    assert!(line.contains(" INFO 203.0.113.7 GET / 200 "), "{line}");

    let mut server = Server::start(WASI, &json_too);
    server.get_with("/", fields);
    let line = json(&mut server);
    assert_eq!(line["client.address"], "203.0.113.7");
    assert_eq!(line["client.port"], Value::Null);
    assert_eq!(line["network.peer.address"], "127.0.0.1");

    let mut server = Server::start(WASI, &[]);
    server.get_with("/", fields);
    let line = server.line();
    assert!(line.contains(" INFO 127.0.0.1:"), "{line}");
}
