//! The service: what each path answers. Replace these routes with your own.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};

/// Answers one request. The body `B` is whatever the door has, still unread.
///
/// `HEAD` is answered as `GET` is: the host, which frames the message, leaves the body out
/// (RFC 9110, section 9.3.2).
pub fn respond<B>(request: &Request<B>) -> Response<Bytes> {
    let get = match request.uri().path() {
        "/" => hello,
        "/health" => health,
        _ => return text(StatusCode::NOT_FOUND, "Not Found"),
    };
    match *request.method() {
        Method::GET | Method::HEAD => get(),
        Method::OPTIONS => allow(text(StatusCode::OK, "")),
        _ => allow(text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")),
    }
}

fn hello() -> Response<Bytes> {
    text(StatusCode::OK, "Hello from Docker!")
}

fn health() -> Response<Bytes> {
    let answer = text(StatusCode::OK, "OK");
    with(answer, CACHE_CONTROL, HeaderValue::from_static("no-store"))
}

fn allow(answer: Response<Bytes>) -> Response<Bytes> {
    with(
        answer,
        ALLOW,
        HeaderValue::from_static("GET, HEAD, OPTIONS"),
    )
}

fn text(status: StatusCode, body: &'static str) -> Response<Bytes> {
    let mut answer = Response::new(Bytes::from_static(body.as_bytes()));
    *answer.status_mut() = status;
    // An exact length, so that no host falls back to chunked encoding.
    answer = with(answer, CONTENT_LENGTH, body.len().into());
    answer = with(
        answer,
        X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if body.is_empty() {
        return answer;
    }
    with(
        answer,
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    )
}

fn with(mut answer: Response<Bytes>, name: HeaderName, value: HeaderValue) -> Response<Bytes> {
    answer.headers_mut().insert(name, value);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(method: &str, target: &str) -> Response<Bytes> {
        let request = Request::builder().method(method).uri(target);
        respond(&request.body(()).expect("a well-formed request"))
    }

    #[track_caller]
    fn assert_answer(method: &str, target: &str, status: u16, body: &str) -> Response<Bytes> {
        let answer = answer(method, target);
        assert_eq!(answer.status(), status, "{method} {target}");
        assert_eq!(answer.body(), body, "{method} {target}");
        assert_eq!(answer.headers()[CONTENT_LENGTH], body.len().to_string());
        assert_eq!(answer.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(
            answer.headers().contains_key(CONTENT_TYPE),
            !body.is_empty()
        );
        answer
    }

    #[test]
    fn get_and_head_answer_alike() {
        for method in ["GET", "HEAD"] {
            assert_answer(method, "/", 200, "Hello from Docker!");
            assert_answer(method, "/?x=1", 200, "Hello from Docker!");
            let health = assert_answer(method, "/health", 200, "OK");
            assert_eq!(health.headers()[CACHE_CONTROL], "no-store");
        }
    }

    #[test]
    fn options_names_the_methods() {
        for path in ["/", "/health"] {
            let options = assert_answer("OPTIONS", path, 200, "");
            assert_eq!(options.headers()[ALLOW], "GET, HEAD, OPTIONS");
        }
    }

    #[test]
    fn other_methods_are_not_allowed() {
        for method in ["POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW", "get"] {
            for path in ["/", "/health"] {
                let refusal = assert_answer(method, path, 405, "Method Not Allowed");
                assert_eq!(refusal.headers()[ALLOW], "GET, HEAD, OPTIONS");
            }
        }
    }

    #[test]
    fn other_paths_are_not_found() {
        for path in ["/health/", "//", "/HEALTH", "/index.html", "/%2F", "*"] {
            for method in ["GET", "POST", "OPTIONS", "BREW"] {
                assert_answer(method, path, 404, "Not Found");
            }
        }
    }
}
