//! Brings the reports to Odoo, one after the other, and tidies up behind failed messages.

use crate::address::Address;
use crate::clock;
use crate::failure::{Class, Failure, chain, one_line};
use crate::fetch::plan;
use crate::health::patiently;
use crate::mailbox::Trouble;
use crate::odoo::{Gateway, Intake, answers};
use crate::store::{self, AfterPush, Report, Store};
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::field::display;

/// Due reports are looked for this often.
const LOOK: Duration = Duration::from_secs(1);
/// Reports read from the store at a time, without their bytes.
const BATCH: u32 = 50;
/// A report that was pushed so often, over some hours, and is still refused, is given up.
const MOST_TRIES: u32 = 5;
/// How long a push that is under way may go on in a shutdown.
const GRACE: Duration = Duration::from_secs(5);
/// Failed messages are looked through this often.
const TIDY_EVERY: Duration = Duration::from_secs(3600);
/// Messages deleted in one commit: each may be large.
const DELETED_TOGETHER: u32 = 20;

/// Brings reports to Odoo.
pub struct Feed {
    store: Store,
    /// `None`: there is no Odoo to tell, and only the tidying is left.
    gateway: Option<Gateway>,
    /// How long each mailbox keeps what failed.
    keep_failed: Vec<(Address, Duration)>,
    /// Trouble with the store.
    disk: Trouble,
    /// Turns that failed in a row.
    failures: u32,
}

/// Why a turn ended before all was done.
#[derive(Debug)]
enum Stop {
    /// The gateway says why.
    Odoo(Failure),
    Store(store::Error),
    /// The daemon stops.
    Stopping,
}

impl From<store::Error> for Stop {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl Feed {
    /// A feed that does nothing before it is [run](Self::run). `keep_failed`: for each mailbox, how long it keeps what
    /// failed; what belongs to none of them is kept for the longest of these.
    pub fn new(store: Store, gateway: Option<Gateway>, keep_failed: Vec<(Address, Duration)>) -> Self {
        let disk = Trouble::new("store failed", "store recovered", "reports", String::new());
        Self { store, gateway, keep_failed, disk, failures: 0 }
    }

    /// Works until `soft` is cancelled. A push that is then under way gets a moment; after that its outcome is unclear.
    pub async fn run(mut self, soft: CancellationToken) {
        let mut tidy_at = Timestamp::MIN;
        while !soft.is_cancelled() {
            let now = clock::now();
            let worked = async {
                if now >= tidy_at {
                    self.tidy(now, &soft).await?;
                    tidy_at = clock::after(now, TIDY_EVERY);
                }
                match &self.gateway {
                    Some(gateway) => self.turn(gateway, &soft).await,
                    None => Ok(()),
                }
            }
            .await;
            let wait = self.after(worked);
            tokio::select! {
                () = soft.cancelled() => {}
                () = patiently(sleep(wait)) => {}
            }
        }
    }

    /// Notes how a turn ended; how long to wait for the next.
    fn after(&mut self, turn: Result<(), Stop>) -> Duration {
        let failure = match turn {
            Ok(()) => {
                self.failures = 0;
                self.disk.well();
                return LOOK;
            }
            Err(Stop::Stopping | Stop::Store(store::Error::Closed)) => return LOOK,
            Err(Stop::Odoo(failure)) => failure,
            Err(Stop::Store(error)) => {
                let failure = Failure::new(Class::Administrator, "store", chain(&error)).advise(
                    "reports to Odoo wait until the store works: look for a full disk or missing rights",
                );
                self.disk.fail(&failure, clock::now());
                Failure { class: Class::Transient, ..failure }
            }
        };
        self.failures = self.failures.saturating_add(1);
        plan::back_off(&failure, self.failures)
    }

    /// Brings all that is due.
    async fn turn(&self, gateway: &Gateway, soft: &CancellationToken) -> Result<(), Stop> {
        loop {
            let due = self.store.reports_due(clock::now(), BATCH).await?;
            if due.is_empty() {
                return Ok(());
            }
            if gateway.trouble().is_some() {
                // A small question first: a report is only booked when somebody is there to take it.
                gateway.sign_in().await.map_err(Stop::Odoo)?;
            }
            for report in &due {
                if soft.is_cancelled() {
                    return Err(Stop::Stopping);
                }
                Box::pin(self.bring(gateway, report, soft)).await?;
            }
        }
    }

    /// Brings one report; afterwards it is no longer due.
    async fn bring(&self, gateway: &Gateway, report: &Report, soft: &CancellationToken) -> Result<(), Stop> {
        if report.unclear && self.is_known(gateway, report).await? {
            return self.taken(report, "known").await;
        }
        let Some(raw) = self.store.report_content(report.id).await? else {
            return Ok(());
        };
        let settled_at = clock::after(clock::now(), gateway.settles_after());
        self.store.book_report(report.id, settled_at).await?;
        // The gateway only wants to know which messages are the same.
        let name = format!("report {}", report.id);
        let stopping = async {
            soft.cancelled().await;
            sleep(GRACE).await;
        };
        let intake = Intake::default();
        let pushed = tokio::select! {
            pushed = gateway.push(&raw, &intake, &name) => pushed,
            () = stopping => return Err(Stop::Stopping),
        };
        let failure = match pushed {
            Ok(taken) => return self.taken(report, taken.as_str()).await,
            Err(failure) => failure,
        };
        let tries = report.tries.saturating_add(1);
        let (now, answer) = (clock::now(), format!("{}: {}", failure.code, failure.reply));
        if failure.class == Class::Message {
            return self.refused(report, &failure, tries, answer, now).await;
        }
        let unclear = answers::is_unclear(&failure);
        let again = clock::after(now, plan::back_off(&failure, tries));
        let at = if unclear { again.max(settled_at) } else { again };
        self.store.settle_report(report.id, AfterPush::Again { at, answer, unclear }).await?;
        Err(Stop::Odoo(failure))
    }

