//! `/debug/...`: what flow control holds at the moment, and how much the server logs.
//!
//! There are no profiles: what upstream's `/debug/pprof` tells of a Go process has no
//! counterpart here, so these paths are not found, as with upstream's `--profiling=false`.

use client::Body;
use http::{Method, Response, StatusCode};

use super::chain::Call;
use super::{Shared, answer};

const TEXT: &str = "text/plain; charset=utf-8";
const FLOW: &str = "/debug/api_priority_and_fairness/";

/// None for any other path.
pub fn serve(server: &Shared, call: &Call) -> Option<Response<Body>> {
    let path = call.info.path.as_str();
    if path == "/debug/flags/v" {
        return Some(verbosity(call));
    }
    if !server.flags.limits.fair {
        return None;
    }
    let text = match path.strip_prefix(FLOW)? {
        "dump_priority_levels" => server.flow.dump_priority_levels(),
        "dump_queues" => server.flow.dump_queues(),
        "dump_requests" => {
            let details = call.query.set("includeRequestDetails").is_some();
            server.flow.dump_requests(details)
        }
        _ => return None,
    };
    Some(answer::bytes(StatusCode::OK, TEXT, text))
}

fn verbosity(call: &Call) -> Response<Body> {
    let say = |status, text: String| answer::bytes(status, TEXT, format!("{text}\n"));
    if call.request.method() != Method::PUT {
        return say(StatusCode::NOT_ACCEPTABLE, "unsupported http method".into());
    }
    let wanted = String::from_utf8_lossy(call.request.body());
    let Ok(level) = wanted.parse::<u8>() else {
        let why = format!("strconv.ParseInt: parsing {wanted:?}: invalid syntax");
        let text = format!("failed set klog.logging.verbosity {wanted}: {why}");
        return say(StatusCode::BAD_REQUEST, text);
    };
    base::log::set_verbosity(level);
    say(StatusCode::OK, format!("successfully set klog.logging.verbosity to {wanted}"))
}
