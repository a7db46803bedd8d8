//! What all kinds share: names, selectors, quantities, field errors.

pub mod quantity;
