//! The program as a process: a server, its log, and its end.

use super::{Connection, Guest, Response, TIMEOUT, wait_until};
use libtest_mimic::{Arguments, Trial};
use rustix::process::{Pid, Signal};
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The program, with the compiler in it.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_wasi-essentials");

/// For servers that have a management listener.
pub const MANAGEMENT: (&str, &str) = ("MANAGEMENT_LISTEN", "127.0.0.1:0");

/// For servers whose log is to have no lines of requests.
pub const NO_ACCESS_LOG: (&str, &str) = ("ACCESS_LOG", "off");

/// A process that does not outlive its test.
pub struct Killed(pub Child);

impl Killed {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A server process on a free port of 127.0.0.1. Killed when dropped, which prints its log if the test fails; its standard
/// error is that of the test.
pub struct Server {
    pub(super) process: Killed,
    pub startup_line: String,
    pub address: SocketAddr,
    /// The rest of its standard output, until a test reads a line.
    log: Option<Box<dyn BufRead + Send>>,
    /// Lines that are not yet read.
    lines: Option<mpsc::Receiver<String>>,
    /// Those that the test has read.
    read_lines: Vec<String>,
}

impl Server {
    pub fn start(guest: Guest, env: &[(&str, &str)]) -> Self {
        let words = command_words();
        let mut command = command(&words[0]);
        command.args(&words[1..]).arg(guest.cwasm());
        Self::spawn(command, env)
    }

    /// Starts a server at its default settings, except for the access log, on one core.
    pub fn on_one_core(guest: Guest) -> Self {
        let mut command = command("taskset");
        command
            .args(["--cpu-list", "0"])
            .args(command_words())
            .arg(guest.cwasm());
        Self::spawn(command, &[NO_ACCESS_LOG])
    }

    pub fn spawn(mut command: Command, env: &[(&str, &str)]) -> Self {
        let process = command
            .args(["--listen", "127.0.0.1:0"])
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .spawn();
        let mut process = Killed(process.expect("the server starts"));
        let mut log = BufReader::new(process.0.stdout.take().expect("a pipe"));
        let mut line = String::new();
        log.read_line(&mut line).expect("the startup line");
        let (_, address) = line.split_once("http://").expect(&line);
        let end = address.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
        let address = address[..end.unwrap_or(address.len())]
            .parse()
            .expect(&line);
        Self {
            process,
            startup_line: line,
            address,
            log: Some(Box::new(log)),
            lines: None,
            read_lines: Vec::new(),
        }
    }

    /// The address of the management listener of a server that has [`MANAGEMENT`].
    pub fn management(&self) -> SocketAddr {
        let line = &self.startup_line;
        let (_, rest) = line.split_once("management on ").expect(line);
        let address = rest.split_once(',').and_then(|(it, _)| it.parse().ok());
        address.expect(line)
    }

    /// The next line of the log, without its end.
    pub fn line(&mut self) -> String {
        let lines = self.lines().expect("a log that is not discarded");
        let line = lines.recv_timeout(TIMEOUT).expect("a line of log");
        self.read_lines.push(line.clone());
        line
    }

    /// The lines of the log that are still to be read; none if the log is discarded.
    fn lines(&mut self) -> Option<&mpsc::Receiver<String>> {
        if let Some(log) = self.log.take() {
            let (sender, lines) = mpsc::channel();
            self.lines = Some(lines);
            std::thread::spawn(move || {
                let mut lines = log.lines().map_while(Result::ok);
                // Until the server or the test has ended.
                lines.try_for_each(|line| sender.send(line))
            });
        }
        self.lines.as_ref()
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

    /// Reads the log and discards it. Without a reader, the server logs how many lines it has dropped.
    pub fn discard_log(&mut self) {
        let mut log = self.log.take().expect("no line has been read");
        std::thread::spawn(move || io::copy(&mut log, &mut io::sink()));
    }

    /// Sends a request over a connection of its own.
    pub fn get(&self, target: &str) -> io::Result<Response> {
        Connection::open(self.address).request("GET", target)
    }

    /// Sends a `GET` request with these lines of fields over a connection of its own; returns the response.
    #[track_caller]
    pub fn get_with(&self, target: &str, fields: &str) -> Response {
        let request = format!("GET {target} HTTP/1.1\r\nHost: test\r\n{fields}\r\n");
        let mut connection = Connection::open(self.address);
        connection.send(request).expect("sent");
        connection.response("GET").expect("a response")
    }

    /// Sends a request to a path on which the guest logs `waiting`; returns the connection when it has.
    pub fn waiting_request(&mut self, path: &str) -> Connection {
        let mut connection = Connection::open(self.address);
        connection.send_request("GET", path).expect("sent");
        self.lines_until("guest: waiting");
        connection
    }

    /// Sends SIGTERM; returns the lines of the log until the server shuts down.
    pub fn terminate(&mut self) -> Vec<String> {
        self.signal(Signal::TERM);
        self.lines_until("SIGTERM: shutting down")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.process.0);
        rustix::process::kill_process(pid, signal).expect("a running server");
    }

    /// Waits for the process to exit by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the server exits", || {
            status = self.process.0.try_wait().expect("a child");
            status.is_some()
        });
        status.expect("a status")
    }

    /// Kills the process and prints its log.
    pub fn print_log(&mut self) {
        self.process.kill();
        eprint!("log of the server:\n{}", self.startup_line);
        let read = std::mem::take(&mut self.read_lines);
        read.iter().for_each(|line| eprintln!("{line}"));
        let Some(lines) = self.lines() else { return };
        // A container may outlive the process, and keep the pipe open.
        while let Ok(line) = lines.recv_timeout(Duration::from_secs(1)) {
            eprintln!("{line}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_log();
        }
    }
}

/// The command that serves: that of the variable `SERVER`, such as `docker run --network host …`, or the program. It has to see
/// the files of this machine at their own paths.
pub fn command_words() -> Vec<String> {
    match std::env::var("SERVER") {
        Ok(words) => words.split_whitespace().map(String::from).collect(),
        _ => vec![PROGRAM.to_owned()],
    }
}

/// The executable, without the environment of the tests, which may have settings.
pub fn command(executable: &str) -> Command {
    let mut command = Command::new(executable);
    command.env_clear().stdin(Stdio::null());
    command
}

/// Runs the program until it exits.
pub fn run(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = command(PROGRAM);
    command.args(arguments).envs(env.iter().copied());
    command.output().expect("the server runs")
}

/// Checks that the program has exited with this status, and has written nothing but this line.
#[track_caller]
pub fn assert_error(output: &Output, status: i32, line: &str) {
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!("error: {line}\n")
    );
    assert_eq!(output.status.code(), Some(status));
    assert!(output.stdout.is_empty(), "{output:?}");
}

/// Runs trials against these servers; prints the servers' logs if one fails.
pub fn run_trials(
    arguments: &Arguments,
    trials: Vec<Trial>,
    servers: impl IntoIterator<Item = Server>,
) -> ExitCode {
    let conclusion = libtest_mimic::run(arguments, trials);
    if conclusion.has_failed() {
        for mut server in servers {
            server.print_log();
        }
    }
    conclusion.exit_code()
}
