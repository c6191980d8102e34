//! Resources of a server, as Linux reports them: memory, file descriptors, connections.

use super::{Server, command_words};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

impl Server {
    /// Resident memory, in bytes.
    pub fn resident_memory(&self) -> u64 {
        resident(self.process.0.id())
    }

    /// The process that listens on the server's address. It is not a child of this one if it runs in a container.
    fn listener_pid(&self) -> u32 {
        let port = format!(":{:04X}", self.address.port());
        let table = std::fs::read_to_string("/proc/net/tcp").expect("sockets");
        // The local address, the state (0A for LISTEN) and the inode are fields 1, 3 and 9 (proc(5)).
        let inode = table.lines().find_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let is_listener = fields.get(1)?.ends_with(&port) && *fields.get(3)? == "0A";
            is_listener.then(|| format!("socket:[{}]", fields[9]))
        });
        let inode = PathBuf::from(inode.expect("a listener"));
        let has_socket = |pid: &u32| {
            let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
            let mut files = files.into_iter().flatten().flatten();
            files.any(|file| std::fs::read_link(file.path()).is_ok_and(|link| link == inode))
        };
        let processes = std::fs::read_dir("/proc").expect("processes").flatten();
        let mut pids = processes.filter_map(|it| it.file_name().to_str()?.parse().ok());
        pids.find(has_socket).expect("a running server")
    }

    /// The control groups of the server (cgroups(7)).
    fn cgroups(&self) -> String {
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", self.listener_pid()));
        groups.expect("a running server")
    }

    /// Returns true if the server runs in a container: if `SERVER` is a command of Docker.
    pub fn is_contained(&self) -> bool {
        Path::new(&command_words()[0]).ends_with("docker")
    }

    /// Memory of the server's control group and the buffers of its sockets, in bytes. Outside of a container, it is the
    /// process's resident memory and these buffers.
    pub fn memory(&self) -> u64 {
        let groups = self.cgroups();
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
            None => Some(resident(self.listener_pid())),
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

    /// The number of open file descriptors.
    pub fn open_fds(&self) -> usize {
        let path = format!("/proc/{}/fd", self.listener_pid());
        std::fs::read_dir(path).expect("a running server").count()
    }

    /// Sets the process's limit of file descriptors.
    pub fn limit_fds(&self, limit: u64) {
        let pid = Pid::from_child(&self.process.0);
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        prlimit(Some(pid), Resource::Nofile, limit).expect("a running server");
    }
}

fn resident(pid: u32) -> u64 {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(path).expect("a running server");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    1024 * kib.and_then(|kib| kib.parse::<u64>().ok()).expect(&status)
}

/// The local ports of clients of this address whose connections neither side has closed.
pub fn established(server: SocketAddr) -> HashSet<u16> {
    // Twice, because a read can miss a socket while another one is closed.
    let read = |_| std::fs::read_to_string("/proc/net/tcp").expect("sockets");
    let table = [(), ()].map(read).concat();
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let client = |line: &str| {
        // The local address, the remote one and the state (01 for ESTABLISHED) are fields 1 to 3 (proc(5)).
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote) = (port(fields.next()?)?, port(fields.next()?)?);
        (remote == server.port() && fields.next()? == "01").then_some(local)
    };
    table.lines().filter_map(client).collect()
}

/// Raises this process's limit of file descriptors, to open this number of connections.
pub fn raise_fd_limit(connections: u64) {
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
