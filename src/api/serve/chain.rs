//! The ordered list that every request walks: who, as whom, whether, what.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use client::Body;
use futures::{FutureExt, StreamExt};
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use tracing::error;

use super::forward::ClientAddress;
use super::negotiate::Asked;
use super::request::{Query, RequestInfo};
use super::{Shared, answer, compress, deadline, debug, documents, health, resources};
use crate::admission::Notes;
use crate::aggregate;
use crate::authn::impersonation::{self, ActsAs, Check};
use crate::authn::{Peer, User};
use crate::authz::{Action, Decision};
use crate::error::{ApiError, Result};
use crate::flow::{Asking, Refused, Seat, Stored};
use crate::metrics::inflight::UnderWay;
use crate::metrics::{self, route};

/// The media type of a patch that is a server-side apply.
const APPLY: &str = "application/apply-patch+yaml";

const AUDIT_ID: &str = "audit-id";
/// Of what a client calls its request.
const AUDIT_ID_CHARS_MAX: usize = 128;

/// A request with everything that the chain has learnt of it.
pub struct Call {
    pub request: Request<Bytes>,
    pub info: RequestInfo,
    pub query: Query,
    /// The forms of an answer that the client takes.
    pub asked: Asked,
    pub user: Arc<User>,
}

/// Answers a request. Never panics and never fails: what goes wrong is in the answer.
pub async fn handle(server: &Shared, mut request: Request<Bytes>) -> Response<Body> {
    let begun = Instant::now();
    let query = Query::parse(request.uri().query());
    let asked = Asked::of(request.headers(), &query);
    let gzip = compress::is_wanted(request.headers());
    let id = audit_id(request.headers());
    let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
    let traits = route::Traits {
        dry_run: query.set("dryRun").is_some(),
        apply: info.verb == "patch"
            && request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == APPLY),
    };
    let route = route::of(&info, traits, || server.registry.catalog());
    let under_way = UnderWay::begin(matches!(info.verb, "get" | "list" | "watch"));
    let long = deadline::is_long_running(&info);
    // Held by whatever goes on when this has been answered.
    let held = long.then(|| Arc::new(route.long()));
    if let Some(held) = &held {
        request.extensions_mut().insert(held.clone());
    }
    let response = match deadline::of(&info, &query, server.flags.request_timeout) {
        Err(error) if !long => answer::failure(&error, &asked),
        time => {
            let time = time.unwrap_or(server.flags.request_timeout);
            let write = deadline::is_write(&info) && !long;
            let walk =
                guarded(server.clone(), id.clone(), request, (info, query), asked.clone(), time);
            let answered = if write {
                // What has begun to be written is written to its end, whoever goes away.
                let task = tokio::time::timeout(time, base::task::spawn(walk));
                task.await.map(|done| done.unwrap_or_else(|_| panicked(&asked)))
            } else if long {
                Ok(walk.await)
            } else {
                tokio::time::timeout(time, walk).await
            };
            answered.unwrap_or_else(|_| {
                route.terminated(504);
                answer::failure(&deadline::exceeded(write), &asked)
            })
        }
    };
    drop(under_way);
    let mut response = response;
    // What a client sent as a header can be sent back as one.
    if let Ok(id) = http::HeaderValue::try_from(id) {
        response.headers_mut().insert(AUDIT_ID, id);
    }
    let response = if gzip { compress::large(response) } else { response };
    recorded(response, &route, begun, held)
}

async fn guarded(
    server: Shared,
    id: String,
    request: Request<Bytes>,
    (info, query): (RequestInfo, Query),
    asked: Asked,
    time: Duration,
) -> Response<Body> {
    let walk = walk(&server, &id, request, (info, query), asked.clone(), time);
    match std::panic::AssertUnwindSafe(walk).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => answer::failure(&error, &asked),
        Err(_) => {
            error!("a request handler panicked");
            panicked(&asked)
        }
    }
}

fn panicked(asked: &Asked) -> Response<Body> {
    answer::failure(&ApiError::internal("the request handler failed"), asked)
}

