//! How many seats a request takes (k8s.io/apiserver, `util/flowcontrol/request`).
//!
//! Pure. Everything here is read from the watch cache, so lists are judged as lists from a
//! cache, by the memory that they occupy at once.

use super::fair::Work;
use crate::serve::request::{Query, RequestInfo};

/// Memory of a list that counts as one seat, in bytes.
const BYTES_PER_SEAT: u64 = 100_000;
/// A list is streamed; it does not occupy more than this at once, in bytes.
const LIST_BYTES_MAX: u64 = 1_000_000;
const LIST_SEATS_MAX: u32 = 100;
const WRITE_SEATS_MAX: u32 = 10;
/// Watchers that a change keeps busy like one more request.
const WATCHERS_PER_SEAT: u32 = 10;
/// For this long, in seconds.
const EVENT_SECONDS: f64 = 0.005;
/// Of a level's seats, what one request may take (`priorityLevelMaxSeatsPercent`).
const LEVEL_PART_MAX: f64 = 0.15;

/// What is stored of a resource, and who watches it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    pub objects: u64,
    pub bytes: u64,
    pub watchers: u32,
}

/// Whether the estimate depends on what is stored.
pub fn depends_on_stored(info: &RequestInfo) -> bool {
    info.is_resource
        && matches!(info.verb, "list" | "watch" | "create" | "update" | "patch" | "delete")
}

/// Whether watchers hear of it. A token is no event.
pub fn is_write(info: &RequestInfo) -> bool {
    let token = info.resource == "serviceaccounts" && info.subresource == "token";
    info.is_resource && matches!(info.verb, "create" | "update" | "patch" | "delete") && !token
}

/// Seats that one request may take in a level with this many: so few that what a flow's hand
/// of queues may hold fits. Levels without queues set no such limit.
pub fn seats_max(nominal: u32, hand: Option<u32>) -> u32 {
    let Some(hand) = hand else { return u32::MAX };
    let part = (f64::from(nominal) * LEVEL_PART_MAX).ceil() as u32;
    part.min(nominal / hand.max(1)).max(1)
}

pub fn estimate(info: &RequestInfo, query: &Query, stored: Stored, seats_max: u32) -> Work {
    match info.verb {
        "list" => list(info, query, stored, seats_max),
        "watch" if sends_objects(query) => list(info, query, stored, seats_max),
        _ if is_write(info) => write(stored, seats_max),
        _ => Work::ONE,
    }
}

/// Whether a watch begins with what is there, as it does where no point to begin at is given.
fn sends_objects(query: &Query) -> bool {
    query.flag("sendInitialEvents") || query.set("resourceVersion").is_none_or(|v| v == "0")
}

fn list(info: &RequestInfo, query: &Query, stored: Stored, seats_max: u32) -> Work {
    let one = !info.name.is_empty()
        || query.get("fieldSelector").is_some_and(|s| s.starts_with("metadata.name="));
    let limit = query.set("limit").and_then(|limit| limit.parse().ok()).filter(|n| *n > 0);
    let objects = match limit {
        _ if one => 1,
        Some(limit) => stored.objects.min(limit),
        None => stored.objects,
    };
    let average = stored.bytes / stored.objects.max(1);
    let bytes = objects.saturating_mul(average).min(LIST_BYTES_MAX);
    let seats = u32::try_from(bytes.div_ceil(BYTES_PER_SEAT)).unwrap_or(u32::MAX);
    Work { seats: seats.clamp(1, seats_max.clamp(1, LIST_SEATS_MAX)), ..Work::ONE }
}

fn write(stored: Stored, seats_max: u32) -> Work {
    if stored.watchers < WATCHERS_PER_SEAT {
        return Work::ONE;
    }
    let wanted = stored.watchers.div_ceil(WATCHERS_PER_SEAT);
    let seats = wanted.min(seats_max.clamp(1, WRITE_SEATS_MAX));
    // Narrower is longer: the work stays the same.
    let extra = f64::from(wanted) * EVENT_SECONDS / f64::from(seats);
    Work { seats: 1, final_seats: seats, extra }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn check(method: Method, uri: &str, stored: Stored, expected: Work) {
        let (path, query) = uri.split_once('?').map_or((uri, None), |(p, q)| (p, Some(q)));
        let query = Query::parse(query);
        let info = RequestInfo::parse(&method, path, &query);
        assert_eq!(estimate(&info, &query, stored, 20), expected, "{method} {uri}");
    }

    #[test]
    fn requests_take_seats_by_what_they_touch() {
        let seats = |seats| Work { seats, ..Work::ONE };
        let some = Stored { objects: 500, bytes: 500_000, watchers: 9 };
        let many = Stored { objects: 100_000, bytes: 200_000_000, watchers: 300 };
        check(Method::GET, "/api/v1/pods", Stored::default(), seats(1));
        check(Method::GET, "/api/v1/pods", some, seats(5));
        check(Method::GET, "/api/v1/pods", many, seats(10));
        check(Method::GET, "/api/v1/pods?limit=150", many, seats(3));
        check(Method::GET, "/api/v1/pods?fieldSelector=metadata.name%3Da", many, seats(1));
        check(Method::GET, "/api/v1/namespaces/a/pods/b", many, seats(1));
        check(Method::GET, "/api/v1/pods?watch=1", many, seats(10));
        check(Method::GET, "/api/v1/pods?watch=1&resourceVersion=0", some, seats(5));
        check(Method::GET, "/api/v1/pods?watch=1&resourceVersion=7", many, seats(1));
        check(
            Method::GET,
            "/api/v1/pods?watch=1&resourceVersion=7&sendInitialEvents=true",
            some,
            seats(5),
        );
        check(Method::POST, "/api/v1/namespaces/a/pods", some, seats(1));
        let watched = Work { seats: 1, final_seats: 10, extra: 0.015 };
        check(Method::POST, "/api/v1/namespaces/a/pods", many, watched);
        let token = "/api/v1/namespaces/a/serviceaccounts/b/token";
        check(Method::POST, token, many, seats(1));
        check(Method::GET, "/healthz", many, seats(1));
    }

    #[test]
    fn one_request_takes_a_part_of_its_level() {
        // Seats of the level, queues in a hand, and what one request may take.
        for (nominal, hand, most) in [
            (245, Some(6), 37),
            (40, Some(6), 6),
            (16, Some(6), 2),
            (13, Some(8), 1),
            (5, Some(6), 1),
            (0, Some(1), 1),
            (40, None, u32::MAX),
        ] {
            assert_eq!(seats_max(nominal, hand), most, "{nominal} {hand:?}");
        }
    }
}
