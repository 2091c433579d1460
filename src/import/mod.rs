//! Moving over from Odoo's own Outlook modules: what an Odoo has configured becomes this relay's configuration, and Odoo is
//! set to use the relay.
//!
//! [`records`] reads what Odoo has, through [`rpc`]; [`plan`] decides what becomes of each record (with `values`), and [`file`] writes
//! that down as a relay.toml; both are pure. [`steps`] changes Odoo one step after the other and back again, by the
//! record that is kept of it.

pub mod file;
pub mod plan;
pub mod records;
pub mod rpc;
pub mod steps;
mod values;
