//! Every step of the dialogue with Microsoft 365 times every way in which it can go wrong: nothing is lost, nothing is sent
//! twice, and what can never be sent is reported to Odoo once. Each cell is a mailbox with a service of its own; what the
//! services take lies in a real server's folder of sent mail, as at Exchange. Run it with `--nocapture` for the table.

use crate::company;
use crate::soak;
use crate::support::client::message;
use crate::support::dovecot::Dovecot;
use crate::support::relay::{Config, Relay};
use crate::support::script::Rule;
use crate::support::smtp::{Fault, Smtp, Step};
use crate::support::world::World;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const BOUNCE: &str = "bounce@example.com";
/// Far above the slowest cell: a pause that a person ends still takes 10 s, and a lost connection pauses for some more.
const DEADLINE: Duration = Duration::from_secs(240);

const STEPS: [(&str, Step); 14] = [
    ("connect", Step::Connect),
    ("banner", Step::Banner),
    ("ehlo", Step::Ehlo),
    ("starttls", Step::StartTls),
    ("handshake", Step::Handshake),
    ("ehlo-tls", Step::EhloTls),
    ("auth", Step::Auth),
    ("mail", Step::Mail),
    ("rcpt", Step::Rcpt),
    ("data", Step::Data),
    ("mid-data", Step::MidData),
    ("dot", Step::AfterDot),
    ("rset", Step::Rset),
    ("quit", Step::Quit),
];

fn faults() -> [(&'static str, Fault); 8] {
    [
        ("refused", Fault::reply("554 5.0.0 No")),
        ("later", Fault::reply("451 4.3.0 Later")),
        ("cut", Fault::Cut),
        ("silence", Fault::Silence),
        ("garbage", Fault::Garbage),
        ("endless", Fault::EndlessLine),
        ("kept-cut", Fault::KeepThenCut),
        ("kept-silence", Fault::KeepThenSilence),
    ]
}

/// One step that goes wrong in one way.
struct Cell {
    step: Step,
    mailbox: String,
    smtp: Smtp,
}

impl Cell {
    fn recipients(&self) -> [String; 2] {
        ["a", "b"].map(|who| format!("{who}.{}", self.mailbox))
    }

    /// The message before, which leaves its transaction open: RSET comes before the next one.
    fn before(&self) -> Option<String> {
        (self.step == Step::Rset).then(|| format!("before.{}", self.mailbox))
    }

    /// How often each recipient got it, and how often Odoo was told that one did not.
    fn outcomes(&self, bounces: &[(String, String)]) -> Vec<(String, usize, usize)> {
        let delivered: Vec<String> =
            self.smtp.delivered().into_iter().flat_map(|mail| mail.recipients).collect();
        let count = |to: &String| {
            let bounced = bounces.iter().filter(|(_, bounced)| bounced == to).count();
            (to.clone(), delivered.iter().filter(|one| *one == to).count(), bounced)
        };
        self.recipients().iter().chain(&self.before()).map(count).collect()
    }
}

/// Whether it matters there that commands leave in groups (PIPELINING).
fn is_of_a_transaction(step: Step) -> bool {
    let steps = [Step::Mail, Step::Rcpt, Step::Data, Step::MidData, Step::AfterDot, Step::Rset];
    steps.contains(&step)
}

async fn cells(world: &World, dovecot: &Dovecot) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (step_name, step) in STEPS {
        for (fault_name, fault) in faults() {
            // Only what came whole can be kept.
            if fault_name.starts_with("kept") && step != Step::AfterDot {
                continue;
            }
            for prefix in ["", "one-by-one."] {
                if !prefix.is_empty() && !is_of_a_transaction(step) {
                    continue;
                }
                let smtp = Smtp::start(&world.tls, world.entra.check()).await;
                smtp.set_hook(dovecot.sent_items());
                if !prefix.is_empty() {
                    smtp.drop_extension("PIPELINING");
                }
                let mailbox = format!("{prefix}{step_name}.{fault_name}@example.com");
                if step == Step::Rset {
                    let to = format!("before.{mailbox}");
                    smtp.script(Rule::new(Step::Rcpt, Fault::reply("451 4.3.0 Later")).only(&to));
                }
                smtp.script(Rule::new(step, fault.clone()));
                cells.push(Cell { step, mailbox, smtp });
            }
        }
    }
    cells
}

