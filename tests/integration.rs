//! Everything that users rely on, tested from outside: the real binary, real sockets, real files, real servers.

mod support;
