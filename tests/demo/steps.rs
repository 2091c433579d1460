//! The steps: each does something to the relay, shows what came of it, and checks it.

use anyhow::ensure;

use super::mail::{self, Mail};
use super::screen::{Screen, seconds};
use super::stage::{JANE, JOHN, MAILBOXES, NOTIFICATIONS, Stage, within};
use super::support::script::Rule;
use super::support::smtp::{Fault, Step};

/// Where Odoo's mail goes.
const CUSTOMER: &str = "ada@customer.example";
/// How long the first access tokens live, in seconds: little, so that their refresh ahead of expiry can be watched.
const SHORT: i64 = 8;
/// How long the later ones live: about as long as Microsoft's.
const USUAL: i64 = 3599;
/// The same for somebody who stays to watch.
const WATCHABLE: i64 = 90;

/// What a mail has to come to.
struct Expected<'a> {
    mailbox: &'a str,
    rule: &'a str,
    from: &'a str,
}

/// All of them, one after the other.
pub(crate) async fn all(stage: &mut Stage, screen: &mut Screen, stay: bool) -> anyhow::Result<()> {
    screen.line(
        &screen.bold("outlook-relay, between a scripted Odoo and a scripted Microsoft 365 on this machine"),
    );
    start(stage, screen).await?;
    own_mailbox(stage, screen, "John", "\"John Doe\" <john@example.com>", JOHN).await?;
    own_mailbox(stage, screen, "Jane", "Jane Roe <jane@example.com>", JANE).await?;
    stranger(stage, screen).await?;
    inbox(stage, screen).await?;
    ahead_of_expiry(stage, screen).await?;
    refused_token(stage, screen).await?;
    endpoint_down(stage, screen).await?;
    refused_recipient(stage, screen).await?;
    crash(stage, screen, if stay { WATCHABLE } else { USUAL }).await?;
    screen.summary();
    Ok(())
}

async fn start(stage: &mut Stage, screen: &mut Screen) -> anyhow::Result<()> {
    screen.step("Three mailboxes are connected, the relay starts and gets their access tokens");
    stage.world.entra.set_expires_in(SHORT);
    let mut consents = Vec::new();
    for mailbox in MAILBOXES {
        consents.push(stage.consent(mailbox).await?);
    }
    stage.start_relay().await;
    for (mailbox, consent) in MAILBOXES.into_iter().zip(consents) {
        let newest = stage.refreshed(mailbox, 1).await?;
        let line = stage.log_line(&["token refreshed", mailbox]).await?;
        let tokens = stage.refresh_tokens(mailbox);
        ensure!(
            tokens.first() == Some(&consent),
            "{mailbox}: another refresh token than the one of its consent was used"
        );
        ensure!(
            line.contains("rotated=true"),
            "{mailbox}: the log says nothing of the new refresh token: {line}"
        );
        screen.fact(mailbox, format_args!("refresh token #1 used, #{newest} came with the access token"));
    }
    stage.world.entra.set_expires_in(USUAL);
    screen.proved("each mailbox has an access token, and a new refresh token in place of the old one");
    Ok(())
}

async fn own_mailbox(
    stage: &Stage,
    screen: &mut Screen,
    name: &str,
    from: &str,
    mailbox: &str,
) -> anyhow::Result<()> {
    screen.step(&format!("Odoo sends as {name}, who has a mailbox"));
    let mail = Mail::new(from, CUSTOMER, "Your order S00042");
    let expected = Expected { mailbox, rule: "address", from };
    sent(stage, screen, &mail, &expected).await?;
    screen.proved("sent by its own mailbox, byte for byte as Odoo wrote it");
    Ok(())
}

async fn stranger(stage: &Stage, screen: &mut Screen) -> anyhow::Result<()> {
    screen.step("Odoo sends as Mitchell, who has none");
    let mail = Mail::new("\"Mitchell Admin\" <mitchell@example.com>", CUSTOMER, "Your invoice INV/2026/0007");
    let expected = Expected {
        mailbox: NOTIFICATIONS,
        rule: "notifications_address",
        from: "\"Mitchell Admin\" <notifications@example.com>",
    };
    sent(stage, screen, &mail, &expected).await?;
    screen.proved(
        "sent by the notifications mailbox, the From rewritten as Odoo's rule says, nothing else changed",
    );
    Ok(())
}

