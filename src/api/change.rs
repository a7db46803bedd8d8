//! Turns a patch and a live object into a new object, and keeps account of who set which field.
//!
//! Pure: no IO and no clock. Validation and admission come after.

pub mod apply;
pub mod field_set;
pub mod go_diff;
pub mod go_format;
pub mod json_patch;
pub mod managed;
pub mod merge_patch;
pub mod scale;
pub mod strategic;
mod typed_merge;

pub use apply::{ApplyError, Conflict, apply, update_managed_fields};
pub(crate) use typed_merge::merge as merge_fields;

/// Why a patch could not be applied, with the answer upstream gives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// 400 BadRequest.
    #[error("error decoding patch: {0}")]
    Decode(String),
    /// 422 Invalid without a cause.
    #[error("the server rejected our request due to an error in our request")]
    Rejected,
    /// 413 RequestEntityTooLarge.
    #[error("The allowed maximum operations in a JSON patch is {max}, got {got}")]
    TooManyOperations { max: usize, got: usize },
    /// 500 without a reason.
    #[error("{0}")]
    Strategic(String),
}
