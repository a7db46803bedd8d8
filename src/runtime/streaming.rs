//! The connections of exec, attach and port-forward: what a client asks to upgrade to, the
//! answer, and the bytes afterwards.
//!
//! Both of the node's servers end here, the kubelet's and that of the CRI socket. Who may ask
//! is theirs to judge. `dial` is the other side, for a runtime that is not ours.

pub mod dial;
mod exec;
pub mod portforward;
mod spdy;
mod websocket;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tracing::debug;

use crate::cri::Session;
pub use exec::Wants;

/// Status and one line that says why not.
pub type Refusal = (StatusCode, String);

const SPDY: &str = "SPDY/3.1";
const NO_PROTOCOL: &str = "none of the requested protocols is supported";
/// The protocol of a client that names none.
const FIRST_PROTOCOL: &str = "channel.k8s.io";

/// What the connection becomes, with the protocol that was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    Spdy(&'static str),
    /// Numbered channels; `is_named` if the client asked for a protocol.
    Channels {
        protocol: &'static str,
        is_named: bool,
    },
    /// SPDY inside of a WebSocket.
    Tunnel,
}

/// # Errors
/// What upstream answers to a client that asks for something else.
pub fn exec_upgrade(headers: &HeaderMap) -> Result<Upgrade, Refusal> {
    if websocket::is_upgrade(headers) {
        let is_named = websocket::asks_for_any(headers);
        return match websocket::choose(headers, &exec::WEBSOCKET_PROTOCOLS) {
            Some(protocol) => Ok(Upgrade::Channels { protocol, is_named }),
            None if is_named => Err((StatusCode::BAD_REQUEST, NO_PROTOCOL.into())),
            None => Ok(Upgrade::Channels { protocol: FIRST_PROTOCOL, is_named }),
        };
    }
    if !is_spdy(headers) {
        return Err((StatusCode::BAD_REQUEST, "Upgrade request required".into()));
    }
    let asked = protocols(headers);
    match exec::SPDY_PROTOCOLS.iter().find(|own| asked.contains(*own)) {
        Some(chosen) => Ok(Upgrade::Spdy(chosen)),
        None if asked.is_empty() => Ok(Upgrade::Spdy(FIRST_PROTOCOL)),
        None => Err((StatusCode::FORBIDDEN, NO_PROTOCOL.into())),
    }
}

/// # Errors
/// As [`exec_upgrade`].
pub fn forward_upgrade(headers: &HeaderMap) -> Result<Upgrade, Refusal> {
    if is_spdy(headers) {
        let asked = protocols(headers);
        if !asked.is_empty() && !asked.contains(&portforward::SPDY_PROTOCOL) {
            return Err((StatusCode::FORBIDDEN, NO_PROTOCOL.into()));
        }
        return Ok(Upgrade::Spdy(portforward::SPDY_PROTOCOL));
    }
    if !websocket::is_upgrade(headers) {
        return Err((StatusCode::BAD_REQUEST, "Upgrade request required".into()));
    }
    if websocket::choose(headers, &[portforward::TUNNEL_PROTOCOL]).is_some() {
        return Ok(Upgrade::Tunnel);
    }
    let chosen = websocket::choose(headers, &portforward::CHANNEL_PROTOCOLS);
    let protocol = chosen.unwrap_or(portforward::CHANNEL_PROTOCOLS[0]);
    Ok(Upgrade::Channels { protocol, is_named: chosen.is_some() })
}

impl Upgrade {
    /// Of a port-forward: the ports stand in the request, not in the streams.
    pub fn needs_ports(self) -> bool {
        matches!(self, Self::Channels { .. })
    }

    /// The answer that lets the connection change.
    ///
    /// # Errors
    /// When the request lacks what the protocol needs.
    pub fn answer(self, headers: &HeaderMap) -> Result<Response<Full<Bytes>>, Refusal> {
        let named = match self {
            Self::Spdy(protocol) => return Ok(switch_to_spdy(protocol)),
            Self::Channels { protocol, is_named } => is_named.then_some(protocol),
            Self::Tunnel => Some(portforward::TUNNEL_PROTOCOL),
        };
        websocket::accept(headers, named).ok_or_else(|| {
            (StatusCode::BAD_REQUEST, "the request has no Sec-WebSocket-Key".to_owned())
        })
    }
}

fn switch_to_spdy(protocol: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(SPDY));
    headers.insert("x-stream-protocol-version", HeaderValue::from_static(protocol));
    answer
}

fn protocols(headers: &HeaderMap) -> Vec<&str> {
    headers
        .get_all("x-stream-protocol-version")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect()
}

fn is_spdy(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.eq_ignore_ascii_case(SPDY))
}

/// Joins a session with the connection until one of them ends.
pub async fn serve_session(
    session: Session,
    connection: OnUpgrade,
    upgrade: Upgrade,
    wants: Wants,
) {
    match upgrade {
        Upgrade::Spdy(protocol) => match connection.await {
            Ok(io) => {
                let accept = spdy::serve(TokioIo::new(io));
                exec::over_spdy(session, accept, wants, protocol).await;
            }
            Err(error) => debug!(%error, "exec not upgraded"),
        },
        Upgrade::Channels { protocol, .. } => match websocket::open(connection).await {
            Ok(socket) => exec::over_websocket(session, socket, wants, protocol).await,
            Err(error) => debug!(%error, "exec not upgraded"),
        },
        // No exec is asked for in that way.
        Upgrade::Tunnel => {}
    }
}

/// Forwards ports until the connection ends. `ports` are those of numbered channels.
pub async fn serve_forward(
    goal: portforward::Goal,
    connection: OnUpgrade,
    upgrade: Upgrade,
    ports: Vec<u16>,
) {
    if let Upgrade::Spdy(_) = upgrade {
        return match connection.await {
            Ok(io) => portforward::over_spdy(goal, spdy::serve(TokioIo::new(io))).await,
            Err(error) => debug!(%error, "port-forward not upgraded"),
        };
    }
    let socket = match websocket::open(connection).await {
        Ok(socket) => socket,
        Err(error) => return debug!(%error, "port-forward not upgraded"),
    };
    if upgrade == Upgrade::Tunnel {
        portforward::over_spdy(goal, spdy::serve(websocket::tunnel(socket))).await;
    } else {
        portforward::over_channels(goal, socket, ports).await;
    }
}