/// Time that a request waited for its turn.
#[derive(Debug, Clone, Copy)]
struct InQueue(Duration);

/// Counts the answer: now if it is whole, at its end if it is a stream.
fn recorded(
    mut response: Response<Body>,
    route: &Arc<route::Route>,
    begun: Instant,
    held: Option<Arc<route::LongRunning>>,
) -> Response<Body> {
    let code = response.status().as_u16();
    let waited = response.extensions_mut().remove::<InQueue>();
    let waited = waited.map_or(Duration::ZERO, |InQueue(waited)| waited);
    let route = route.clone();
    response.map(|body| match body {
        Body::Full(bytes) => {
            route.done(code, begun.elapsed(), waited, Some(bytes.len()));
            Body::Full(bytes)
        }
        Body::Stream(stream) => {
            let mut counted = Counted { route, code, begun, waited, bytes: 0 };
            Body::Stream(Box::pin(stream.inspect(move |piece| {
                let _held = &held;
                counted.add(piece.as_ref().map_or(0, Bytes::len));
            })))
        }
    })
}

/// A stream that is counted when it ends, however it does.
struct Counted {
    route: Arc<route::Route>,
    code: u16,
    begun: Instant,
    waited: Duration,
    bytes: usize,
}

impl Counted {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.route.done(self.code, self.begun.elapsed(), self.waited, Some(self.bytes));
    }
}

/// The name of a request in the audit log: the client's own, or a new one.
fn audit_id(headers: &http::HeaderMap) -> String {
    let own = headers.get(AUDIT_ID).and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    own.map_or_else(base::rng::uuid, |id| id.chars().take(AUDIT_ID_CHARS_MAX).collect())
}

async fn walk(
    server: &Shared,
    id: &str,
    mut request: Request<Bytes>,
    (info, query): (RequestInfo, Query),
    asked: Asked,
    time: Duration,
) -> Result<Response<Body>> {
    let peer = request.extensions_mut().remove::<Peer>().unwrap_or_default();
    let notes = Arc::new(Notes::default());
    request.extensions_mut().insert(notes.clone());
    if let Some(address) = peer.address {
        request.extensions_mut().insert(ClientAddress(address));
    }

    let who = authenticate(server, &peer, &info.path, request.headers_mut()).await;
    let user = match (who, &server.audit) {
        (Ok(user), _) => user,
        (Err(error), Some(audit)) => {
            let methods = crate::authn::attempted(&peer, request.headers());
            audit.refused(id, &info, &peer, &request, &methods).await;
            return Err(error);
        }
        (Err(error), None) => return Err(error),
    };
    let mut record = match &server.audit {
        Some(audit) => audit.begin(id, &info, &user, &peer, &request).await?,
        None => None,
    };
    let action = || Action::of(&info, &query);
    let answered = match impersonate(server, &user, request.headers(), action).await {
        Ok(acts_as) => {
            if let (Some(record), Some(acts_as)) = (&mut record, &acts_as) {
                record.acts_as(acts_as);
            }
            let user = acts_as.map_or(user, |acts_as| acts_as.user);
            let call = Call { request, info, query, asked: asked.clone(), user };
            seated(server, call, time).await
        }
        Err(error) => Err(error),
    };
    let warnings = notes.warnings();
    let answered = if warnings.is_empty() {
        answered
    } else {
        // Who is refused hears the warnings, too.
        let mut response = answered.unwrap_or_else(|error| answer::failure(&error, &asked));
        answer::warn(&mut response, &warnings);
        Ok(response)
    };
    let (Some(audit), Some(record)) = (&server.audit, record) else { return answered };
    let response = answered.unwrap_or_else(|error| answer::failure(&error, &asked));
    Ok(audit.answered(record, response).await)
}

async fn authenticate(
    server: &Shared,
    peer: &Peer,
    path: &str,
    headers: &mut http::HeaderMap,
) -> Result<Arc<User>> {
    let begun = Instant::now();
    let cache = &server.registry.cache;
    let found = server.authenticator.authenticate(cache, peer, path, headers).await;
    match &found {
        Ok(user) => {
            metrics::AUTHENTICATED.took(begun.elapsed());
            metrics::count_user(&user.name);
        }
        Err(_) => metrics::UNAUTHENTICATED.took(begun.elapsed()),
    }
    found
}

