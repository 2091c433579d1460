//! Waiting for new messages: IDLE (RFC 2177), and what else the server can do.
//!
//! Not the library's own IDLE: that takes the end of the connection for an interruption, waits for ever after a NO, and
//! loses an EXISTS that comes before the `+`, as Exchange's sometimes does.

use super::session::{COMMAND, Error, Session, broken, cut, failed, within};
use crate::failure::Class;
use crate::microsoft::imap_replies::{self, Status, Step};
use async_imap::imap_proto::{Capability, MailboxDatum, Response, Status as Word};
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;

/// How long the server may take to end an IDLE. It has nothing to do for that: one that takes longer is not there any
/// more.
const DONE: Duration = Duration::from_secs(10);

/// What the server can do besides what every server can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// RFC 2177: tells of new messages by itself.
    pub idle: bool,
    /// RFC 6851: moves messages.
    pub moves: bool,
    /// RFC 4315: expunges messages by UID.
    pub uidplus: bool,
}

/// How an IDLE ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idled {
    /// There are new messages, perhaps.
    News,
    /// Nothing came in time.
    Elapsed,
    /// Whoever waits no longer wants to.
    Stopped,
    /// The server does not want to.
    Refused,
}

/// What the server told of new messages in the selected folder.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    /// Messages in the folder.
    exists: u32,
    /// Whether some of them are new.
    news: bool,
}

impl Heard {
    /// Takes note of an untagged response. A count that is repeated is no news: some servers begin every IDLE with it.
    pub(super) fn note(&mut self, response: &Response<'_>) {
        match response {
            Response::MailboxData(MailboxDatum::Exists(number)) => {
                self.news |= *number != self.exists;
                self.exists = *number;
            }
            Response::Expunge(_) => self.exists = self.exists.saturating_sub(1),
            _ => {}
        }
    }
}

/// What one response means to whoever idles.
enum Said {
    Accepted,
    Ended(Idled),
    Nothing,
}

impl Session {
    /// What the server can do for whoever is signed in.
    ///
    /// # Errors
    /// A session that is over.
    pub async fn capabilities(&mut self) -> Result<Capabilities, Error> {
        let mut able = Capabilities::default();
        self.command(Step::Capability, "CAPABILITY", COMMAND, |response| {
            if let Response::Capabilities(words) = response {
                let has = |wanted: &str| {
                    let is = |word: &Capability<'_>| {
                        matches!(word, Capability::Atom(word) if word.eq_ignore_ascii_case(wanted))
                    };
                    words.iter().any(is)
                };
                // IMAP4rev2 has the three of them (RFC 9051 appendix E).
                let newest = has("IMAP4rev2");
                able.idle |= newest || has("IDLE");
                able.moves |= newest || has("MOVE");
                able.uidplus |= newest || has("UIDPLUS");
            }
        })
        .await?;
        Ok(able)
    }

    /// Waits in the selected folder until the server tells of new messages, but no longer than `limit`, nor than `stop`
    /// lets it. What it told since [`Session::look_again`] counts.
    ///
    /// # Errors
    /// A session that is over; a server that asks for fewer requests.
    pub async fn idle(&mut self, limit: Duration, stop: impl Future<Output = ()>) -> Result<Idled, Error> {
        if self.heard.news {
            return Ok(Idled::News);
        }
        let end = Instant::now() + limit;
        let begun = within(COMMAND, "IDLE", self.imap.run_command("IDLE")).await.map_err(Error::Lost)?;
        let tag = begun.map_err(|error| Error::Lost(failed(&error)))?.0;
        // Until the server answers, nothing but an answer may follow.
        let accepted = async {
            loop {
                match self.hear(&tag).await? {
                    Said::Accepted => return Ok(None),
                    Said::Ended(ended) => return Ok(Some(ended)),
                    Said::Nothing => {}
                }
            }
        };
        if let Some(ended) = within(COMMAND, "IDLE", accepted).await.map_err(Error::Lost)?? {
            return Ok(ended);
        }
        tokio::pin!(stop);
        let idled = loop {
            if self.heard.news {
                break Idled::News;
            }
            let heard = tokio::select! {
                () = &mut stop => break Idled::Stopped,
                heard = within(end.saturating_duration_since(Instant::now()), "IDLE", self.hear(&tag)) => heard,
            };
            match heard {
                // Nothing came: the usual end. Whether the connection still lives, DONE shows.
                Err(_) if Instant::now() >= end => break Idled::Elapsed,
                Err(failure) => return Err(Error::Lost(failure)),
                Ok(heard) => match heard? {
                    Said::Ended(ended) => return Ok(ended),
                    Said::Accepted | Said::Nothing => {}
                },
            }
        };
        let done = async {
            let sent = self.imap.run_command_untagged("DONE").await;
            sent.map_err(|error| Error::Lost(failed(&error)))?;
            while !matches!(self.hear(&tag).await?, Said::Ended(_)) {}
            Ok(())
        };
        within(DONE, "DONE", done).await.map_err(Error::Lost)??;
        Ok(if self.heard.news && idled == Idled::Elapsed { Idled::News } else { idled })
    }

    /// Forgets the news so far: whoever looks now sees them.
    pub fn look_again(&mut self) {
        self.heard.news = false;
    }

    /// Whether the server told of new messages since [`Session::look_again`].
    pub fn has_news(&self) -> bool {
        self.heard.news
    }

    async fn hear(&mut self, tag: &str) -> Result<Said, Error> {
        let response = self.imap.read_response().await.map_err(|error| Error::Lost(broken(&error)))?;
        let response = response.ok_or_else(|| Error::Lost(cut()))?;
        let (status, outcome) = match response.parsed() {
            Response::Continue(_) => return Ok(Said::Accepted),
            Response::Done { tag: of, status: Word::Ok, .. } if of.0 == tag => {
                return Ok(Said::Ended(Idled::News));
            }
            Response::Done { tag: of, status: Word::No, outcome } if of.0 == tag => (Status::No, outcome),
            Response::Done { tag: of, outcome, .. } if of.0 == tag => (Status::Bad, outcome),
            Response::Data { status: Word::Bye, outcome } => (Status::Bye, outcome),
            untagged => {
                self.heard.note(untagged);
                return Ok(Said::Nothing);
            }
        };
        let text = outcome.information.as_deref().unwrap_or_default();
        let failure = imap_replies::judge(Step::Idle, status, text, self.mailbox.as_str());
        match (status, failure.class) {
            (Status::No | Status::Bad, class) if class != Class::Rate => Ok(Said::Ended(Idled::Refused)),
            _ => Err(Error::Lost(failure)),
        }
    }
}
