//! The access log: a line for each request.

use crate::escape::escape_control;
use crate::telemetry::client::Client;
use crate::telemetry::line::{Ids, Level, LogFormat, json, timestamp};
use crate::telemetry::trace::Trace;
use http::Method;
use serde::Serialize;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A request and its response.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// The sender of the request: the peer, or the client that trusted proxies name.
    pub client: Client,
    pub trace: Trace,
    /// `None` if the request's head could not be read.
    pub method: Option<Method>,
    pub path: String,
    pub status: u16,
    /// Bytes of the response's body that were sent.
    pub bytes: u64,
    /// From the request's head to the end of the response's body.
    pub duration: Duration,
    /// Set when the end of a drain cut the request.
    pub is_cut: bool,
}

impl AccessRecord {
    pub fn line(&self, format: LogFormat) -> String {
        match format {
            LogFormat::Text => format!("{self}\n"),
            LogFormat::Json => self.json(),
        }
    }

    /// Keys are those of OpenTelemetry's semantic conventions for HTTP, which have a duration for metrics alone.
    fn json(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            timestamp: String,
            severity_text: Level,
            #[serde(rename = "client.address")]
            client: IpAddr,
            #[serde(rename = "client.port", skip_serializing_if = "Option::is_none")]
            client_port: Option<u16>,
            #[serde(rename = "network.peer.address")]
            peer: IpAddr,
            #[serde(rename = "network.peer.port")]
            peer_port: u16,
            #[serde(rename = "http.request.method")]
            method: &'a str,
            #[serde(rename = "url.path")]
            path: String,
            #[serde(rename = "http.response.status_code")]
            status: u16,
            #[serde(rename = "http.response.body.size")]
            bytes: u64,
            duration_us: u128,
            #[serde(skip_serializing_if = "Option::is_none")]
            cut: Option<bool>,
            #[serde(flatten)]
            ids: Ids<'a>,
        }
        json(&Line {
            timestamp: timestamp(),
            severity_text: Level::Info,
            client: self.client.address,
            client_port: self.client.port,
            peer: self.peer.ip(),
            peer_port: self.peer.port(),
            method: self.method(),
            path: escape_control(&self.path),
            status: self.status,
            bytes: self.bytes,
            duration_us: self.duration.as_micros(),
            cut: self.is_cut.then_some(true),
            ids: Ids::of(&self.trace),
        })
    }

    fn method(&self) -> &str {
        self.method.as_ref().map_or("-", Method::as_str)
    }
}

impl fmt::Display for AccessRecord {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            client,
            status,
            bytes,
            ..
        } = self;
        let (time, level, method) = (timestamp(), Level::Info, self.method());
        let (path, duration) = (escape_control(&self.path), self.duration.as_micros());
        write!(
            f,
            "{time} {level} {client} {method} {path} {status} {bytes}B {duration}us"
        )?;
        if self.is_cut {
            write!(f, " cut")?;
        }
        match self.trace.text() {
            Some(id) => write!(f, " {id}"),
            None => Ok(()),
        }
    }
}
