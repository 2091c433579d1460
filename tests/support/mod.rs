//! The outside world, played by doubles and real servers.
