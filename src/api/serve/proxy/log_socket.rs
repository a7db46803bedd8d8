//! A log over a WebSocket: what comes of it is a message, bytes or base64 as the client's
//! protocol says.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use client::Body;
use futures::StreamExt;
use http::{HeaderValue, Response, header};
use hyper::upgrade::OnUpgrade;

use super::super::chain::Call;
use super::super::websocket::{self, Kind};
use crate::error::{ApiError, Result};

/// Upstream's names of the ways to read a stream; none is the first of them.
const BINARY: &str = "binary.k8s.io";
const BASE64: &str = "base64.binary.k8s.io";
const PROTOCOL: &str = "sec-websocket-protocol";

pub struct LogSocket {
    upgrade: OnUpgrade,
    response: Response<Body>,
    is_text: bool,
}

impl LogSocket {
    /// None for a request that wants no WebSocket. What is left of the request is a plain one.
    ///
    /// # Errors
    /// 400 for one that cannot become one.
    pub fn take(call: &mut Call) -> Result<Option<Self>> {
        let headers = call.request.headers();
        if !websocket::is_wanted(headers) {
            return Ok(None);
        }
        let offered: Vec<String> = headers
            .get_all(PROTOCOL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|value| value.trim().to_owned())
            .collect();
        let chosen = [BINARY, BASE64].into_iter().find(|it| offered.iter().any(|of| of == it));
        if chosen.is_none() && !offered.is_empty() {
            return Err(ApiError::bad_request(format!("no protocol of {offered:?} is known")));
        }
        let upgrade = call.request.extensions().get::<OnUpgrade>().cloned();
        let (Some(upgrade), Some(mut response)) = (upgrade, websocket::accept(headers)) else {
            return Err(ApiError::bad_request("the connection cannot become a WebSocket"));
        };
        if let Some(chosen) = chosen {
            response.headers_mut().insert(PROTOCOL, HeaderValue::from_static(chosen));
        }
        let headers = call.request.headers_mut();
        for name in [header::CONNECTION.as_str(), header::UPGRADE.as_str(), PROTOCOL] {
            headers.remove(name);
        }
        for name in ["sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions"] {
            headers.remove(name);
        }
        // Whoever reads frames does not read packed ones.
        headers.remove(header::ACCEPT_ENCODING);
        call.request.extensions_mut().remove::<OnUpgrade>();
        Ok(Some(Self { upgrade, response, is_text: chosen == Some(BASE64) }))
    }

    /// Opens the socket, and sends what comes until its end.
    pub fn send(self, body: Body) -> Response<Body> {
        let stream = match body {
            Body::Full(bytes) => futures::stream::iter([Ok(bytes)]).boxed(),
            Body::Stream(stream) => stream,
        };
        let stream = Arc::new(tokio::sync::Mutex::new(stream));
        let is_text = self.is_text;
        let kind = if is_text { Kind::Text } else { Kind::Binary };
        base::task::spawn(websocket::send(self.upgrade, kind, move || {
            let stream = stream.clone();
            async move {
                let bytes = stream.lock().await.next().await?.ok()?;
                let coded = || Bytes::from(STANDARD.encode(&bytes));
                Some(vec![if is_text { coded() } else { bytes.clone() }])
            }
        }));
        self.response
    }
}
