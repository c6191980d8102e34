//! Guards by which the service reports requests and bodies to their connection.

use crate::connection::buffers::Reservation;
use crate::connection::state::ConnectionState;
use std::sync::Arc;

/// A request until its response has been handed to HTTP, or dropped.
pub struct InFlightRequest {
    connection: Arc<ConnectionState>,
    reservations: Vec<Reservation>,
}

impl InFlightRequest {
    pub fn start(connection: &Arc<ConnectionState>) -> Self {
        connection.on_request_start();
        Self {
            connection: connection.clone(),
            reservations: Vec::new(),
        }
    }

    pub fn connection(&self) -> &Arc<ConnectionState> {
        &self.connection
    }

    /// Keeps a reservation until the kernel has the response.
    pub fn keep(&mut self, reservation: Reservation) {
        self.reservations.push(reservation);
    }

    /// Records that the response's body has failed and that the client could take its end for the end of the body.
    pub fn fail(&self) {
        self.connection.on_truncated();
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.connection.on_request_end(&mut self.reservations);
    }
}

/// A request body until it is complete, or dropped.
pub struct ReceivingBody(Arc<ConnectionState>);

impl ReceivingBody {
    pub fn start(connection: &Arc<ConnectionState>) -> Self {
        connection.on_body_start();
        Self(connection.clone())
    }

    /// Records that a part of the body has arrived.
    pub fn progress(&self) {
        self.0.on_body_progress();
    }

    /// Records that the client sends the body too slowly.
    pub fn stall(&self) {
        self.0.on_body_stalled();
    }
}

impl Drop for ReceivingBody {
    fn drop(&mut self) {
        self.0.on_body_end();
    }
}
