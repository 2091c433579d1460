//! What a person sees: headings, aligned facts, a summary; colours only on a terminal.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Where the facts' values begin.
const LABEL: usize = 26;

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const CYAN: &str = "36";

/// The output, and how far the demonstration is.
pub(crate) struct Screen {
    colours: bool,
    steps: usize,
    begun: Instant,
    step_begun: Instant,
    summed_up: bool,
}

impl Screen {
    /// Colours as <https://no-color.org> has it.
    pub(crate) fn new() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            colours: std::io::stdout().is_terminal() && !unwanted,
            steps: 0,
            begun: Instant::now(),
            step_begun: Instant::now(),
            summed_up: false,
        }
    }

    /// The next step begins.
    pub(crate) fn step(&mut self, title: &str) {
        self.steps += 1;
        self.step_begun = Instant::now();
        let number = self.steps;
        self.line(&format!("\n{}", self.paint(BOLD, &format!("{number}. {title}"))));
    }

    /// Something seen, with its name in front.
    pub(crate) fn fact(&self, label: &str, value: impl Display) {
        self.line(&format!("   {label:LABEL$} {value}"));
    }

    /// A fact that the step is about.
    pub(crate) fn highlight(&self, label: &str, value: impl Display) {
        self.fact(label, self.paint(CYAN, &value.to_string()));
    }

    /// A line of the relay's own log.
    pub(crate) fn log(&self, line: &str) {
        let text = format!("   {:LABEL$} {}", "in the relay's log", shortened(line, 88));
        self.line(&self.paint(DIM, &text));
    }

    /// Another one, between what happens elsewhere.
    pub(crate) fn event(&self, line: &str) {
        self.dim(&format!("· {}", shortened(line, 240)));
    }

    /// Words in the background.
    pub(crate) fn dim(&self, text: &str) {
        self.line(&self.paint(DIM, text));
    }

    /// What the step has proved, once it has.
    pub(crate) fn proved(&self, what: &str) {
        let took = seconds(self.step_begun.elapsed());
        self.line(&format!("   {} {what} {}", self.paint(GREEN, "✓"), self.paint(DIM, &format!("({took})"))));
    }

    /// Every step has happened.
    pub(crate) fn summary(&mut self) {
        self.summed_up = true;
        let text = format!("All {} steps done in {}.", self.steps, seconds(self.begun.elapsed()));
        self.line(&format!("\n{}", self.paint(GREEN, &text)));
    }

    /// Whether every step has happened.
    pub(crate) fn is_summed_up(&self) -> bool {
        self.summed_up
    }

    /// The step under way did not happen; `log` is the relay's.
    pub(crate) fn failed(&self, why: &str, log: &[String]) {
        let step = self.steps;
        self.line(&format!("   {} {why}", self.paint(RED, "✗")));
        self.line(&format!("\n{}", self.paint(RED, &format!("Step {step} did not happen."))));
        if !log.is_empty() {
            self.line("The relay's last words:");
        }
        for line in log.iter().skip(log.len().saturating_sub(15)) {
            self.line(&format!("   {line}"));
        }
    }

    /// Plain words.
    pub(crate) fn line(&self, text: &str) {
        // Nobody listens any more: the steps are still checked, and the exit code still tells.
        drop(writeln!(std::io::stdout(), "{text}"));
    }

    /// Words that stand out.
    pub(crate) fn bold(&self, text: &str) -> String {
        self.paint(BOLD, text)
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Of at most `most` characters: without the time, which says nothing here, and without the Message-Id, which is long.
fn shortened(line: &str, most: usize) -> String {
    let is_worth_it = |word: &&str| !word.is_empty() && !word.starts_with("message_id=") && !is_time(word);
    let text: Vec<&str> = line.split(' ').filter(is_worth_it).collect();
    let text = text.join(" ");
    if text.chars().count() <= most {
        return text;
    }
    text.chars().take(most).chain(['…']).collect()
}

/// The time as a log line begins with it: `2026-11-20T10:00:00.123456Z`.
fn is_time(word: &str) -> bool {
    word.ends_with('Z') && word.contains('T') && word.starts_with(|letter: char| letter.is_ascii_digit())
}

/// A duration as people say it.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
