//! Who is believed and what they may do: tokens of issuers, accounts and webhooks, front
//! proxies, authorizers, and what is written down of it. Issuers and webhooks are real
//! servers on ports of their own.

#![allow(clippy::unwrap_used)]

#[path = "identity/accounts.rs"]
mod accounts;
#[path = "identity/audit.rs"]
mod audit;
#[path = "identity/authorizers.rs"]
mod authorizers;
#[path = "identity/front_proxy.rs"]
mod front_proxy;
#[path = "identity/issuers.rs"]
mod issuers;
#[path = "identity/leases.rs"]
mod leases;
#[path = "support/server.rs"]
mod support;
#[path = "identity/token_webhook.rs"]
mod token_webhook;
#[path = "identity/world.rs"]
mod world;
