//! The relay at work, on this machine alone: a scripted Microsoft 365, a scripted Odoo, and between them the real relay.
//!
//! `cargo run --release --example demo [-- --stay]`
//!
//! Every step is checked against what the two sides really saw; one that does not happen in time ends the demonstration
//! with exit code 1.

mod mail;
mod play;
mod screen;
mod stage;
mod steps;
#[path = "../support/mod.rs"]
mod support;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use screen::Screen;
use stage::{AS_RELAY, Stage};

const HELP: &str = "\
Shows the relay at work between a scripted Microsoft 365 and a scripted Odoo, all on this machine.

Usage: cargo run --release --example demo [-- OPTIONS]

Options:
      --stay  goes on running afterwards, to be played with; Ctrl-C ends it
  -h, --help  prints this

Exit codes: 0 every step happened, 1 one did not, 2 usage, 130 interrupted.
";

/// As a shell says of a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// What the arguments ask for.
#[derive(Debug)]
enum Wish {
    Show { stay: bool },
    Help,
}

fn main() -> ExitCode {
    // Cargo builds an example without the program, so this one is the relay as well.
    if std::env::var_os(AS_RELAY).is_some() {
        return outlook_relay::cli::main();
    }
    let stay = match wish(std::env::args().skip(1)) {
        Ok(Wish::Show { stay }) => stay,
        Ok(Wish::Help) => {
            drop(std::io::stdout().write_all(HELP.as_bytes()));
            return ExitCode::SUCCESS;
        }
        Err(unknown) => {
            complain(&format!("{unknown:?} is unknown: there are --stay and --help"));
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("no runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    // What the doubles say when they give up is meant for people; where in their code they do, and the stack, are not.
    std::panic::set_hook(Box::new(|info| complain(info.payload_as_str().unwrap_or("a double gave up"))));
    // A task of its own, so that a double which gives up with a panic ends the demonstration like any failed step.
    runtime.block_on(async {
        match tokio::spawn(Box::pin(demo(stay))).await {
            Ok(Ok(code)) => code,
            Ok(Err(error)) => {
                complain(&format!("{error:#}"));
                ExitCode::FAILURE
            }
            Err(_) => {
                complain("stopped by the failure above");
                ExitCode::FAILURE
            }
        }
    })
}

fn wish(arguments: impl Iterator<Item = String>) -> Result<Wish, String> {
    let mut stay = false;
    for argument in arguments {
        match argument.as_str() {
            "--stay" => stay = true,
            "-h" | "--help" => return Ok(Wish::Help),
            _ => return Err(argument),
        }
    }
    Ok(Wish::Show { stay })
}

fn complain(text: &str) {
    drop(writeln!(std::io::stderr(), "demo: {text}"));
}

/// Sets the stage, plays, and clears the stage away, whatever happened.
async fn demo(stay: bool) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt()).context("Ctrl-C cannot be watched")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be watched")?;
    let mut screen = Screen::new();
    let mut stage = Stage::set().await?;
    let show = async {
        steps::all(&mut stage, &mut screen, stay).await?;
        if stay {
            play::play(&mut stage, &mut screen).await;
        }
        Ok(ExitCode::SUCCESS)
    };
    let outcome: anyhow::Result<ExitCode> = tokio::select! {
        outcome = Box::pin(show) => outcome,
        // While somebody plays, this is the usual end.
        _ = interrupt.recv() => Ok(ExitCode::from(INTERRUPTED)),
        _ = terminate.recv() => Ok(ExitCode::from(INTERRUPTED)),
    };
    if let Err(error) = &outcome {
        screen.failed(&format!("{error:#}"), &stage.log());
    }
    stage.kill_relay().await;
    drop(stage);
    if stay {
        screen.line("\nEverything is cleared away.");
    }
    match outcome {
        Ok(_) if stay && screen.is_summed_up() => Ok(ExitCode::SUCCESS),
        Ok(code) => Ok(code),
        // Shown already.
        Err(_) => Ok(ExitCode::FAILURE),
    }
}
