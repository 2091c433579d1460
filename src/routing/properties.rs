//! What holds for any From, however it is written.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;
use crate::message::{HeaderView, with_from};

/// The ways to write a From field that is right.
#[derive(Clone, Copy, Debug)]
enum Style {
    Plain,
    Encoded,
    EncodedInLatin1,
    Latin1,
    Folded,
    Grouped,
    Commented,
}

const STYLES: [Style; 7] = [
    Style::Plain,
    Style::Encoded,
    Style::EncodedInLatin1,
    Style::Latin1,
    Style::Folded,
    Style::Grouped,
    Style::Commented,
];

/// One sender.
#[derive(Clone, Debug)]
struct Author {
    name: String,
    address: String,
}

impl Author {
    fn field(&self, style: Style) -> Vec<u8> {
        let Self { name, address } = self;
        let quoted = list::quote(name);
        let latin1 = || name.chars().map(|c| u8::try_from(u32::from(c)).unwrap());
        let field = match style {
            _ if name.is_empty() => format!("From: {address}"),
            Style::Plain => format!("From: {quoted} <{address}>"),
            Style::Encoded => format!("From: =?utf-8?b?{}?= <{address}>", STANDARD.encode(name)),
            Style::EncodedInLatin1 => {
                let octets: String = latin1().map(|byte| format!("={byte:02X}")).collect();
                format!("fROM:=?iso-8859-1?q?{octets}?= <{address}>")
            }
            Style::Latin1 => {
                let quoted = quoted.chars().map(|c| u8::try_from(u32::from(c)).unwrap());
                let rest = format!(" <{address}>\r\n");
                return b"From: ".iter().copied().chain(quoted).chain(rest.bytes()).collect();
            }
            Style::Folded => format!("From:\r\n {quoted}\r\n\t<{address}>"),
            Style::Grouped => format!("From: team: {quoted} <{address}>;"),
            Style::Commented => format!("From : {quoted} <{address}> (their (own) words)"),
        };
        format!("{field}\r\n").into_bytes()
    }

    fn name_or_local(&self) -> &str {
        if self.name.is_empty() { self.address.split('@').next().unwrap() } else { &self.name }
    }
}

/// Nobody whom a filter below holds.
fn stranger() -> impl Strategy<Value = Author> {
    ("([A-Za-zäöüß][A-Za-zäöüß,@.\"\\\\ ]{0,12})?", "[a-z][a-z0-9+_-]{0,8}")
        .prop_map(|(name, local)| Author { name, address: format!("{local}@stranger.test") })
}

fn style() -> impl Strategy<Value = Style> {
    prop::sample::select(&STYLES[..])
}

/// Whole fields that are no From.
fn others() -> impl Strategy<Value = Vec<u8>> {
    let field = prop_oneof![
        "(To|X-From|References|X-Odoo-Objects|DKIM-Signature): [ -~é]{0,20}(\r\n [!-~]{1,9})?\r\n"
    ]
    .prop_map(String::into_bytes);
    prop::collection::vec(field, 0..4).prop_map(|fields| fields.concat())
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..40)
        .prop_map(|bytes| [b"\r\nFrom: body@x.test\r\n", bytes.as_slice()].concat())
}

fn routes(filters: &[Option<String>]) -> Routes {
    let candidates = filters.iter().enumerate().map(|(index, filter)| Candidate {
        mailbox: format!("m{index}@example.com").parse().unwrap(),
        sequence: 10,
        filter: filter.clone(),
    });
    let domains = ["example.com", "example.org"];
    let domains = domains.map(|domain| AliasDomain::new(Some(domain), Some("notifications"), Some("bounce")));
    Routes::new(candidates.collect(), domains.to_vec())
}

