//! The core group and the small groups around it.

pub mod defaults;
pub mod pod_defaults;
pub mod service;
