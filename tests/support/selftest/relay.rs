//! The runner of the relay, proved on a shell script in its place.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::support::relay::Config;
use crate::support::wait::SOON;
use crate::support::world::World;

const SCRIPT: &str = r#"#!/bin/sh
case "$1" in
    run) trap 'echo ending >&2; exit 7' TERM
         echo "running $3 with $WORD" >&2
         while :; do sleep 0.02; done ;;
    connect) echo "$2 $(cat "$4")"; exit 3 ;;
    *) echo "args $*"; echo oops >&2 ;;
esac
"#;

/// A configuration whose program is the script. Another process writes it, so that no thread of this one holds it
/// open when it is run.
fn scripted(mut config: Config) -> Config {
    let source = config.secret("source.sh", SCRIPT);
    let script = config.dir().join("script.sh");
    let done = std::process::Command::new("install").args(["-m", "755"]).args([&source, &script]).status();
    assert!(done.unwrap().success());
    config.set_binary(&script);
    config
}

#[tokio::test]
async fn the_process_is_run_watched_and_ended() {
    let mut config = scripted(Config::new());
    config.env("WORD", "honours");
    let mut relay = config.spawn();
    let line = relay.wait_for_log("with honours").await;
    assert_eq!(line, format!("running {} with honours", config.dir().join("relay.toml").display()));
    assert_eq!(relay.terminate(SOON).await, Some(7));
    assert_eq!((relay.count_log("ending"), relay.pid()), (1, None));

    let mut relay = config.spawn();
    relay.wait_for_log("running").await;
    relay.kill9().await;
    assert_eq!(relay.exit_code(Duration::from_secs(1)).await, None, "ended by a signal");
}

#[tokio::test]
async fn ready_means_that_it_greets() {
    let config = scripted(Config::new());
    let listener = TcpListener::bind(config.submission).await.unwrap();
    let greeter = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 ready\r\n").await.unwrap();
    });
    let relay = config.start().await;
    greeter.await.unwrap();
    assert!(relay.pid().is_some());
}

#[tokio::test]
async fn commands_are_run_on_the_same_configuration() {
    let config = scripted(Config::new());
    let output = config.cli(&["status", "--json"]).await;
    let file = config.dir().join("relay.toml");
    assert_eq!(output.stdout, format!("args status --json -c {}\n", file.display()));
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), "oops\n"));
    let output = config.connect("john@example.com", "1.token").await;
    assert_eq!((output.code, output.stdout.as_str()), (Some(3), "john@example.com 1.token\n"));
    assert!(!config.dir().join("refresh-token").exists());
}

#[tokio::test]
async fn the_configuration_is_toml() {
    let world = World::start().await;
    let mut config = world.config();
    config.mailbox("john@example.com", &[("inbox", "true"), ("model", "\"crm.lead\"")]);
    config.mailbox("jane@example.com", &[]);
    config.mailbox("john@example.com", &[("inbox", "false")]);
    config.raw("delivery", "connections", "1");
    config.unset("odoo", "bounce_alias");
    let read: toml::Table = config.toml().parse().unwrap();
    assert_eq!(read["mailbox"].as_array().unwrap().len(), 2);
    assert_eq!(read["mailbox"][1]["inbox"].as_bool(), Some(false));
    assert_eq!(read["delivery"]["connections"].as_integer(), Some(1));
    assert_eq!(read["microsoft"]["authority"].as_str(), Some(world.entra.authority().as_str()));
    assert!(read["odoo"].get("bounce_alias").is_none());
    let ca = read["microsoft"]["ca_file"].as_str().unwrap();
    assert!(std::fs::read_to_string(ca).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
}
