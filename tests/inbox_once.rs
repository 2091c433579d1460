//! Received mail under load: latency at a real server, a long backlog, and kill -9 at random moments.
//! OUTLOOK_RELAY_KILLS=300 for more of them than a test run has time for.
#![expect(clippy::print_stdout, reason = "what was measured is shown with --no-capture")]

use crate::company::{self, NOTIFICATIONS};
use crate::support::client::message;
use crate::support::dovecot::Dovecot;
use crate::support::odoo::Answer;
use crate::support::script::Rule;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const ARRIVALS: usize = 200;
const BACKLOG: usize = 2000;
const LARGE: usize = 60 << 20;
const KILLS: usize = 100;

fn to_us(id: &str, subject: &str) -> Vec<u8> {
    message("customer@foreign.test", NOTIFICATIONS, id, subject)
}

/// How often each Message-Id made a record.
fn records(world: &World) -> BTreeMap<String, usize> {
    let mut records = BTreeMap::new();
    for post in world.odoo.taken() {
        *records.entry(post.message_id.unwrap()).or_default() += 1;
    }
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn dovecot_tells_of_new_mail_and_it_is_pushed_within_moments() {
    let world = World::start().await;
    let dovecot = Dovecot::start(&world.tls, &world.entra).await;
    let mut config = company::config(&world);
    config.text("microsoft", "imap", &dovecot.imap_endpoint());
    config.text("fetch", "poll", "1h");
    config.raw("fetch", "new_per_sender", "0");
    company::connect(&world, &config).await;
    dovecot.deliver(NOTIFICATIONS, "INBOX", &to_us("first@t", "ready"));
    let _relay = config.start().await;
    until(SOON, "the first", || world.odoo.posts().len() == 1).await;
    let mut took = Vec::new();
    for number in 0..ARRIVALS {
        let before = Instant::now();
        dovecot.deliver(NOTIFICATIONS, "INBOX", &to_us(&format!("{number}@t"), "new"));
        until(SOON, "it is pushed", || world.odoo.posts().len() == number + 2).await;
        took.push(before.elapsed());
    }
    took.sort();
    println!("arrival to Odoo: p50 {:?}, p99 {:?}, longest {:?}", took[100], took[198], took[199]);
    assert!(records(&world).values().all(|&count| count == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_and_a_large_mail_in_a_folder_with_umlauts_arrive_once_and_in_order() {
    let world = World::start().await;
    let dovecot = Dovecot::start(&world.tls, &world.entra).await;
    let mut config = company::config(&world);
    config.text("microsoft", "imap", &dovecot.imap_endpoint());
    config.raw("fetch", "new_per_sender", "0");
    config.mailbox(NOTIFICATIONS, &[("inbox", "true"), ("folder", "\"Aufträge\"")]);
    company::connect(&world, &config).await;
    for number in 0..BACKLOG {
        dovecot.deliver(NOTIFICATIONS, "Auftr&AOQ-ge", &to_us(&format!("{number}@t"), "waits"));
    }
    let mut large = to_us("large@t", "60 MB");
    large.resize(LARGE, b'x');
    large.chunks_exact_mut(76).skip(20).for_each(|line| line[74..].copy_from_slice(b"\r\n"));
    let begun = Instant::now();
    let mut relay = config.start().await;
    until(Duration::from_secs(60), "the backlog", || world.odoo.taken().len() == BACKLOG).await;
    println!("{BACKLOG} messages in {:?}", begun.elapsed());
    dovecot.deliver(NOTIFICATIONS, "Auftr&AOQ-ge", &large);
    until(Duration::from_secs(30), "the large one", || world.odoo.taken().len() == BACKLOG + 1).await;
    assert!(*world.odoo.taken()[BACKLOG].raw == large, "byte for byte");
    assert!(records(&world).values().all(|&count| count == 1));
    relay.terminate(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_moments_it_pushes_every_message_once() {
    let kills = std::env::var("OUTLOOK_RELAY_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let world = World::start().await;
    let mut config = company::config(&world);
    config.raw("fetch", "new_per_sender", "0");
    config.text("odoo", "timeout", "1s");
    company::connect(&world, &config).await;
    world.odoo.set_delay(Duration::from_millis(5));
    let mut sent = 0;
    for kill in 0..kills {
        for _ in 0..5 {
            world.imap.deliver(NOTIFICATIONS, "INBOX", &to_us(&format!("{sent}@t"), "Hi"));
            sent += 1;
        }
        if kill % 10 == 0 {
            // Taken, but the answer is lost.
            world.odoo.script(Rule::new((), Answer::TakenThenCut));
        }
        config.text("odoo", "protocol", ["xmlrpc", "json2"][kill % 2]);
        let mut relay = config.start().await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..200))).await;
        relay.kill9().await;
    }
    let _relay = config.start().await;
    until(Duration::from_secs(120), "all of them", || records(&world).len() == sent).await;
    until(SOON, "all marked", || {
        world.imap.messages(NOTIFICATIONS, "INBOX").iter().all(|message| message.flags.contains("\\Seen"))
    })
    .await;
    assert!(records(&world).values().all(|&count| count == 1), "{:?}", records(&world));
    // Odoo itself would recognise a second post: none was made of what it had.
    let posts = world.odoo.posts();
    let again =
        posts.iter().filter(|post| post.record.is_none() && matches!(post.answer, Answer::Taken)).count();
    let (once, lost) = (records(&world).len(), sent - records(&world).len());
    println!(
        "{kills} kills: {sent} messages, {once} records, {lost} lost, 0 twice; {} posts, {again} of what Odoo had",
        posts.len()
    );
    assert_eq!(again, 0);
}
