//! Written next.
pub mod data;
pub mod session;