/// Waits for a seat, and gives it back when the request has been served.
async fn seated(server: &Shared, call: Call, time: Duration) -> Result<Response<Body>> {
    let watch = call.info.verb == "watch";
    if deadline::is_long_running(&call.info) && !watch {
        return decide(server, call).await;
    }
    let arrived = Instant::now();
    let asking = Asking { info: &call.info, query: &call.query, user: &call.user, time };
    let entered = server.flow.enter(&asking, || stored(server, &call.info)).await;
    let seat = match entered {
        Ok(seat) => seat,
        Err(refused) => return Ok(too_many(&refused)),
    };
    let waited = arrived.elapsed();
    let asked = call.asked.clone();
    let answered = decide(server, call).await;
    let mut response = answered.unwrap_or_else(|error| answer::failure(&error, &asked));
    if let Some(class) = seat.class() {
        class.mark(response.headers_mut());
    }
    response.extensions_mut().insert(InQueue(waited));
    // A watch has begun; a list is made while it is sent.
    if watch || matches!(response.body(), Body::Full(_)) {
        return Ok(response);
    }
    Ok(response.map(|body| held(body, seat, time)))
}

/// Keeps the seat until the stream has been sent, or its time is over: a client that does
/// not read gets no more than that.
fn held(body: Body, seat: Seat, time: Duration) -> Body {
    let Body::Stream(stream) = body else { return body };
    let (open, closed) = tokio::sync::oneshot::channel::<()>();
    base::task::spawn(async move {
        // Either way there is nothing to do but to leave.
        let _ = tokio::time::timeout(time, closed).await;
        drop(seat);
    });
    Body::Stream(Box::pin(stream.inspect(move |_| {
        let _held = &open;
    })))
}

/// What is stored of the resource that a request is about.
fn stored(server: &Shared, info: &RequestInfo) -> Stored {
    let catalog = server.registry.catalog();
    let resource = catalog.by_plural(&info.group, &info.version, &info.resource);
    let Some(prefix) = resource.and_then(|resource| resource.prefix.as_ref()) else {
        return Stored::default();
    };
    let weight = server.registry.cache.weigh(prefix);
    // One that is named when it is written is told to those around it.
    let start = match info.namespace.as_str() {
        "" => prefix.clone(),
        namespace => format!("{prefix}{namespace}/"),
    };
    let watchers = server.registry.cache.concerned(prefix, &format!("{start}{}", info.name));
    Stored {
        objects: weight.objects as u64,
        bytes: weight.bytes as u64,
        watchers: u32::try_from(watchers).unwrap_or(u32::MAX),
    }
}

/// 429 as upstream's filter says it: a line of text, not a Status.
fn too_many(refused: &Refused) -> Response<Body> {
    let text = "Too many requests, please try again later.\n";
    let kind = "text/plain; charset=utf-8";
    let mut response = answer::bytes(StatusCode::TOO_MANY_REQUESTS, kind, text);
    let headers = response.headers_mut();
    headers.insert(http::header::RETRY_AFTER, http::HeaderValue::from(refused.retry_after));
    headers.insert(http::header::X_CONTENT_TYPE_OPTIONS, http::HeaderValue::from_static("nosniff"));
    if let Some(class) = refused.class() {
        class.mark(headers);
    }
    response
}

