//! Written next.
pub mod policy;
