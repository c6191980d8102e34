//! What the black-box tests share: a server process, and an HTTP/1.1 client that hides nothing.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod http2;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit, setrlimit};
use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// How long a test waits for what must come.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// The program, with the compiler in it.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_wasi-essentials");

/// A component that the tests serve: a target of the root package, built for an entry point.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Guest {
    /// `wasi` or `spin`.
    pub entry: &'static str,
    /// Its file, without `.wasm`, in the directory of release builds.
    file: &'static str,
}

/// The service, built for WASI 0.2: what the image carries.
pub const WASI: Guest = guest("wasi", "wasi_essentials");

/// The service, built for WASI 0.3.
pub const SPIN: Guest = guest("spin", "wasi_essentials");

/// A guest that misbehaves, in a way for each path: `tests/fixtures/raw.rs`.
pub const RAW: Guest = guest("wasi", "examples/raw");

/// A service whose routes fail, for each entry point: `tests/fixtures/service.rs`.
pub const SERVICES: [Guest; 2] = [
    guest("wasi", "examples/service"),
    guest("spin", "examples/service"),
];

const fn guest(entry: &'static str, file: &'static str) -> Guest {
    Guest { entry, file }
}

impl Guest {
    /// One of the examples: `config`, `echo`, `proxy` or `stream`.
    pub fn example(name: &str) -> Self {
        match name {
            "config" => guest("wasi", "examples/config"),
            "echo" => guest("wasi", "examples/echo"),
            "proxy" => guest("wasi", "examples/proxy"),
            "stream" => guest("wasi", "examples/stream"),
            _ => panic!("no example {name}"),
        }
    }

    /// The component, built when a test of this process first asks for it.
    pub fn wasm(self) -> PathBuf {
        built(self.entry).join(self.file).with_extension("wasm")
    }

    /// The component as machine code, compiled when a test of this process first asks for it.
    pub fn cwasm(self) -> PathBuf {
        static COMPILED: Mutex<Vec<Guest>> = Mutex::new(Vec::new());
        let mut compiled = COMPILED.lock().expect("it compiles");
        let name = self.file.replace("examples/", "");
        let output = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let output = output.join(format!("{name}-{}.cwasm", self.entry));
        if !compiled.contains(&self) {
            let mut command = command(PROGRAM);
            command
                .arg("compile")
                .arg(self.wasm())
                .arg("-o")
                .arg(&output);
            let ended = command.output().expect("it runs");
            assert!(ended.status.success(), "{ended:?}");
            compiled.push(self);
        }
        output
    }
}

/// Builds the components of an entry point, once in a process; returns the directory that they are in.
fn built(entry: &str) -> &'static Path {
    static WASI: OnceLock<PathBuf> = OnceLock::new();
    static SPIN: OnceLock<PathBuf> = OnceLock::new();
    let (built, target_dir, features, examples): (_, _, &[&str], _) = match entry {
        "wasi" => (&WASI, "target", &[], "--examples"),
        // As spin.toml has it.
        _ => (
            &SPIN,
            "target/spin",
            &["--no-default-features", "--features=spin"],
            "--example=service",
        ),
    };
    built.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        // One after the other, as together they could give each other's dependencies more features.
        for targets in ["--lib", examples] {
            let output = Command::new(env!("CARGO"))
                .args(["build", "--quiet", "--release", "--locked"])
                .args(["--package=wasi-essentials", "--target=wasm32-wasip2"])
                .args(features)
                .args(["--target-dir", target_dir, targets])
                .current_dir(&root)
                .output()
                .expect("Cargo runs");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "the guests do not build: {errors}");
        }
        root.join(target_dir).join("wasm32-wasip2/release")
    })
}

/// The head of a request whose body is still to come.
pub const CHUNKED_POST: &str =
    "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";

/// For servers that have a management listener.
pub const MANAGEMENT: (&str, &str) = ("MANAGEMENT_LISTEN", "127.0.0.1:0");

/// For servers whose log is to show their own lines alone.
pub const QUIET: (&str, &str) = ("ACCESS_LOG", "off");

/// A server process on a free port of 127.0.0.1, killed when dropped.
pub struct Server {
    process: Child,
    pub start_up_line: String,
    pub address: SocketAddr,
    /// The rest of its standard output, until somebody reads it.
    log: Option<Box<dyn BufRead + Send>>,
    /// Its lines, from then on.
    lines: Option<mpsc::Receiver<String>>,
}

