//! What hyper leaves to a server: checks a request's target, host and transfer coding, and makes its
//! URI absolute, so that the component gets it whole whichever version of `wasi:http` it exports.

use http::header::{HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, Version};
use std::net::Ipv6Addr;

/// Fields that a request may have; more are answered with 431.
pub const MAX_FIELDS: usize = 100;

/// What to answer instead of asking the guest.
pub type Rejection = (StatusCode, &'static str);

/// Checks a request, and moves its host from the field `Host` to the URI.
///
/// # Errors
/// The response that the RFCs ask for; the connection must not be used again.
pub fn check<B>(request: &mut Request<B>) -> Result<(), Rejection> {
    let bad = |reason| (StatusCode::BAD_REQUEST, reason);
    // hyper counts them over HTTP/1 alone.
    if request.headers().len() > MAX_FIELDS {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err((status, "Request Header Fields Too Large"));
    }
    check_transfer_encoding(request.headers())?;
    check_target(request.uri()).map_err(bad)?;
    check_host(request).map_err(bad)?;
    make_absolute(request).map_err(bad)
}

/// Only `chunked`, once, is taken off here; hyper does that (RFC 9112, section 6.1).
fn check_transfer_encoding(headers: &HeaderMap) -> Result<(), Rejection> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err((StatusCode::NOT_IMPLEMENTED, "Unknown Transfer-Encoding")),
    }
}

/// The target is a path, `*`, or a whole URI of this kind of server (RFC 9112, section 3.2). An
/// authority alone is for `CONNECT`, and this is no proxy.
fn check_target(target: &Uri) -> Result<(), &'static str> {
    let path = target.path_and_query().map_or("", PathAndQuery::as_str);
    let is_path = path.starts_with('/') || path == "*";
    let is_ours = matches!(target.scheme_str(), None | Some("http" | "https"));
    let mut authority = target.authority().map(Authority::as_str).into_iter();
    if is_path && is_ours && authority.all(is_host) {
        Ok(())
    } else {
        Err("Malformed request target")
    }
}

/// `Host` is one, well-formed, in HTTP/1.1 never missing (RFC 9112, section 3.2), and in HTTP/2
/// the same as the authority (RFC 9113, section 8.3.1).
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

/// Completes the URI with the scheme `http` and the host of the field `Host`, which a host in the
/// target overrides (RFC 9112, section 3.2.2). A request without either, or with an empty one, is for
/// `localhost`: `wasi:http` has no request without authority, and clients of it refuse an empty one.
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

/// Whether this is a host, with a port or without (RFC 3986, section 3.2.2): a name, without
/// escapes, as no name in use has any, or an IP address. `Host` may be empty.
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
