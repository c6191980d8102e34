//! The service: what each path responds. Replace these routes with your own.

use crate::service::{Body, text};
use anyhow::Result;
use http::header::{ALLOW, CACHE_CONTROL};
use http::{HeaderValue, Method, Request, Response, StatusCode};

/// For routes that only read. The host leaves out the body of a response to `HEAD` (RFC 9110, section
/// 9.3.2).
const READ: &[Method] = &[Method::GET, Method::HEAD];

/// Responds to a request, by its path.
///
/// # Errors
/// Whatever a route fails with; the client gets a 500 and the log has the error.
pub async fn respond(request: Request<Body>) -> Result<Response<Body>> {
    match request.uri().path() {
        "/" => allow(READ, request, hello).await,
        "/health" => allow(READ, request, health).await,
        _ => Ok(text(StatusCode::NOT_FOUND, "Not Found")),
    }
}

async fn hello(_: Request<Body>) -> Result<Response<Body>> {
    Ok(text(StatusCode::OK, "Hello from Docker!"))
}

async fn health(_: Request<Body>) -> Result<Response<Body>> {
    let mut response = text(StatusCode::OK, "OK");
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, no_store);
    Ok(response)
}

/// Calls the route for these methods. `OPTIONS` lists them, as does the 405 for other methods
/// (RFC 9110, sections 9.3.7 and 15.5.6).
async fn allow(
    methods: &[Method],
    request: Request<Body>,
    route: impl AsyncFnOnce(Request<Body>) -> Result<Response<Body>>,
) -> Result<Response<Body>> {
    if methods.contains(request.method()) {
        return route(request).await;
    }
    let mut response = match *request.method() {
        Method::OPTIONS => text(StatusCode::OK, ""),
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
    };
    let names: Vec<_> = methods.iter().map(Method::as_str).collect();
    let allowed = format!("{}, OPTIONS", names.join(", "));
    response.headers_mut().insert(ALLOW, allowed.try_into()?);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service;
    use http::header::{CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
    use http_body_util::BodyExt;

    /// Sends a request with this body; returns the response and its body.
    fn send(method: &str, target: &str, body: &'static str) -> (Response<()>, String) {
        let request = Request::builder().method(method).uri(target);
        let request = request.body(text(StatusCode::OK, body).into_body());
        let response = service::handle(request.expect("a well-formed request"));
        let (head, body) = pollster::block_on(response).into_parts();
        let body = pollster::block_on(body.collect()).expect("a whole body");
        let body = String::from_utf8(body.to_bytes().into()).expect("UTF-8");
        (Response::from_parts(head, ()), body)
    }

    #[track_caller]
    fn assert_response(method: &str, target: &str, status: u16, expected: &str) -> Response<()> {
        let (response, body) = send(method, target, "");
        assert_eq!(response.status(), status, "{method} {target}");
        assert_eq!(body, expected, "{method} {target}");
        let fields = response.headers();
        assert_eq!(fields[CONTENT_LENGTH], expected.len().to_string());
        assert_eq!(fields[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(fields.contains_key(CONTENT_TYPE), !expected.is_empty());
        response
    }

    #[test]
    fn get_and_head_respond_alike() {
        for method in ["GET", "HEAD"] {
            assert_response(method, "/", 200, "Hello from Docker!");
            assert_response(method, "/?x=1", 200, "Hello from Docker!");
            let health = assert_response(method, "/health", 200, "OK");
            assert_eq!(health.headers()[CACHE_CONTROL], "no-store");
        }
    }

    #[test]
    fn options_names_the_methods() {
        for path in ["/", "/health"] {
            let options = assert_response("OPTIONS", path, 200, "");
            assert_eq!(options.headers()[ALLOW], "GET, HEAD, OPTIONS");
        }
    }

    #[test]
    fn other_methods_are_not_allowed() {
        for method in ["POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW", "get"] {
            for path in ["/", "/health"] {
                let response = assert_response(method, path, 405, "Method Not Allowed");
                assert_eq!(response.headers()[ALLOW], "GET, HEAD, OPTIONS");
            }
        }
    }

    #[test]
    fn other_paths_are_not_found() {
        for path in ["/health/", "//", "/HEALTH", "/index.html", "/%2F", "*"] {
            for method in ["GET", "POST", "OPTIONS", "BREW"] {
                assert_response(method, path, 404, "Not Found");
            }
        }
    }
}
