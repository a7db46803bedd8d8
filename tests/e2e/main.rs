//! The whole product as its users meet it: the real executable, the real kubectl, real
//! containers, on machines that the tests make themselves.
#![allow(clippy::unwrap_used, reason = "tests may")]

mod cluster;
mod images;
mod machine;
mod story;
