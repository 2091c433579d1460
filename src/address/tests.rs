use proptest::prelude::*;

use super::*;

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, spec)| ((*name).to_owned(), (*spec).to_owned())).collect()
}

/// The right side was computed by Python 3.11's `email.utils.getaddresses`.
#[test]
fn addresses_reads_what_python_reads() {
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("", &[]),
        ("invalid", &[("", "invalid")]),
        ("foo@", &[("", "")]),
        ("@example.com", &[("", "@example.com")]),
        ("foo@bar@example.com", &[("", ""), ("", "@example.com")]),
        ("sales@ example.com", &[("", "sales@example.com")]),
        ("sales(comment)@example.com", &[("comment comment", "sales@example.com")]),
        ("Sales (EU) <sales@example.com>", &[("Sales (EU)", "sales@example.com")]),
        ("\"Eve\" <eve@foreign.test> (comment)", &[("Eve", "eve@foreign.test")]),
        ("a@b.c (x (y) z)", &[("x y z", "a@b.c")]),
        ("Sales Team sales@example.com", &[("", "Sales Team sales@example.com")]),
        ("sales@example.com, ", &[("", "sales@example.com"), ("", "")]),
        ("Eve, Inc <eve@x.test>", &[("", "Eve"), ("Inc", "eve@x.test")]),
        ("team: a@b.c, Eve <d@e.f>;, g@h.i", &[("", "a@b.c"), ("Eve", "d@e.f"), ("", "g@h.i")]),
        ("undisclosed-recipients:;", &[("", "")]),
        ("<@route.test:a@b.c>", &[("", "a@b.c")]),
        ("\"a\\\"b\\\\\" <a@b.c>", &[("a\"b\\", "a@b.c")]),
        ("\"a b\"@c.d", &[("", "\"a b\"@c.d")]),
        ("a@[127.0.0.1]", &[("", "a@[127.0.0.1]")]),
        ("J. R. <jr@x.test>", &[("J. R.", "jr@x.test")]),
    ];
    for (text, expected) in cases {
        assert_eq!(list::addresses(text), pairs(expected), "{text:?}");
    }
}

#[test]
fn mailboxes_mends_what_odoo_mends() {
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("Sales Team sales@example.com", &[("Sales Team", "sales@example.com")]),
        ("foo@bar@example.com", &[("", "bar@example.com")]),
        ("@localhost", &[("", "@localhost")]),
        ("@gmail.com, a@b.co, c@d", &[("", "a@b.co")]),
        ("@x, a@b.c1.d", &[("", "@x"), ("", "a@b.c1.d")]),
        ("@x, a@b.c1.de9", &[("", "a@b.c1.de")]),
        ("invalid, Eve", &[]),
    ];
    for (text, expected) in cases {
        assert_eq!(list::mailboxes(text), pairs(expected), "{text:?}");
    }
}

#[test]
fn normalise_finds_exactly_one_address() {
    let cases = [
        ("sales@example.com", Some("sales@example.com")),
        ("SALES@Example.COM", Some("sales@example.com")),
        ("\"Sales Team\" <Sales@Example.com>", Some("sales@example.com")),
        ("<sales@example.com>", Some("sales@example.com")),
        // A local part that is not ASCII keeps its case; a domain never does, and is never mapped to `xn--`.
        ("JÖRG@Example.com", Some("JÖRG@example.com")),
        ("info@MÜLLER.example", Some("info@müller.example")),
        ("info@XN--mller-kva.example", Some("info@xn--mller-kva.example")),
        ("sales@localhost", Some("sales@localhost")),
        ("sales@[127.0.0.1]", Some("sales@[127.0.0.1]")),
        ("\"very, odd @ name\" <sales@example.com>", Some("sales@example.com")),
        ("a@x.test, b@x.test", None),
        ("", None),
        ("   ", None),
        ("invalid", None),
        ("foo@", None),
        ("@example", None),
        ("a\u{a0}b@example.com", None),
        ("a@b\u{0}.test", None),
    ];
    for (text, expected) in cases {
        assert_eq!(Address::normalise(text).as_ref().map(Address::as_str), expected, "{text:?}");
    }
}

