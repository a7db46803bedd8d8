//! Keys and certificates: authorities, leaf certificates, signed tokens, and the rustls
//! configurations made of them. P-256 everywhere, but for the keys of pods, which their authors
//! choose.
//!
//! Never decides who may do what.

pub mod authority;
pub mod blocks;
pub mod files;
pub mod jwt;
pub mod possession;
pub mod request;
pub mod tls;

pub use authority::{Authority, Issued, Leaf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("make a key or certificate")]
    Make(#[source] rcgen::Error),
    #[error("read PEM: {0}")]
    Pem(String),
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
    #[error("{0}")]
    Verifier(String),
    #[error("{action} {path}")]
    File {
        action: &'static str,
        path: String,
        #[source]
        source: std::io::Error,
    },
}

pub type Result<T> = std::result::Result<T, Error>;
