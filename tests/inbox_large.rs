//! Inboxes of any size: the relay asks for what it needs in portions, and takes little memory.
#![expect(clippy::print_stdout, reason = "what was measured is shown with --no-capture")]

use crate::company::{self, NOTIFICATIONS};
use crate::support::client::message;
use crate::support::relay::Relay;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::collections::HashSet;
use std::time::{Duration, Instant};

const MESSAGES: usize = 100_000;
/// So many are enough to see that it gets on.
const SOME: usize = 200;
/// What a folder of that size may take beside what the program takes anyway, in KiB: 100,000 UIDs, as text and as
/// numbers, are 2 MiB.
const MOST: u64 = 64 << 10;
/// Exchange does not take commands of any length. (RFC 7162 section 4 recommends 8,192 bytes.)
const LONGEST_COMMAND: usize = 4096;
/// For what takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The most memory it ever took, in KiB.
fn peak(relay: &Relay) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_of_a_hundred_thousand_takes_portions_and_little_memory() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.raw("fetch", "new_per_sender", "0");
    company::connect(&world, &config).await;
    let mut relay = config.start().await;
    world.imap.deliver(NOTIFICATIONS, "INBOX", &message("a@x.test", NOTIFICATIONS, "first@t", "Hi"));
    until(SOON, "the first", || world.odoo.taken().len() == 1).await;
    let alone = peak(&relay);
    world.imap.fill(NOTIFICATIONS, "INBOX", MESSAGES, |number| {
        message("a@x.test", NOTIFICATIONS, &format!("{number}@t"), "Hi")
    });
    let begun = Instant::now();
    until(PATIENCE, "some of them", || world.odoo.posts().len() > SOME).await;
    let (found, some) = (peak(&relay), begun.elapsed());
    assert_eq!(relay.terminate(PATIENCE).await, Some(0));
    let commands = world.imap.commands().len();

    // The UIDs count anew: how each of them lies in the folder is asked for.
    world.imap.set_uidvalidity(NOTIFICATIONS, "INBOX", 777);
    let before = world.odoo.posts().len();
    let mut relay = config.start().await;
    let begun = Instant::now();
    until(PATIENCE, "some more of them", || world.odoo.posts().len() > before + SOME).await;
    let anew = peak(&relay);
    println!(
        "alone {alone} KiB; {MESSAGES} found {found} KiB, the first {SOME} after {some:?} and {commands} commands; anew \
         {anew} KiB, after {:?}",
        begun.elapsed()
    );
    assert_eq!(relay.terminate(PATIENCE).await, Some(0));
    assert!(found < alone + MOST && anew < alone + MOST, "{alone}, {found}, {anew} KiB");
    let longest = world.imap.commands().iter().map(|(_, line)| line.len()).max().unwrap();
    assert!(longest < LONGEST_COMMAND, "{longest} bytes");
    let posts = world.odoo.posts();
    let ids: HashSet<_> = posts.iter().map(|post| post.message_id.clone().unwrap()).collect();
    assert_eq!(ids.len(), posts.len(), "none was pushed twice");
}
