//! One attempt at one message: token, booking, connection, transaction, settlement, log.

use super::Timeouts;
use super::client::{Connection, Outgoing, Target};
use super::fault::Fault;
use super::outcome::{self, Circumstances, Decision, End, Rcpt, Transaction, waits};
use crate::clock;
use crate::failure::{Class, Failure, chain};
use crate::logging::{names, seconds};
use crate::mailbox::{Mailbox, Trouble};
use crate::message::{self, Trace};
use crate::microsoft::smtp_replies::{Judgement, Special, Step, judge};
use crate::reports::Reporter;
use crate::store::{self, Due, Next, Settlement, Store};
use crate::tokens::{AccessToken, Tokens};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_rustls::rustls::ClientConfig;

/// A connection is renewed after so long: Exchange was seen to drop sessions after about 20 minutes.
const RENEW_AFTER: Duration = Duration::from_secs(15 * 60);

/// What every attempt of a mailbox needs.
pub(super) struct Context {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) store: Store,
    pub(super) tokens: Tokens,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) timeouts: Timeouts,
    /// Trouble with the store.
    pub(super) store_trouble: Trouble,
    /// Told when a message's outcome is unknown.
    pub(super) unknown: Notify,
    /// Writes the reports of failures; `None`: there is no Odoo to tell.
    pub(super) reporter: Option<Reporter>,
}

/// A connection, and the token that it was signed in with.
pub(super) struct Held {
    pub(super) connection: Connection,
    token: AccessToken,
}

/// How an attempt ended, for the mailbox.
#[derive(Debug)]
pub(super) enum Ended {
    /// The message's outcome is written down. `Some`: its connection was lost on the way.
    Settled(Option<Failure>),
    /// The mailbox is in trouble; the message is due again. `asked`: the service was asked to take it.
    Trouble { judgement: Judgement, asked: bool },
    /// There is no token; if the attempt was booked at all, the message is due again.
    NoToken(Failure),
    /// Somebody else changed the message: it is not to be sent now.
    Skipped,
    /// The store failed before the attempt was booked: nothing was sent.
    Store(store::Error),
}

/// Why there was no transaction.
enum Prevented {
    Trouble(Judgement),
    NoToken(Failure),
}

impl Context {
    /// Makes one attempt. Returns the connection if another message can go over it.
    pub(super) async fn attempt(&self, due: &Due, mut held: Option<Held>) -> (Option<Held>, Ended) {
        let ended = self.try_once(due, &mut held).await;
        (held, ended)
    }

    async fn try_once(&self, due: &Due, held: &mut Option<Held>) -> Ended {
        let token = match self.tokens.access_token(self.mailbox.address()).await {
            Ok(token) => token,
            Err(failure) => return Ended::NoToken(failure),
        };
        let content = match self.store.content(due.id).await {
            Ok(Some(content)) => content,
            Ok(None) => return Ended::Skipped,
            Err(error) if error.is_damage() => return self.set_aside(due, &error).await,
            Err(error) => return Ended::Store(error),
        };
        let waiting = due.recipients.iter().filter(|recipient| waits(recipient)).count();
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        match self.store.book(due.id, waiting, clock::now()).await {
            Ok(()) => drop(self.store_trouble.well()),
            Err(store::Error::Changed) => return Ended::Skipped,
            Err(error) => return Ended::Store(error),
        }
        let transaction = Box::pin(self.deliver(due, content, held, token)).await;
        let now = clock::now();
        match transaction {
            Ok(transaction) => {
                let retry_for = self.mailbox.config.delivery.retry_for;
                let when = Circumstances { now, retry_for, random: rand::random() };
                let mut decision = outcome::decide(due, &transaction, self.mailbox.address(), when);
                self.report(due, &mut decision).await;
                self.settle(&decision.settlement).await;
                self.log(due, &decision);
                if let Next::Again { unknown: true, .. } = decision.settlement.next {
                    self.unknown.notify_one();
                }
                match (decision.mailbox, transaction.end) {
                    (Some(judgement), _) => Ended::Trouble { judgement, asked: true },
                    (None, End::Lost(failure) | End::Unknown(failure)) => Ended::Settled(Some(failure)),
                    (None, _) => Ended::Settled(None),
                }
            }
            Err(Prevented::Trouble(judgement)) => {
                self.settle(&outcome::put_back(due, &judgement.failure, now)).await;
                Ended::Trouble { judgement, asked: false }
            }
            Err(Prevented::NoToken(failure)) => {
                self.settle(&outcome::put_back(due, &failure, now)).await;
                Ended::NoToken(failure)
            }
        }
    }

