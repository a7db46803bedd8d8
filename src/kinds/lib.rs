//! The kinds room.
