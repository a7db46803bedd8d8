//! The ordered list that every request walks: who, as whom, whether, what.

use std::sync::Arc;

use bytes::Bytes;
use client::Body;
use futures::FutureExt;
use http::{Request, Response};
use tracing::error;

use super::forward::ClientAddress;
use super::negotiate::Asked;
use super::request::{Query, RequestInfo};
use super::{Shared, answer, compress, documents, health, resources};
use crate::admission::Notes;
use crate::aggregate;
use crate::authn::impersonation::{self, ActsAs, Check};
use crate::authn::{Peer, User};
use crate::authz::{Action, Decision};
use crate::error::{ApiError, Result};

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
pub async fn handle(server: &Shared, request: Request<Bytes>) -> Response<Body> {
    let query = Query::parse(request.uri().query());
    let asked = Asked::of(request.headers(), &query);
    let gzip = compress::is_wanted(request.headers());
    let walk = walk(server, request, query, asked.clone());
    let answered = std::panic::AssertUnwindSafe(walk).catch_unwind().await;
    let response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => answer::failure(&error, &asked),
        Err(_) => {
            error!("a request handler panicked");
            answer::failure(&ApiError::internal("the request handler failed"), &asked)
        }
    };
    if gzip { compress::large(response) } else { response }
}

async fn walk(
    server: &Shared,
    mut request: Request<Bytes>,
    query: Query,
    asked: Asked,
) -> Result<Response<Body>> {
    let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
    let peer = request.extensions_mut().remove::<Peer>().unwrap_or_default();
    let notes = Arc::new(Notes::default());
    request.extensions_mut().insert(notes.clone());
    if let Some(address) = peer.address {
        request.extensions_mut().insert(ClientAddress(address));
    }

    let cache = &server.registry.cache;
    let user = server.authenticator.authenticate(cache, &peer, request.headers_mut())?;
    let as_user = impersonate(server, &user, request.headers(), || Action::of(&info, &query))?;

    let audit = server.audit.as_ref();
    let record =
        audit.and_then(|audit| audit.begin(&info, &user, as_user.as_ref(), &peer, &request));
    let user = as_user.map_or(user, |acts_as| acts_as.user);
    let answered = decide(server, Call { request, info, query, asked: asked.clone(), user }).await;
    let warnings = notes.warnings();
    let answered = if warnings.is_empty() {
        answered
    } else {
        // Who is refused hears the warnings, too.
        let mut response = answered.unwrap_or_else(|error| answer::failure(&error, &asked));
        answer::warn(&mut response, &warnings);
        Ok(response)
    };
    let (Some(audit), Some(mut record)) = (audit, record) else { return answered };
    let response = answered.unwrap_or_else(|error| answer::failure(&error, &asked));
    audit.answered(&mut record, &response);
    Ok(response)
}

/// Whether, and what.
async fn decide(server: &Shared, call: Call) -> Result<Response<Body>> {
    let Call { info, query, .. } = &call;
    let mut action = Action::of(info, query);
    authorize(server, &call.user, &action)?;
    let streams = ["exec", "attach", "portforward"].contains(&action.subresource.as_str());
    if streams && action.resource == "pods" && action.verb == "get" {
        // A WebSocket opens with GET; who may only read must not run commands by it.
        action.verb = "create".into();
        authorize(server, &call.user, &action)?;
    }
    if let Some(other) = server.aggregator.route(&call.info.path) {
        Ok(aggregate::proxy::serve(server, call, &other).await)
    } else if let Some(other) = server.aggregator.document_route(&call.info.path) {
        Ok(aggregate::proxy::document(server, call, &other).await)
    } else if call.info.is_resource {
        resources::serve(server, call).await
    } else if let Some(response) = health::serve(server, &call).await {
        Ok(response)
    } else {
        documents::serve(server, &call)
    }
}

/// # Errors
/// 403 in upstream's words.
pub fn authorize(server: &Shared, user: &Arc<User>, action: &Action) -> Result<()> {
    match server.authorizer.decide(user, action) {
        Decision::Allow(_) => Ok(()),
        Decision::NoOpinion(why) => Err(refusal(user, action, &why)),
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
fn impersonate(
    server: &Shared,
    user: &Arc<User>,
    headers: &http::HeaderMap,
    action: impl FnOnce() -> Action,
) -> Result<Option<ActsAs>> {
    let Some(wanted) = impersonation::wanted(headers)? else { return Ok(None) };
    let mut refused = None;
    for attempt in impersonation::attempts(&wanted, user, &action()) {
        let requestor = attempt.requestor.map_or_else(|| user.clone(), Arc::new);
        let may = |action: &Action| authorize(server, &requestor, action);
        let judged = attempt.checks.iter().try_for_each(|check| match check {
            Check::Allowed(action) => may(action),
            Check::AllOrEach(all, each) => may(all).or_else(|_| each.iter().try_for_each(may)),
            Check::Never(action, why) => Err(refusal(&requestor, action, why)),
        });
        match judged {
            Ok(()) => {
                let user = Arc::new(attempt.user);
                return Ok(Some(ActsAs { user, constraint: attempt.constraint }));
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| ApiError::internal("all impersonation modes failed")))
}
