//! Everything that users rely on, tested from outside: the real binary, real sockets, real files, real servers.
#![expect(clippy::unwrap_used, reason = "test code: a failure here must stop the test")]

mod backup;
mod backup_once;
mod bad_day;
mod bounces;
mod browser;
mod clock;
mod commands;
mod company;
mod components;
mod connect;
mod consent;
mod crash;
mod daemon;
mod disk;
mod doctor;
mod faults;
mod import;
mod inbox_folder;
mod inbox_large;
mod inbox_once;
mod incoming;
mod log;
mod matrix;
mod metrics;
mod odoo_client;
mod outgoing;
mod package;
mod page;
mod power_cut;
mod queue;
mod readme;
mod reload;
mod rotation;
mod sealing;
#[path = "support/selftest/mod.rs"]
mod selftest;
mod soak;
mod socket;
mod submission;
mod support;
mod tokens;
mod unknown;
mod upgrade;
mod waiting;
mod watchdog;
