//! What the token endpoint's errors mean: the AADSTS codes that a relay meets, as data.
//!
//! Microsoft says to decide on `error` (RFC 6749 section 5.2), since codes change: a code that is not listed falls into
//! the class of its `error`. The codes are Microsoft's "Microsoft Entra authentication and authorization error codes".

use crate::failure::{Class, Failure};
use std::time::Duration;

/// Codes that mean the same to a person: one class, one remedy.
#[derive(Debug)]
struct Group {
    class: Class,
    /// What to do; empty where waiting is all there is to do. `<mailbox>` stands for the mailbox's address.
    remedy: &'static str,
    /// Each code, and what it says.
    codes: &'static [(u32, &'static str)],
}

/// Microsoft saw the same request too often. It asks to stop: at least [`LOOP_WAIT`].
const LOOP_DETECTED: u32 = 50196;
/// How long to leave the endpoint alone after [`LOOP_DETECTED`].
const LOOP_WAIT: Duration = Duration::from_secs(300);

/// The remedy for a consent that is no longer good.
const CONNECT: &str = "run `outlook-relay connect <mailbox>`";

/// The catalogue.
#[rustfmt::skip] // A row is a line.
const CATALOGUE: &[Group] = &[
    Group { class: Class::Transient, remedy: "", codes: &[
        (50033, "Microsoft's sign-in had a passing error"),
        (50087, "Microsoft's strong authentication had a passing error"),
        (50088, "Microsoft's limit on authentication calls was reached"),
        (90006, "another of Microsoft's servers had a passing error"),
        (90012, "the request took Microsoft too long"),
        (90024, "Microsoft's request budget was exceeded for a while"),
        (90033, "Microsoft's directory is not available for a while"),
        (90055, "too many requests come from this tenant"),
        (90090, "Microsoft Graph had a passing error"),
        (70012, "Microsoft's sign-in for personal accounts had an error"),
        (LOOP_DETECTED, "Microsoft saw the same request too often and asks to pause"),
    ] },
    Group { class: Class::Consent, remedy: CONNECT, codes: &[
        (70000, "the refresh token is not valid, or belongs to another app or tenant"),
        (70008, "the refresh token has expired"),
        (700082, "the refresh token has expired: it was not used for 90 days"),
        (50173, "the refresh token was revoked: the password changed, or an administrator revoked the sessions"),
        (50089, "the sign-in took too long and has expired"),
        (50132, "the sign-in is no longer valid: the password changed or expired"),
        (50133, "the sign-in is no longer valid: the password changed or expired"),
        (54005, "the authorization code was used already"),
        (65001, "nobody consented to this app's permissions for the mailbox"),
        (65004, "the consent was declined"),
    ] },
    Group { class: Class::Consent, remedy: "run `outlook-relay connect <mailbox>` and pass the multi-factor \
        authentication; so that it does not come back, except this account from that Conditional Access policy", codes: &[
        (50072, "the user has to enrol for multi-factor authentication"),
        (50074, "multi-factor authentication is required"),
        (50076, "multi-factor authentication is required, by a new policy or at a new place"),
        (50078, "the multi-factor authentication has expired, by the tenant's policy"),
        (50079, "the user has to enrol for multi-factor authentication"),
        (50158, "another provider's security challenge has to be met"),
    ] },
    Group { class: Class::Consent, remedy: "run `outlook-relay connect <mailbox>`; it will come back: in the Entra \
        admin center › Conditional Access, except this account from the policy that sets a sign-in frequency", codes: &[
        (70043, "a Conditional Access policy on sign-in frequency ended the consent; refreshing cannot help"),
    ] },
    Group { class: Class::Administrator, remedy: "have an administrator consent: Entra admin center › App registrations › \
        the app › API permissions › Grant admin consent; then run `outlook-relay connect <mailbox>`", codes: &[
        (90094, "only an administrator may consent to these permissions"),
        (90095, "only an administrator may consent to these permissions"),
        (65005, "the app does not ask for the permissions that it uses"),
        (650056, "the app has no permissions, or nobody consented to them in this tenant"),
        (650057, "the app's permissions do not list this resource"),
    ] },
    Group { class: Class::Administrator, remedy: "Entra admin center › App registrations › the app › API permissions: add \
        SMTP.Send and IMAP.AccessAsUser.All of Office 365 Exchange Online (app-only: SMTP.SendAsApp, IMAP.AccessAsApp), \
        and check that the tenant has Exchange Online", codes: &[
        (650052, "the tenant has no subscription to the service that the app asks for"),
        (500011, "the resource is not known in this tenant"),
        (70011, "a scope is not valid"),
        (700022, "the scopes name more than one resource"),
    ] },
    Group { class: Class::Administrator, remedy: "Entra admin center › Sign-in logs shows which policy blocked the account; \
        except the account, or the relay's IP address, from it", codes: &[
        (53000, "Conditional Access wants a compliant device"),
        (53001, "Conditional Access wants a domain-joined device"),
        (53002, "Conditional Access wants an approved app"),
        (53003, "Conditional Access blocks this sign-in"),
        (53011, "the account is blocked because of risk"),
        (530032, "a security policy of the tenant blocks this sign-in"),
        (530035, "the tenant's security defaults block this sign-in"),
        (50005, "the platform is one that Conditional Access does not let in"),
        (50097, "Conditional Access wants the device to authenticate"),
        (50131, "Conditional Access blocks this sign-in"),
    ] },
    Group { class: Class::Administrator, remedy: "Entra admin center › Enterprise applications › the app › Users and groups: \
        add the account, or switch \"Assignment required\" off", codes: &[
        (50105, "the account is not assigned to the app"),
    ] },
    Group { class: Class::Administrator, remedy: "check the account in the Microsoft 365 admin center, and `tenant` in the \
        configuration; then run `outlook-relay connect <mailbox>`", codes: &[
        (50034, "there is no such account in the tenant"),
        (50020, "the account belongs to another tenant and is no guest of this one"),
        (50053, "the account is locked, or the sign-in came from a suspicious address"),
        (50055, "the account's password has expired"),
        (50057, "the account is disabled"),
        (50126, "the account's name or password is wrong"),
    ] },
    Group { class: Class::Administrator, remedy: "in the Entra admin center › App registrations › the app › Certificates & \
        secrets, make a new client secret, write its *Value* (not its Secret ID) into the client_secret_file and restart", codes: &[
        (7000222, "the app's client secret has expired"),
        (7000215, "the client secret is wrong: often its ID was copied instead of its Value"),
        (70002, "the app's credentials are wrong"),
        (50012, "the app's credentials are wrong"),
    ] },
    Group { class: Class::Administrator, remedy: "set client_secret_file; or, for an app without a secret, switch on Entra \
        admin center › App registrations › the app › Authentication › Allow public client flows", codes: &[
        (7000218, "the app is not a public client: it has to send its secret"),
    ] },
    Group { class: Class::Administrator, remedy: "remove client_secret_file; or, in the Entra admin center › App registrations \
        › the app › Authentication, register the redirect URI under Web instead of Mobile and desktop", codes: &[
        (700025, "the app is a public client: it must not send a secret"),
    ] },
    Group { class: Class::Administrator, remedy: "check the app's certificate: Entra admin center › App registrations › the \
        app › Certificates & secrets", codes: &[
        (700027, "the certificate's signature was refused"),
        (700030, "the certificate is not valid"),
        (50013, "the app's assertion is not valid"),
    ] },
    Group { class: Class::Administrator, remedy: "check client_id, tenant and cloud in the configuration against the app's \
        page in the Entra admin center › App registrations", codes: &[
        (700016, "the app is not known in this tenant"),
        (90002, "the tenant is not known, or lies in another national cloud"),
        (90038, "the tenant lies in another national cloud"),
        (900382, "the tenant lies in another national cloud than the app"),
    ] },
    Group { class: Class::Administrator, remedy: "Entra admin center › Enterprise applications › the app › Properties: switch \
        \"Enabled for users to sign in\" on", codes: &[
        (70001, "the app is disabled, or not installed in this tenant"),
        (7000112, "the app is disabled"),
    ] },
    Group { class: Class::Administrator, remedy: "set tenant in the configuration to your own tenant's GUID or domain", codes: &[
        (50194, "the app belongs to one tenant, and the configuration names `common`"),
        (9001023, "app-only access needs the tenant's own name, not `common`"),
    ] },
    Group { class: Class::Administrator, remedy: "Entra admin center › App registrations › the app › Authentication: move the \
        redirect URI from Single-page application to Web, then run `outlook-relay connect <mailbox>`", codes: &[
        (700084, "the app is registered as a single-page application: its refresh tokens live for 24 hours only"),
    ] },
    Group { class: Class::Administrator, remedy: "Entra admin center › App registrations › the app › Authentication: add the \
        redirect URI that the reply names, exactly as it stands there", codes: &[
        (50011, "the redirect URI is not registered with the app"),
    ] },
    Group { class: Class::Administrator, remedy: "check authority, tenant and client_id in the configuration; run \
        `outlook-relay connect <mailbox>` again if this happened while connecting", codes: &[
        (9002313, "the request was malformed"),
        (900144, "the request lacked a parameter"),
        (501481, "the PKCE code verifier does not match its challenge"),
    ] },
];

