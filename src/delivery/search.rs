//! Looking for messages whose outcome is unknown in the mailbox's folder of sent mail, over one IMAP session at a time,
//! beside the sending of the mailbox's other mail.

use super::attempt::Context;
use super::outcome::Circumstances;
use super::sent::{self, Looked, Sought, Verdict};
use crate::clock;
use crate::failure::{Class, Failure};
use crate::imap::sent::is_searchable;
use crate::imap::{Error, Session};
use crate::logging::{names, seconds};
use crate::microsoft::imap_replies;
use crate::store::{Due, Next, RecipientState};
use crate::tokens::AccessToken;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// So many messages are looked for in one go.
const BATCH: u32 = 100;
/// A session is kept where the next look comes this soon.
const KEEP: Duration = Duration::from_secs(60);
/// The wall clock is looked at this often, since it may be set.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// After a session that broke, or a store that did not write.
const BREATHER: Duration = Duration::from_secs(5);

/// Resolves what is unknown until `soft` is cancelled. That may be in the middle of it: nothing is lost, since a message
/// stays unknown until it is written down what became of it.
pub(super) async fn run(context: &Context, soft: &CancellationToken) {
    let work = Box::pin(Search { context, line: None }.work());
    tokio::select! {
        () = soft.cancelled() => {}
        () = work => {}
    }
}

struct Search<'c> {
    context: &'c Context,
    /// Apart from what every mailbox holds at all times: hardly one of them has it.
    line: Option<Box<Line>>,
}

/// A session.
struct Line {
    session: Session,
    token: AccessToken,
    /// The folders of sent mail.
    folders: Vec<String>,
}

/// What was seen of one message.
#[derive(Clone, Debug)]
enum Seen {
    /// So many copies, the last of them in this folder.
    Copies(usize, String),
    /// It could not be looked for.
    Failed(Failure),
    /// The session ended before its turn.
    NotReached,
}