#[test]
fn parts_are_split_at_the_last_at_sign() {
    let address = Address::normalise("\"a@b\"@Example.com").unwrap();
    assert_eq!((address.local(), address.domain()), ("\"a@b\"", "example.com"));
    assert_eq!(address.to_string(), "\"a@b\"@example.com");
}

#[test]
fn with_name_quotes_the_name() {
    let address = Address::normalise("a@b.c").unwrap();
    assert_eq!(address.with_name("Eve"), "\"Eve\" <a@b.c>");
    assert_eq!(address.with_name("E\"v\\e"), "\"E\\\"v\\\\e\" <a@b.c>");
    assert_eq!(address.with_name(""), "a@b.c");
}

#[test]
fn a_person_must_write_a_bare_address() {
    assert_eq!(" Sales@Example.com ".parse::<Address>().unwrap().as_str(), "sales@example.com");
    for text in ["", "sales", "Sales <sales@example.com>", "a@b.c, d@e.f", "a b@c.d", "a@b@c.d", "a@b.c (x)"]
    {
        let error = text.parse::<Address>().unwrap_err().to_string();
        assert!(error.contains(&format!("{text:?} is not an email address")), "{error}");
    }
    assert!("x".repeat(10_000).parse::<Address>().unwrap_err().to_string().len() < 250);
}

#[test]
fn serde_takes_and_gives_a_string() {
    let address: Address = serde_json::from_str("\"Sales@Example.com\"").unwrap();
    assert_eq!(serde_json::to_string(&address).unwrap(), "\"sales@example.com\"");
    let error = serde_json::from_str::<Address>("\"sales\"").unwrap_err().to_string();
    assert!(error.contains("\"sales\" is not an email address"), "{error}");
}

#[test]
fn domains_are_lower_case() {
    assert_eq!(normalise_domain(" Example.COM ").as_deref(), Some("example.com"));
    assert_eq!(normalise_domain("MÜLLER.example").as_deref(), Some("müller.example"));
    assert_eq!(normalise_domain("  "), None);
    assert_eq!(normalise_domain("@example.com"), None);
}

/// Each of these would exhaust the stack of a recursive reader, or the patience of a quadratic one.
#[test]
fn hostile_lists_are_read_to_the_end() {
    for unit in
        ["(", "a:", "a:b,", "a@", "a.", "\"", "\\\"", "<", "<@", "a ", ",", ";", "[", "a@b.c ", "@b.co "]
    {
        let text = unit.repeat(50_000);
        list::mailboxes(&text);
    }
}

fn list_text() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        Just("a".to_owned()),
        Just("é".to_owned()),
        Just("sales@example.com".to_owned()),
        "[()<>@,:;.\"\\[\\]\\\\ \t\r\n]",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(token, 0..20).prop_map(|tokens| tokens.concat())
}

proptest! {
    #[test]
    fn any_text_is_read(text in list_text()) {
        for (_, address) in Address::all(&text) {
            prop_assert_eq!(Address::normalise(address.as_str()), Some(address.clone()));
            prop_assert_eq!(address.as_str().parse::<Address>(), Ok(address.clone()));
            prop_assert_eq!(format!("{}@{}", address.local(), address.domain()), address.as_str());
            prop_assert!(!address.as_str().contains(|c: char| c.is_control() || c.is_whitespace()));
        }
    }

    #[test]
    fn a_formatted_mailbox_reads_back(name in any::<String>()) {
        let address = Address::normalise("eve@foreign.test").unwrap();
        // A CR ends a quoted string for this reader; none comes here, because header text is unfolded first.
        let name = name.replace('\r', "");
        prop_assert_eq!(Address::all(&address.with_name(&name)), vec![(name, address)]);
    }
}
