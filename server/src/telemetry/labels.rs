//! The labels of metrics. Each has a bounded set of values, because clients and guests can invent methods and statuses, and
//! each value is a further time series.

use http::{Method, StatusCode};
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use std::fmt;
use std::hash::{Hash, Hasher};
use wasmtime_wasi_http::Error;

/// A label and its value.
pub type Label = (&'static str, &'static str);

/// Method and status of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestLabels {
    method: MethodLabel,
    status: StatusLabel,
}

impl RequestLabels {
    /// `method` is `None` if the request's head could not be read.
    pub fn new(method: Option<&Method>, status: u16) -> Self {
        Self {
            method: MethodLabel::of(method),
            status: StatusLabel::of(status),
        }
    }
}

/// Writes one number, because each request is looked up by it.
impl Hash for RequestLabels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (StatusLabel::Code(status) | StatusLabel::Class(status)) = self.status;
        state.write_u32((self.method as u32) << 16 | u32::from(status));
    }
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        ("http_request_method", self.method.name()).encode(encoder.encode_label())?;
        self.status.encode(encoder)
    }
}

/// Result of a guest's request to another service.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum OutboundLabels {
    Response(StatusLabel),
    /// With an [`error_type`].
    Error(&'static str),
}

impl EncodeLabelSet for OutboundLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        match self {
            Self::Response(status) => status.encode(encoder),
            Self::Error(kind) => ("error_type", *kind).encode(encoder.encode_label()),
        }
    }
}

/// A status code that HTTP defines, or the class of another one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum StatusLabel {
    Code(u16),
    Class(u16),
}

impl StatusLabel {
    pub fn of(status: u16) -> Self {
        let known = StatusCode::from_u16(status).ok();
        match known.and_then(|it| it.canonical_reason()) {
            Some(_) => Self::Code(status),
            // The status of a request whose client disconnects (see `request::record`).
            None if status == 499 => Self::Code(status),
            None => Self::Class(status / 100),
        }
    }

    fn encode(self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        const NAME: &str = "http_response_status_code";
        match self {
            Self::Code(code) => (NAME, u32::from(code)).encode(encoder.encode_label()),
            Self::Class(class) => (NAME, format!("{class}xx")).encode(encoder.encode_label()),
        }
    }
}

/// The methods that OpenTelemetry defines for `http.request.method`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum MethodLabel {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
    Other,
}

impl MethodLabel {
    fn of(method: Option<&Method>) -> Self {
        match method {
            Some(&Method::GET) => Self::Get,
            Some(&Method::HEAD) => Self::Head,
            Some(&Method::POST) => Self::Post,
            Some(&Method::PUT) => Self::Put,
            Some(&Method::DELETE) => Self::Delete,
            Some(&Method::CONNECT) => Self::Connect,
            Some(&Method::OPTIONS) => Self::Options,
            Some(&Method::TRACE) => Self::Trace,
            Some(&Method::PATCH) => Self::Patch,
            _ => Self::Other,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
            Self::Other => "_OTHER",
        }
    }
}

/// Returns the label `error.type`. Each value points an operator to a different cause.
pub fn error_type(error: &Error) -> &'static str {
    match error {
        Error::DnsTimeout | Error::DnsError { .. } => "dns",
        Error::Connect(_)
        | Error::ConnectionRefused
        | Error::DestinationNotFound
        | Error::DestinationUnavailable => "connect",
        Error::ConnectionTimeout => "connection_timeout",
        Error::HttpResponseTimeout | Error::ConnectionReadTimeout => "response_timeout",
        Error::Tls(_)
        | Error::TlsProtocolError
        | Error::TlsCertificateError
        | Error::TlsAlertReceived { .. } => "tls",
        _ => "_OTHER",
    }
}
