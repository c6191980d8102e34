//! Counts the memory that the host holds for a guest: handles, with header fields and body chunks behind them.
//!
//! Wasmtime has no hook for this memory, so that it is counted every [`CALLS_BETWEEN_COUNTS`] host calls, and charged
//! beyond [`FREE_BYTES`].

use wasmtime::component::ResourceTable;
use wasmtime_wasi_http::p2::body::HostOutgoingBody;
use wasmtime_wasi_http::p2::types::{
    HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse,
};
use wasmtime_wasi_http::{FieldMap, p3};

/// Maximum number of handles of a guest. A response takes about 5, and an outbound request about 10.
pub const MAX_HANDLES: u32 = 1024;

/// Maximum size of the names and values in one list of header fields, in the count of `wasmtime-wasi-http`. It equals the
/// limit on a request's head.
pub const MAX_FIELDS_BYTES: usize = 32 << 10;

/// Size that is not charged.
pub const FREE_BYTES: u64 = 256 << 10;

/// Host calls between two counts. Each call can add [`MAX_FIELDS_BYTES`].
pub const CALLS_BETWEEN_COUNTS: u32 = 16;

/// Maximum number of handles that a host call creates.
pub const HANDLES_PER_CALL: u32 = 2;

/// Size of a handle without fields and body.
const HANDLE_BYTES: u64 = 256;

/// Chunks of a body that the host buffers before the guest waits. The channel adds one.
pub const BODY_CHUNK_BYTES: usize = 16 << 10;
pub const BODY_CHUNKS: usize = 3;
const BODY_BYTES: u64 = (BODY_CHUNK_BYTES * (BODY_CHUNKS + 1)) as u64;

/// Size of a field without name and value: an entry of `http`'s `HeaderMap` with its index.
const FIELD_BYTES: u64 = 112;

/// Memory that the host holds for a guest.
pub struct HostMemory {
    pub handles: u32,
    pub bytes: u64,
}

/// Counts the memory of a guest's handles. `slots` is an upper bound on the slots of the table.
pub fn count(table: &mut ResourceTable, slots: u32) -> HostMemory {
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
    HostMemory { handles, bytes }
}

fn fields_bytes(fields: &FieldMap) -> u64 {
    let values = fields.values().map(|value| value.len() as u64);
    let names = fields.keys().map(|name| name.as_str().len() as u64);
    fields.capacity().max(fields.len()) as u64 * FIELD_BYTES
        + values.sum::<u64>()
        + names.sum::<u64>()
}
