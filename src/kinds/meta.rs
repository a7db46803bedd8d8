//! What all kinds share: names, selectors, quantities, object metadata, field errors.

pub mod cron;
pub mod error;
pub mod name;
pub mod object;
pub mod quantity;
pub mod selector;

pub use error::{FieldError, Reason};
pub use selector::{FieldSelector, LabelSelector};
