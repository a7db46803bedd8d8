//! Who may do what and what may happen: rbac, admission, networking policies.

pub mod defaults;
