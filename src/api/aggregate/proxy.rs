//! Requests for groups that other servers serve: passed on under the name of who asks.

use std::sync::Arc;

use client::Body;
use http::{Response, StatusCode, header};

use super::backend::aggregator;
use super::{Registered, identity};
use crate::authn::User;
use crate::serve::chain::Call;
use crate::serve::{Shared, answer, forward};

/// Passes a request on. What goes wrong on the way is plain text, as upstream's is.
pub async fn serve(server: &Shared, call: Call, registered: &Registered) -> Response<Body> {
    let user = call.user.clone();
    pass(server, call, registered, &user).await
}

/// Passes a request for an OpenAPI document on, in this server's own name: whether the
/// client may read documents was decided here.
pub async fn document(server: &Shared, call: Call, registered: &Registered) -> Response<Body> {
    let user = Arc::new(aggregator());
    pass(server, call, registered, &user).await
}

async fn pass(server: &Shared, call: Call, registered: &Registered, user: &User) -> Response<Body> {
    let remote = match &registered.remote {
        Some(remote) if registered.available => remote,
        Some(_) | None => return refuse(StatusCode::SERVICE_UNAVAILABLE, "service unavailable"),
    };
    let uri = call.request.uri();
    let path = uri.path_and_query().map_or("/", |whole| whole.as_str()).to_string();
    let mut onward = match forward::onward(call.request, &path, &remote.host()) {
        Ok(onward) => onward,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, &why),
    };
    if let Err(why) = identity::tell(onward.request.headers_mut(), user) {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, &why);
    }
    match remote.send(&server.registry.cache, onward).await {
        Ok(mut response) => {
            forward::remove_cors(response.headers_mut());
            response
        }
        Err(why) => {
            // It may be gone; the next one need not find out by itself.
            remote.woken.notify_one();
            let said = format!("error trying to reach service: {why}");
            refuse(StatusCode::SERVICE_UNAVAILABLE, &said)
        }
    }
}

fn refuse(status: StatusCode, why: &str) -> Response<Body> {
    let mut response = answer::bytes(status, "text/plain; charset=utf-8", format!("{why}\n"));
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, http::HeaderValue::from_static("nosniff"));
    response
}
