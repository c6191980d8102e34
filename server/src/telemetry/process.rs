//! Statistics of the process, from the kernel. Each function returns `None` if the value cannot be read.

use rustix::process::{Resource, getrlimit};
use std::fs;

/// Returns the resident memory in bytes (proc_pid_status(5), `VmRSS`).
pub fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024.0)
}

/// Returns the CPU time in seconds (proc_pid_stat(5): `utime` and `stime`, the 12th and 13th field after the name).
pub fn cpu_seconds() -> Option<f64> {
    /// `USER_HZ`, which is 100 on x86-64 and AArch64.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let fields = fields.split_whitespace().skip(11).take(2);
    let ticks: f64 = fields.map_while(|it| it.parse::<f64>().ok()).sum();
    Some(ticks / TICKS_PER_SECOND)
}

/// Returns the number of open file descriptors.
pub fn open_fds() -> Option<f64> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as f64)
}

/// Returns the limit on open file descriptors.
pub fn max_fds() -> Option<f64> {
    Some(getrlimit(Resource::Nofile).current? as f64)
}
