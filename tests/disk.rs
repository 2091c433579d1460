//! A disk that fills up, or may only be read: no accepted mail is lost, and the relay recovers by itself.

use crate::company::{self, JOHN};
use crate::support::client::message;
use crate::support::relay::{Config, Relay};
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::path::{Path, PathBuf};
use std::process::Command;

const BOUNCE: &str = "bounce@example.com";

/// A file system of its own in memory, as small as it is told; mounting takes root, which installing the tests'
/// packages took as well.
pub(crate) struct Disk {
    pub(crate) at: PathBuf,
}

impl Disk {
    pub(crate) fn mount(at: PathBuf, mebibytes: usize) -> Self {
        std::fs::create_dir(&at).unwrap();
        as_root("mount", &["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=0777"), "tmpfs"], &at);
        Self { at }
    }

    fn remount(&self, how: &str) {
        as_root("mount", &["-o", &format!("remount,{how}")], &self.at);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Also while somebody has it open: it goes when they do.
        as_root("umount", &["--lazy"], &self.at);
    }
}

fn as_root(command: &str, arguments: &[&str], at: &Path) {
    let root =
        std::fs::metadata("/proc/self").map(|of| std::os::unix::fs::MetadataExt::uid(&of)).unwrap() == 0;
    let mut run = if root { Command::new(command) } else { Command::new("sudo") };
    if !root {
        run.arg(command);
    }
    let done = run.args(arguments).arg(at).output().unwrap();
    assert!(done.status.success(), "{command} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The company, with its store on a small disk.
async fn start(world: &World, mebibytes: usize) -> (Disk, Config, Relay) {
    let mut config = company::config(world);
    let disk = Disk::mount(config.dir().join("disk"), mebibytes);
    config.text("store", "url", &format!("sqlite://{}", disk.at.join("relay.db").display()));
    config.raw("delivery", "messages_per_minute", "0");
    company::connect(world, &config).await;
    let relay = config.start().await;
    (disk, config, relay)
}

/// A message of about a mebibyte.
fn large(id: usize) -> Vec<u8> {
    let mut large = message(JOHN, "a@x.test", &format!("{id}@t"), "Hi");
    large.extend(b"0123456789abcdef 0123456789abcdef 0123456789abcdef\r\n".repeat(20_000));
    large
}

/// Sends until the relay takes no more; gives the number of messages that it took.
async fn fill(relay: &Relay, most: usize) -> usize {
    for id in 0..most {
        let reply = relay.send(BOUNCE, &["a@x.test"], &large(id)).await;
        if reply.code != 250 {
            assert_eq!(reply.code, 452, "{reply:?}");
            assert!(
                reply.text.contains("4.3.1") && reply.text.contains("free space on its disk"),
                "{reply:?}"
            );
            return id;
        }
    }
    most
}

/// Each message exactly once.
fn assert_delivered(world: &World, count: usize) {
    let mut ids: Vec<String> = world
        .smtp
        .delivered()
        .iter()
        .map(|mail| mail.text().split("Message-Id: <").nth(1).unwrap().split('>').next().unwrap().to_owned())
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), world.smtp.count()), (count, count));
}

#[tokio::test]
async fn a_disk_that_fills_up_refuses_new_mail_and_sends_what_waits() {
    let world = World::start().await;
    let (_disk, config, relay) = start(&world, 48).await;
    world.smtp.server.down().await;
    let taken = fill(&relay, 48).await;
    assert!((10..48).contains(&taken), "{taken}");
    let refused = relay.wait_for_log("are kept for sending what waits").await;
    assert!(refused.contains("ERROR") && refused.contains("refused"), "{refused}");

    world.smtp.server.up().await;
    assert!(
        config.cli(&["queue", "retry", "--all"]).await.success().starts_with(&format!("{taken} messages"))
    );
    until(SOON, "what waited", || world.smtp.count() >= taken).await;
    until(SOON, "room again", || relay.count_log(" sent") >= taken).await;
    let reply = relay.send(BOUNCE, &["a@x.test"], &large(taken)).await;
    assert_eq!(reply.code, 250, "{reply:?}");
    until(SOON, "the new mail", || world.smtp.count() > taken).await;
    assert_delivered(&world, taken + 1);
}

#[tokio::test]
async fn a_disk_that_others_fill_to_the_last_byte_holds_mail_up_until_there_is_room() {
    let world = World::start().await;
    let (disk, config, relay) = start(&world, 48).await;
    world.smtp.server.down().await;
    for id in 0..3 {
        assert_eq!(relay.send(BOUNCE, &["a@x.test"], &large(id)).await.code, 250);
    }
    let ballast = disk.at.join("ballast");
    let full = std::io::copy(&mut std::io::repeat(b'x'), &mut std::fs::File::create(&ballast).unwrap());
    assert!(full.is_err(), "the disk has no end");
    assert_eq!(fill(&relay, 1).await, 0);
    world.smtp.server.up().await;
    let line = relay.wait_for_log("store failed").await;
    assert!(line.contains("ERROR") && line.contains("look for a full disk"), "{line}");
    assert_eq!(config.cli(&["status"]).await.code, Some(1));

    std::fs::remove_file(&ballast).unwrap();
    until(SOON * 3, "what waited", || world.smtp.count() >= 3).await;
    relay.wait_for_log("store recovered").await;
    until(SOON, "all settled", || relay.count_log(" sent") >= 3).await;
    assert_delivered(&world, 3);
    assert_eq!(relay.count_log("store failed"), 1, "{:#?}", relay.log());
}

#[tokio::test]
async fn a_store_that_may_only_be_read_is_a_clear_error_and_keeps_its_mail() {
    let world = World::start().await;
    let (disk, config, mut relay) = start(&world, 48).await;
    world.smtp.server.down().await;
    assert_eq!(relay.send(BOUNCE, &["a@x.test"], &large(0)).await.code, 250);
    relay.kill9().await;
    disk.remount("ro");
    let output = config.cli(&["run"]).await;
    assert_eq!(output.code, Some(1));
    assert!(
        output.stderr.contains("relay.db") && output.stderr.contains("run as a user who may write there"),
        "{output:?}"
    );

    disk.remount("rw");
    world.smtp.server.up().await;
    let _relay = config.start().await;
    until(SOON, "the mail", || world.smtp.count() >= 1).await;
    assert_delivered(&world, 1);
}
