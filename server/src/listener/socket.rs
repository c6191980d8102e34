//! Listening sockets, which do not block.

use crate::config::settings::Config;
use crate::connection::transport::WRITE_BYTES;
use rustix::net::listen;
use socket2::SockRef;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// Half of the bytes that the kernel holds for a client until they are acknowledged: it doubles the value for its own bookkeeping
/// (socket(7)).
const SEND_BUFFER_BYTES: usize = WRITE_BYTES;

/// Bytes of these that the kernel accepts beyond the client's receive window.
const UNSENT_BYTES: u32 = 8 << 10;

/// Listens on the address of the service.
///
/// # Errors
/// One line that says what failed and which setting to change.
pub fn bind_traffic(config: &Config) -> Result<TcpListener, String> {
    let listener = bind(config.listen, "PORT, LISTEN or --listen")?;
    // A burst of `MAX_CONNECTIONS` clients waits in the backlog. The system's limit applies (`somaxconn`).
    let backlog = config.max_connections.min(i32::MAX as u32) as i32;
    let set = listen(&listener, backlog).map_err(io::Error::from);
    set.and_then(|()| limit_send_buffers(&listener, config.write_timeout))
        .map_err(|error| format!("cannot listen: {error}"))?;
    Ok(listener)
}

/// Listens on `MANAGEMENT_LISTEN`, unless that is off.
///
/// # Errors
/// One line that says what failed and which setting to change.
pub fn bind_management(config: &Config) -> Result<Option<TcpListener>, String> {
    let address = config.management;
    address.map(|it| bind(it, "MANAGEMENT_LISTEN")).transpose()
}

fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener, String> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|error| {
        format!(
            "cannot listen on {address}: {}",
            describe_bind_error(&error, setting)
        )
    })
}

fn describe_bind_error(error: &io::Error, setting: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("the address is in use; choose another with {setting}")
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; listen on one that it has, or on 0.0.0.0".into()
        }
        io::ErrorKind::PermissionDenied => {
            format!("not permitted; choose a port from 1024 with {setting}")
        }
        _ => error.to_string(),
    }
}

/// Limits what the kernel holds for each client. Accepted sockets inherit these options.
fn limit_send_buffers(listener: &TcpListener, write_timeout: Duration) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    // Ends connections that the server has closed and whose clients acknowledge nothing.
    socket.set_tcp_user_timeout(Some(write_timeout))
}
