//! What the submission service's negative replies mean: the one place where SMTP reply texts are read.
//!
//! Each oddity is a row of [`ROWS`]; the first that matches a reply decides. The last rows hold the general rule of
//! RFC 5321 section 4.2.1: 4yz passes, 5yz does not.

use crate::address::Address;
use crate::failure::{Class, Failure, one_line};
use std::fmt;
use std::time::Duration;

/// A negative SMTP reply (RFC 5321 section 4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The basic code: 550.
    pub code: u16,
    /// The enhanced code (RFC 3463): 5.7.60.
    pub enhanced: Option<Enhanced>,
    /// The text after the codes.
    pub text: String,
}

/// An enhanced status code (RFC 3463): class, subject, detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enhanced(pub u16, pub u16, pub u16);

impl Reply {
    /// A reply from its basic code and the text behind it, of which the enhanced code is split off; on one bounded line.
    pub fn new(code: u16, text: &str) -> Self {
        let text = one_line(text);
        let text = text.as_str();
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        match Enhanced::parse(word) {
            Some(enhanced) => Self { code, enhanced: Some(enhanced), text: rest.trim_start().to_owned() },
            None => Self { code, enhanced: None, text: text.to_owned() },
        }
    }

    /// Both codes, as failures and logs name them: `550 5.7.60`.
    pub fn codes(&self) -> String {
        match self.enhanced {
            Some(enhanced) => format!("{} {enhanced}", self.code),
            None => self.code.to_string(),
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.codes(), self.text)
    }
}

impl Enhanced {
    fn parse(word: &str) -> Option<Self> {
        let mut parts = word.splitn(3, '.').map(|part| {
            let digits = (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse::<u16>().ok().filter(|_| digits)
        });
        Some(Self(parts.next()??, parts.next()??, parts.next()??))
    }
}

impl fmt::Display for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Where in the dialogue a reply came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The greeting, EHLO or STARTTLS.
    Greeting,
    /// AUTH.
    Auth,
    /// MAIL FROM.
    Mail,
    /// RCPT TO.
    Rcpt,
    /// DATA.
    Data,
    /// After the final dot.
    Dot,
}

/// What is special about a failure, besides what its class says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Nothing.
    No,
    /// Another access token may help: refresh it and try once more at once.
    NewToken,
    /// The recipients taken so far are sent now, the others right after them.
    Split,
    /// Seen without cause: tried once more before it counts.
    OnceMore,
    /// Fewer connections at a time.
    FewerConnections,
    /// Where it lasts for [`ADMINISTRATOR_AFTER`], an administrator has to act.
    Lasting,
}

/// So long a [`Special::Lasting`] failure passes for transient.
pub const ADMINISTRATOR_AFTER: Duration = Duration::from_secs(30 * 60);

/// A reply and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Its class, codes, text and advice.
    pub failure: Failure,
    /// What is special about it.
    pub special: Special,
}

/// What a negative reply at `step` means for `mailbox`.
pub fn judge(reply: &Reply, step: Step, mailbox: &Address) -> Judgement {
    let text = reply.text.to_ascii_lowercase();
    let row = ROWS.iter().find(|row| row.matches(reply, &text, step)).unwrap_or(&UNEXPECTED);
    let mut failure = Failure::new(row.class, reply.codes(), &reply.text);
    failure.advice = row.advice.replace("<mailbox>", mailbox.as_str());
    failure.retry_after = (row.wait > 0).then(|| Duration::from_secs(row.wait));
    Judgement { failure, special: row.special }
}

/// What a reply means of which only the codes and the text were kept: its class and advice are not, the catalogue gives them
/// anew. `None`: those are no codes of SMTP.
pub fn judge_kept(codes: &str, text: &str, mailbox: &Address) -> Option<Failure> {
    let (code, enhanced) = codes.split_once(' ').unwrap_or((codes, ""));
    let reply = Reply::new(code.parse().ok()?, format!("{enhanced} {text}").trim_start());
    Some(judge(&reply, Step::Dot, mailbox).failure)
}

/// One row of the catalogue; whatever it leaves open matches.
struct Row {
    /// Basic codes from, to.
    code: (u16, u16),
    /// Enhanced codes: class (0: any), subject, detail from, detail to. Empty: any, or none.
    enhanced: &'static [(u16, u16, u16, u16)],
    /// A fragment of the text, in lower case.
    text: &'static str,
    /// The steps.
    at: &'static [Step],
    class: Class,
    special: Special,
    /// Seconds that it takes at least.
    wait: u64,
    advice: &'static str,
}