async fn start(world: &World, dovecot: &Dovecot, cells: &[Cell]) -> (Config, Relay) {
    let mut config = world.config();
    config.text("microsoft", "imap", &dovecot.imap_endpoint());
    config.text("delivery", "reply_timeout", "1s");
    config.text("delivery", "sent_delay", "1s");
    config.raw("delivery", "connections", "1");
    config.text("odoo", "report_after", "1ms");
    for cell in cells {
        let (filter, smtp) = (format!("\"{}\"", cell.mailbox), format!("\"{}\"", cell.smtp.endpoint()));
        config.mailbox(&cell.mailbox, &[("from_filter", &filter), ("smtp", &smtp)]);
    }
    let mailboxes: Vec<String> = cells.iter().map(|cell| cell.mailbox.clone()).collect();
    soak::consent(&config, &world.entra, &mailboxes).await;
    let relay = config.start().await;
    (config, relay)
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "the table is what the test is run for")]
async fn nothing_is_lost_and_nothing_is_sent_twice_whatever_goes_wrong_where() {
    let world = World::start().await;
    let dovecot = Dovecot::start(&world.tls, &world.entra).await;
    let cells = cells(&world, &dovecot).await;
    let (config, mut relay) = start(&world, &dovecot, &cells).await;
    for cell in &cells {
        for to in cell.before().into_iter().map(|to| vec![to]).chain([cell.recipients().to_vec()]) {
            let to: Vec<&str> = to.iter().map(String::as_str).collect();
            let id = format!("{}.{}", to.len(), cell.mailbox);
            let reply = relay.send(BOUNCE, &to, &message(&cell.mailbox, "all@x.test", &id, "Hi")).await;
            assert_eq!(reply.code, 250, "{reply:?}");
        }
    }

    let end = Instant::now() + DEADLINE;
    loop {
        let waiting: Vec<_> = company::queue(&config)
            .await
            .into_iter()
            .filter(|message| message["state"] != "failed")
            .map(|message| message["mailbox"].to_string())
            .collect();
        let reported = cells.iter().all(|cell| {
            cell.outcomes(&world.odoo.bounces()).iter().all(|(_, sent, bounced)| sent + bounced > 0)
        });
        if waiting.is_empty() && reported {
            break;
        }
        assert!(Instant::now() < end, "still waiting: {waiting:?}\n{}", relay.log().join("\n"));
        // As an operator does who knows that Microsoft is well again.
        config.cli(&["queue", "retry", "--state", "waiting"]).await;
        sleep(Duration::from_millis(500)).await;
    }
    // QUIT is said to what is left idle, and whatever is answered must not hold up the stop.
    assert_eq!(relay.terminate(Duration::from_secs(60)).await, Some(0), "{}", relay.log().join("\n"));

    let (mut table, mut lost, mut twice) = (BTreeMap::new(), 0, 0);
    for cell in &cells {
        let outcomes = cell.outcomes(&world.odoo.bounces());
        for (to, sent, bounced) in &outcomes {
            lost += usize::from(sent + bounced == 0);
            twice += usize::from(sent + bounced > 1);
            let may_bounce =
                matches!(cell.step, Step::Mail | Step::Rcpt | Step::Data | Step::MidData | Step::AfterDot);
            let refused = cell.mailbox.contains(".refused@");
            assert!(*bounced == 0 || (may_bounce && refused), "{to}: {outcomes:?}");
        }
        assert_eq!(cell.smtp.pending(), 0, "{}: the fault never came", cell.mailbox);
        let told = outcomes.iter().map(|(_, sent, bounced)| format!("{sent}/{bounced}")).collect::<Vec<_>>();
        table.insert(cell.mailbox.clone(), told.join(" "));
    }
    println!("cell: for each recipient, how often sent / how often reported as failed");
    for (cell, told) in &table {
        println!("{cell:40} {told}");
    }
    println!("{} cells, {lost} lost, {twice} twice", cells.len());
    assert_eq!((lost, twice), (0, 0), "{table:#?}");
}