    /// Where the store's file is damaged, the message that lies there holds up no other.
    async fn set_aside(&self, due: &Due, error: &store::Error) -> Ended {
        if let Err(error) = self.store.set_aside(due.id).await {
            return Ended::Store(error);
        }
        let (mailbox, id, message_id) = (self.mailbox.address(), due.id, due.message_id.as_deref());
        let to: Vec<String> = due.recipients.iter().map(|recipient| recipient.address.clone()).collect();
        let advice = "its content cannot be read, since the store's file is damaged, and Odoo is not told: have it sent anew from \
                      there; `outlook-relay store check` says more";
        tracing::error!(%mailbox, %id, message_id, to = names(&to), error = %chain(error), advice, "failed");
        Ended::Skipped
    }

    /// Sends the message over the connection held, or a new one. Once, a token that the service does not take is
    /// replaced; and a connection that was closed while it was idle is, since nothing was sent over it.
    async fn deliver(
        &self,
        due: &Due,
        content: Vec<u8>,
        held: &mut Option<Held>,
        mut token: AccessToken,
    ) -> Result<Transaction, Prevented> {
        let mailbox = self.mailbox.address();
        // A message without a Message-ID gets one here: super::sent looks for it by the same.
        let trace = Trace {
            client: None,
            host: message::HOST,
            protocol: "ESMTP",
            id: &due.id.to_string(),
            received_at: due.received_at,
            domain: mailbox.domain(),
        };
        let content = message::outbound(&content, &trace, due.new_from.as_deref());
        let outgoing = Outgoing {
            recipients: due.recipients.iter().filter(|r| waits(r)).map(|r| r.address.as_str()).collect(),
            content: &content,
            eight_bit: due.eight_bit,
            smtputf8: due.smtputf8,
        };
        let mut renewed = false;
        loop {
            let (mut lane, reused) = match held.take() {
                Some(lane) if lane.is_good_for(&token) => (lane, true),
                old => {
                    if let Some(old) = old {
                        old.connection.quit().await;
                    }
                    match Box::pin(Connection::open(self.target(), token.secret())).await {
                        Ok(connection) => (Held { connection, token: token.clone() }, false),
                        Err(fault) => {
                            let judgement = self.judge(fault);
                            if judgement.special != Special::NewToken || renewed {
                                return Err(Prevented::Trouble(judgement));
                            }
                            renewed = true;
                            token = self.renewed(&token).await?;
                            continue;
                        }
                    }
                }
            };
            let transaction = match lane.connection.offer(&outgoing).await {
                Ok(answers) => match self.hand_over(due, &answers).await {
                    Ok(()) => lane.connection.submit(&outgoing, answers).await,
                    Err(failure) => Transaction { recipients: answers, end: End::Lost(failure) },
                },
                Err(transaction) => transaction,
            };
            if reused && was_stale(&transaction) {
                continue;
            }
            if let End::Refused(Step::Mail, reply) = &transaction.end
                && !renewed
                && judge(reply, Step::Mail, mailbox).special == Special::NewToken
            {
                lane.connection.quit().await;
                renewed = true;
                token = self.renewed(&token).await?;
                continue;
            }
            if lane.connection.is_usable() {
                *held = Some(lane);
            }
            return Ok(transaction);
        }
    }

    /// Writes down whom the message is about to be handed to, where that is not plain.
    async fn hand_over(&self, due: &Due, answers: &[Rcpt]) -> Result<(), Failure> {
        let Some(recipients) = outcome::handing_over(due, answers) else {
            return Ok(());
        };
        self.store.hand_over(due.id, recipients).await.map_err(|error| {
            self.store_failed(&error);
            Failure::new(Class::Transient, "store", chain(&error))
        })
    }

