use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::message::{HeaderView, with_from};

/// The reverse-path of most of Odoo's mail.
const BOUNCE: &str = "bounce@example.com";

/// What a running Odoo 19 did with a From (its empty fields, `false`, stand as `null`).
#[derive(Deserialize)]
struct Case {
    id: u32,
    servers: Vec<CaseServer>,
    default_from: Option<String>,
    catchall_domain: Option<String>,
    email_from: Option<String>,
    odoo19: Outcome,
}

#[derive(Deserialize)]
struct CaseServer {
    name: String,
    sequence: i64,
    from_filter: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Outcome {
    server: Option<String>,
    #[serde(default)]
    header_from_addrs: Vec<String>,
    #[serde(default)]
    header_from_names: Vec<String>,
    error: Option<String>,
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

/// The made-up mailbox that plays a server.
fn mailbox_of(server: &str) -> Address {
    address(&format!("{server}@mailbox.test"))
}

#[test]
fn routes_as_odoo_19_did() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../tests/data/from_filter_cases.json")).unwrap();
    let (mut routed, mut without_server, mut special) = (0, 0, Vec::new());
    for case in &cases {
        let id = case.id;
        // In case 250 the server `arch` was archived, which makes it no candidate: the record does not say it otherwise.
        let active = case.servers.iter().filter(|server| server.name != "arch");
        let candidates = active.map(|server| Candidate {
            mailbox: mailbox_of(&server.name),
            sequence: server.sequence,
            filter: server.from_filter.clone(),
        });
        let domain =
            AliasDomain::new(case.catchall_domain.as_deref(), case.default_from.as_deref(), Some("bounce"));
        let routes = Routes::new(candidates.collect(), vec![domain]);
        // Through a real header, which is where the relay reads it from.
        let raw = case.email_from.as_ref().map_or_else(String::new, |from| format!("From: {from}\r\n"));
        let raw = format!("{raw}Subject: x\r\n\r\nx\r\n");
        let from = HeaderView::parse(raw.as_bytes()).from();
        let outcome = routes.route(from.as_deref(), BOUNCE);

        if case.servers.is_empty() {
            // Odoo falls back to the server of its command line here, which the relay does not have.
            assert_eq!(outcome, Err(NoMailbox), "case {id}");
            without_server += 1;
            continue;
        }
        let route = outcome.unwrap();
        let header = route.new_from.clone().or(from).unwrap_or_default();
        let read: Vec<_> = Address::all(&header).into_iter().map(|(name, a)| (a.to_string(), name)).collect();
        match id {
            // Odoo 19 lets nobody configure a catchall domain that is not ASCII, so it has no outcome. The relay does
            // what Odoo 16 did.
            13 => {
                assert_eq!(route.mailbox, mailbox_of("default"));
                assert_eq!(route.new_from.as_deref(), Some("\"Name\" <test@custom_domain.com>"));
                special.push(id);
                continue;
            }
            // Odoo raises on `foo@`. Here it is an invalid From like any other, with no name to keep.
            144 => {
                assert!(case.odoo19.error.is_some());
                assert_eq!((route.mailbox, route.rule), (mailbox_of("relay"), Rule::NotificationsDomain));
                assert_eq!(route.new_from.as_deref(), Some("notifications@example.com"));
                special.push(id);
                continue;
            }
            _ => {}
        }
        let expected = &case.odoo19;
        assert_eq!(route.mailbox, mailbox_of(expected.server.as_deref().unwrap()), "case {id}");
        let expected: Vec<_> = expected
            .header_from_addrs
            .iter()
            .map(|text| address(text).to_string())
            .zip(expected.header_from_names.iter().cloned())
            .collect();
        assert!(!expected.is_empty(), "case {id}");
        assert_eq!(read, expected, "case {id}");
        if let Some(new_from) = &route.new_from {
            let rewritten = with_from(raw.as_bytes(), new_from);
            assert_eq!(HeaderView::parse(&rewritten).from().as_ref(), Some(new_from), "case {id}");
        }
        routed += 1;
    }
    assert_eq!((cases.len(), routed, without_server, special), (102, 93, 7, vec![13, 144]));
}

/// `(mailbox, sequence, filter)` each, with notifications@example.com as the notifications address.
fn routes(candidates: &[(&str, i64, Option<&str>)]) -> Routes {
    Routes::new(
        candidates
            .iter()
            .map(|&(mailbox, sequence, filter)| Candidate {
                mailbox: mailbox_of(mailbox),
                sequence,
                filter: filter.map(str::to_owned),
            })
            .collect(),
        vec![AliasDomain::new(Some("example.com"), Some("notifications"), Some("bounce"))],
    )
}

#[test]
fn a_filter_holds_what_it_lists() {
    use Rule::{Address, Domain, First};
    // One mailbox with this filter; `First` says that the filter does not hold the From.
    let cases = [
        ("sales@other.test", "sales@other.test", Address),
        ("sales@other.test", "SALES@Other.TEST", Address),
        ("SALES@OTHER.TEST", "sales@other.test", Address),
        ("other.test", "sales@other.test", Domain),
        ("Other.Test", "sales@OTHER.test", Domain),
        ("a.test, sales@other.test ,b.test", "sales@other.test", Address),
        ("a.test,\tother.test", "sales@other.test", Domain),
        ("other.test,", "sales@other.test", Domain),
        (", ,other.test", "sales@other.test", Domain),
        ("\"Sales Team\" <sales@other.test>", "sales@other.test", Address),
        ("other.test, sales@other.test", "sales@other.test", Address),
        // No subdomains in either direction, no wildcards, no other separators.
        ("other.test", "sales@sub.other.test", First),
        ("sub.other.test", "sales@other.test", First),
        ("other.test.", "sales@other.test", First),
        (".other.test", "sales@sub.other.test", First),
        ("*.other.test", "sales@sub.other.test", First),
        ("*@other.test", "sales@other.test", First),
        ("@other.test", "sales@other.test", First),
        ("a.test;other.test", "sales@other.test", First),
        ("a.test other.test", "sales@other.test", First),
        ("sales", "sales@other.test", First),
        ("sales@other.test", "sales+tag@other.test", First),
        // No IDNA, and no case folding of a local part that is not ASCII.
        ("müller.test", "info@xn--mller-kva.test", First),
        ("xn--mller-kva.test", "info@müller.test", First),
        ("MÜLLER.test", "info@müller.test", Domain),
        ("Jörg@other.test", "jörg@other.test", First),
        ("jörg@other.test", "jörg@other.test", Address),
        // A comma in a display name ends the part. Without a part nothing matches, and yet it is a filter.
        ("\"Sales, EU\" <sales@other.test>", "sales@other.test", First),
        (",", "sales@other.test", First),
    ];
    for (filter, from, rule) in cases {
        let route = routes(&[("only", 1, Some(filter))]).route(Some(from), BOUNCE).unwrap();
        assert_eq!(route.rule, rule, "{filter:?} for {from:?}");
        assert_eq!(route.new_from.is_none(), rule != First, "{filter:?} for {from:?}");
    }
}

#[test]
fn the_first_rule_that_holds_wins() {
    let all = [
        ("any", 1, None),
        ("domain", 2, Some("example.com")),
        ("sales", 3, Some("sales@example.com")),
        ("notif", 4, Some("notifications@example.com")),
    ];
    let cases = [
        (&all[..], "sales@example.com", "sales", Rule::Address, None),
        (&all[..], "john@example.com", "domain", Rule::Domain, None),
        (
            &all[..],
            "eve@x.test",
            "notif",
            Rule::NotificationsAddress,
            Some("\"eve\" <notifications@example.com>"),
        ),
        (
            &all[..3],
            "eve@x.test",
            "domain",
            Rule::NotificationsDomain,
            Some("\"eve\" <notifications@example.com>"),
        ),
        (&all[..1], "eve@x.test", "any", Rule::Unfiltered, Some("\"eve\" <notifications@example.com>")),
        (&all[2..3], "eve@x.test", "sales", Rule::First, Some("\"eve\" <notifications@example.com>")),
        (&all[..], "notifications@example.com", "notif", Rule::Address, None),
        (&all[..1], "Odoo <Notifications@example.com>", "any", Rule::Unfiltered, None),
    ];
    for (candidates, from, mailbox, rule, new_from) in cases {
        let expected = Route { mailbox: mailbox_of(mailbox), rule, new_from: new_from.map(str::to_owned) };
        assert_eq!(routes(candidates).route(Some(from), BOUNCE), Ok(expected), "{from}");
    }
}

#[test]
fn lower_sequences_come_first_and_equal_ones_keep_their_order() {
    let filter = Some("example.com");
    for (candidates, expected) in [
        (vec![("a", 10, filter), ("b", 10, filter)], "a"),
        (vec![("a", 10, filter), ("b", 9, filter)], "b"),
        (vec![("a", 0, filter), ("b", -5, filter)], "b"),
        (vec![("a", 2, None), ("b", 1, None)], "b"),
        (vec![("a", 2, Some("x.test")), ("b", 1, Some("y.test"))], "b"),
    ] {
        let route = routes(&candidates).route(Some("sales@example.com"), BOUNCE).unwrap();
        assert_eq!(route.mailbox, mailbox_of(expected), "{candidates:?}");
    }
}

#[test]
fn a_blank_filter_is_no_filter() {
    for filter in [None, Some(""), Some("  ")] {
        let route = routes(&[("first", 1, Some("x.test")), ("any", 2, filter)])
            .route(Some("eve@y.test"), BOUNCE)
            .unwrap();
        assert_eq!((route.mailbox, route.rule), (mailbox_of("any"), Rule::Unfiltered), "{filter:?}");
    }
}

#[test]
fn a_from_that_no_filter_holds_becomes_the_notifications_address() {
    let cases = [
        (None, "notifications@example.com"),
        (Some(""), "notifications@example.com"),
        (Some("foo@"), "notifications@example.com"),
        (Some("invalid"), "\"invalid\" <notifications@example.com>"),
        (Some("Nobody <>"), "\"Nobody\" <notifications@example.com>"),
        (Some("eve@x.test"), "\"eve\" <notifications@example.com>"),
        (Some("\"Eve\" <eve@x.test>"), "\"Eve\" <notifications@example.com>"),
        (Some("\"E \\\"v\\\" e\" <eve@x.test>"), "\"E \\\"v\\\" e\" <notifications@example.com>"),
        (Some("Jörg <eve@x.test>"), "\"Jörg\" <notifications@example.com>"),
        (Some("eve@x.test, bob@x.test"), "\"eve\" <notifications@example.com>"),
        // A name that looks like the notifications address does not make it that.
        (
            Some("\"notifications@example.com\" <eve@x.test>"),
            "\"notifications@example.com\" <notifications@example.com>",
        ),
    ];
    let routes =
        routes(&[("sales", 1, Some("sales@example.com")), ("notif", 2, Some("notifications@example.com"))]);
    for (from, new_from) in cases {
        let route = routes.route(from, BOUNCE).unwrap();
        assert_eq!(
            (route.mailbox, route.rule),
            (mailbox_of("notif"), Rule::NotificationsAddress),
            "{from:?}"
        );
        assert_eq!(route.new_from.as_deref(), Some(new_from), "{from:?}");
    }
}

#[test]
fn without_a_notifications_address_the_from_stays() {
    let candidate = |mailbox, filter: Option<&str>| Candidate {
        mailbox: mailbox_of(mailbox),
        sequence: 1,
        filter: filter.map(str::to_owned),
    };
    let routes = Routes::new(vec![candidate("a", Some("x.test")), candidate("any", None)], Vec::new());
    for from in [None, Some(""), Some("invalid"), Some("\"Eve\" <eve@y.test>")] {
        let expected = Route { mailbox: mailbox_of("any"), rule: Rule::Unfiltered, new_from: None };
        assert_eq!(routes.route(from, BOUNCE), Ok(expected), "{from:?}");
    }
    let routes = Routes::new(vec![candidate("a", Some("x.test"))], Vec::new());
    assert_eq!(routes.route(Some("eve@y.test"), BOUNCE).unwrap().rule, Rule::First);
    assert_eq!(Routes::new(Vec::new(), Vec::new()).route(Some("a@b.c"), BOUNCE), Err(NoMailbox));
}

#[test]
fn the_notifications_address_is_the_alias_domain_s() {
    let candidate = |mailbox, filter: &str| Candidate {
        mailbox: mailbox_of(mailbox),
        sequence: 10,
        filter: Some(filter.to_owned()),
    };
    let domain = |name, from| AliasDomain::new(Some(name), Some(from), Some("bounce"));
    let routes = Routes::new(
        vec![
            candidate("one", "one.test"),
            candidate("two", "notices@two.test"),
            candidate("eve", "eve@x.test"),
        ],
        vec![
            domain("one.test", "notifications"),
            domain("two.test", "notices"),
            AliasDomain::new(Some("none.test"), None, Some("bounce")),
        ],
    );
    let one = (mailbox_of("one"), Rule::NotificationsDomain, Some("\"Bob\" <notifications@one.test>"));
    let two = (mailbox_of("two"), Rule::NotificationsAddress, Some("\"Bob\" <notices@two.test>"));
    for (from, mail_from, expected) in [
        ("Bob <bob@x.test>", "bounce@one.test", one.clone()),
        ("Bob <bob@x.test>", "bounce@two.test", two.clone()),
        ("Bob <bob@x.test>", "BOUNCE@TWO.TEST", two),
        ("Bob <bob@x.test>", "bounce@elsewhere.test", one.clone()),
        ("Bob <bob@x.test>", "", one),
        ("Bob <bob@x.test>", "bounce@none.test", (mailbox_of("one"), Rule::First, None)),
        // A From that a filter holds needs no notifications address.
        ("Eve <eve@x.test>", "bounce@two.test", (mailbox_of("eve"), Rule::Address, None)),
    ] {
        let route = routes.route(Some(from), mail_from).unwrap();
        assert_eq!((route.mailbox, route.rule, route.new_from.as_deref()), expected, "{from} {mail_from}");
    }
}

#[test]
fn another_way_out_is_the_notifications_address() {
    let all = [
        ("any", 1, None),
        ("sales", 2, Some("sales@example.com")),
        ("domain", 3, Some("example.com")),
        ("notif", 4, Some("notifications@example.com")),
    ];
    let way = |candidates, from, except: &str| {
        let route = routes(candidates).fallback(from, BOUNCE, &mailbox_of(except));
        route.map(|route| (route.mailbox, route.rule, route.new_from))
    };
    let as_notifications = |name: &str| Some(format!("\"{name}\" <notifications@example.com>"));
    let notif = |new_from| Some((mailbox_of("notif"), Rule::NotificationsAddress, new_from));
    assert_eq!(way(&all, Some("Sales <sales@example.com>"), "sales"), notif(as_notifications("Sales")));
    assert_eq!(way(&all, Some("john@example.com"), "domain"), notif(as_notifications("john")));
    assert_eq!(way(&all, Some("Odoo <notifications@example.com>"), "domain"), notif(None));
    assert_eq!(way(&all, None, "any"), notif(Some("notifications@example.com".to_owned())));
    let domain = (mailbox_of("domain"), Rule::NotificationsDomain, as_notifications("Sales"));
    assert_eq!(way(&all[..3], Some("Sales <sales@example.com>"), "sales"), Some(domain));
    // Itself, though another holds the domain; nobody's filter; no notifications address.
    assert_eq!(way(&all, Some("sales@example.com"), "notif"), None);
    assert_eq!(way(&all[..2], Some("sales@example.com"), "sales"), None);
    let none = Routes::new(Vec::new(), Vec::new());
    assert_eq!(none.fallback(Some("sales@example.com"), BOUNCE, &mailbox_of("sales")), None);
}

#[test]
fn the_steps_are_told_up_to_the_one_that_holds() {
    let all = [("any", 1, None), ("sales", 2, Some(" Sales@example.com,x.test "))];
    let step = |rule, sought: Option<&str>, found: Option<(&str, Option<&str>)>| Step {
        rule,
        sought: sought.map(str::to_owned),
        found: found.map(|(mailbox, filter)| (mailbox_of(mailbox), filter.map(str::to_owned))),
    };
    let sales = Some(("sales", Some("Sales@example.com,x.test")));
    assert_eq!(
        routes(&all).explain(Some("SALES@example.com"), BOUNCE),
        [step(Rule::Address, Some("sales@example.com"), sales)]
    );
    assert_eq!(
        routes(&all).explain(Some("Eve <eve@x.test>"), BOUNCE),
        [step(Rule::Address, Some("eve@x.test"), None), step(Rule::Domain, Some("x.test"), sales)]
    );
    assert_eq!(
        routes(&all).explain(Some("invalid"), BOUNCE),
        [
            step(Rule::Address, None, None),
            step(Rule::Domain, None, None),
            step(Rule::NotificationsAddress, Some("notifications@example.com"), None),
            step(Rule::NotificationsDomain, Some("example.com"), None),
            step(Rule::Unfiltered, None, Some(("any", None))),
        ]
    );
    let last = routes(&all[1..]).explain(None, BOUNCE).pop();
    assert_eq!(last, Some(step(Rule::First, None, sales)));
    assert_eq!(routes(&[]).explain(None, BOUNCE).len(), 6);
}

/// Odoo 19 sends the first of several addresses, and mends a broken From. Well-formed ones keep every byte.
#[test]
fn a_from_that_is_not_one_plain_mailbox_is_mended() {
    let routes = routes(&[("example", 1, Some("example.com"))]);
    for (from, new_from) in [
        ("sales@example.com, bob@x.test", Some("sales@example.com")),
        ("\"S\" <Sales@example.com>, bob@x.test", Some("\"S\" <sales@example.com>")),
        ("Sales Team sales@example.com", Some("\"Sales Team\" <sales@example.com>")),
        ("foo@bar@example.com", Some("bar@example.com")),
        ("Sales, EU <sales@example.com>", Some("\"EU\" <sales@example.com>")),
        ("SALES@Example.com", None),
        ("Sales (EU) <sales@example.com>", None),
        ("\"Sales, EU\" <sales@example.com>", None),
    ] {
        let route = routes.route(Some(from), BOUNCE).unwrap();
        assert_eq!((route.rule, route.new_from.as_deref()), (Rule::Domain, new_from), "{from}");
    }
}

#[test]
fn a_bound_user_keeps_the_mailbox_and_the_from() {
    let routes = routes(&[("other", 1, None)]);
    let mailbox = Address::normalise("news@example.com").unwrap();
    for (from, new_from) in [
        (Some("Eve <eve@foreign.test>"), None),
        (Some("eve@foreign.test, ann@example.com"), Some("eve@foreign.test")),
        (Some("nobody"), None),
        (None, None),
    ] {
        let new_from = new_from.map(str::to_owned);
        let route = Route { mailbox: mailbox.clone(), rule: Rule::User, new_from };
        assert_eq!(routes.bound_to(&mailbox, from), route, "{from:?}");
    }
}

#[test]
fn rules_have_one_name_everywhere() {
    for rule in Rule::ALL {
        assert_eq!(rule.as_str().parse(), Ok(rule));
        assert_eq!(serde_json::to_value(rule).unwrap(), rule.as_str());
    }
    assert_eq!("nonsense".parse::<Rule>(), Err(UnknownRule("nonsense".to_owned())));
}

proptest! {
    /// Any header finds a mailbox, and a new From is one address with a name that survives the header.
    #[test]
    fn any_from_is_routed(raw in "(From: [ -~éß\u{1}]{0,40}\r\n){0,2}", filter in prop::option::of("[ -~]{0,20}")) {
        let routes = routes(&[("only", 1, filter.as_deref())]);
        let from = HeaderView::parse(raw.as_bytes()).from();
        let route = routes.route(from.as_deref(), BOUNCE).unwrap();
        if let Some(new_from) = route.new_from {
            prop_assert!(Address::normalise(&new_from).is_some(), "{}", new_from);
            let rewritten = with_from(raw.as_bytes(), &new_from);
            prop_assert_eq!(HeaderView::parse(&rewritten).from(), Some(new_from.trim().to_owned()));
        }
    }
}
