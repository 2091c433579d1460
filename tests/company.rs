//! The company that most tests are about: `notifications@`, whose inbox is watched, and two people.

use crate::support::relay::{Config, Relay};
use crate::support::world::World;

pub(crate) const NOTIFICATIONS: &str = "notifications@example.com";
pub(crate) const JOHN: &str = "john@example.com";
pub(crate) const JANE: &str = "jane@example.com";
pub(crate) const ALL: [&str; 3] = [NOTIFICATIONS, JOHN, JANE];

/// Its configuration; nobody has connected a mailbox yet.
pub(crate) fn config(world: &World) -> Config {
    let mut config = world.config();
    mailboxes(&mut config);
    config
}

/// Its mailboxes, in any configuration.
pub(crate) fn mailboxes(config: &mut Config) {
    config.text("fetch", "poll", "200ms");
    config.mailbox(NOTIFICATIONS, &[("from_filter", "\"notifications@example.com\""), ("inbox", "true")]);
    config.mailbox(JOHN, &[("from_filter", "\"john@example.com\"")]);
    config.mailbox(JANE, &[("from_filter", "\"jane@example.com\"")]);
}

/// Everybody consents.
pub(crate) async fn connect(world: &World, config: &Config) {
    for mailbox in ALL {
        config.connect(mailbox, &world.entra.add_mailbox(mailbox)).await.success();
    }
}

/// The whole company at work.
pub(crate) async fn start(world: &World) -> (Config, Relay) {
    let config = config(world);
    connect(world, &config).await;
    let relay = config.start().await;
    (config, relay)
}

/// `queue list --json`.
pub(crate) async fn queue(config: &Config) -> Vec<serde_json::Value> {
    let listed = config.cli(&["queue", "list", "--json"]).await.success();
    serde_json::from_str(&listed).unwrap()
}
