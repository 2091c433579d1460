//! IMAP: one session, for whoever reads a mailbox: to watch its inbox, to look for a message among those sent, to try it
//! out.

mod folder_name;
mod messages;
pub mod sent;
mod session;
mod watch;
mod wire;

pub use messages::{Lying, Told};
pub use session::{Error, Folder, Greeted, Session};
pub use watch::{Capabilities, Idled};