impl Search<'_> {
    async fn work(mut self) {
        let (store, mailbox) = (&self.context.store, self.context.mailbox.address());
        let mut woken = store.woken();
        Box::pin(self.say_what_a_crash_left()).await;
        loop {
            let now = clock::now();
            let wait = match store.unknown(mailbox, now, BATCH).await {
                Ok(batch) if !batch.is_empty() => match Box::pin(self.resolve(&batch)).await {
                    true => continue,
                    false => BREATHER,
                },
                Ok(_) => match store.next_due(mailbox, true).await {
                    Ok(next) => next.map_or(LONGEST_SLEEP, |at| clock::until(now, at).min(LONGEST_SLEEP)),
                    Err(error) => {
                        self.context.store_failed(&error);
                        BREATHER
                    }
                },
                Err(error) => {
                    self.context.store_failed(&error);
                    BREATHER
                }
            };
            if wait >= KEEP
                && let Some(line) = self.line.take()
            {
                Box::pin(line.session.logout()).await;
            }
            tokio::select! {
                () = self.context.unknown.notified() => {}
                Ok(()) = woken.changed() => {}
                () = sleep(wait.max(Duration::from_millis(10))) => {}
            }
        }
    }

    /// One line for each message whose attempt the relay's last end cut short.
    async fn say_what_a_crash_left(&self) {
        let (store, mailbox) = (&self.context.store, self.context.mailbox.address());
        for due in store.unknown(mailbox, clock::now(), BATCH).await.unwrap_or_default() {
            let (id, message_id, class) = (due.id, due.message_id.as_deref(), Class::Transient);
            let reply = "it is not known whether it was sent: it is looked for among the sent messages";
            tracing::warn!(%mailbox, %id, message_id, %class, code = "unknown", reply, unknown = true, "deferred");
        }
    }

    /// Looks for these messages, and writes down what follows. `false`: something broke, so that a pause is due.
    async fn resolve(&mut self, batch: &[Due]) -> bool {
        let all = |looked: Looked| vec![Some(looked); batch.len()];
        let (looked, whole) = match self.line().await {
            Err(Looked::Failed(failure)) => (all(Looked::Failed(failure)), false),
            Err(looked) => (all(looked), true),
            Ok((mut line, kept)) => match self.look(&mut line, batch, kept).await {
                Ok((looked, lost)) => {
                    self.line = Some(line).filter(|_| lost.is_none());
                    if let Some(failure) = &lost {
                        self.lost(failure, None);
                    }
                    (looked, lost.is_none())
                }
                // It was closed while nobody used it.
                Err(failure) => {
                    self.lost(&failure, Some(&line.token));
                    return true;
                }
            },
        };
        let mut written = true;
        for (due, looked) in batch.iter().zip(looked) {
            if let Some(looked) = looked {
                written &= self.settle(due, looked).await;
            }
        }
        whole && written
    }

    /// The session in hand, or a new one; `true`: it was in hand.
    async fn line(&mut self) -> Result<(Box<Line>, bool), Looked> {
        if let Some(line) = self.line.take() {
            return Ok((line, true));
        }
        let mailbox = self.context.mailbox.address();
        let microsoft = &self.context.mailbox.config.microsoft;
        let mut again = true;
        loop {
            let token = self.context.tokens.access_token(mailbox).await.map_err(Looked::NoToken)?;
            let tls = self.context.tls.clone();
            let open = Box::pin(Session::open(&microsoft.imap, tls, mailbox, token.secret()));
            match open.await {
                Ok(mut session) => {
                    let folders =
                        session.sent_folders().await.map_err(|error| failed(error.into_failure()))?;
                    if folders.is_empty() {
                        session.logout().await;
                        return Err(Looked::Impossible(no_folder()));
                    }
                    return Ok((Box::new(Line { session, token, folders }), false));
                }
                Err(failure) if again && failure.code == imap_replies::LOGIN_REFUSED => {
                    self.context.tokens.refused(mailbox, &token);
                    again = false;
                }
                Err(failure) => return Err(failed(failure)),
            }
        }
    }

    fn lost(&self, failure: &Failure, token: Option<&AccessToken>) {
        let mailbox = self.context.mailbox.address();
        if let Some(token) = token.filter(|_| failure.code == imap_replies::TOKEN_EXPIRED) {
            self.context.tokens.refused(mailbox, token);
        }
        tracing::debug!(%mailbox, code = %failure.code, reply = %failure.reply, "session ended");
    }

    /// What is found of each message (`None`: its turn did not come), and why the session ended if it did.
    ///
    /// # Errors
    /// A session that was kept and is no longer there.
    async fn look(
        &self,
        line: &mut Line,
        batch: &[Due],
        kept: bool,
    ) -> Result<(Vec<Option<Looked>>, Option<Failure>), Failure> {
        let mailbox = self.context.mailbox.address();
        let sought: Vec<Sought> = batch.iter().map(|due| Sought::new(due, mailbox)).collect();
        let mut seen = vec![Seen::Copies(0, String::new()); batch.len()];
        let mut lost = None;
        for (turn, folder) in line.folders.iter().enumerate() {
            match line.session.examine_listed(folder).await {
                Ok(Some(_)) => {}
                // What was selected before it must not be taken for it.
                Ok(None) => {
                    for (sought, seen) in sought.iter().zip(&mut seen) {
                        if !matches!(seen, Seen::Copies(copies, _) if sought.is_among(*copies)) {
                            *seen = Seen::Failed(unspeakable(folder));
                        }
                    }
                    break;
                }
                Err(Error::Lost(failure)) if kept && turn == 0 => return Err(failure),
                Err(error) => {
                    let failure = error.into_failure();
                    seen.fill(Seen::Failed(failure.clone()));
                    lost = Some(failure);
                    break;
                }
            }
            lost = search(&mut line.session, folder, &sought, &mut seen).await;
            if lost.is_some() {
                // Who is not in this folder may be in those that nobody looked into.
                let unfinished = turn + 1 < line.folders.len();
                for (sought, seen) in sought.iter().zip(&mut seen).filter(|_| unfinished) {
                    if matches!(seen, Seen::Copies(copies, _) if !sought.is_among(*copies)) {
                        *seen = Seen::NotReached;
                    }
                }
                break;
            }
        }
        let looked = sought.iter().zip(seen).map(|(sought, seen)| match seen {
            Seen::Copies(copies, folder) if sought.is_among(copies) => Some(Looked::Found(folder)),
            _ if !is_searchable(&sought.message_id) => Some(Looked::Impossible(unsearchable())),
            Seen::Copies(..) => Some(Looked::Missing),
            Seen::Failed(failure) => Some(failed(failure)),
            Seen::NotReached => None,
        });
        Ok((looked.collect(), lost))
    }

    /// Writes down and says what became of a message. `false`: it could not be written.
    async fn settle(&self, due: &Due, looked: Looked) -> bool {
        let (store, mailbox) = (&self.context.store, self.context.mailbox.address());
        let config = &self.context.mailbox.config.delivery;
        let now = clock::now();
        let when = Circumstances { now, retry_for: config.retry_for, random: rand::random() };
        let verdict = sent::verdict(due, looked, config, when);
        let mut decision = sent::decision(due, &verdict, mailbox, now);
        self.context.report(due, &mut decision).await;
        match store.resolve(due, decision.settlement.clone()).await {
            Ok(true) => {}
            // A person did something else with it.
            Ok(false) => return true,
            Err(error) => {
                self.context.store_failed(&error);
                return false;
            }
        }
        self.context.store_trouble.well();
        self.say(due, &verdict);
        self.context.log(due, &decision);
        if let Next::Again { unknown: false, .. } = decision.settlement.next {
            store.arrivals(mailbox).notify_one();
        }
        true
    }

    fn say(&self, due: &Due, verdict: &Verdict) {
        let (mailbox, id, message_id) = (self.context.mailbox.address(), due.id, due.message_id.as_deref());
        let unknown = due.recipients.iter().filter(|recipient| recipient.state == RecipientState::Unknown);
        let to: Vec<String> = unknown.map(|recipient| recipient.address.clone()).collect();
        let (attempts, recipients, to) = (due.attempts, to.len(), names(&to));
        match verdict {
            Verdict::Sent(found) => {
                let seconds = seconds(clock::until(due.received_at, clock::now()));
                tracing::info!(%mailbox, %id, message_id, to, recipients, attempts, seconds, found, "sent");
            }
            Verdict::SendAgain(at, None) => {
                let (reply, next) =
                    ("it is not among the sent messages: it is sent again", clock::to_second(*at));
                tracing::info!(%mailbox, %id, message_id, to, reply, %next, "deferred");
            }
            Verdict::SendAgain(at, Some(failure)) => {
                let Failure { class, code, reply, advice, .. } = failure;
                let next = clock::to_second(*at);
                let reply =
                    format!("it may be sent twice, since nobody could look whether it was sent: {reply}");
                tracing::warn!(%mailbox, %id, message_id, to, %class, code, reply, advice, unknown = true, %next, "deferred");
            }
            Verdict::Hold(failure) => {
                let Failure { class, code, reply, .. } = failure;
                let reply = format!("it may have been sent, and nobody could look: {reply}");
                let advice = format!(
                    "ask a recipient, or look into the folder of sent mail of {mailbox}; then `outlook-relay queue retry {id}` \
                     or `outlook-relay queue cancel {id}`"
                );
                tracing::error!(%mailbox, %id, message_id, to, %class, code, reply, advice, unknown = true, "held");
            }
            Verdict::LookAgain(_) | Verdict::GiveUp(..) => {}
        }
    }
}

