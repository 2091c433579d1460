//! The watchdog, as systemd sees it.

use crate::company;
use crate::support::client::message;
use crate::support::notify::Notified;
use crate::support::wait::SOON;
use crate::support::world::World;

#[tokio::test]
async fn it_is_fed_however_ill_the_mailboxes_are() {
    let world = World::start().await;
    let mut config = company::config(&world);
    company::connect(&world, &config).await;
    let notified = Notified::listen(&mut config);
    config.env("WATCHDOG_USEC", "300000");
    // Nobody gets a token, Odoo is away, and one mailbox is not even connected.
    config.mailbox("nobody@example.com", &[("inbox", "true")]);
    world.entra.server.down().await;
    world.odoo.server.down().await;
    let mut relay = config.start().await;
    relay.send("bounce@example.com", &["a@x.test"], &message(company::JOHN, "a@x.test", "1@t", "Hi")).await;
    relay.wait_for_log("token failed").await;
    let fed = notified.count("WATCHDOG=1");
    notified.wait_for("WATCHDOG=1", fed + 10).await;
    assert_eq!(relay.count_log("task hangs"), 0, "{:#?}", relay.log());
    assert_eq!(relay.terminate(SOON).await, Some(0));
}

#[tokio::test]
async fn without_one_nothing_is_fed() {
    let world = World::start().await;
    let mut config = company::config(&world);
    let notified = Notified::listen(&mut config);
    let mut relay = config.start().await;
    notified.wait_for("READY=1", 1).await;
    relay.signal("HUP");
    notified.wait_for("READY=1", 2).await;
    relay.terminate(SOON).await;
    notified.wait_for("STOPPING=1", 1).await;
    assert_eq!(notified.count("WATCHDOG"), 0, "{:?}", notified.heard());
}
