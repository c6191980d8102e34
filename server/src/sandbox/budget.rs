//! The memory that all guests share, `GUEST_MEMORY_TOTAL`: their linear memories and tables, and what the host holds for
//! them beyond [`FREE_BYTES`] each.
//!
//! Wasmtime asks before a memory or a table grows. It does not ask before a guest makes the host hold something: a handle
//! of WASI, with fields of HTTP behind it. So [`held`] counts that, every [`CALLS_BETWEEN_COUNTS`] host calls.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use wasmtime::component::ResourceTable;
use wasmtime_wasi_http::p2::body::HostOutgoingBody;
use wasmtime_wasi_http::p2::types::{
    HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse,
};
use wasmtime_wasi_http::{FieldMap, p3};

/// Handles that a guest may have at a time. A response takes about 5, an outbound request about 10.
pub const MAX_HANDLES: u32 = 1024;

/// Bytes of names and values in one list of fields, as `wasmtime-wasi-http` counts them: as many as a request's head may
/// have.
pub const MAX_FIELDS_BYTES: usize = 32 << 10;

/// Bytes that the host holds for a guest without charging them.
pub const FREE_BYTES: u64 = 256 << 10;

/// Host calls of a guest between two counts. In so many, it can make the host hold [`MAX_FIELDS_BYTES`] each.
pub const CALLS_BETWEEN_COUNTS: u32 = 16;

/// Handles that a host call makes at most.
pub const HANDLES_OF_A_CALL: u32 = 2;

/// Bytes of a handle, whatever it stands for.
const HANDLE_BYTES: u64 = 256;

/// Bytes that the host takes of a body before the guest has to wait: chunks, one of which the channel adds by itself.
pub const BODY_CHUNK_BYTES: usize = 16 << 10;
pub const BODY_CHUNKS: usize = 3;
const BODY_BYTES: u64 = (BODY_CHUNK_BYTES * (BODY_CHUNKS + 1)) as u64;

/// Bytes of a field besides name and value: an entry of `http`'s `HeaderMap` with its index.
const FIELD_BYTES: u64 = 112;

/// Memory of all guests.
#[derive(Debug)]
pub struct Budget {
    /// In bytes.
    total: u64,
    reserved: AtomicU64,
}

impl Budget {
    pub fn new(total: u64) -> Self {
        Self {
            total,
            reserved: AtomicU64::new(0),
        }
    }

    /// All of it, in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// What is reserved of it, in bytes.
    pub fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Takes bytes; returns false if there are not as many left.
    pub fn reserve(&self, bytes: u64) -> bool {
        let fits = |reserved: u64| {
            reserved
                .checked_add(bytes)
                .filter(|&reserved| reserved <= self.total)
        };
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        self.reserved.try_update(set, get, fits).is_ok()
    }

    pub fn release(&self, bytes: u64) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A guest does not fit into the budget at its start.
#[derive(Debug)]
pub struct OverBudget;

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("no memory is left in GUEST_MEMORY_TOTAL")
    }
}

impl std::error::Error for OverBudget {}

/// What the host holds for a guest.
pub struct Held {
    pub handles: u32,
    pub bytes: u64,
}

/// Counts what the host holds for a guest, whose table has grown to so many slots at most.
pub fn held(table: &mut ResourceTable, slots: u32) -> Held {
    let (mut handles, mut bytes) = (0, 0);
    for key in 0..slots.min(MAX_HANDLES) {
        let Ok(handle) = table.get_any_mut(key) else {
            continue;
        };
        handles += 1;
        bytes += HANDLE_BYTES;
        if let Some(fields) = handle.downcast_ref::<FieldMap>() {
            bytes += fields_bytes(fields);
        } else if let Some(response) = handle.downcast_ref::<HostOutgoingResponse>() {
            bytes += fields_bytes(&response.headers);
        } else if let Some(request) = handle.downcast_ref::<HostOutgoingRequest>() {
            bytes += fields_bytes(&request.headers);
        } else if let Some(response) = handle.downcast_ref::<HostIncomingResponse>() {
            bytes += fields_bytes(&response.headers);
        } else if let Some(request) = handle.downcast_ref::<p3::Request>() {
            bytes += fields_bytes(&request.headers);
        } else if let Some(response) = handle.downcast_ref::<p3::Response>() {
            bytes += fields_bytes(&response.headers);
        } else if handle.is::<HostOutgoingBody>() {
            bytes += BODY_BYTES;
        }
    }
    Held { handles, bytes }
}

fn fields_bytes(fields: &FieldMap) -> u64 {
    let values = fields.values().map(|value| value.len() as u64);
    let names = fields.keys().map(|name| name.as_str().len() as u64);
    fields.capacity().max(fields.len()) as u64 * FIELD_BYTES
        + values.sum::<u64>()
        + names.sum::<u64>()
}
