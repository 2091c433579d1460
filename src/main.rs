//! outlook-relay
fn main() {}