    /// Whether Odoo took a report of which it did not say so. Where Odoo cannot be asked, it counts as not taken: by
    /// the time that it is due again, Odoo no longer works on it.
    async fn is_known(&self, gateway: &Gateway, report: &Report) -> Result<bool, Stop> {
        let Some(message_id) = &report.message_id else {
            return Ok(false);
        };
        match gateway.bounced(message_id, &report.recipient).await {
            Ok(known) => Ok(known),
            Err(failure) if failure.class == Class::Message || answers::is_no_rights(&failure) => {
                tracing::debug!(id = %report.message, code = failure.code, reply = failure.reply, "cannot be asked for");
                Ok(false)
            }
            Err(failure) => {
                gateway.fail(&failure);
                Err(Stop::Odoo(failure))
            }
        }
    }

    /// Odoo has it: its story ends.
    async fn taken(&self, report: &Report, answer: &'static str) -> Result<(), Stop> {
        self.store.settle_report(report.id, AfterPush::Taken).await?;
        let (code, reply) = codes_apart(report.reply.as_deref().unwrap_or_default());
        tracing::info!(
            mailbox = report.mailbox.as_deref().map(display),
            id = %report.message,
            message_id = report.message_id.as_deref().map(one_line),
            to = one_line(&report.recipient),
            code,
            reply,
            answer,
            "bounced"
        );
        Ok(())
    }

    /// Odoo refuses it: that is said when it happens first, and when it is given up.
    async fn refused(
        &self,
        report: &Report,
        failure: &Failure,
        tries: u32,
        answer: String,
        now: Timestamp,
    ) -> Result<(), Stop> {
        let (id, to) = (report.message, one_line(&report.recipient));
        let message_id = report.message_id.as_deref().map(one_line);
        let mailbox = report.mailbox.as_deref().map(display);
        let Failure { class, code, reply, .. } = failure;
        if tries >= MOST_TRIES {
            self.store.settle_report(report.id, AfterPush::Refused { answer }).await?;
            let advice =
                "Odoo will not show this failure: tell the sender. Odoo's log says why it refuses the report";
            tracing::error!(mailbox, %id, message_id, to, %class, code, reply, advice, "report refused");
            return Ok(());
        }
        let at = clock::after(now, plan::refused_again_after(tries));
        self.store.settle_report(report.id, AfterPush::Again { at, answer, unclear: false }).await?;
        if tries == 1 {
            let next = clock::to_second(at);
            tracing::warn!(mailbox, %id, message_id, to, %class, code, reply, %next, "report deferred");
        }
        Ok(())
    }

    /// Deletes what failed long ago.
    async fn tidy(&self, now: Timestamp, soft: &CancellationToken) -> Result<(), Stop> {
        let before = |keep: Duration| before(now, keep);
        let mailboxes: Vec<_> =
            self.keep_failed.iter().map(|(mailbox, keep)| (mailbox.clone(), before(*keep))).collect();
        let longest = self.keep_failed.iter().map(|(_, keep)| *keep).max().unwrap_or(Duration::MAX);
        while !soft.is_cancelled() {
            let messages = self.store.failed_long_ago(&mailboxes, before(longest), DELETED_TOGETHER).await?;
            let deleted = messages.len();
            self.store.tidy(messages, before(longest)).await?;
            if deleted == 0 {
                return Ok(());
            }
            tracing::info!(messages = deleted, reply = "given up longer ago than keep_failed", "deleted");
        }
        Ok(())
    }
}

/// So long before `now`.
fn before(now: Timestamp, wait: Duration) -> Timestamp {
    let wait = jiff::SignedDuration::try_from(wait).ok();
    wait.and_then(|wait| now.checked_sub(wait).ok()).unwrap_or(Timestamp::MIN)
}

/// A reply with its codes apart (RFC 5321 section 4.2, RFC 3463 section 2): `550 5.1.1` and `User unknown`.
fn codes_apart(reply: &str) -> (&str, &str) {
    let is_code = |word: &str, dots| {
        word.starts_with(['4', '5'])
            && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
            && word.matches('.').count() == dots
    };
    let Some((basic, rest)) = reply.split_once(' ').filter(|(word, _)| is_code(word, 0)) else {
        return ("", reply);
    };
    match rest.split_once(' ').filter(|(word, _)| is_code(word, 2)) {
        Some((enhanced, text)) => (reply.get(..basic.len() + 1 + enhanced.len()).unwrap_or(basic), text),
        None => (basic, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_shown_with_its_codes_apart() {
        let rows = [
            ("550 5.1.1 User unknown", ("550 5.1.1", "User unknown")),
            ("550 User unknown", ("550", "User unknown")),
            ("550 5.1 is no code", ("550", "5.1 is no code")),
            ("timeout no answer", ("", "timeout no answer")),
            ("550", ("", "550")),
            ("", ("", "")),
        ];
        for (reply, expected) in rows {
            assert_eq!(codes_apart(reply), expected, "{reply}");
        }
    }

    #[test]
    fn what_is_kept_for_ever_was_never_long_ago() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        assert_eq!(before(now, Duration::from_secs(10)).as_second(), 1_799_999_990);
        assert_eq!(before(now, Duration::MAX), Timestamp::MIN);
    }
}
