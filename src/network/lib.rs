//! The network room: pods get addresses, services get rules, names get answers.
//!
//! Pods can be plugged in before there is an API server; rules and names follow as soon as
//! it answers. Network policies, overlays and load balancers are not here yet.

pub mod cni;
pub mod dns;
pub mod ipam;
pub mod proxy;
pub mod sysctl;
