//! As much of HTTP as a page of figures needs: one question without a body, one answer, and the connection ends.
//!
//! A browser on this host can be made to ask: a stranger's page has a name, which its owner lets lead here after the page was
//! loaded, and the browser takes the answer for that page's. But it says by which name it asks.

use std::net::IpAddr;

use httparse::{EMPTY_HEADER, Header, Request};

/// The longest head that is read, bytes: what browsers and `curl` send has a tenth of it.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

const HEADERS_MAX: usize = 64;

/// What somebody wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// Not all of it has arrived.
    Partial,
    Get(Get<'a>),
    Refused(Status),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Get<'a> {
    pub path: &'a str,
    /// It was asked by a name that anybody could own: not by an address, nor by a name without a domain, such as `localhost`.
    pub by_domain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    /// Asked by another name than this host's.
    Misdirected,
}

impl<'a> Question<'a> {
    /// Reads the bytes that have arrived so far. A head that is still not complete after [`HEAD_BYTES_MAX`] is refused.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Self {
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let mut request = Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => match (request.method, request.path) {
                (Some("GET"), Some(path)) => {
                    let path = path.split('?').next().unwrap_or(path);
                    Self::Get(Get { path, by_domain: request.headers.iter().any(is_domain) })
                }
                _ => Self::Refused(Status::MethodNotAllowed),
            },
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => Self::Partial,
            Ok(httparse::Status::Partial) | Err(_) => Self::Refused(Status::BadRequest),
        }
    }
}

fn is_domain(header: &Header<'_>) -> bool {
    let host = String::from_utf8_lossy(header.value);
    let name = host.rsplit_once(':').map_or(&*host, |(name, _port)| name);
    let is_address = host.starts_with('[') || name.parse::<IpAddr>().is_ok();
    header.name.eq_ignore_ascii_case("host") && !is_address && name.contains('.')
}

impl Status {
    /// A whole answer. Without a body of its own it says what the status means.
    #[must_use]
    pub fn answer(self, json: Option<&str>) -> String {
        let reason = match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::Misdirected => "421 Misdirected Request",
        };
        let (kind, body) = match json {
            Some(json) => ("application/json", json.to_owned()),
            None => ("text/plain; charset=utf-8", format!("{reason}\n")),
        };
        format!(
            "HTTP/1.1 {reason}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_when_its_head_is_complete() {
        let whole = b"GET /status?now=1 HTTP/1.1\r\nHost: x\r\n\r\n";
        for cut in 0..whole.len() {
            assert_eq!(Question::parse(&whole[..cut]), Question::Partial, "{cut} bytes");
        }
        assert_eq!(Question::parse(whole), Question::Get(Get { path: "/status", by_domain: false }));
        assert_eq!(Question::parse(b"POST / HTTP/1.1\r\n\r\n"), Question::Refused(Status::MethodNotAllowed));
        for bad in [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[b'a'; HEAD_BYTES_MAX]] {
            assert_eq!(Question::parse(bad), Question::Refused(Status::BadRequest), "{bad:?}");
        }
    }

    #[test]
    fn a_name_with_a_domain_is_told_from_addresses_and_from_names_of_this_host() {
        let by_domain = |host: &str| {
            let question = format!("GET / HTTP/1.1\r\nAccept: a.b\r\n{host}\r\n\r\n");
            let Question::Get(get) = Question::parse(question.as_bytes()) else { panic!("{question}") };
            get.by_domain
        };
        for ours in ["127.0.0.1:9001", "127.0.0.1", "[::1]:9001", "[::ffff:127.0.0.1]", "localhost:9001", "gateway", ""]
        {
            assert!(!by_domain(&format!("Host: {ours}")), "{ours}");
        }
        for theirs in ["a.example:9001", "a.example", "localhost.", "127.0.0.1.a.example", "1.2.3.4.:80"] {
            assert!(by_domain(&format!("host: {theirs}")), "{theirs}");
            assert!(by_domain(&format!("Host: localhost\r\nHost: {theirs}")), "{theirs}");
        }
        assert!(!by_domain("Origin: http://a.example"));
    }

    #[test]
    fn an_answer_tells_its_length() {
        let answer = Status::Ok.answer(Some("{\"a\":1}"));
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n{\"a\":1}"), "{answer}");
        assert!(answer.contains("Content-Length: 7\r\n"), "{answer}");
        assert!(Status::NotFound.answer(None).ends_with("\r\n\r\n404 Not Found\n"));
    }
}
