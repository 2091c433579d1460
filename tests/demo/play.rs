//! `--stay`: the stage goes on running; what happens on it is shown, and a few words typed in make things happen.

use std::io::BufRead;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::mail::{self, Mail};
use super::screen::Screen;
use super::stage::{MAILBOXES, NOTIFICATIONS, Stage};
use super::support::server::Server;

const WORDS: &str = r"   send FROM SUBJECT          Odoo sends a mail:  send john@example.com Hello
   mail ADDRESS SUBJECT       a mail arrives in an inbox:  mail notifications@example.com A question
   outage [token|smtp|imap|odoo]
                              the token endpoint, or another service, goes down
   recover                    everything that is down comes back
   help                       these words
   quit                       ends everything, as Ctrl-C does";

/// What was typed in.
enum Word {
    Send(String, String),
    Mail(String, String),
    Outage(Service),
    Recover,
    Quit,
    Help,
}

/// What can be down.
#[derive(Clone, Copy)]
enum Service {
    Token,
    Smtp,
    Imap,
    Odoo,
}

const SERVICES: [(&str, Service); 4] =
    [("token", Service::Token), ("smtp", Service::Smtp), ("imap", Service::Imap), ("odoo", Service::Odoo)];

/// How much of what has happened is shown already.
struct Seen {
    sent: usize,
    posts: usize,
    token_requests: usize,
    log: usize,
}

/// Until somebody says quit.
pub(crate) async fn play(stage: &mut Stage, screen: &mut Screen) {
    introduce(stage, screen);
    let mut words = words();
    let mut look = interval(Duration::from_millis(100));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = Seen::now(stage);
    loop {
        tokio::select! {
            _ = look.tick() => seen.show(stage, screen),
            Some(line) = words.recv() => match word(&line) {
                Some(Word::Quit) => return,
                Some(word) => obey(word, stage, screen).await,
                None => screen.line(WORDS),
            }
        }
    }
}

fn introduce(stage: &Stage, screen: &Screen) {
    let file = stage.config.write();
    let (file, smtp) = (file.display(), stage.config.submission);
    let (host, port) = (smtp.ip(), smtp.port());
    screen.line(&format!(
        "\n{}",
        screen.bold("It goes on running. Ctrl-C ends it and clears everything away.")
    ));
    screen.line("\nSend mail through it, as Odoo does, from another terminal:");
    screen.line(&format!(
        "   swaks --server {smtp} --from john@example.com --to you@example.net --header 'Subject: Hello'\n   \
         python3 -c \"import smtplib; smtplib.SMTP('{host}', {port}).sendmail('john@example.com', 'you@example.net', \
         'From: John <john@example.com>\\nTo: you@example.net\\nSubject: Hello\\n\\nHello\\n')\""
    ));
    screen.line("\nAsk it:");
    for command in ["status", "queue list", "route --from 'Mitchell <mitchell@example.com>'"] {
        screen.line(&format!("   cargo run --release -- {command} -c {file}"));
    }
    screen.line(&format!("   http://{}/status", stage.config.admin));
    screen.line("\nOr type here, and press Enter:");
    screen.line(WORDS);
    screen.line(
        "\nAccess tokens live for 90 seconds here, so that about once a minute they are seen to be refreshed.\n\
         What happens from now on:\n",
    );
}

/// The lines typed in; none any more once standard input has ended, which ends nothing else. A thread of its own, since
/// a read from a terminal cannot be cancelled.
fn words() -> mpsc::UnboundedReceiver<String> {
    let (to, words) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if to.send(line).is_err() {
                return;
            }
        }
    });
    words
}

