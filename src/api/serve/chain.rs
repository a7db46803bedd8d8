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
pub async fn handle(server: &Shared, request: Request<Bytes>) -> Response<Body> {
    let query = Query::parse(request.uri().query());
    let asked = Asked::of(request.headers(), &query);
    let gzip = compress::is_wanted(request.headers());
    let id = audit_id(request.headers());
    let walk = walk(server, &id, request, query, asked.clone());
    let answered = std::panic::AssertUnwindSafe(walk).catch_unwind().await;
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => answer::failure(&error, &asked),
        Err(_) => {
            error!("a request handler panicked");
            answer::failure(&ApiError::internal("the request handler failed"), &asked)
        }
    };
    // What a client sent as a header can be sent back as one.
    if let Ok(id) = http::HeaderValue::try_from(id) {
        response.headers_mut().insert(AUDIT_ID, id);
    }
    if gzip { compress::large(response) } else { response }
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
    let authenticator = &server.authenticator;
    let who = authenticator.authenticate(cache, &peer, &info.path, request.headers_mut()).await;
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
            decide(server, Call { request, info, query, asked: asked.clone(), user }).await
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
    } else if call.info.is_resource {
        resources::serve(server, call).await
    } else if let Some(response) = health::serve(server, &call).await {
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
    let decision = server.authorizer.decide(user, action).await;
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