/// A failure, and whether it is certain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What it means.
    pub failure: Failure,
    /// `false`: an `invalid_grant` that gives no reason we know. Believed only when it lasts.
    pub certain: bool,
}

impl From<Failure> for Verdict {
    fn from(failure: Failure) -> Self {
        Self { failure, certain: true }
    }
}

/// Judges an error of the token endpoint.
///
/// `error` is RFC 6749's (section 5.2; RFC 8628 section 3.5 for device codes), `codes` are Microsoft's, `reply` is what
/// people shall read of the answer. The first code that the catalogue knows decides; none: the `error` does.
pub fn judge(error: &str, codes: &[u32], reply: &str, mailbox: &str) -> Verdict {
    let known = codes.iter().find_map(|&code| find(code).map(|found| (code, found)));
    let (class, meaning, remedy) = known.map_or_else(|| of_error(error), |(_, found)| found);
    let code = match known.map(|(code, _)| code).or(codes.first().copied()) {
        Some(code) => format!("AADSTS{code}"),
        None => error.to_owned(),
    };
    let mut failure = Failure::new(class, code, reply);
    if !remedy.is_empty() {
        failure = failure.advise(format!("{meaning}: {remedy}").replace("<mailbox>", mailbox));
    }
    if codes.contains(&LOOP_DETECTED) {
        failure = failure.wait(LOOP_WAIT);
    }
    Verdict { failure, certain: known.is_some() || error != "invalid_grant" }
}