impl Server {
    pub fn start(guest: Guest, env: &[(&str, &str)]) -> Self {
        let words = words();
        let mut command = command(&words[0]);
        command.args(&words[1..]).arg(guest.cwasm());
        Self::spawn(command, env)
    }

    /// Starts the server at its default settings, but for the access log, with one core.
    pub fn on_one_core(guest: Guest) -> Self {
        let mut command = command("taskset");
        command
            .args(["--cpu-list", "0"])
            .args(words())
            .arg(guest.cwasm());
        Self::spawn(command, &[QUIET])
    }

    pub fn spawn(mut command: Command, env: &[(&str, &str)]) -> Self {
        let mut process = command
            .args(["--listen", "127.0.0.1:0"])
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut log = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut line = String::new();
        log.read_line(&mut line).expect("the start-up line");
        let (_, address) = line.split_once("http://").expect(&line);
        let end = address.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
        let address = address[..end.unwrap_or(address.len())]
            .parse()
            .expect(&line);
        Self {
            process,
            start_up_line: line,
            address,
            log: Some(Box::new(log)),
            lines: None,
        }
    }

    /// The address of the management listener of a server that has [`MANAGEMENT`].
    pub fn management(&self) -> SocketAddr {
        let line = &self.start_up_line;
        let (_, rest) = line.split_once("management on ").expect(line);
        let address = rest.split_once(',').and_then(|(it, _)| it.parse().ok());
        address.expect(line)
    }

    /// The next line of the log, without its end.
    pub fn line(&mut self) -> String {
        if let Some(log) = self.log.take() {
            let (sender, lines) = mpsc::channel();
            self.lines = Some(lines);
            std::thread::spawn(move || {
                let mut lines = log.lines().map_while(Result::ok);
                // Until the server or the test has ended.
                lines.try_for_each(|line| sender.send(line))
            });
        }
        let lines = self.lines.as_ref().expect("a log that is not ignored");
        lines.recv_timeout(TIMEOUT).expect("a line of log")
    }

