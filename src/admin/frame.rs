//! What all pages share: the frame around them, a page that only says something, and how times are written.

use super::light::Light;
use crate::failure::Failure;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, html};

/// For whom a page is. A guest's finds its style sheet below `/invite/`, so that a reverse proxy has to pass on no more
/// than the paths of invitations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// The administrator: the script refreshes the page.
    Administrator,
    /// Somebody who connects a mailbox.
    Guest,
}

/// A whole page. `onward` is where the browser goes at once.
pub(super) fn frame(reader: Reader, title: &str, onward: Option<&str>, body: &Markup) -> Markup {
    let assets = if reader == Reader::Guest { "/invite" } else { "" };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                @if let Some(url) = onward { meta http-equiv="refresh" content=(format!("0; url={url}")); }
                title { (title) " · outlook-relay" }
                link rel="icon" type="image/svg+xml" href=(format!("{assets}/icon.svg"));
                link rel="stylesheet" href=(format!("{assets}/page.css"));
                @if reader == Reader::Administrator { script src="/page.js" defer {} }
            }
            body { (body) }
        }
    }
}

/// A page that says one thing: a heading, paragraphs, and what to do next.
pub(super) fn message(
    reader: Reader,
    status: StatusCode,
    light: &str,
    heading: &str,
    text: &Markup,
) -> Response {
    let body = html! {
        main.narrow {
            section class=(format!("card {light}")) {
                h1 { (heading) }
                (text)
            }
        }
    };
    (status, Html(frame(reader, heading, None, &body).into_string())).into_response()
}

/// A light with its words.
pub(super) fn pill(light: Light, words: &str) -> Markup {
    html! { span class=(format!("pill {}", light.name())) { span.sign aria-hidden="true" { (light.sign()) } (words) } }
}

/// The hidden field that every form carries.
pub(super) fn csrf_field(token: &str) -> Markup {
    html! { input type="hidden" name="csrf" value=(token); }
}

/// What a peer said, with its code in front, once.
pub(super) fn seen(failure: &Failure) -> Markup {
    let Failure { code, reply, .. } = failure;
    html! { @if !reply.starts_with(code.as_str()) { code { (code) } " " } (reply) }
}

/// A text that begins like a sentence, except with what has to be written as it is: an address, a host, a key.
pub(super) fn sentence(text: &str) -> String {
    let word = text.split(' ').next().unwrap_or_default().trim_end_matches([':', ',', ';', '.']);
    if word.contains(['@', ':', '.', '_', '/']) {
        return text.to_owned();
    }
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}

/// An advice in the words of the pages: where it says to run `connect`, the button does the same. `press` says which.
pub(super) fn by_button(advice: &str, press: &str) -> String {
    let mut text = String::with_capacity(advice.len());
    let mut rest = advice;
    while let Some((before, command)) = rest.split_once("run `outlook-relay connect ") {
        text.push_str(before);
        text.push_str(press);
        rest = command.split_once('`').map_or("", |(_, after)| after);
    }
    text + rest
}

/// A text as one segment of a path (RFC 3986 section 3.3).
pub(super) fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A time with how long ago that was or until then it is, both for people.
pub(super) fn time(at: Timestamp, now: Timestamp) -> Markup {
    let exact = at.strftime("%Y-%m-%d %H:%M UTC").to_string();
    html! { time datetime=(at) title=(exact) { (relative(at, now)) } }
}

/// A day, with how far away it is.
pub(super) fn day(at: Timestamp, now: Timestamp) -> Markup {
    html! { time datetime=(at) { (at.strftime("%Y-%m-%d").to_string()) " (" (relative(at, now)) ")" } }
}

fn relative(at: Timestamp, now: Timestamp) -> String {
    let seconds = at.duration_since(now).as_secs();
    let span = span(seconds.unsigned_abs());
    match seconds {
        -4..=4 => "just now".to_owned(),
        ..-4 => format!("{span} ago"),
        _ => format!("in {span}"),
    }
}

/// Seconds in the largest unit of which there are two or more, rounded.
fn span(seconds: u64) -> String {
    let rounded = |unit: u64| (seconds + unit / 2) / unit;
    match seconds {
        0..120 => format!("{seconds} seconds"),
        120..7_200 => format!("{} minutes", rounded(60)),
        7_200..172_800 => format!("{} hours", rounded(3_600)),
        _ => format!("{} days", rounded(86_400)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Class;

    #[test]
    fn times_are_said_as_people_say_them() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        for (seconds, expected) in [
            (0, "just now"),
            (-3, "just now"),
            (-90, "90 seconds ago"),
            (-3_600, "60 minutes ago"),
            (7_300, "in 2 hours"),
            (90 * 86_400, "in 90 days"),
            (90 * 86_400 - 5, "in 90 days"),
        ] {
            assert_eq!(relative(at(seconds), now), expected);
        }
    }

    #[test]
    fn what_was_seen_names_its_code_once() {
        let seen = |code: &str, reply: &str| seen(&Failure::new(Class::Transient, code, reply)).into_string();
        assert_eq!(seen("AADSTS1", "AADSTS1: gone"), "AADSTS1: gone");
        assert_eq!(seen("timeout", "no <answer>"), "<code>timeout</code> no &lt;answer&gt;");
        for name in [
            "john@example.com signs in",
            "localhost:587: EHLO",
            "client_id is wrong",
            "smtp.example.com is gone",
        ] {
            assert_eq!(sentence(name), name);
        }
        assert_eq!(sentence("authenticate: well"), "Authenticate: well");
        assert_eq!((sentence("ümlaut"), sentence("")), ("Ümlaut".to_owned(), String::new()));
    }

    #[test]
    fn an_advice_names_the_button_in_place_of_the_command() {
        for (advice, expected) in [
            ("gone: run `outlook-relay connect j@example.com`", "gone: press Connect"),
            (
                "set it back, or run `outlook-relay connect a@b.c` to consent",
                "set it back, or press Connect to consent",
            ),
            (
                "run `outlook-relay connect a` or run `outlook-relay connect b`",
                "press Connect or press Connect",
            ),
            ("run `outlook-relay store rotate-key`", "run `outlook-relay store rotate-key`"),
            ("", ""),
        ] {
            assert_eq!(by_button(advice, "press Connect"), expected);
        }
    }

    #[test]
    fn a_segment_stays_one() {
        assert_eq!(segment("john@example.com"), "john@example.com");
        assert_eq!(segment("a/b?c#d%e ü\"<"), "a%2Fb%3Fc%23d%25e%20%C3%BC%22%3C");
    }

    #[test]
    fn what_others_wrote_is_escaped() {
        let page = frame(Reader::Guest, "<script>", Some("https://x/\"><script>"), &html! {}).into_string();
        assert!(!page.contains("<script"), "{page}");
    }
}