/// Sends a mail, shows its way, and checks it.
async fn sent(stage: &Stage, screen: &Screen, mail: &Mail, expected: &Expected<'_>) -> anyhow::Result<()> {
    screen.fact("From, as Odoo gave it", &mail.from);
    let route = stage.route(&mail.from).await?;
    screen.highlight("mailbox", &route.mailbox);
    screen.fact("rule", format_args!("{}: {}", route.rule, why(&route.rule)));
    let Expected { mailbox, rule, from } = expected;
    ensure!(
        (route.mailbox.as_str(), route.rule.as_str(), route.from.as_str()) == (*mailbox, *rule, *from),
        "expected {mailbox} by {rule} with {from}; `route` says {} by {} with {}",
        route.mailbox,
        route.rule,
        route.from
    );
    stage.send(mail).await?;
    let delivered = stage.arrival(mail).await?;
    let from = mail::header(&delivered.data, "From").unwrap_or_default();
    let changed = if from == mail.from { "unchanged" } else { "rewritten" };
    screen.highlight("From, as it arrived", format_args!("{from}   ({changed})"));
    if from != mail.from {
        let reply_to = mail::header(&delivered.data, "Reply-To").unwrap_or_default();
        screen.fact("Reply-To, as it arrived", format_args!("{reply_to}   (unchanged)"));
    }
    screen.fact(
        "envelope",
        format_args!("<{}> to <{}>", delivered.mail_from, delivered.recipients.join(">, <")),
    );
    ensure!(
        delivered.mailbox == expected.mailbox && delivered.mail_from == expected.mailbox,
        "signed in as {} and sent from {}",
        delivered.mailbox,
        delivered.mail_from
    );
    ensure!(from == expected.from, "the From that arrived is {from}, not {}", expected.from);
    ensure!(delivered.recipients == [mail.to.as_str()], "it went to {:?}", delivered.recipients);
    // The relay adds a trace of itself, takes Odoo's Return-Path away, and on fallback writes the From anew: nothing else.
    let from = if expected.from == mail.from { "Received" } else { "From" };
    let touched = &["Received", "Return-Path", from];
    let same = mail::without(touched, &delivered.data) == mail::without(touched, &mail.bytes());
    ensure!(same, "the mail was changed on its way:\n{}", delivered.text());
    screen.log(&stage.log_line(&[" sent ", &mail.id]).await?);
    Ok(())
}

/// Odoo's From-filter rule, in words.
fn why(rule: &str) -> &'static str {
    match rule {
        "address" => "its from_filter holds this very address",
        "domain" => "its from_filter holds the domain",
        "notifications_address" => "no from_filter holds the From; this one holds Odoo's default sender",
        "notifications_domain" => "no from_filter holds the From; this one holds the default sender's domain",
        "unfiltered" => "nothing matches, and this one takes any From",
        _ => "nothing matches: the first one",
    }
}

async fn inbox(stage: &Stage, screen: &mut Screen) -> anyhow::Result<()> {
    screen.step("A customer's mail arrives in the notifications inbox");
    let id = mail::foreign_id();
    let raw = mail::incoming(NOTIFICATIONS, "Price of 20 chairs?", &id);
    let uid = stage.world.imap.deliver(NOTIFICATIONS, "INBOX", &raw);
    screen.fact("in the inbox", format_args!("message {uid}: \"Price of 20 chairs?\", from {CUSTOMER}"));
    let post = stage.record(&id).await?;
    let (record, model) = (post.record.unwrap_or_default(), post.model.clone().unwrap_or_default());
    screen.highlight("in Odoo", format_args!("record {record} of {model}"));
    ensure!(model == "crm.lead", "the fallback model was {model:?}");
    ensure!(*post.raw == raw, "the mail was changed on its way:\n{}", post.text());
    within("the mail marked as read", || {
        let flags = stage.world.imap.flags(NOTIFICATIONS, "INBOX", uid)?;
        flags.contains("\\Seen").then_some(())
    })
    .await?;
    screen.fact("in the inbox", "marked as read, only now that Odoo has it");
    screen.log(&stage.log_line(&[" pushed ", &id]).await?);
    let pushes = stage.world.odoo.posts().len();
    ensure!(pushes == 1, "it was pushed {pushes} times");
    screen.proved("in Odoo once, byte for byte");
    Ok(())
}

async fn ahead_of_expiry(stage: &Stage, screen: &mut Screen) -> anyhow::Result<()> {
    screen.step(&format!(
        "The first access tokens live for {SHORT} seconds only: they are refreshed before they expire"
    ));
    for mailbox in MAILBOXES {
        let newest = stage.refreshed(mailbox, 2).await?;
        let asked: Vec<_> = stage.world.entra.requests();
        let mut asked = asked.iter().filter(|request| request.mailbox.as_deref() == Some(mailbox));
        if let (Some(first), Some(second)) = (asked.next(), asked.next()) {
            let age = second.at.duration_since(first.at).unsigned_abs();
            ensure!(
                age.as_secs() < SHORT.unsigned_abs(),
                "{mailbox}: refreshed too late, after {}",
                seconds(age)
            );
            screen.fact(
                mailbox,
                format_args!(
                    "refreshed at the age of {}, refresh token #{} → #{newest}",
                    seconds(age),
                    newest - 1
                ),
            );
        }
    }
    let in_flight = MAILBOXES.map(|mailbox| stage.world.entra.max_in_flight(mailbox));
    ensure!(in_flight == [1; 3], "more than one refresh of a mailbox at a time: {in_flight:?}");
    screen.proved("refreshed ahead of expiry, never twice at a time");
    Ok(())
}

