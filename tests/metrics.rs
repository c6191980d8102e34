//! `/metrics` and `/version`: the metrics count what happens, over both protocols, under the documented names.

mod harness;

use harness::frames::http2_without_window;
use harness::http2::Http2;
use harness::{
    Connection, MANAGEMENT, NO_ACCESS_LOG, RAW, SERVICES, Server, WASI, listen, read_until,
    refusing_address, run, serialize_tests, wait_until,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::{fs, io, thread};

/// Metrics by name and labels, such as `http_server_timeouts_total{timeout="idle"}`.
type Samples = BTreeMap<String, f64>;

/// Requests the metrics of a server from its management listener.
fn samples(management: SocketAddr) -> Samples {
    let response = Connection::open(management).request("GET", "/metrics");
    let response = response.expect("a response");
    assert_eq!(response.status, 200);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(response.header("content-type"), [kind]);
    let text = response.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').expect(line);
        (name.to_owned(), value.parse().expect(line))
    };
    lines.map(sample).collect()
}

/// Waits until a metric has this value: a client can see the end of a request before it is counted.
#[track_caller]
fn wait_for_sample(server: &Server, name: &str, value: f64) {
    let management = server.management();
    wait_until(&format!("{name} is {value}"), || {
        samples(management).get(name) == Some(&value)
    });
}

/// The status of a response, or 0 if there is none.
fn status_of(server: &Server, path: &str) -> u16 {
    let response = server.get(path);
    response.map_or(0, |response| response.status)
}

/// The number of requests with this method and status.
fn requests(method: &str, status: u16) -> String {
    format!(
        "http_server_request_duration_seconds_count{{http_request_method=\"{method}\",\
         http_response_status_code=\"{status}\"}}"
    )
}

#[test]
fn requests_are_counted_over_both_protocols() {
    let server = Server::start(RAW, &[NO_ACCESS_LOG, MANAGEMENT]);
    let mut http1 = Connection::open(server.address);
    for _ in 0..3 {
        http1.request("GET", "/").expect("a response");
    }
    let mut http2 = Http2::connect(server.address);
    http2.request("GET", "/");
    http2.request("HEAD", "/");
    let mut unknown_method = Connection::open(server.address);
    unknown_method.request("BREW", "/").expect("a response");
    let mut malformed = Connection::open(server.address);
    malformed.send("GET / HTTP/1.1\r\n:\r\n\r\n").expect("sent");
    malformed.response("GET").expect("a response");
    for (name, value) in [
        (requests("GET", 200), 4.0),
        (requests("HEAD", 200), 1.0),
        (requests("_OTHER", 200), 1.0),
        (requests("_OTHER", 400), 1.0),
        ("guest_start_duration_seconds_count".into(), 6.0),
        ("http_server_active_requests".into(), 0.0),
        ("guest_instances{state=\"running\"}".into(), 0.0),
    ] {
        wait_for_sample(&server, &name, value);
    }
    let samples = samples(server.management());
    let io = |direction| {
        let name =
            format!("http_server_network_io_bytes_total{{network_io_direction=\"{direction}\"}}");
        samples[&name]
    };
    // Three of the requests have 31 bytes each, and their responses more.
    assert!(
        io("receive") > 93.0 && io("transmit") > io("receive"),
        "{samples:?}"
    );
    let state = |state| {
        samples[&format!("http_server_open_connections{{http_connection_state=\"{state}\"}}")]
    };
    assert_eq!(state("active"), 0.0);
    assert!(state("idle") >= 2.0, "{samples:?}");
    assert!(samples["process_resident_memory_bytes"] > 1e6);
    assert!(samples["process_open_fds"] > 10.0);
    assert!(samples["process_max_fds"] >= samples["process_open_fds"]);
    assert!(samples.contains_key("process_cpu_seconds_total"));
    assert!(samples["process_start_time_seconds"] > 1.7e9);
    assert_eq!(samples["guest_instances_limit"], 64.0);
    assert_eq!(samples["guest_memory_limit_bytes"], 268_435_456.0);
}

