//! Odoo as a client: Python's smtplib in the dialogue that was recorded.

use crate::company::{self, JOHN, NOTIFICATIONS};
use crate::support::relay::{Config, Relay};
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::path::Path;

async fn odoo(relay: &Relay, login: &[&str]) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/odoo_client.py");
    let output = tokio::process::Command::new("python3")
        .arg(script)
        .args([relay.submission.ip().to_string(), relay.submission.port().to_string()])
        .args(login)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said.lines().map(str::to_owned).collect()
}

const STEPS: [&str; 12] = [
    "rcpt 250",
    "data 250",
    "rcpt 250",
    "data 250",
    "rcpt 250",
    "data 250",
    "8-bit {}",
    "utf8 250",
    "data 250",
    "stranger {}",
    "vrfy 252 noop 250 rset 250",
    "quit 221",
];

async fn everything_arrived(world: &World, config: &Config, relay: &Relay) {
    until(SOON, "six mails at Microsoft", || world.smtp.count() == 6).await;
    let delivered = world.smtp.delivered();
    let recipients = |id: &str| {
        let mut of_id: Vec<_> = delivered
            .iter()
            .filter(|mail| mail.text().contains(&format!("<{id}@odoo>")))
            .flat_map(|mail| mail.recipients.clone())
            .collect();
        of_id.sort();
        of_id
    };
    assert_eq!(recipients("same"), ["a@x.test", "b@x.test", "c@x.test"], "the same Message-Id three times");
    assert_eq!(recipients("eight"), ["d@x.test"]);
    assert_eq!(recipients("utf8"), ["jörg@x.test"]);
    let of = |id: &str| delivered.iter().find(|mail| mail.text().contains(id)).unwrap();
    assert!(of("eight@odoo").text().ends_with("\r\n\r\nžluť 😊\r\n"));
    assert!(
        of("eight@odoo").mail_params.contains(&"BODY=8BITMIME".to_owned()),
        "{:?}",
        of("eight@odoo").mail_params
    );
    assert!(
        of("utf8@odoo").mail_params.contains(&"SMTPUTF8".to_owned()),
        "{:?}",
        of("utf8@odoo").mail_params
    );
    assert_eq!(of("eve@odoo").mailbox, NOTIFICATIONS);
    assert_eq!(of("eight@odoo").mailbox, JOHN);
    assert!(delivered.iter().all(|mail| !mail.recipients.iter().any(|to| to.contains("shown-only"))));
    assert!(delivered.iter().all(|mail| !mail.recipients.contains(&"noreply@odoo.com".to_owned())));
    until(SOON, "an empty queue", || relay.count_log("sent") >= 6).await;
    assert_eq!(company::queue(config).await, Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn the_recorded_dialogue() {
    let world = World::start().await;
    let (config, relay) = company::start(&world).await;
    let said = odoo(&relay, &[]).await;
    assert_eq!(said[0], "ehlo 250 8bitmime chunking enhancedstatuscodes pipelining size smtputf8");
    assert_eq!(said[1..13], STEPS);
    assert_eq!(said[13..], ["test 354"]);
    everything_arrived(&world, &config, &relay).await;
}

#[tokio::test]
async fn the_recorded_dialogue_with_a_login() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.text("submission", "user", "odoo");
    config.secret("submission-password", "a password with spaces");
    config.text("submission", "password_file", "submission-password");
    company::connect(&world, &config).await;
    let relay = config.start().await;
    let said = odoo(&relay, &["odoo", "a password with spaces"]).await;
    assert_eq!(said[0], "ehlo 250 8bitmime auth chunking enhancedstatuscodes pipelining size smtputf8");
    assert_eq!(said[1], "login 235");
    assert_eq!(said[2..14], STEPS);
    everything_arrived(&world, &config, &relay).await;
}