    /// The lines of the log until one that contains this.
    pub fn lines_until(&mut self, end: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            if line.contains(end) {
                return lines;
            }
            lines.push(line);
        }
    }

    /// Reads the log and forgets it, as a server that nobody listens to counts its losses.
    pub fn ignore_log(&mut self) {
        let mut log = self.log.take().expect("nobody has read it");
        std::thread::spawn(move || io::copy(&mut log, &mut io::sink()));
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        resident(self.process.id())
    }

    /// The process that listens on the server's address: with a container engine in between, it is no child of this one.
    pub fn listener(&self) -> u32 {
        let port = format!(":{:04X}", self.address.port());
        let table = std::fs::read_to_string("/proc/net/tcp").expect("sockets");
        // The local address, the state (0A for LISTEN) and the inode are fields 1, 3 and 9 (proc(5)).
        let inode = table.lines().find_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let is_it = fields.get(1)?.ends_with(&port) && *fields.get(3)? == "0A";
            is_it.then(|| format!("socket:[{}]", fields[9]))
        });
        let inode = PathBuf::from(inode.expect("it listens"));
        let has_it = |pid: &u32| {
            let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
            let mut files = files.into_iter().flatten().flatten();
            files.any(|file| std::fs::read_link(file.path()).is_ok_and(|link| link == inode))
        };
        let processes = std::fs::read_dir("/proc").expect("processes").flatten();
        let mut pids = processes.filter_map(|it| it.file_name().to_str()?.parse().ok());
        pids.find(has_it).expect("the server lives")
    }

    /// The control groups of the server (cgroups(7)).
    fn groups(&self) -> String {
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", self.listener()));
        groups.expect("the server lives")
    }

    /// Returns true if the server runs in a container of Docker.
    pub fn is_contained(&self) -> bool {
        self.groups().contains("docker")
    }

    /// Memory of the server's control group, in bytes, with the buffers of its sockets; outside of a container, what is
    /// resident of its process, and these.
    pub fn memory(&self) -> u64 {
        let groups = self.groups();
        let group = |name: &str| {
            let path = groups.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                rest.strip_prefix(name)
            });
            path.filter(|path| *path != "/" && path.contains("docker"))
        };
        let read = |path: String| std::fs::read_to_string(path).ok()?.trim().parse().ok();
        if let Some(path) = group(":")
            && let Some(bytes) = read(format!("/sys/fs/cgroup{path}/memory.current"))
        {
            return bytes;
        }
        // Version 1 does not count sockets.
        let own: Option<u64> = match group("memory:") {
            Some(path) => read(format!("/sys/fs/cgroup/memory{path}/memory.usage_in_bytes")),
            None => Some(resident(self.listener())),
        };
        own.expect("memory") + self.socket_buffers()
    }

    /// Bytes of the buffers of the server's connections in the kernel.
    fn socket_buffers(&self) -> u64 {
        let filter = ["sport", "=", &format!(":{}", self.address.port())];
        let output = Command::new("ss").arg("-tnmHO").args(filter).output();
        let output = output.expect("`ss` of iproute2 shows sockets");
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        // skmem:(r0,rb131072,t0,tb16384,f4096,w0,…): received, to be sent and reserved.
        let fields = output.split(['(', ',', ')']);
        let bytes = fields.filter_map(|field| {
            let digits = field.strip_prefix(['r', 'w', 'f'])?;
            digits.parse::<u64>().ok()
        });
        bytes.sum()
    }

    /// Processor time used so far, in ticks of 10 ms.
    pub fn ticks(&self) -> u64 {
        let path = format!("/proc/{}/stat", self.process.id());
        let stat = std::fs::read_to_string(path).expect("the server lives");
        // The fields `utime` and `stime`, the 12th and 13th after the name (proc(5)).
        let (_, fields) = stat.rsplit_once(')').expect(&stat);
        let fields = fields.split_whitespace().skip(11).take(2);
        fields.map(|ticks| ticks.parse::<u64>().expect(&stat)).sum()
    }

    /// Open file descriptors.
    pub fn files(&self) -> usize {
        let path = format!("/proc/{}/fd", self.listener());
        std::fs::read_dir(path).expect("the server lives").count()
    }

    /// Lets the process have no more file descriptors than these.
    pub fn limit_files(&self, files: u64) {
        let pid = Pid::from_child(&self.process);
        let limit = Rlimit {
            current: Some(files),
            maximum: Some(files),
        };
        prlimit(Some(pid), Resource::Nofile, limit).expect("the server lives");
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).expect("the server lives");
    }

    /// Waits for the process to end by itself.
    pub fn end(&mut self) -> ExitStatus {
        let mut status = None;
        await_that("the server ends", || {
            status = self.process.try_wait().expect("a child");
            status.is_some()
        });
        status.expect("it ended")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn resident(pid: u32) -> u64 {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(path).expect("the server lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    1024 * kib.and_then(|kib| kib.parse::<u64>().ok()).expect(&status)
}

/// The ports of clients of this address whose connections neither side has closed.
pub fn established(server: SocketAddr) -> HashSet<u16> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("sockets");
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let client = |line: &str| {
        // The local address, the remote one and the state (01 for ESTABLISHED) are fields 1 to 3 (proc(5)).
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote) = (port(fields.next()?)?, port(fields.next()?)?);
        (remote == server.port() && fields.next()? == "01").then_some(local)
    };
    table.lines().filter_map(client).collect()
}

/// Waits until a condition holds.
#[track_caller]
pub fn await_that(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < TIMEOUT, "it never came true: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The address in the URL that this variable has, which is of the form `http://host:port`.
pub fn resolve(variable: &str, url: &str) -> SocketAddr {
    let host = url.strip_prefix("http://");
    let host = host.map(|rest| rest.trim_end_matches('/'));
    let address = host.and_then(|host| host.to_socket_addrs().ok()?.next());
    address.unwrap_or_else(|| panic!("{variable}={url}: not of the form http://host:port"))
}

/// The words of the command that serves: those of `SERVER`, such as `docker run --network host …`, when it
/// is set, which sees the files of this machine at their own paths; else the program.
pub fn words() -> Vec<String> {
    match std::env::var("SERVER") {
        Ok(words) => words.split_whitespace().map(String::from).collect(),
        _ => vec![PROGRAM.to_owned()],
    }
}

/// The executable, without settings that the machine's environment happens to have.
pub fn command(executable: &str) -> Command {
    let mut command = Command::new(executable);
    command.env_clear().stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub fn run(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = command(PROGRAM);
    command.args(arguments).envs(env.iter().copied());
    command.output().expect("the server runs")
}

/// Checks that the program has ended with this status, and has written this one line alone.
#[track_caller]
pub fn assert_error(output: &Output, status: i32, line: &str) {
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!("error: {line}\n")
    );
    assert_eq!(output.status.code(), Some(status));
    assert!(output.stdout.is_empty(), "{output:?}");
}

/// One answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The values of a header, in order.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(key, _)| key == name);
        named.map(|(_, value)| value.as_str()).collect()
    }
}

