//! The From rewrite, and all else that is done to a message on its way out: whatever the message, it is routed, leaves with
//! one From that the rule agrees with, and the queue id is found in it again.
#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use outlook_relay::address::Address;
use outlook_relay::message::{HeaderView, Trace, outbound, received_ids, with_from};
use outlook_relay::routing::{AliasDomain, Candidate, Routes};
use std::sync::LazyLock;

static ROUTES: LazyLock<Routes> = LazyLock::new(|| {
    let candidate = |mailbox: &str, filter: &str| Candidate {
        mailbox: mailbox.parse().unwrap(),
        sequence: 10,
        filter: Some(filter.to_owned()),
    };
    let candidates = vec![
        candidate("john@example.com", "john@example.com, x.test"),
        candidate("notifications@example.com", "notifications@example.com"),
    ];
    Routes::new(candidates, vec![AliasDomain::new(Some("example.com"), Some("notifications"), None)])
});

fuzz_target!(|raw: &[u8]| {
    let header = HeaderView::parse(raw);
    let (from, id) = (header.from(), header.message_id());
    header.recipients();
    header.is_delivery_report();
    let route = ROUTES.route(from.as_deref(), "").unwrap();
    let trace = Trace {
        client: Some("odoo"),
        host: "relay",
        protocol: "ESMTP",
        id: "ABC",
        received_at: Timestamp::UNIX_EPOCH,
        domain: "example.com",
    };
    let sent = outbound(raw, &trace, route.new_from.as_deref());
    let header = HeaderView::parse(&sent);
    assert_eq!(received_ids(&sent).first().map(String::as_str), Some("ABC"));
    assert_eq!(header.message_id(), id.or_else(|| Some(trace.message_id())));
    let now = header.from();
    let Some(new_from) = route.new_from else {
        assert_eq!(now, from);
        return;
    };
    // One address, that of the rule, and routing it again changes nothing.
    let address = Address::normalise(&new_from);
    assert!(address.is_some());
    assert_eq!(now.as_deref().and_then(Address::normalise), address);
    let again = ROUTES.route(now.as_deref(), "").unwrap();
    assert_eq!(again.mailbox, route.mailbox);
    let once = with_from(raw, &new_from);
    assert_eq!(again.new_from.map_or(once.clone(), |new_from| with_from(&once, &new_from)), once);
});