impl Row {
    fn matches(&self, reply: &Reply, text: &str, step: Step) -> bool {
        let enhanced = |&(class, subject, from, to): &(u16, u16, u16, u16)| {
            reply.enhanced.is_some_and(|seen| {
                (class == 0 || class == seen.0) && subject == seen.1 && (from..=to).contains(&seen.2)
            })
        };
        (self.code.0..=self.code.1).contains(&reply.code)
            && (self.enhanced.is_empty() || self.enhanced.iter().any(enhanced))
            && text.contains(self.text)
            && self.at.contains(&step)
    }
}

const FOUR: (u16, u16) = (400, 499);
const FIVE: (u16, u16) = (500, 599);
const NEGATIVE: (u16, u16) = (400, 599);
const ANYWHERE: &[Step] = &[Step::Greeting, Step::Auth, Step::Mail, Step::Rcpt, Step::Data, Step::Dot];
const SESSION: &[Step] = &[Step::Greeting, Step::Auth];
const MESSAGE: &[Step] = &[Step::Mail, Step::Rcpt, Step::Data, Step::Dot];
const NOT_RCPT: &[Step] = &[Step::Mail, Step::Data, Step::Dot];

/// A row that matches every negative reply; the others are written as what differs from it.
const ANY: Row = Row {
    code: NEGATIVE,
    enhanced: &[],
    text: "",
    at: ANYWHERE,
    class: Class::Transient,
    special: Special::No,
    wait: 0,
    advice: "",
};

/// For what is no negative reply at all.
const UNEXPECTED: Row = ANY;

const QUARTER: u64 = 15 * 60;
const HOUR: u64 = 3600;

const NO_TOKEN_HELPS: &str = "the service did not take the token: check that it belongs to <mailbox> or to an account \
    with full access to it, that the app has the SMTP.Send permission, and that SMTP AUTH is on: Set-CASMailbox \
    <mailbox> -SmtpClientAuthenticationDisabled $false (a new permission takes up to 2 hours)";
const SEND_AS: &str = "the mailbox may not send as this sender: correct the From filter in Odoo or from_filter here, add \
    the address to <mailbox> as an alias, or grant Send As: Add-RecipientPermission <sender> -Trustee <mailbox> \
    -AccessRights SendAs";
const QUOTA: &str = "the day's sending limit is used up; mail waits until it is free again: spread it over more \
    mailboxes";
const MAILBOX_FULL: &str = "<mailbox> is full, often by its Sent Items: empty it, or set a retention policy";

