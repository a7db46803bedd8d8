//! How long a request may take: `?timeout=`, and the server's own limit.
//!
//! Pure.

use std::time::Duration;

use super::request::{Query, RequestInfo};
use crate::error::{ApiError, Result};

/// Writes that a registry works on are given up earlier than other requests (upstream's
/// `requestTimeoutUpperBound`).
const WRITE_MAX: Duration = Duration::from_secs(34);
/// Subresources that are streams.
const STREAMS: [&str; 5] = ["attach", "exec", "proxy", "log", "portforward"];

/// Whether a request has no deadline: watches, streams and proxied requests.
pub fn is_long_running(info: &RequestInfo) -> bool {
    matches!(info.verb, "watch" | "proxy")
        || (info.is_resource && STREAMS.contains(&info.subresource.as_str()))
        || info.path.starts_with("/debug/pprof/")
}

/// Whether a request changes objects.
pub fn is_write(info: &RequestInfo) -> bool {
    info.is_resource
        && matches!(info.verb, "create" | "update" | "patch" | "delete" | "deletecollection")
}

/// The time a request has.
///
/// # Errors
/// 400 for a timeout that is no duration.
pub fn of(info: &RequestInfo, query: &Query, most: Duration) -> Result<Duration> {
    let most = if is_write(info) { most.min(WRITE_MAX) } else { most };
    let Some(text) = query.set("timeout") else { return Ok(most) };
    let seconds = go_duration(text).map_err(|why| {
        ApiError::bad_request(format!("invalid timeout specified in the request URL - {why}"))
    })?;
    // No time at all is no wish.
    match Duration::try_from_secs_f64(seconds) {
        Ok(asked) if !asked.is_zero() => Ok(asked.min(most)),
        _ => Ok(most),
    }
}

/// What a request is told that has taken too long.
pub fn exceeded(write: bool) -> ApiError {
    let message = match write {
        true => {
            "Timeout: request did not complete within requested timeout - context deadline exceeded"
        }
        false => "Timeout: request did not complete within the allotted timeout",
    };
    let details = Some(Box::new(serde_json::json!({})));
    ApiError { details, ..ApiError::new(504, "Timeout", message) }
}

/// Seconds of a duration in Go's notation: `1h2m3.5s`, `300ms`.
///
/// # Errors
/// In the words of Go's `time.ParseDuration`.
pub fn go_duration(text: &str) -> std::result::Result<f64, String> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3_600.0),
    ];
    let invalid = || format!("time: invalid duration {text:?}");
    let (sign, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (-1.0, &text[1..]),
        Some(b'+') => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if rest == "0" {
        return Ok(0.0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = &rest[..end];
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        let known = UNITS.iter().find(|(name, _)| *name == unit);
        let Some((_, length)) = known else {
            return Err(format!("time: unknown unit {unit:?} in duration {text:?}"));
        };
        seconds += number * length;
        rest = &rest[end..];
    }
    // Go counts nanoseconds in 63 bits.
    if seconds > 9.2e9 { Err(invalid()) } else { Ok(sign * seconds) }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let good = [
            ("0", 0.0),
            ("10s", 10.0),
            ("1m30s", 90.0),
            ("1.5h", 5_400.0),
            ("250ms", 0.25),
            ("-2s", -2.0),
        ];
        for (text, seconds) in good {
            assert_eq!(go_duration(text), Ok(seconds), "{text}");
        }
        let bad = [
            ("", r#"time: invalid duration """#),
            ("10", r#"time: missing unit in duration "10""#),
            ("abc", r#"time: invalid duration "abc""#),
            ("3x", r#"time: unknown unit "x" in duration "3x""#),
            ("9999999h", r#"time: invalid duration "9999999h""#),
        ];
        for (text, why) in bad {
            assert_eq!(go_duration(text), Err(why.to_string()), "{text}");
        }
    }

    #[test]
    fn requests_have_the_time_they_ask_for_or_less() {
        let most = Duration::from_secs(60);
        let time = |method: Method, uri: &str| {
            let (path, query) = uri.split_once('?').map_or((uri, None), |(p, q)| (p, Some(q)));
            let query = Query::parse(query);
            of(&RequestInfo::parse(&method, path, &query), &query, most)
        };
        let cases = [
            (Method::GET, "/api/v1/pods", 60),
            (Method::GET, "/api/v1/pods?timeout=5s", 5),
            (Method::GET, "/api/v1/pods?timeout=5m", 60),
            (Method::GET, "/api/v1/pods?timeout=0s", 60),
            (Method::GET, "/api/v1/pods?timeout=-3s", 60),
            (Method::POST, "/api/v1/namespaces", 34),
            (Method::POST, "/api/v1/namespaces?timeout=10s", 10),
        ];
        for (method, uri, seconds) in cases {
            assert_eq!(time(method, uri).unwrap(), Duration::from_secs(seconds), "{uri}");
        }
        let error = time(Method::GET, "/api/v1/pods?timeout=1").unwrap_err();
        assert_eq!(error.code, 400);
        assert_eq!(
            error.message,
            r#"invalid timeout specified in the request URL - time: missing unit in duration "1""#
        );
    }

    #[test]
    fn watches_and_streams_take_as_long_as_they_take() {
        let long = |uri: &str| {
            let (path, query) = uri.split_once('?').map_or((uri, None), |(p, q)| (p, Some(q)));
            is_long_running(&RequestInfo::parse(&Method::GET, path, &Query::parse(query)))
        };
        assert!(long("/api/v1/pods?watch=1"));
        assert!(long("/api/v1/namespaces/a/pods/b/log"));
        assert!(long("/api/v1/namespaces/a/services/b/proxy/x"));
        assert!(!long("/api/v1/namespaces/a/pods/b"));
        assert!(!long("/healthz"));
    }
}