#[test]
fn active_requests_are_counted_as_state() {
    let env = [NO_ACCESS_LOG, MANAGEMENT, ("GUEST_TIMEOUT", "1h")];
    let mut server = Server::start(RAW, &env);
    let mut waiting = Connection::open(server.address);
    waiting.send_request("GET", "/wait").expect("sent");
    let mut http2 = Http2::connect(server.address);
    let waiting2 = http2.send("GET", "/wait", true);
    http2.wait_until(|| samples(server.management())["guest_instances{state=\"running\"}"] == 2.0);
    for (name, value) in [
        ("http_server_active_requests", 2.0),
        (
            "http_server_open_connections{http_connection_state=\"active\"}",
            2.0,
        ),
    ] {
        wait_for_sample(&server, name, value);
    }
    assert!(samples(server.management())["guest_memory_bytes"] >= 2.0 * 65536.0);
    server.lines_until("guest: waiting");
    drop((waiting, waiting2, http2));
    // The clients disconnect before their responses.
    wait_for_sample(&server, &requests("GET", 499), 2.0);
    for name in [
        "http_server_active_requests",
        "guest_memory_bytes",
        "guest_instances{state=\"running\"}",
        "http_server_open_connections{http_connection_state=\"active\"}",
        "http_server_open_connections{http_connection_state=\"idle\"}",
    ] {
        wait_for_sample(&server, name, 0.0);
    }
}

#[test]
fn guest_failures_are_counted_by_reason() {
    let env = [NO_ACCESS_LOG, MANAGEMENT, ("GUEST_TIMEOUT", "2s")];
    let server = Server::start(RAW, &env);
    for (path, reason) in [
        ("/trap", "trapped"),
        ("/exit", "exited"),
        ("/loop", "timed_out"),
        ("/silent", "no_response"),
        ("/long", "malformed_response"),
        ("/refuse", "guest_error"),
        // After the response has started.
        ("/half-then-trap", "trapped"),
    ] {
        let name = format!("guest_failures_total{{reason=\"{reason}\"}}");
        let before = samples(server.management())[&name];
        status_of(&server, path);
        wait_for_sample(&server, &name, before + 1.0);
    }
    // A truncated body: by an error in its place (WASI 0.3), or by the exit of the guest.
    for service in SERVICES {
        let reason = match service.entry {
            "wasi" => "exited",
            _ => "body_failed",
        };
        let server = Server::start(service, &[NO_ACCESS_LOG, MANAGEMENT]);
        let mut connection = Connection::open(server.address);
        let head = "POST /half HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\n";
        connection.send(head).expect("sent");
        connection.read_until(b"half").expect("half a response");
        connection.send("x").expect("sent");
        let name = format!("guest_failures_total{{reason=\"{reason}\"}}");
        wait_for_sample(&server, &name, 1.0);
    }
    let refused = "guest_memory_refusals_total{limit=\"guest_memory\"}";
    assert_eq!(samples(server.management())[refused], 0.0);
    wait_until("growth is refused", || {
        status_of(&server, "/pages");
        samples(server.management())[refused] >= 1.0
    });
}

#[test]
fn reused_guests_are_idle_between_requests() {
    let server = Server::start(
        RAW,
        &[NO_ACCESS_LOG, MANAGEMENT, ("REQUESTS_PER_SANDBOX", "10")],
    );
    let mut connection = Connection::open(server.address);
    for _ in 0..5 {
        connection.request("GET", "/").expect("a response");
        wait_for_sample(&server, "guest_instances{state=\"idle\"}", 1.0);
    }
    wait_for_sample(&server, "guest_start_duration_seconds_count", 1.0);
    wait_for_sample(&server, &requests("GET", 200), 5.0);
}