/// A connection that sends bytes as they are.
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

    /// Opens a connection whose client has little room for what the server sends.
    pub fn open_narrow(address: SocketAddr) -> Self {
        let connection = Self::open(address);
        let socket = connection.0.get_ref();
        rustix::net::sockopt::set_socket_recv_buffer_size(socket, 4096).expect("a socket");
        connection
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.0.get_mut().write_all(bytes.as_ref())
    }

    /// Sends no more.
    pub fn shut_down(&self) -> io::Result<()> {
        self.0.get_ref().shutdown(Shutdown::Write)
    }

    /// Sends a request without a body, and reads its answer.
    pub fn request(&mut self, method: &str, target: &str) -> io::Result<Answer> {
        self.send_request(method, target)?;
        self.answer(method)
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
    pub fn answer(&mut self, method: &str) -> io::Result<Answer> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if self.0.read_until(b'\n', &mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let head = String::from_utf8(head).map_err(io::Error::other)?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let mut answer = Answer {
            status: status.and_then(|s| s.parse().ok()).expect(&head),
            headers: lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
                .collect(),
            body: Vec::new(),
        };
        if method != "HEAD" && answer.header("transfer-encoding") == ["chunked"] {
            answer.body = self.chunks()?;
        } else if method != "HEAD" {
            let length = answer.header("content-length");
            let length = length.first().and_then(|n| n.parse().ok()).unwrap_or(0);
            answer.body.resize(length, 0);
            self.0.read_exact(&mut answer.body)?;
        }
        Ok(answer)
    }

    /// Reads a body in chunks, without trailers (RFC 9112, section 7.1).
    fn chunks(&mut self) -> io::Result<Vec<u8>> {
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

    /// Receives bytes until these have come; returns all of them.
    pub fn read_until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        let mut received = Vec::new();
        while !received.ends_with(end) {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            received.extend(byte);
        }
        Ok(received)
    }

    /// Waits until an answer begins.
    pub fn first_byte(&mut self) -> io::Result<()> {
        self.0.fill_buf().map(|_| ())
    }

    /// Takes in one byte, if there is one.
    pub fn read_a_byte(&mut self) -> io::Result<()> {
        self.0.get_ref().set_nonblocking(true)?;
        self.0.get_mut().read_exact(&mut [0])
    }

    /// Takes so many bytes, or fewer, from the kernel, and no others; returns how many.
    pub fn read_some(&mut self, most: usize) -> io::Result<usize> {
        self.0.get_mut().read(&mut vec![0; most])
    }

    /// Sends what the server takes at once; returns how much that was.
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

    /// Returns true if the server has not closed the connection. Drops what it has sent.
    pub fn is_open(&mut self) -> bool {
        self.receive(&mut Vec::new())
    }

    /// Receives what has come; returns true if the server has not closed the connection.
    pub fn receive(&mut self, received: &mut Vec<u8>) -> bool {
        let stream = self.0.get_mut();
        stream.set_nonblocking(true).expect("a socket");
        let ended = stream.read_to_end(received);
        stream.set_nonblocking(false).expect("a socket");
        ended.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The client's port.
    pub fn port(&self) -> u16 {
        self.0.get_ref().local_addr().expect("a socket").port()
    }

    /// What the server sends until it closes the connection.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest)?;
        Ok(rest)
    }
}

/// Held by each test: they load the machine, and some take the time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The 99th percentile of the time that a client waits for an answer.
pub fn p99_of_a_client(address: SocketAddr) -> Duration {
    let mut client = Connection::open(address);
    let mut times: Vec<_> = (0..200)
        .map(|_| {
            let begun = Instant::now();
            let answer = client.request("GET", "/").expect("an answer");
            assert_eq!(answer.body, b"fine");
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[197]
}

/// Lets this process have so many connections.
pub fn allow_files(connections: u64) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).expect("a higher limit");
    let needed = connections + 200;
    assert!(
        maximum.is_none_or(|maximum| maximum >= needed),
        "this test needs {needed} file descriptors, but `ulimit -Hn` is {maximum:?}"
    );
}