/// Whether, and what.
async fn decide(server: &Shared, call: Call) -> Result<Response<Body>> {
    let Call { info, query, .. } = &call;
    let mut action = Action::of(info, query);
    let none = Notes::default();
    let notes = call.request.extensions().get::<Arc<Notes>>().map_or(&none, |notes| notes);
    authorize(server, &call.user, &action, notes).await?;
    let streams = ["exec", "attach", "portforward"].contains(&action.subresource.as_str());
    if streams && action.resource == "pods" && action.verb == "get" {
        // A WebSocket opens with GET; who may only read must not run commands by it.
        action.verb = "create".into();
        authorize(server, &call.user, &action, notes).await?;
    }
    if let Some(other) = server.aggregator.route(&call.info.path) {
        Ok(aggregate::proxy::serve(server, call, &other).await)
    } else if let Some(other) = server.aggregator.document_route(&call.info.path) {
        Ok(aggregate::proxy::document(server, call, &other).await)
    } else if let Some(resident) = server.aggregator.resident(&call.info.path) {
        resident.serve(call).await
    } else if call.info.is_resource {
        resources::serve(server, call).await
    } else if let Some(response) = health::serve(server, &call).await {
        Ok(response)
    } else if let Some(response) = debug::serve(server, &call) {
        Ok(response)
    } else {
        documents::serve(server, &call)
    }
}

/// Whether a user may; the audit log is told what was decided, and why.
///
/// # Errors
/// 403 in upstream's words; 500 where it could not be found out.
pub async fn authorize(server: &Shared, user: &User, action: &Action, notes: &Notes) -> Result<()> {
    let begun = Instant::now();
    let decision = server.authorizer.decide(user, action).await;
    let counted = match &decision {
        Decision::Allow(_) => &*metrics::ALLOWED,
        Decision::Deny(_) => &metrics::DENIED,
        Decision::NoOpinion(_) => &metrics::NOT_ALLOWED,
        Decision::Failed { .. } => &metrics::UNDECIDED,
    };
    counted.took(begun.elapsed());
    let tell = |word: &str, why: &str| {
        if server.audit.is_some() {
            notes.annotate("authorization.k8s.io/decision", word.to_owned());
            notes.annotate("authorization.k8s.io/reason", why.to_owned());
        }
    };
    match decision {
        Decision::Allow(why) => {
            tell("allow", &why);
            Ok(())
        }
        Decision::Deny(why) | Decision::NoOpinion(why) => {
            tell("forbid", &why);
            Err(refusal(user, action, &why))
        }
        Decision::Failed { error, .. } => {
            tell("forbid", "internal error");
            Err(ApiError::internal(error))
        }
    }
}

fn refusal(user: &User, action: &Action, why: &str) -> ApiError {
    let mut text = action.refusal(user);
    if !why.is_empty() {
        text.push_str(": ");
        text.push_str(why);
    }
    ApiError::forbidden(&action.group, &action.resource, &action.name, &text)
}

/// The user that `user` asks to act as, if it asks and may, and under which constraint.
///
/// # Errors
/// 400 for an incomplete wish, 403 in upstream's words.
async fn impersonate(
    server: &Shared,
    user: &Arc<User>,
    headers: &http::HeaderMap,
    action: impl FnOnce() -> Action,
) -> Result<Option<ActsAs>> {
    let Some(wanted) = impersonation::wanted(headers)? else { return Ok(None) };
    let mut refused = None;
    for attempt in impersonation::attempts(&wanted, user, &action()) {
        let requestor = attempt.requestor.map_or_else(|| user.clone(), Arc::new);
        match all_hold(server, &requestor, &attempt.checks).await {
            Ok(()) => {
                let user = Arc::new(attempt.user);
                return Ok(Some(ActsAs { user, constraint: attempt.constraint }));
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| ApiError::internal("all impersonation modes failed")))
}

async fn all_hold(server: &Shared, user: &User, checks: &[Check]) -> Result<()> {
    let may = async |action: &Action| match server.authorizer.decide(user, action).await {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(why) | Decision::NoOpinion(why) | Decision::Failed { error: why, .. } => {
            Err(refusal(user, action, &why))
        }
    };
    for check in checks {
        match check {
            Check::Allowed(action) => may(action).await?,
            Check::AllOrEach(all, each) => {
                if may(all).await.is_err() {
                    for one in each {
                        may(one).await?;
                    }
                }
            }
            Check::Never(action, why) => return Err(refusal(user, action, why)),
        }
    }
    Ok(())
}
