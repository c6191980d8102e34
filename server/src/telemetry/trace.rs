//! The id of a request in a chain of services: the caller's trace context (`traceparent`), or a gateway's `x-request-id`.
//!
//! It links the request's lines of log to those of other services. The server creates no ids.

use http::{HeaderMap, HeaderName};
use std::sync::Arc;

/// Statics, because a constant would be constructed for each request.
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum length of an `x-request-id`.
const MAX_ID_BYTES: usize = 128;

/// The id, if the request has one. As cheap to clone as a pointer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace(Option<Arc<Id>>);

#[derive(Debug, PartialEq)]
pub enum Id {
    /// From `traceparent`, in hexadecimal. The span is the caller's.
    Context { trace: String, span: String },
    /// From `x-request-id`.
    Request(String),
}

impl Trace {
    /// Reads `traceparent` (W3C Trace Context, section 3.2), or `x-request-id` without a valid one.
    pub fn of(headers: &HeaderMap) -> Self {
        let context = only(headers, &TRACEPARENT).and_then(parse_context);
        let id = context.or_else(|| only(headers, &X_REQUEST_ID).and_then(parse_request_id));
        Self(id.map(Arc::new))
    }

    pub fn id(&self) -> Option<&Id> {
        self.0.as_deref()
    }

    /// Returns the id for a line of text, such as `trace=… span=…`.
    pub fn text(&self) -> Option<String> {
        Some(match self.id()? {
            Id::Context { trace, span } => format!("trace={trace} span={span}"),
            Id::Request(id) => format!("request={id}"),
        })
    }
}

/// Returns the value of a header that occurs once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// Parses `version-trace-parent-flags`, which versions after 00 may continue.
fn parse_context(value: &str) -> Option<Id> {
    let mut parts = value.splitn(5, '-');
    let mut part = |length: usize| {
        let part = parts.next()?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (part.len() == length && part.bytes().all(is_hex)).then_some(part)
    };
    let (version, trace, span, _flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let has_more = parts.next().is_some();
    let is_set = |id: &str| id.bytes().any(|byte| byte != b'0');
    let is_valid =
        version != "ff" && (version != "00" || !has_more) && is_set(trace) && is_set(span);
    is_valid.then(|| Id::Context {
        trace: trace.to_owned(),
        span: span.to_owned(),
    })
}

fn parse_request_id(value: &str) -> Option<Id> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte);
    let is_id = (1..=MAX_ID_BYTES).contains(&value.len()) && value.bytes().all(is_part);
    is_id.then(|| Id::Request(value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn read(fields: &[(&str, &str)]) -> Option<String> {
        let fields = fields.iter().map(|(name, value)| {
            let name: HeaderName = name.parse().expect("a name");
            (name, HeaderValue::from_str(value).expect("a value"))
        });
        let mut map = HeaderMap::new();
        fields.for_each(|(name, value)| {
            map.append(name, value);
        });
        Trace::of(&map).text()
    }

    #[test]
    fn trace_context_is_read_by_its_specification() {
        let valid = format!("trace={TRACE} span={SPAN}");
        let long = format!("00-{TRACE}-{SPAN}-01-more");
        for (value, expected) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(&valid)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(&valid)),
            // A later version may append fields.
            (format!("cc-{TRACE}-{SPAN}-01"), Some(&valid)),
            (
                format!("cc-{TRACE}-{SPAN}-01-what-the-future"),
                Some(&valid),
            ),
            (format!("cc-{TRACE}-{SPAN}-01.what"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (long, None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{TRACE}-{SPAN}"), None),
            (format!("00-{TRACE}-{SPAN}-"), None),
            (format!("0-{TRACE}-{SPAN}-01"), None),
            (String::new(), None),
        ] {
            assert_eq!(
                read(&[("traceparent", &value)]).as_ref(),
                expected,
                "{value}"
            );
        }
        // A repeated header is ambiguous.
        let value = format!("00-{TRACE}-{SPAN}-01");
        assert_eq!(
            read(&[("traceparent", &value), ("traceparent", &value)]),
            None
        );
    }

    #[test]
    fn request_id_is_read_without_a_trace_context() {
        let context = format!("00-{TRACE}-{SPAN}-01");
        assert_eq!(
            read(&[("x-request-id", "a"), ("traceparent", &context)]),
            Some(format!("trace={TRACE} span={SPAN}"))
        );
        for (value, expected) in [
            ("7b1c-1", Some("request=7b1c-1")),
            ("a b", None),
            ("a\"b", None),
            ("", None),
            (&"x".repeat(129), None),
        ] {
            let fields = [("traceparent", "garbage"), ("x-request-id", value)];
            assert_eq!(read(&fields).as_deref(), expected, "{value}");
        }
    }
}
