//! The way in for components of this process: no TCP and no TLS, but the same chain.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Client, Transport};

use super::{Shared, chain};
use crate::authn::{Peer, User};

struct InProcess {
    server: Shared,
    user: Arc<User>,
}

#[async_trait]
impl Transport for InProcess {
    async fn send(
        &self,
        mut request: http::Request<Bytes>,
    ) -> Result<http::Response<Body>, client::Error> {
        let peer = Peer { in_process: Some(self.user.clone()), ..Peer::default() };
        request.extensions_mut().insert(peer);
        Ok(chain::handle(&self.server, request).await)
    }
}

/// A client of `server` that acts as `user`. Authorization, admission and audit treat it
/// like anybody else.
pub fn client(server: &Shared, user: User, user_agent: &str) -> Client {
    let transport = InProcess { server: server.clone(), user: Arc::new(user) };
    Client::new(Arc::new(transport), user_agent)
}
