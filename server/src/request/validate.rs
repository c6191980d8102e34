//! Validation of requests that hyper accepts: number of fields, length and transfer coding of the body, target, host.
//!
//! A valid request gets an absolute URI, so that the component receives the host in both versions of `wasi:http`.

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, Version};
use std::net::Ipv6Addr;

/// Maximum number of fields in a request's head; with more, the status is 431.
pub const MAX_FIELDS: usize = 100;

/// Status and reason of the response to an invalid request.
pub type Rejection = (StatusCode, &'static str);

/// Validates a request, and moves its host from the field `Host` to the URI.
///
/// # Errors
/// The response that the RFCs require. The connection must not be reused.
pub fn check<B>(request: &mut Request<B>) -> Result<(), Rejection> {
    let bad = |reason| (StatusCode::BAD_REQUEST, reason);
    // hyper counts them for HTTP/1 only.
    if request.headers().len() > MAX_FIELDS {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err((status, "Request Header Fields Too Large"));
    }
    check_transfer_encoding(request.headers())?;
    check_content_length(request.headers())?;
    check_target(request.uri()).map_err(bad)?;
    check_host(request).map_err(bad)?;
    make_absolute(request).map_err(bad)
}

/// Accepts `chunked`, once, which hyper decodes (RFC 9112, section 6.1).
fn check_transfer_encoding(headers: &HeaderMap) -> Result<(), Rejection> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err((StatusCode::NOT_IMPLEMENTED, "Unknown Transfer-Encoding")),
    }
}

/// Accepts one number (RFC 9110, section 8.6) of up to 63 bits. Over HTTP/2, h2 0.4 also accepts an empty value, and several
/// fields with the same number. Libraries of guests fail on these, and on more than 63 bits (wasip3 0.7).
fn check_content_length(headers: &HeaderMap) -> Result<(), Rejection> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = match (lengths.next(), lengths.next()) {
        (None, _) => return Ok(()),
        (Some(length), None) => length.to_str().unwrap_or_default(),
        (Some(_), Some(_)) => "",
    };
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err((StatusCode::BAD_REQUEST, "Malformed Content-Length header"));
    }
    match length.parse::<i64>() {
        Ok(_) => Ok(()),
        Err(_) => Err((StatusCode::PAYLOAD_TOO_LARGE, "Content Too Large")),
    }
}

/// Accepts a path, `*`, or an absolute URI with the scheme of HTTP (RFC 9112, section 3.2). An authority alone is for
/// `CONNECT`, which requires a proxy.
fn check_target(target: &Uri) -> Result<(), &'static str> {
    let path = target.path_and_query().map_or("", PathAndQuery::as_str);
    let is_path = path.starts_with('/') || path == "*";
    let is_http = matches!(target.scheme_str(), None | Some("http" | "https"));
    let mut authority = target.authority().map(Authority::as_str).into_iter();
    if is_path && is_http && authority.all(is_host) {
        Ok(())
    } else {
        Err("Malformed request target")
    }
}

/// Accepts one well-formed `Host`, which HTTP/1.1 requires (RFC 9112, section 3.2). In HTTP/2 it has to equal the authority
/// (RFC 9113, section 8.3.1).
fn check_host<B>(request: &Request<B>) -> Result<(), &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err("More than one Host header"),
        (Some(host), None) => {
            let host = host.to_str().ok().filter(|host| is_host(host));
            let host = host.ok_or("Malformed Host header")?;
            match request.uri().authority() {
                Some(authority) if request.version() == Version::HTTP_2 && authority != host => {
                    Err("Host header differs from authority")
                }
                _ => Ok(()),
            }
        }
        (None, _) if request.version() == Version::HTTP_11 => Err("No Host header"),
        (None, _) => Ok(()),
    }
}

/// Adds the scheme `http` and the host of the field `Host` to the URI, unless the target has a host (RFC 9112,
/// section 3.2.2). Without either, or with an empty one, the host is `localhost`: `wasi:http` requires an authority that is
/// not empty.
fn make_absolute<B>(request: &mut Request<B>) -> Result<(), &'static str> {
    let host = request.headers_mut().remove(HOST);
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    if parts.authority.is_none() {
        let host = host.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
        let authority = match host {
            b"" => Ok(Authority::from_static("localhost")),
            host => Authority::try_from(host),
        };
        parts.authority = Some(authority.map_err(|_| "Malformed Host header")?);
    }
    parts.scheme.get_or_insert(Scheme::HTTP);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| "Malformed request target")?;
    Ok(())
}

/// Returns true if the text is a host with or without a port (RFC 3986, section 3.2.2), or empty. Percent-encoded names are
/// rejected because none are in use.
fn is_host(text: &str) -> bool {
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte);
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, ""),
    };
    let is_address = |host: &str| host.parse::<Ipv6Addr>().is_ok();
    let is_host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(is_address),
        None => host.bytes().all(in_name) && (!host.is_empty() || text.is_empty()),
    };
    is_host && port.bytes().all(|byte| byte.is_ascii_digit())
}