fn word(line: &str) -> Option<Word> {
    let (word, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
    let rest = rest.trim();
    let two = || {
        let (address, subject) = rest.split_once(char::is_whitespace).unwrap_or((rest, "Hello"));
        (!address.is_empty()).then(|| (address.to_owned(), subject.trim().to_owned()))
    };
    match word {
        "send" => two().map(|(from, subject)| Word::Send(from, subject)),
        "mail" => two().map(|(mailbox, subject)| Word::Mail(mailbox, subject)),
        "outage" if rest.is_empty() => Some(Word::Outage(Service::Token)),
        "outage" => {
            let (_, service) = SERVICES.into_iter().find(|(name, _)| *name == rest)?;
            Some(Word::Outage(service))
        }
        "recover" => Some(Word::Recover),
        "quit" | "exit" => Some(Word::Quit),
        "help" => Some(Word::Help),
        _ => None,
    }
}

async fn obey(word: Word, stage: &Stage, screen: &Screen) {
    match word {
        Word::Send(from, subject) => {
            let mail = Mail::new(&from, "you@example.net", &subject);
            // That it was taken shows in the relay's log.
            if let Err(error) = stage.send(&mail).await {
                screen.line(&format!("→ {error:#}"));
            }
        }
        Word::Mail(mailbox, subject) => {
            if !MAILBOXES.contains(&mailbox.as_str()) {
                screen.line(&format!("There is no {mailbox}, only {}", MAILBOXES.join(", ")));
                return;
            }
            let raw = mail::incoming(&mailbox, &subject, &mail::foreign_id());
            let uid = stage.world.imap.deliver(&mailbox, "INBOX", &raw);
            let watched = if mailbox == NOTIFICATIONS { "" } else { ", which the relay does not watch" };
            screen.line(&format!("← arrived          message {uid} in the inbox of {mailbox}{watched}"));
        }
        Word::Outage(service) => {
            server(stage, service).down().await;
            let what = match service {
                Service::Token => "Microsoft's token endpoint",
                Service::Smtp => "Exchange's SMTP",
                Service::Imap => "Exchange's IMAP",
                Service::Odoo => "Odoo",
            };
            screen.line(&format!("{what} is down; `recover` brings it back."));
        }
        Word::Recover => {
            for (_, service) in SERVICES {
                server(stage, service).up().await;
            }
            screen.line("Everything is up.");
        }
        Word::Help | Word::Quit => screen.line(WORDS),
    }
}

fn server(stage: &Stage, service: Service) -> &Server {
    match service {
        Service::Token => &stage.world.entra.server,
        Service::Smtp => &stage.world.smtp.server,
        Service::Imap => &stage.world.imap.server,
        Service::Odoo => &stage.world.odoo.server,
    }
}

impl Seen {
    fn now(stage: &Stage) -> Self {
        Self {
            sent: stage.world.smtp.delivered().len(),
            posts: stage.world.odoo.posts().len(),
            token_requests: stage.world.entra.requests().len(),
            log: stage.log().len(),
        }
    }

    /// What is new.
    fn show(&mut self, stage: &Stage, screen: &Screen) {
        let now = Self::now(stage);
        for line in stage.log().iter().skip(self.log) {
            let worth_it = [" accepted ", " WARN ", " ERROR ", " recovered "];
            if worth_it.iter().any(|part| line.contains(part)) {
                screen.event(line);
            }
        }
        for delivered in stage.world.smtp.delivered().iter().skip(self.sent) {
            let field = |name| mail::header(&delivered.data, name).unwrap_or_default();
            screen.line(&format!(
                "→ sent             by {} to {}, From: {}, {:?}",
                delivered.mailbox,
                delivered.recipients.join(", "),
                field("From"),
                field("Subject")
            ));
        }
        for post in stage.world.odoo.posts().iter().skip(self.posts) {
            let subject = mail::header(&post.raw, "Subject").unwrap_or_default();
            let record =
                post.record.map_or_else(|| format!("{:?}", post.answer), |id| format!("record {id}"));
            screen.line(&format!("← in Odoo          {record}: {subject:?}"));
        }
        for request in stage.world.entra.requests().iter().skip(self.token_requests) {
            let mailbox = request.mailbox.as_deref().unwrap_or("nobody");
            let count = stage.refresh_tokens(mailbox).len();
            screen.dim(&format!(
                "↻ token refreshed  {mailbox}, refresh token #{} → #{count}",
                count.saturating_sub(1)
            ));
        }
        *self = now;
    }
}
