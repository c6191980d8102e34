//! The identity of a request in a chain of services: the caller's trace context, or an id that a gateway gave.

use http::{HeaderMap, HeaderName};
use std::sync::Arc;

/// Statics, as constants would be made once more for each request.
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Characters that an `x-request-id` may have.
const MAX_ID: usize = 128;

/// The link of a request's lines of log to those of other services. As cheap to clone as a pointer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace(Option<Arc<Id>>);

#[derive(Debug, PartialEq)]
pub enum Id {
    /// From `traceparent`: the trace, and the caller's span in it, in hexadecimal.
    Context { trace: String, span: String },
    /// From `x-request-id`.
    Request(String),
}

impl Trace {
    /// Reads `traceparent` (W3C Trace Context, section 3.2), or `x-request-id` if there is none that is valid.
    pub fn of(fields: &HeaderMap) -> Self {
        let context = only(fields, &TRACEPARENT).and_then(context);
        let id = context.or_else(|| only(fields, &X_REQUEST_ID).and_then(request_id));
        Self(id.map(Arc::new))
    }

    pub fn id(&self) -> Option<&Id> {
        self.0.as_deref()
    }

    /// The id for a line of text, such as `trace=… span=…`.
    pub fn text(&self) -> Option<String> {
        Some(match self.id()? {
            Id::Context { trace, span } => format!("trace={trace} span={span}"),
            Id::Request(id) => format!("request={id}"),
        })
    }
}

/// The value of a field that is there once.
fn only<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = fields.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// Reads `version-trace-parent-flags`. Versions after 00 may have more behind it.
fn context(value: &str) -> Option<Id> {
    let mut parts = value.splitn(5, '-');
    let mut part = |length: usize| {
        let part = parts.next()?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (part.len() == length && part.bytes().all(is_hex)).then_some(part)
    };
    let (version, trace, span, _flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let is_more = parts.next().is_some();
    let is_set = |id: &str| id.bytes().any(|byte| byte != b'0');
    let is_valid =
        version != "ff" && (version != "00" || !is_more) && is_set(trace) && is_set(span);
    is_valid.then(|| Id::Context {
        trace: trace.to_owned(),
        span: span.to_owned(),
    })
}

fn request_id(value: &str) -> Option<Id> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte);
    let is_id = (1..=MAX_ID).contains(&value.len()) && value.bytes().all(is_part);
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
            // A later version may have more.
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
        // Two of them are none.
        let value = format!("00-{TRACE}-{SPAN}-01");
        assert_eq!(
            read(&[("traceparent", &value), ("traceparent", &value)]),
            None
        );
    }

    #[test]
    fn request_id_stands_in_for_a_trace_context() {
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
