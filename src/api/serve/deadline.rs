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
    let seconds = base::time::go_seconds(text).map_err(|why| {
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

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

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
