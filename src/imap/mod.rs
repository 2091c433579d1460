//! IMAP: one session, for whoever reads a mailbox: to watch its inbox, to look for a message among those sent, to try it
//! out.

mod folder_name;
pub mod sent;
mod session;

pub use session::{Error, Folder, Greeted, Session};
