//! The door: by which name and way a request came, and whether it may come in at all. Also what every answer carries.

use super::Admin;
use super::session::Visitor;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use std::sync::Arc;
use url::Url;

/// A cookie with this prefix is taken by browsers only from this very host, over https (RFC 6265bis section 4.1.3).
const SECURE_COOKIE: &str = "__Host-outlook-relay";
const COOKIE: &str = "outlook-relay";

/// Nothing from elsewhere, nothing inline, in nobody's frame; forms go nowhere but here. (A sign-in at Microsoft is
/// reached by a link, see [`super::consent`], since browsers hold `form-action` against each redirect behind a form, and
/// a company's own sign-in pages may stand behind Microsoft's.)
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Headers of every answer. `same-origin` and not `no-referrer`, with which browsers say `Origin: null` in our own forms
/// (Fetch, section 3.2); both keep the links of invitations from other sites.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// What a reverse proxy adds to what it passes on.
const PROXY_HEADERS: [&str; 7] = [
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
];

/// Who asks, as far as the request tells.
#[derive(Clone)]
pub(super) struct Asker {
    /// The browser.
    pub(super) visitor: Visitor,
    /// The name and port that it asked for.
    pub(super) host: String,
    /// Whether it is a program on this machine, or the far end of its SSH tunnel, with no proxy in between.
    pub(super) direct: bool,
}

/// In an answer: this browser is somebody else from now on.
#[derive(Clone)]
pub(super) struct Renewed(pub(super) Visitor);

/// Lets a request in if it was meant for us, and dresses the answer.
pub(super) async fn guard(State(admin): State<Arc<Admin>>, mut request: Request, next: Next) -> Response {
    let public = admin.config.public_url();
    let headers = request.headers();
    let mut response = match by_name(headers, public.as_ref()) {
        None => (StatusCode::MISDIRECTED_REQUEST, "ask for this machine as localhost, or by public_url\n")
            .into_response(),
        Some(name) if !may_act(request.method(), headers, name, public.as_ref()) => {
            (StatusCode::FORBIDDEN, "this request was made by a page of somebody else\n").into_response()
        }
        Some(name) => {
            let secure = name == Name::Public && public.as_ref().is_some_and(|url| url.scheme() == "https");
            let cookie = if secure { SECURE_COOKIE } else { COOKIE };
            let known = headers
                .get_all(header::COOKIE)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .find_map(|value| Visitor::from_cookies(value, cookie));
            let is_new = known.is_none();
            let visitor = known.unwrap_or_else(|| Visitor::new(rand::random()));
            let direct = name == Name::Local && is_direct(headers, request.version());
            let host = match (name, &public) {
                (Name::Public, Some(url)) => authority(url).unwrap_or_default(),
                _ => word(headers, "host").to_owned(),
            };
            let asker = Asker { visitor: visitor.clone(), host, direct };
            request.extensions_mut().insert(asker);
            let mut response = next.run(request).await;
            let renewed = response.extensions_mut().remove::<Renewed>().map(|Renewed(visitor)| visitor);
            if let Some(visitor) = renewed.or(is_new.then_some(visitor))
                && let Ok(value) = set_cookie(cookie, &visitor, secure).parse()
            {
                response.headers_mut().append(header::SET_COOKIE, value);
            }
            response
        }
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Lax: Microsoft sends the browser back with a link, which has to bring the cookie along.
fn set_cookie(name: &str, visitor: &Visitor, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    format!("{name}={}; Path=/; HttpOnly; SameSite=Lax{secure}", visitor.value())
}

/// By which of our names a request asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// One of this machine: `localhost`, 127.0.0.1, `[::1]`.
    Local,
    /// `public_url`'s.
    Public,
}

/// The name in the Host header, if it is one of ours. A page elsewhere whose name was rebound to 127.0.0.1 asks for its
/// own (DNS rebinding).
fn by_name(headers: &HeaderMap, public: Option<&Url>) -> Option<Name> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return None;
    };
    let host = host.to_str().ok()?;
    if is_local_name(host) {
        Some(Name::Local)
    } else {
        // A reverse proxy may leave the port out, or write the scheme's own (nginx's `$host:$server_port`).
        let public = public?;
        let name = public.host_str()?;
        let names =
            [Some(name.to_owned()), public.port_or_known_default().map(|port| format!("{name}:{port}"))];
        names.iter().flatten().any(|name| name.eq_ignore_ascii_case(host)).then_some(Name::Public)
    }
}

/// Host and port as a browser writes them: the port only where it is not the scheme's own.
fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