async fn refused_token(stage: &Stage, screen: &mut Screen) -> anyhow::Result<()> {
    screen.step("Exchange refuses Jane's access token, though it should still be good");
    let before = stage.world.entra.refreshes(JANE);
    let refusal = "535 5.7.3 Authentication unsuccessful [DEMO]";
    stage.world.smtp.script(Rule::new(Step::Auth, Fault::reply(refusal)).only(JANE));
    let mail = Mail::new("Jane Roe <jane@example.com>", CUSTOMER, "Delivery WH/OUT/0003");
    stage.send(&mail).await?;
    let delivered = stage.arrival(&mail).await?;
    ensure!(stage.world.smtp.pending() == 0, "Jane's token was never refused");
    let newest = stage.refreshed(JANE, before + 1).await?;
    screen.fact("Exchange", refusal);
    screen.highlight(
        "the relay",
        format_args!("fetches another at once: refresh token #{} → #{newest}", newest - 1),
    );
    ensure!(delivered.mailbox == JANE, "signed in as {}", delivered.mailbox);
    let line = stage.log_line(&[" sent ", &mail.id]).await?;
    screen.log(&line);
    ensure!(line.contains("attempts=1"), "it took more than one attempt: {line}");
    screen.proved("sent in the same attempt");
    Ok(())
}

async fn endpoint_down(stage: &Stage, screen: &mut Screen) -> anyhow::Result<()> {
    screen.step("Microsoft's token endpoint is down");
    stage.world.entra.server.down().await;
    let mail = Mail::new("\"John Doe\" <john@example.com>", CUSTOMER, "Your quotation S00043");
    stage.send(&mail).await?;
    let delivered = stage.arrival(&mail).await?;
    stage.world.entra.server.up().await;
    ensure!(delivered.mailbox == JOHN, "signed in as {}", delivered.mailbox);
    screen.highlight("John's mail", "goes out all the same, with the access token at hand");
    screen.proved("an outage that is shorter than a token's life is not felt");
    Ok(())
}

async fn refused_recipient(stage: &Stage, screen: &mut Screen) -> anyhow::Result<()> {
    screen.step("Microsoft does not know the recipient");
    let nobody = "nobody@customer.example";
    let unknown = "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found";
    stage.world.smtp.script(Rule::new(Step::Rcpt, Fault::reply(unknown)).only(nobody));
    let mail = Mail::new("\"John Doe\" <john@example.com>", nobody, "Your order S00045");
    stage.send(&mail).await?;
    screen.log(&stage.log_line(&[" failed ", &mail.id]).await?);
    let told = (mail.id.clone(), nobody.to_owned());
    within("the report in Odoo", || stage.world.odoo.bounces().contains(&told).then_some(())).await?;
    screen.highlight("in Odoo", "the message has turned to \"bounced\", with the reason");
    ensure!(stage.arrivals(&mail).is_empty(), "it was sent all the same");
    screen.proved("what fails for good is reported");
    Ok(())
}

async fn crash(stage: &mut Stage, screen: &mut Screen, lifetime: i64) -> anyhow::Result<()> {
    screen.step("Exchange is down, Odoo sends, and the relay is killed (kill -9)");
    stage.world.smtp.server.down().await;
    let mail = Mail::new("\"John Doe\" <john@example.com>", CUSTOMER, "Your order S00044");
    stage.send(&mail).await?;
    screen.fact("Odoo", "hands over John's mail, and has its 250");
    screen.log(&stage.log_line(&["mailbox paused", JOHN]).await?);
    let newest = MAILBOXES.map(|mailbox| stage.world.entra.refresh_token(mailbox));
    let refreshes = MAILBOXES.map(|mailbox| stage.world.entra.refreshes(mailbox));
    let before = stage.world.smtp.delivered().len();
    let asked = stage.world.entra.requests().len();
    stage.kill_relay().await;
    screen.fact("the relay", "is killed, Exchange comes back, the relay is started again");
    // From now on only the newest refresh token of each mailbox is any good: a rotated one that was lost would show.
    stage.world.entra.set_old_tokens_work(false);
    stage.world.entra.set_expires_in(lifetime);
    stage.world.smtp.server.up().await;
    stage.start_relay().await;
    for ((mailbox, newest), refreshes) in MAILBOXES.into_iter().zip(newest).zip(refreshes) {
        let number = stage.refreshed(mailbox, refreshes + 1).await?;
        let requests = stage.world.entra.requests();
        let mut since = requests.iter().skip(asked);
        let first = since.find(|request| request.mailbox.as_deref() == Some(mailbox));
        ensure!(
            first.is_some_and(|request| request.refresh_token == newest),
            "{mailbox}: not the newest refresh token was used after the crash"
        );
        screen.fact(mailbox, format_args!("refresh token #{} was on disk → #{number}", number - 1));
    }
    stage.arrival(&mail).await?;
    let line = stage.log_line(&[" sent ", &mail.id]).await?;
    screen.log(&line);
    let (copies, all) = (stage.arrivals(&mail).len(), stage.world.smtp.delivered().len());
    ensure!(
        (copies, all) == (1, before + 1),
        "{copies} copies of it, {} mails sent since the crash",
        all - before
    );
    screen.proved("John's mail went out once, nothing else was sent again, no token was lost");
    Ok(())
}
