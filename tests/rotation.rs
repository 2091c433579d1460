//! kill -9 right when the token endpoint answers: the refresh token that this loses costs no mailbox.

use crate::company::{self, ALL, JOHN};
use crate::support::client::message;
use crate::support::entra::Answer;
use crate::support::relay::{Config, Relay};
use crate::support::script::Rule;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::collections::HashMap;
use std::time::Duration;

/// Relays that are killed at the same time, each with a world of its own.
const WORLDS: usize = 4;
/// How often each is killed, per [`Moment`].
const ROUNDS: usize = 13;

/// When the daemon is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    /// The tokens are rotated, and the answer is lost on the way.
    Lost,
    /// The answer is sent: it is being read, or opened, or stored.
    Sent,
    /// It is stored.
    Stored,
}

/// Starts the daemon, kills it at that moment, and gives it for its log.
async fn run_and_kill(world: &World, config: &Config, moment: Moment, pause: Duration) -> Relay {
    if moment == Moment::Lost {
        world.entra.script(Rule::new((), Answer::RotateThenCut).always());
    }
    let (mut answers, before) = (world.entra.events().subscribe(), world.entra.requests().len());
    let mut relay = config.spawn();
    if moment == Moment::Stored {
        relay.wait_for_log("token refreshed").await;
    } else {
        let outcome = if moment == Moment::Lost { "-> cut" } else { "-> 200" };
        let answered = async {
            // What the daemon before had asked for may be answered only now.
            loop {
                let answer = answers.recv().await.unwrap();
                assert!(answer.starts_with("entra: refresh_token"), "{answer}");
                if answer.ends_with(outcome) && world.entra.requests().len() > before {
                    break;
                }
            }
        };
        tokio::time::timeout(SOON, answered).await.unwrap();
        tokio::time::sleep(pause).await;
    }
    relay.kill9().await;
    world.entra.clear();
    relay
}

/// No line that calls for somebody: what is lost here is the daemon's to mend.
fn assert_nobody_is_needed(relay: &Relay) {
    for line in relay.log().iter().filter(|line| line.contains("token failed")) {
        assert!(line.contains("transient") && !line.contains("outlook-relay connect"), "{line}");
    }
}

/// How many requests came with the token of the mailbox's request before: what that one had brought was lost.
fn repeated(world: &World) -> usize {
    let mut last = HashMap::new();
    let requests = world.entra.requests().into_iter();
    requests
        .filter(|request| {
            last.insert(request.mailbox.clone(), request.refresh_token.clone())
                .is_some_and(|token| token == request.refresh_token)
        })
        .count()
}

async fn no_mailbox_is_lost() -> usize {
    let world = World::start().await;
    let config = company::config(&world);
    company::connect(&world, &config).await;
    let mut kills = 0;
    for round in 0..ROUNDS {
        for moment in [Moment::Lost, Moment::Sent, Moment::Stored] {
            // Right at the answer, and ever a little later.
            let pause = Duration::from_millis(round as u64);
            let before = world.entra.requests().len();
            let relay = run_and_kill(&world, &config, moment, pause).await;
            assert!(world.entra.requests().len() > before, "{moment:?}");
            assert_nobody_is_needed(&relay);
            kills += usize::from(moment != Moment::Stored);
        }
    }
    let relay = config.start().await;
    for mailbox in ALL {
        relay.wait_for_log(&format!("token refreshed mailbox={mailbox}")).await;
        let id = format!("{mailbox}.t");
        relay.send("b@example.com", &["a@x.test"], &message(mailbox, "a@x.test", &id, "Hi")).await;
    }
    until(SOON, "everybody's mail", || world.smtp.count() == ALL.len()).await;
    assert_eq!(relay.count_log("token failed"), 0, "{:#?}", relay.log());
    config.cli(&["status"]).await.success();
    // They were hit where it hurts: at least one answer a round was lost for good.
    assert!(repeated(&world) >= ROUNDS, "only {} tokens were lost", repeated(&world));
    // And where it does not: what was stored is what was used next.
    let used: std::collections::HashSet<_> =
        world.entra.requests().into_iter().filter_map(|request| request.refresh_token).collect();
    assert!(used.len() >= ROUNDS, "only {} tokens were used", used.len());
    kills
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_the_answer_of_the_token_endpoint_loses_no_mailbox() {
    let worlds: Vec<_> = (0..WORLDS).map(|_| tokio::spawn(no_mailbox_is_lost())).collect();
    let mut kills = 0;
    for world in worlds {
        kills += world.await.unwrap();
    }
    assert!(kills >= 100, "{kills}");
}

#[tokio::test]
async fn it_would_show_if_a_mailbox_were_lost() {
    let world = World::start().await;
    // Harsher than Microsoft: a token that was replaced is dead at once.
    world.entra.set_old_tokens_work(false);
    let mut config = world.config();
    config.mailbox(JOHN, &[]);
    config.connect(JOHN, &world.entra.add_mailbox(JOHN)).await.success();
    run_and_kill(&world, &config, Moment::Lost, Duration::ZERO).await;
    let relay = config.start().await;
    let line = relay.wait_for_log("token failed").await;
    assert!(!line.contains("transient") && line.contains("outlook-relay connect"), "{line}");
}
