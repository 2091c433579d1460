//! A wall clock that jumps by a day, forth and back, under the running daemon: nothing is lost, and nothing waits for the
//! time that it showed. libfaketime moves it.

use crate::company::{self, JANE, JOHN};
use crate::support::client::message;
use crate::support::relay::{Config, Relay};
use crate::support::script::Rule;
use crate::support::smtp::{Fault, Step};
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use outlook_relay::clock;
use std::path::PathBuf;
use std::time::Duration;

const BOUNCE: &str = "bounce@example.com";

/// The clock of one daemon.
struct Clock {
    file: PathBuf,
}

impl Clock {
    fn of(config: &mut Config) -> Self {
        let clock = Self { file: config.dir().join("clock") };
        clock.set("+0");
        // Of the package faketime, which tests/run installs; its folder is named by the architecture.
        let library = std::fs::read_dir("/usr/lib")
            .unwrap()
            .map(|folder| folder.unwrap().path().join("faketime/libfaketime.so.1"))
            .find(|library| library.exists())
            .unwrap();
        config.env("LD_PRELOAD", &library.display().to_string());
        config.env("FAKETIME_TIMESTAMP_FILE", &clock.file.display().to_string());
        config.env("FAKETIME_NO_CACHE", "1");
        config.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        config.env("DONT_FAKE_MONOTONIC", "1");
        clock
    }

    /// Sets it to so much from now, at once.
    fn set(&self, offset: &str) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{offset}\n")).unwrap();
        std::fs::rename(&new, &self.file).unwrap();
    }
}

async fn send(relay: &Relay, from: &str, id: &str) {
    let reply = relay.send(BOUNCE, &["a@x.test"], &message(from, "a@x.test", id, "Hi")).await;
    assert_eq!(reply.code, 250, "{reply:?}");
}

#[tokio::test]
async fn a_clock_that_jumps_by_a_day_loses_nothing_and_holds_up_nothing() {
    let world = World::start().await;
    let mut config = company::config(&world);
    let clock = Clock::of(&mut config);
    company::connect(&world, &config).await;
    let relay = config.start().await;
    let begun = relay.wait_for_log("ready").await;
    assert!(!begun.starts_with(&tomorrow()), "{begun}");

    clock.set("+1d");
    send(&relay, JOHN, "forth@t").await;
    until(SOON, "the mail of tomorrow", || world.smtp.count() == 1).await;
    assert!(relay.wait_for_log("forth@t").await.starts_with(&tomorrow()), "the clock does not move");
    // One that is tried again by its schedule, and a mailbox that is paused for a person.
    world.smtp.script(Rule::new(Step::AfterDot, Fault::reply("451 4.3.0 later")).only("forth-deferred@t"));
    let disabled =
        "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.";
    world.smtp.script(Rule::new(Step::Auth, Fault::reply(disabled)).always().only(JANE));
    send(&relay, JOHN, "forth-deferred@t").await;
    send(&relay, JANE, "paused@t").await;
    relay.wait_for_log("deferred").await;
    relay.wait_for_log("mailbox paused").await;

    world.smtp.clear();
    clock.set("+0");
    relay.wait_for_log("clock set back").await;
    until(SOON * 2, "what waited for tomorrow", || world.smtp.count() == 3).await;
    until(SOON, "its settlement", || relay.count_log(" sent ") == 3).await;
    send(&relay, JANE, "back@t").await;
    until(SOON, "the mail of today", || world.smtp.count() == 4).await;
    until(SOON, "its settlement", || relay.count_log(" sent ") == 4).await;
    assert!(company::queue(&config).await.is_empty());
    config.cli(&["status"]).await.success();
}

fn tomorrow() -> String {
    let tomorrow = clock::after(clock::now(), Duration::from_secs(86_400));
    tomorrow.strftime("%Y-%m-%d").to_string()
}