/// Class, meaning and remedy of a code.
fn find(code: u32) -> Option<(Class, &'static str, &'static str)> {
    CATALOGUE.iter().find_map(|group| {
        let (_, meaning) = group.codes.iter().find(|(listed, _)| *listed == code)?;
        Some((group.class, *meaning, group.remedy))
    })
}

/// The same for the `error` of a code that is not listed.
fn of_error(error: &str) -> (Class, &'static str, &'static str) {
    match error {
        "invalid_grant" => (Class::Consent, "the consent is no longer taken", CONNECT),
        "interaction_required" | "consent_required" | "login_required" => {
            (Class::Consent, "the mailbox's owner has to sign in", CONNECT)
        }
        "access_denied" | "authorization_declined" => (Class::Consent, "the consent was declined", CONNECT),
        "expired_token" => {
            (Class::Consent, "the device code has expired: nobody entered it in time", CONNECT)
        }
        "bad_verification_code" => (Class::Consent, "the device code is not known", CONNECT),
        "invalid_client" | "unauthorized_client" => (
            Class::Administrator,
            "the app was refused",
            "check client_id, tenant and client_secret_file against the app's page in the Entra admin center › App \
             registrations",
        ),
        "invalid_scope" | "invalid_resource" | "unsupported_grant_type" | "invalid_request" => (
            Class::Administrator,
            "the request was refused",
            "check authority, tenant, cloud and the app's API permissions in the Entra admin center › App registrations",
        ),
        // authorization_pending, slow_down, temporarily_unavailable, server_error, and what nobody has heard of yet.
        _ => (Class::Transient, "", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// What Microsoft's documentation and users' reports say of each code, listed apart from the catalogue.
    const EXPECTED: &[(Class, &[u32])] = &[
        (Class::Transient, &[50033, 50087, 50088, 90006, 90012, 90024, 90033, 90055, 90090, 70012, 50196]),
        (
            Class::Consent,
            &[
                70000, 70008, 700082, 50173, 50089, 50132, 50133, 50078, 70043, 54005, 50076, 50079, 50072,
                50074, 50158, 65001, 65004,
            ],
        ),
        (
            Class::Administrator,
            &[
                90094, 90095, 65005, 650052, 650056, 650057, 53000, 53001, 53002, 53003, 53011, 530032,
                530035, 50005, 50097, 50105, 50131, 50034, 50057, 50053, 50055, 50126, 50020, 7000215,
                7000222, 70002, 7000218, 700025, 700027, 700030, 50012, 50013, 700016, 70001, 7000112, 50194,
                9001023, 90002, 90038, 900382, 700084, 500011, 70011, 700022, 9002313, 900144, 50011, 501481,
            ],
        ),
    ];

    #[test]
    fn every_code_has_its_class_and_a_remedy_where_a_person_has_to_act() {
        for (class, codes) in EXPECTED {
            for &code in *codes {
                // The `error` says something else each time: the code decides.
                let error =
                    if *class == Class::Transient { "invalid_client" } else { "temporarily_unavailable" };
                let Verdict { failure, certain } = judge(error, &[code], "reply", "john@example.com");
                assert_eq!(failure.class, *class, "{code}");
                assert_eq!(failure.code, format!("AADSTS{code}"));
                assert!(certain, "{code}");
                assert_eq!(failure.advice.is_empty(), *class == Class::Transient, "{code}");
                assert!(!failure.advice.contains('<'), "{code}: {}", failure.advice);
                if *class == Class::Consent {
                    assert!(
                        failure.advice.contains("outlook-relay connect john@example.com"),
                        "{code}: {}",
                        failure.advice
                    );
                }
            }
        }
    }

    #[test]
    fn each_code_stands_in_the_catalogue_once_and_is_expected_there() {
        let listed: Vec<u32> =
            CATALOGUE.iter().flat_map(|group| group.codes).map(|(code, _)| *code).collect();
        let expected: HashSet<u32> = EXPECTED.iter().flat_map(|(_, codes)| *codes).copied().collect();
        assert_eq!(listed.iter().copied().collect::<HashSet<_>>(), expected);
        assert_eq!(listed.len(), expected.len(), "a code stands there twice");
    }

    #[test]
    fn an_unknown_code_falls_into_the_class_of_its_error() {
        let cases = [
            ("invalid_grant", Class::Consent, false),
            ("interaction_required", Class::Consent, true),
            ("consent_required", Class::Consent, true),
            ("login_required", Class::Consent, true),
            ("access_denied", Class::Consent, true),
            ("authorization_declined", Class::Consent, true),
            ("expired_token", Class::Consent, true),
            ("bad_verification_code", Class::Consent, true),
            ("invalid_client", Class::Administrator, true),
            ("unauthorized_client", Class::Administrator, true),
            ("unsupported_grant_type", Class::Administrator, true),
            ("invalid_request", Class::Administrator, true),
            ("invalid_scope", Class::Administrator, true),
            ("invalid_resource", Class::Administrator, true),
            ("temporarily_unavailable", Class::Transient, true),
            ("authorization_pending", Class::Transient, true),
            ("slow_down", Class::Transient, true),
            ("brand_new_error", Class::Transient, true),
        ];
        for (error, class, certain) in cases {
            let verdict = judge(error, &[424_242], "reply", "john@example.com");
            assert_eq!((verdict.failure.class, verdict.certain), (class, certain), "{error}");
            assert_eq!(verdict.failure.code, "AADSTS424242");
            assert_eq!(judge(error, &[], "reply", "john@example.com").failure.code, error);
        }
    }

    #[test]
    fn the_first_known_code_decides() {
        let verdict = judge("invalid_grant", &[424_242, 700_082, 53_003], "reply", "j@example.com");
        assert_eq!(verdict.failure.code, "AADSTS700082");
        assert!(verdict.certain);
    }

    #[test]
    fn remedies_name_the_place_to_act() {
        let advice = |code| judge("invalid_client", &[code], "", "j@example.com").failure.advice;
        for word in ["expired", "Certificates & secrets", "*Value*", "client_secret_file", "restart"] {
            assert!(advice(7_000_222).contains(word), "{}", advice(7_000_222));
        }
        assert!(advice(70_043).contains("sign-in frequency"));
        assert!(advice(50_194).contains("tenant"));
    }

    #[test]
    fn a_detected_loop_asks_for_five_minutes() {
        let verdict = judge("invalid_grant", &[LOOP_DETECTED], "", "j@example.com");
        assert_eq!(verdict.failure.class, Class::Transient);
        assert_eq!(verdict.failure.retry_after, Some(Duration::from_secs(300)));
    }
}