    fn target(&self) -> Target<'_> {
        Target {
            server: &self.mailbox.config.microsoft.smtp,
            mailbox: self.mailbox.address(),
            tls: &self.tls,
            timeouts: self.timeouts,
        }
    }

    fn judge(&self, fault: Fault) -> Judgement {
        match fault {
            Fault::Refused(step, reply) => judge(&reply, step, self.mailbox.address()),
            Fault::Failed(failure) => Judgement { failure, special: Special::No },
        }
    }

    /// Another token in place of one that the service did not take.
    async fn renewed(&self, token: &AccessToken) -> Result<AccessToken, Prevented> {
        let mailbox = self.mailbox.address();
        self.tokens.refused(mailbox, token);
        self.tokens.access_token(mailbox).await.map_err(Prevented::NoToken)
    }

    /// Writes an outcome down, however long that takes: what was sent must not be sent again. Only a store that is
    /// closed, in a shutdown, ends it; the outcome is then unknown at the next start.
    async fn settle(&self, settlement: &Settlement) {
        let mut wait = Duration::from_secs(1);
        loop {
            match self.store.settle(settlement.clone()).await {
                Ok(()) => {
                    self.store_trouble.well();
                    return;
                }
                Err(store::Error::Closed) => return,
                Err(error) => self.store_failed(&error),
            }
            sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(30));
        }
    }

    /// Says, once and then hourly, that the store does not work; that it is closed, in a shutdown, is no trouble.
    pub(super) fn store_failed(&self, error: &store::Error) {
        if matches!(error, store::Error::Closed) {
            return;
        }
        let advice = match error.is_damage() {
            true => {
                "the store's file is damaged: `outlook-relay store check` says more; where there is a backup, stop the daemon, \
                 run `outlook-relay store restore BACKUP`, and start it again"
            }
            false => "mail waits until the store can be written: look for a full disk or missing rights",
        };
        let failure = Failure::new(Class::Administrator, "store", chain(error)).advise(advice);
        self.store_trouble.fail(&failure, clock::now());
    }

    /// Writes the reports of what failed for good into the decision, to be kept with it.
    pub(super) async fn report(&self, due: &Due, decision: &mut Decision) {
        if let Some(reporter) = &self.reporter {
            let now = decision.settlement.at;
            decision.settlement.report = reporter.report(due, &decision.failed, now).await;
        }
    }

    /// Why Odoo does not hear of a failure, if it does not.
    fn untold(&self, decision: &Decision) -> Option<&'static str> {
        match (&self.reporter, &decision.settlement.report) {
            (None, _) => Some("there is no url in [odoo]: set it, with database, login and password_file"),
            (Some(_), None) => Some("the message has no sender, or is a bounce itself"),
            (Some(_), Some(_)) => None,
        }
    }

    /// One line for each event of a decision.
    pub(super) fn log(&self, due: &Due, decision: &Decision) {
        let (mailbox, id) = (self.mailbox.address(), due.id);
        let message_id = due.message_id.as_deref();
        if let Some((to, reply)) = &decision.sent {
            let seconds = seconds(clock::until(due.received_at, decision.settlement.at));
            let (attempts, recipients) = (due.attempts.saturating_add(1), to.len());
            tracing::info!(%mailbox, %id, message_id, to = names(to), recipients, code = reply.codes(), reply = reply.text,
                attempts, seconds, "sent");
        }
        for (to, failure) in &decision.failed {
            let Failure { class, code, reply, advice, .. } = failure;
            let odoo_not_told = self.untold(decision);
            tracing::error!(%mailbox, %id, message_id, to, %class, code, reply, advice, odoo_not_told, "failed");
        }
        if let (Some(failure), Next::Again { at, unknown }) = (&decision.deferred, decision.settlement.next) {
            let Failure { class, code, reply, advice, .. } = failure;
            tracing::warn!(%mailbox, %id, message_id, %class, code, reply, advice, unknown, next = %clock::to_second(at), "deferred");
        }
    }
}

impl Held {
    fn is_good_for(&self, token: &AccessToken) -> bool {
        self.connection.is_usable()
            && self.connection.opened_at.elapsed() < RENEW_AFTER
            && self.token.secret() == token.secret()
    }
}

/// Whether the connection was already closed, or closed itself, when the transaction began.
fn was_stale(transaction: &Transaction) -> bool {
    transaction.recipients.is_empty()
        && match &transaction.end {
            End::Lost(_) => true,
            End::Refused(Step::Mail, reply) => reply.code == 421,
            _ => false,
        }
}