fn from_of(raw: &[u8]) -> Option<String> {
    HeaderView::parse(raw).from()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// A From that a filter holds is not touched, however it is written.
    #[test]
    fn a_from_that_may_be_sent_keeps_every_byte(author in stranger(), style in style(), before in others()) {
        let raw = [before, author.field(style), b"\r\n".to_vec()].concat();
        for (filter, rule) in [(author.address.as_str(), Rule::Address), ("stranger.test", Rule::Domain)] {
            let filters = [None, Some("x.test".to_owned()), Some(filter.to_owned())];
            let route = routes(&filters).route(from_of(&raw).as_deref(), "").unwrap();
            let mailbox = "m2@example.com".parse().unwrap();
            prop_assert_eq!(route, Route { mailbox, rule, new_from: None });
        }
    }

    /// Any other is replaced by the notifications address with its display name. Of several the first counts, and
    /// none but the new one is left; where there is none, one is added. Nothing else changes.
    #[test]
    fn any_other_from_and_nothing_else_is_replaced(
        authors in prop::collection::vec((stranger(), style(), others()), 0..4),
        before in others(),
        body in body(),
        second in any::<bool>(),
    ) {
        let mut raw = before.clone();
        let mut kept = before;
        for (author, style, behind) in &authors {
            raw.extend(author.field(*style));
            raw.extend(behind);
            kept.extend(behind);
        }
        raw.extend(&body);
        kept.extend(&body);
        let domain = if second { "example.org" } else { "example.com" };
        let routes = routes(&[Some("x.test".to_owned()), Some("example.com, example.org".to_owned())]);
        let bounce = format!("bounce@{domain}");
        let route = routes.route(from_of(&raw).as_deref(), &bounce).unwrap();
        prop_assert_eq!((route.mailbox.local(), route.rule), ("m1", Rule::NotificationsDomain));
        let address: Address = format!("notifications@{domain}").parse().unwrap();
        let name = authors.first().map(|(author, ..)| author.name_or_local()).unwrap_or_default();
        let new_from = address.with_name(name);
        prop_assert_eq!(route.new_from.as_deref(), Some(new_from.as_str()));

        let sent = with_from(&raw, &new_from);
        prop_assert_eq!(from_of(&sent), Some(new_from.clone()));
        // The new field lies somewhere in what was kept.
        let same = sent.iter().zip(&kept).take_while(|(a, b)| a == b).count();
        let field = sent.len() - kept.len();
        let is_it = |at: usize| {
            let field = &sent[at..at + field];
            [&sent[..at], &sent[at + field.len()..]].concat() == kept
                && field[..4].eq_ignore_ascii_case(b"from")
                && field.ends_with(b"\r\n")
        };
        prop_assert!((0..=same).any(is_it), "{}", sent.escape_ascii());
        prop_assert_eq!(with_from(&sent, &new_from), sent);
    }

    /// What was rewritten once takes the same way again, and is not rewritten again: whatever the filters are.
    #[test]
    fn routing_twice_is_routing_once(
        filters in prop::collection::vec(
            prop::option::of("(stranger[.]test|[a-c]@stranger[.]test|example[.](com|org)|notifications@example[.]com|,)"),
            1..5,
        ),
        raw in prop_oneof![
            prop::collection::vec((stranger(), style()), 0..3)
                .prop_map(|authors| authors.iter().flat_map(|(author, style)| author.field(*style)).collect::<Vec<u8>>()),
            "(From: [ -~éß\u{1}]{0,40}\r\n){0,2}".prop_map(String::into_bytes),
            "From: [a-c]@stranger[.]test(, [a-c]@(stranger|x)[.]test){0,2}\r\n".prop_map(String::into_bytes),
        ],
        mail_from in prop::sample::select(vec!["bounce@example.com", "bounce@example.org", "", "a@stranger.test"]),
    ) {
        let routes = routes(&filters);
        let first = routes.route(from_of(&raw).as_deref(), mail_from).unwrap();
        let Some(new_from) = &first.new_from else { return Ok(()) };
        let sent = with_from(&raw, new_from);
        let second = routes.route(from_of(&sent).as_deref(), mail_from).unwrap();
        prop_assert_eq!(&second.mailbox, &first.mailbox);
        prop_assert_eq!(second.new_from, None);
        // And the way is the one that is explained.
        let steps = routes.explain(from_of(&raw).as_deref(), mail_from);
        let last = steps.last().unwrap();
        prop_assert_eq!((last.rule, &last.found.as_ref().unwrap().0), (first.rule, &first.mailbox));
        prop_assert!(steps.iter().rev().skip(1).all(|step| step.found.is_none()));
    }
}
