//! Everything that users rely on, tested from outside: the real binary, real sockets, real files, real servers.

#[path = "support/selftest/mod.rs"]
mod selftest;
mod support;

#[path = "components/mod.rs"]
mod components;