#[test]
fn rejections_are_counted_by_limit() {
    let _guard = serialize_tests();
    let rejected = |what: &str, reason: &str| {
        format!("http_server_rejected_{what}_total{{reason=\"{reason}\"}}")
    };
    let env = [
        NO_ACCESS_LOG,
        MANAGEMENT,
        ("MAX_REQUESTS", "2"),
        ("MAX_CONNECTIONS", "4"),
        ("GUEST_TIMEOUT", "1h"),
    ];
    let mut server = Server::start(RAW, &env);
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(server.waiting_request("/wait"));
    }
    assert_eq!(status_of(&server, "/"), 503);
    wait_for_sample(&server, &rejected("requests", "max_requests"), 1.0);
    wait_for_sample(&server, &requests("GET", 503), 1.0);
    waiting.extend((0..2).map(|_| Connection::open(server.address)));
    // Connections are accepted in order, and the last one is over the limit.
    assert_eq!(status_of(&server, "/"), 503);
    // One before it can be rejected, too, while an earlier one is still open.
    let name = rejected("connections", "max_connections");
    wait_until(&name, || samples(server.management())[&name] >= 1.0);
    drop(waiting);

    // Ten streams more than a connection may have.
    let server = Server::start(RAW, &[NO_ACCESS_LOG, MANAGEMENT]);
    let mut connection = Connection::open(server.address);
    connection.send(http2_without_window(110)).expect("sent");
    wait_for_sample(&server, &rejected("requests", "max_streams"), 10.0);

    // One guest starts with more than 1 MiB, and two do not fit.
    let env = [
        NO_ACCESS_LOG,
        MANAGEMENT,
        ("GUEST_MEMORY_TOTAL", "2MiB"),
        ("GUEST_TIMEOUT", "1h"),
    ];
    let mut server = Server::start(RAW, &env);
    let _waiting = server.waiting_request("/wait");
    assert_eq!(status_of(&server, "/"), 503);
    wait_for_sample(&server, &rejected("requests", "guest_memory_total"), 1.0);
    wait_for_sample(
        &server,
        "guest_memory_refusals_total{limit=\"guest_memory_total\"}",
        1.0,
    );
}

#[test]
fn timeouts_are_counted_by_setting() {
    let env = [
        NO_ACCESS_LOG,
        MANAGEMENT,
        ("IDLE_TIMEOUT", "2s"),
        ("HEADER_TIMEOUT", "2s"),
        ("BODY_TIMEOUT", "100ms"),
        ("WRITE_TIMEOUT", "100ms"),
    ];
    let server = Server::start(RAW, &env);
    let half_body = "POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nhalf";
    for (bytes, timeout) in [
        ("", "idle"),
        ("GET / HTTP/1.1\r\n", "header"),
        (half_body, "body"),
        ("GET /huge HTTP/1.1\r\nHost: test\r\n\r\n", "write"),
    ] {
        let name = format!("http_server_timeouts_total{{timeout=\"{timeout}\"}}");
        let before = samples(server.management())[&name];
        let mut connection = Connection::open_with_small_buffer(server.address);
        connection.send(bytes).expect("sent");
        wait_until(&name, || samples(server.management())[&name] > before);
    }
    wait_for_sample(&server, &requests("_OTHER", 408), 1.0);
    // Counted once, although HTTP/2 first sends GOAWAY.
    let idle = "http_server_timeouts_total{timeout=\"idle\"}";
    let before = samples(server.management())[idle];
    let mut http2 = Http2::connect(server.address);
    http2.request("GET", "/");
    http2.wait_until(|| samples(server.management())[idle] > before);
}

