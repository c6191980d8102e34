//! What the system denies at the start.

use std::io;

/// Returns the line for an error of the system at the start, with the remedy if threads are denied (pthread_create(3)).
pub fn startup_error(error: io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::WouldBlock => "; raise the limit of threads (`--pids-limit`, `ulimit -u`)",
        _ => "",
    };
    format!("cannot start: {error}{remedy}")
}