pub(super) fn is_local_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a request that would do something comes from our own pages, or from no page at all (a command line). Cookies
/// do not tell ports apart, nor does `SameSite`: what else runs on this machine is kept out by this.
fn may_act(method: &Method, headers: &HeaderMap, name: Name, public: Option<&Url>) -> bool {
    if method.is_safe() {
        return true;
    }
    let same_site =
        !headers.contains_key("sec-fetch-site") || word(headers, "sec-fetch-site") == "same-origin";
    let origin = word(headers, "origin");
    let same_origin = !headers.contains_key("origin")
        || match (name, public) {
            (Name::Public, Some(url)) => url.origin().ascii_serialization() == origin,
            _ => origin
                .strip_prefix("http://")
                .is_some_and(|origin| origin.eq_ignore_ascii_case(word(headers, "host"))),
        };
    same_site && same_origin
}

/// A header's value; empty where there is none, or none in ASCII.
fn word<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Whether nothing speaks for a reverse proxy in between: none of its headers, and not the HTTP/1.0 that nginx before 1.29.7
/// by default speaks to what is behind it. A proxy that adds no header, speaks HTTP/1.1 and asks for us as `127.0.0.1` (a
/// newer nginx with a bare `proxy_pass`) cannot be told from a browser on this machine: against that only a password
/// helps, as README.md and config/relay.toml say.
fn is_direct(headers: &HeaderMap, version: Version) -> bool {
    version >= Version::HTTP_11 && !PROXY_HEADERS.iter().any(|name| headers.contains_key(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn only_our_own_names_are_answered() {
        let public = Url::parse("https://odoo.example.com").unwrap();
        let by = |host: &str| by_name(&headers(&[("host", host)]), Some(&public));
        for host in ["localhost", "LOCALHOST:8025", "127.0.0.1:8025", "127.0.0.2", "[::1]:8025", "[::1]"] {
            assert_eq!(by(host), Some(Name::Local), "{host}");
        }
        assert_eq!(by("odoo.example.com"), Some(Name::Public));
        assert_eq!(by("Odoo.Example.com"), Some(Name::Public));
        assert_eq!(by("odoo.example.com:443"), Some(Name::Public));
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:8025",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "::1:x",
            "odoo.example.com:8025",
            "odoo.example.com.evil.example",
            "user@localhost:80",
        ] {
            assert_eq!(by(host), None, "{host}");
        }
        let with_port = Url::parse("https://odoo.example.com:8443").unwrap();
        for host in ["odoo.example.com", "odoo.example.com:8443"] {
            assert_eq!(by_name(&headers(&[("host", host)]), Some(&with_port)), Some(Name::Public), "{host}");
        }
        assert_eq!(by_name(&headers(&[("host", "odoo.example.com")]), None), None);
        assert_eq!(by_name(&HeaderMap::new(), None), None);
        let mut twice = headers(&[("host", "localhost")]);
        twice.append(header::HOST, HeaderValue::from_static("evil.example"));
        assert_eq!(by_name(&twice, None), None);
    }

    #[test]
    fn forms_of_other_pages_are_refused() {
        let public = Url::parse("https://odoo.example.com").unwrap();
        type Row = (&'static [(&'static str, &'static str)], Name, bool);
        let table: &[Row] = &[
            (&[("host", "localhost:8025")], Name::Local, true),
            (&[("host", "localhost:8025"), ("origin", "http://localhost:8025")], Name::Local, true),
            (&[("host", "localhost:8025"), ("origin", "http://localhost:3000")], Name::Local, false),
            (&[("host", "localhost:8025"), ("origin", "https://evil.example")], Name::Local, false),
            (&[("host", "localhost:8025"), ("origin", "null")], Name::Local, false),
            (&[("host", "localhost:8025"), ("sec-fetch-site", "same-site")], Name::Local, false),
            (&[("host", "localhost:8025"), ("sec-fetch-site", "cross-site")], Name::Local, false),
            (&[("host", "localhost:8025"), ("sec-fetch-site", "same-origin")], Name::Local, true),
            (&[("host", "odoo.example.com"), ("origin", "https://odoo.example.com")], Name::Public, true),
            (&[("host", "odoo.example.com"), ("origin", "http://odoo.example.com")], Name::Public, false),
        ];
        for (pairs, name, expected) in table {
            let pairs: Vec<(&'static str, &str)> = pairs.to_vec();
            assert_eq!(
                may_act(&Method::POST, &headers(&pairs), *name, Some(&public)),
                *expected,
                "{pairs:?}"
            );
            assert!(may_act(&Method::GET, &headers(&pairs), *name, Some(&public)));
        }
    }

    #[test]
    fn a_proxy_is_noticed() {
        assert!(is_direct(&headers(&[("host", "localhost")]), Version::HTTP_11));
        assert!(!is_direct(&headers(&[("host", "localhost")]), Version::HTTP_10));
        for name in PROXY_HEADERS {
            assert!(!is_direct(&headers(&[(name, "x")]), Version::HTTP_11), "{name}");
        }
    }
}