/// Looks for each message in the folder that is selected. Returns why the session ended, if it did.
async fn search(
    session: &mut Session,
    folder: &str,
    sought: &[Sought],
    seen: &mut [Seen],
) -> Option<Failure> {
    let mut lost = None;
    for (sought, seen) in sought.iter().zip(seen) {
        let Seen::Copies(before, _) = &*seen else {
            continue;
        };
        if lost.is_some() {
            *seen = Seen::NotReached;
            continue;
        }
        let mut copies = *before;
        let counted = async {
            let uids = session.search_message_id(&sought.message_id).await?;
            let count = |header: &[u8]| {
                copies += usize::from(sought.is_copy(header));
                sought.is_among(copies)
            };
            session.headers(&uids, count).await
        };
        match counted.await {
            Ok(()) if copies > *before => *seen = Seen::Copies(copies, folder.to_owned()),
            Ok(()) => {}
            Err(error) => {
                let is_lost = matches!(error, Error::Lost(_));
                let failure = error.into_failure();
                lost = is_lost.then(|| failure.clone());
                *seen = Seen::Failed(failure);
            }
        }
    }
    lost
}

fn failed(failure: Failure) -> Looked {
    if failure.class.needs_a_person() { Looked::Impossible(failure) } else { Looked::Failed(failure) }
}

fn no_folder() -> Failure {
    let reply = "the server names no folder of sent mail";
    Failure::new(Class::Administrator, "no Sent", reply)
        .advise("without it nobody can tell whether a message was sent: see on_unknown in [delivery]")
}

fn unspeakable(folder: &str) -> Failure {
    let reply = format!("the folder {folder:?} cannot be selected: its name is not ASCII");
    Failure::new(Class::Administrator, "no Sent", reply)
        .advise("rename it: without it nobody can tell whether a message was sent")
}

fn unsearchable() -> Failure {
    let reply = "its Message-ID cannot be searched for: it is very long, or not ASCII";
    Failure::new(Class::Message, "no Message-ID", reply)
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