#[test]
fn outbound_requests_are_counted_by_outcome() {
    let (upstream, address) = listen();
    thread::spawn(move || {
        for client in upstream.incoming() {
            let mut client = client.expect("a connection");
            read_until(&mut client, b"\r\n\r\n").expect("a head");
            let response = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
            io::Write::write_all(&mut client, response).expect("sent");
        }
    });
    let (_socket, closed) = refusing_address();
    let allowed = format!("http://{address},http://{closed}");
    let env = [
        NO_ACCESS_LOG,
        MANAGEMENT,
        ("ALLOWED_OUTBOUND_HOSTS", allowed.as_str()),
    ];
    let server = Server::start(RAW, &env);
    let count = |label| format!("http_client_request_duration_seconds_count{{{label}}}");
    for (authority, name) in [
        (
            address.to_string(),
            count("http_response_status_code=\"204\""),
        ),
        (closed.to_string(), count("error_type=\"connect\"")),
        (
            "other.example".to_owned(),
            "http_client_rejected_requests_total{reason=\"not_allowed\"}".to_owned(),
        ),
    ] {
        let authority = format!("x-authority: {authority}\r\n");
        server.get_with("/outbound", &authority);
        wait_for_sample(&server, &name, 1.0);
    }
    wait_for_sample(&server, "http_client_open_connections", 0.0);

    // A guest that times out while it waits.
    let (_silent, address) = listen();
    let allowed = format!("http://{address}");
    let env = [
        NO_ACCESS_LOG,
        MANAGEMENT,
        ("ALLOWED_OUTBOUND_HOSTS", allowed.as_str()),
        ("GUEST_TIMEOUT", "2s"),
    ];
    let server = Server::start(RAW, &env);
    let authority = format!("x-authority: {address}\r\n");
    assert_eq!(server.get_with("/outbound", &authority).status, 504);
    wait_for_sample(&server, &count("error_type=\"cancelled\""), 1.0);
}

#[test]
fn version_describes_server_and_component() {
    let server = Server::start(WASI, &[NO_ACCESS_LOG, MANAGEMENT]);
    let response = Connection::open(server.management()).request("GET", "/version");
    let response = response.expect("a response");
    assert_eq!(response.header("content-type"), ["application/json"]);
    let version: serde_json::Value = serde_json::from_slice(&response.body).expect("JSON");
    let program = String::from_utf8(run(&["--version"], &[]).stdout).expect("UTF-8");
    let expected = format!(
        "wasi-essentials {} (wasmtime {})\n",
        version["version"].as_str().expect("a version"),
        version["wasmtime"].as_str().expect("a version")
    );
    assert_eq!(program, expected);
    let component = &version["component"];
    let digest = component["digest"].as_str().expect("a digest");
    assert!(
        server.startup_line.contains(digest),
        "{}",
        server.startup_line
    );
    assert_eq!(component["wasi"], "0.2");
    let build = format!(
        "build_info{{version=\"{}\",wasmtime=\"{}\",component=\"{}\",component_digest=\"{digest}\"}}",
        version["version"].as_str().expect("a version"),
        version["wasmtime"].as_str().expect("a version"),
        component["name"].as_str().expect("a name"),
    );
    assert_eq!(samples(server.management())[&build], 1.0);
}

#[test]
fn operations_page_lists_all_metrics() {
    let server = Server::start(WASI, &[NO_ACCESS_LOG, MANAGEMENT]);
    status_of(&server, "/");
    let page = fs::read_to_string("../docs/operations.md").expect("the page");
    let (_, table) = page.split_once("## Metrics").expect("a section");
    let (table, _) = table.split_once("\n## ").expect("another section");
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let names = rows.flat_map(|row| {
        row.split('|')
            .nth(1)
            .into_iter()
            .flat_map(|it| it.split('`'))
    });
    let documented: BTreeSet<_> = names.filter(|name| name.contains('_')).collect();
    let samples = samples(server.management());
    let names = samples.keys().map(|sample| {
        let name = sample.split('{').next().expect("a name");
        let ends = ["_count", "_sum", "_bucket"];
        let base = ends.iter().find_map(|end| name.strip_suffix(end));
        base.unwrap_or(name)
    });
    // Without outbound requests, this one has no series.
    let outbound = "http_client_request_duration_seconds";
    let reported: BTreeSet<_> = names.chain([outbound]).collect();
    assert_eq!(documented, reported);
}
