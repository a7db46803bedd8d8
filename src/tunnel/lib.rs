//! The tunnel room.