/// The catalogue, from Microsoft's documentation and what users met; the first row that matches decides.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    // Signing in. https://aka.ms/smtp_auth_disabled
    Row { code: (535, 535), enhanced: &[(5, 7, 139, 139)], text: "disabled for the tenant", class: Class::Administrator,
        advice: "switch SMTP AUTH on for the organisation: Set-TransportConfig -SmtpClientAuthenticationDisabled $false", ..ANY },
    Row { code: (535, 535), enhanced: &[(5, 7, 139, 139)], text: "disabled for the mailbox", class: Class::Administrator,
        advice: "switch SMTP AUTH on for the mailbox: Set-CASMailbox <mailbox> -SmtpClientAuthenticationDisabled $false", ..ANY },
    Row { code: (535, 535), enhanced: &[(5, 7, 139, 139)], class: Class::Administrator,
        advice: "the reply names the policy that forbids it: allow <mailbox> to sign in to SMTP (security defaults, conditional access, authentication policies)", ..ANY },
    Row { code: (535, 535), class: Class::Administrator, special: Special::NewToken, advice: NO_TOKEN_HELPS, ..ANY },
    Row { code: (451, 451), enhanced: &[(4, 7, 0, 0)], text: "prx4", at: &[Step::Auth], special: Special::Lasting,
        advice: "if it lasts: the token or the mailbox's name is malformed; check that <mailbox> exists and is licensed", ..ANY },
    // The high-volume endpoint drops sessions whose token is about to expire.
    Row { code: (501, 501), enhanced: &[(5, 5, 124, 124), (5, 5, 127, 127)], special: Special::NewToken, ..ANY },
    // The session is not signed in as XOAUTH2: odoo#121048.
    Row { code: FIVE, enhanced: &[(5, 7, 30, 30), (5, 7, 4, 4), (5, 7, 57, 57)], class: Class::Administrator,
        advice: "the service did not take the session as signed in: check that [microsoft] smtp names Microsoft's submission service (port 587), and SMTP AUTH for <mailbox>", ..ANY },

    // Sending as somebody else; seen spuriously (MailKit#1176).
    Row { code: FIVE, enhanced: &[(5, 7, 60, 60), (5, 2, 252, 252)], at: MESSAGE, class: Class::Message, special: Special::OnceMore, advice: SEND_AS, ..ANY },
    Row { code: FIVE, text: "sendasdenied", at: MESSAGE, class: Class::Message, special: Special::OnceMore, advice: SEND_AS, ..ANY },

    // Too much at a time. https://aka.ms/concurrent_sending
    Row { code: (432, 432), enhanced: &[(4, 3, 2, 2)], text: "storedrv.deliver", ..ANY },
    Row { code: (432, 432), class: Class::Rate, special: Special::FewerConnections, wait: 30,
        advice: "too many connections at once: lower [delivery] connections, or find what else sends through <mailbox>", ..ANY },
    Row { code: FOUR, enhanced: &[(4, 7, 500, 699), (4, 7, 850, 899)], wait: QUARTER, ..ANY },
    Row { code: (452, 452), enhanced: &[(4, 5, 3, 3)], at: &[Step::Rcpt], special: Special::Split, ..ANY },
    Row { code: FIVE, text: "submissionquotaexceeded", class: Class::Rate, wait: HOUR, advice: QUOTA, ..ANY },
    Row { code: FIVE, enhanced: &[(5, 2, 2, 2)], text: "submission quota", class: Class::Rate, wait: HOUR, advice: QUOTA, ..ANY },
    Row { code: FIVE, enhanced: &[(5, 1, 90, 90), (5, 7, 232, 233)], class: Class::Rate, wait: HOUR, advice: QUOTA, ..ANY },

    // The mailbox or its tenant is full or blocked.
    Row { code: FIVE, text: "shutoffquotaexceeded", at: NOT_RCPT, class: Class::Administrator, advice: MAILBOX_FULL, ..ANY },
    Row { code: (554, 554), enhanced: &[(5, 2, 2, 2)], at: NOT_RCPT, class: Class::Administrator, advice: MAILBOX_FULL, ..ANY },
    Row { code: FIVE, enhanced: &[(5, 1, 8, 8), (5, 7, 501, 503), (5, 7, 705, 705), (5, 7, 708, 708), (5, 7, 750, 750), (5, 7, 800, 800)],
        class: Class::Administrator,
        advice: "Microsoft blocked <mailbox> or its organisation from sending: see Restricted entities in the Defender portal, secure the account, then unblock it", ..ANY },

    // The message itself.
    Row { code: FIVE, enhanced: &[(5, 3, 4, 4), (5, 2, 3, 3)], at: MESSAGE, class: Class::Message,
        advice: "the message is too large: send a link, or raise the limit: Set-Mailbox <mailbox> -MaxSendSize", ..ANY },
    Row { code: FIVE, enhanced: &[(5, 6, 11, 11)], at: MESSAGE, class: Class::Message, advice: "the message has line ends that SMTP forbids", ..ANY },
    Row { code: FIVE, enhanced: &[(5, 7, 512, 512), (5, 1, 20, 20)], at: MESSAGE, class: Class::Message,
        advice: "the message needs exactly one valid address in From: correct the sender in Odoo", ..ANY },

    // The recipient.
    Row { code: NEGATIVE, enhanced: &[(0, 2, 121, 122)], wait: HOUR, advice: "the recipient gets too much mail at the moment", ..ANY },
    Row { code: FIVE, enhanced: &[(5, 1, 1, 1), (5, 1, 10, 10), (5, 4, 1, 1)], at: MESSAGE, class: Class::Message,
        advice: "the recipient does not exist: correct the address", ..ANY },
    Row { code: FIVE, enhanced: &[(5, 7, 1, 1), (5, 7, 12, 12), (5, 7, 124, 124), (5, 7, 133, 136)], at: MESSAGE, class: Class::Message,
        advice: "the recipient does not take mail from <mailbox>: ask its administrator to allow it", ..ANY },
    Row { code: FIVE, enhanced: &[(5, 5, 0, 0)], at: MESSAGE, class: Class::Message, ..ANY },

    // A store driver's text is judged by its exception's name, whatever its codes say.
    Row { code: FIVE, text: "transientexception", at: MESSAGE, ..ANY },
    // RFC 5321 section 4.3.2: the order of commands, not the message.
    Row { code: (503, 503), at: MESSAGE, ..ANY },

    // All others (RFC 5321 section 4.2.1). Nothing that happens before MAIL can be a message's fault.
    Row { code: FIVE, at: SESSION, class: Class::Administrator,
        advice: "the service refuses the session: check [microsoft] smtp, and whether Microsoft blocks this host's address", ..ANY },
    Row { code: FOUR, ..ANY },
    Row { code: FIVE, at: MESSAGE, class: Class::Message, ..ANY },
];

#[cfg(test)]
#[path = "smtp_replies_tests.rs"]
mod tests;
