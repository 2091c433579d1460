//! A mail relay between Odoo and Microsoft 365.
//!
//! ```text
//!                         ┌────────── tokens ──────────┐
//! Odoo ─SMTP→ submission → routing → store → delivery ─SMTP XOAUTH2→ Microsoft 365
//! Odoo ←HTTP─ odoo ←──────────────────────── fetch ←─IMAP XOAUTH2── Microsoft 365
//!                └─ reports (of failed deliveries, written by bounce) ←─ store ←─ delivery
//! ```
//! `delivery` and `fetch` both read mailboxes, through [`imap`].
//!
//! Arrows point downwards only: a module knows those to its right, never those to its left. [`routing`],
//! [`bounce`], [`delivery::policy`], [`submission::session`], [`submission::data`] and [`submission::chunks`] are pure: no I/O, no
//! clock, no async. Only [`service`] and [`fleet`], for it, spawn long-lived tasks: [`tasks`].

pub mod address;
pub mod admin;
pub mod bounce;
pub mod cli;
pub mod clock;
pub mod config;
pub mod consent;
pub mod counters;
pub mod credentials;
pub mod daemon;
pub mod delivery;
pub mod doctor;
pub mod failure;
pub mod fetch;
pub mod fleet;
pub mod health;
pub mod imap;
pub mod import;
pub mod inherited;
pub mod logging;
pub mod mailbox;
pub mod message;
pub mod microsoft;
pub mod odoo;
pub mod reports;
pub mod routing;
pub mod sealing;
pub mod section;
pub mod service;
pub mod store;
pub mod submission;
pub mod tasks;
pub mod tls;
pub mod tokens;
pub mod units;
