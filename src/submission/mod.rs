//! The SMTP server that Odoo and any ordinary mail client speak to.

pub mod auth;
pub mod data;
pub mod lines;
pub mod parameters;
pub mod path;
pub mod reply;
pub mod session;
