//! When the credentials of the apps expire: said ahead, since nothing works any more from then on.

use super::{Config, Credential};
use crate::clock;
use crate::health::patiently;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The warnings begin so many days before.
pub const WARN_DAYS: i32 = 30;
/// How often it is asked whether a new day has begun; timers stand still while a machine sleeps.
const LOOK_EVERY: Duration = Duration::from_secs(15 * 60);

/// The event, the thing and the remedy where an app signs in with a secret.
const SECRET: (&str, &str, &str) = (
    "client secret expires",
    "client secret",
    "Entra admin center › App registrations › the app › Certificates & secrets: make a new client secret, write its *Value* \
     (not its Secret ID) into the client_secret_file and its end into client_secret_expires, and restart",
);
/// The same where it signs in with a certificate.
const CERTIFICATE: (&str, &str, &str) = (
    "client certificate expires",
    "client certificate",
    "make a new certificate, upload it under Entra admin center › App registrations › the app › Certificates & secrets, \
     name it and its key in client_certificate_file and client_key_file, and restart",
);

/// An app whose credential expires soon, or has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// As the log names it: `client secret expires`, `client certificate expires`.
    pub event: String,
    /// The app.
    pub client_id: String,
    /// The day.
    pub expires: Date,
    /// Days until then; negative: ago.
    pub days: i32,
    /// Whether the day has passed.
    pub expired: bool,
    /// What the configuration says.
    pub seen: String,
    /// What that means.
    pub meaning: String,
    /// What to do.
    pub remedy: String,
}

/// The day in UTC, which is how the Entra admin center and this configuration write days.
pub fn day(now: Timestamp) -> Date {
    now.to_zoned(TimeZone::UTC).date()
}

/// How many days are left until `expires` (negative: it has passed); `None`: more than [`WARN_DAYS`].
pub fn days_left(expires: Date, today: Date) -> Option<i32> {
    let days = expires.duration_since(today).as_hours() / 24;
    // Dates end in the year 9999, so it fits.
    i32::try_from(days).ok().filter(|days| *days <= WARN_DAYS)
}

/// What to warn of `today`: each app once, however many mailboxes use it.
pub fn warnings<'c>(apps: impl IntoIterator<Item = &'c Config>, today: Date) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = Vec::new();
    for app in apps {
        let Some((expires, days)) =
            app.credential_expires().and_then(|expires| Some((expires, days_left(expires, today)?)))
        else {
            continue;
        };
        let certificate = matches!(app.credential, Credential::Certificate(_));
        let warning = Warning::new(&app.client_id, certificate, expires, days);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    warnings
}

impl Warning {
    fn new(client_id: &str, certificate: bool, expires: Date, days: i32) -> Self {
        let expired = days < 0;
        let (event, what, remedy) = if certificate { CERTIFICATE } else { SECRET };
        let when = match days {
            0 => format!("expires today, {expires}"),
            1 => format!("expires tomorrow, {expires}"),
            -1 => format!("has expired yesterday, {expires}"),
            2.. => format!("expires on {expires}, in {days} days"),
            _ => format!("has expired on {expires}, {} days ago", days.unsigned_abs()),
        };
        let meaning = if expired {
            "no mailbox of this app gets a new token: sending and receiving stop"
        } else {
            "from then on no mailbox of this app gets a new token: sending and receiving stop"
        };
        Self {
            event: event.to_owned(),
            client_id: client_id.to_owned(),
            expires,
            days,
            expired,
            seen: format!("the {what} of app {client_id} {when}"),
            meaning: meaning.to_owned(),
            remedy: remedy.to_owned(),
        }
    }

    /// One line in the log.
    fn log(&self) {
        let Self { event, client_id, expires, days, seen, remedy, .. } = self;
        if self.expired {
            tracing::error!(client_id, %expires, days, reply = seen, advice = remedy, "{event}");
        } else {
            tracing::warn!(client_id, %expires, days, reply = seen, advice = remedy, "{event}");
        }
    }
}

/// What to warn of at each look: nothing, where `said` is today already.
fn due(apps: &[Config], today: Date, said: &mut Option<Date>) -> Vec<Warning> {
    if said.replace(today) == Some(today) { Vec::new() } else { warnings(apps, today) }
}

/// Logs the warnings at once and then daily, until `soft` is cancelled.
pub async fn watch(apps: Vec<Config>, soft: CancellationToken) {
    let mut said = None;
    loop {
        due(&apps, day(clock::now()), &mut said).iter().for_each(Warning::log);
        tokio::select! {
            () = soft.cancelled() => return,
            () = patiently(tokio::time::sleep(LOOK_EVERY)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section::parse;
    use jiff::civil::date;
    use std::path::Path;

    #[test]
    fn the_days_are_counted_down_from_thirty() {
        let expires = date(2027, 11, 20);
        let rows = [
            (date(2027, 10, 20), None),
            (date(2027, 10, 21), Some(30)),
            (date(2027, 11, 8), Some(12)),
            (date(2027, 11, 19), Some(1)),
            (date(2027, 11, 20), Some(0)),
            (date(2027, 11, 21), Some(-1)),
            (date(2028, 11, 20), Some(-366)),
            (Date::MIN, None),
        ];
        for (today, days) in rows {
            assert_eq!(days_left(expires, today), days, "{today}");
        }
        assert!(days_left(Date::MIN, Date::MAX).is_some_and(|days| days < -7_000_000));
        assert_eq!(days_left(Date::MAX, Date::MIN), None);
    }

    fn app(client_id: &str, expires: Date, has_secret: bool) -> Config {
        let text = format!("client_id = '{client_id}'\nclient_secret_expires = {expires}\n");
        let parsed = parse(&text, Path::new("/nonexistent"), None, Config::read_root);
        assert_eq!(parsed.mistakes, []);
        let credential =
            if has_secret { Credential::Secret("s".to_owned().into()) } else { Credential::Public };
        Config { credential, ..parsed.value }
    }

    #[test]
    fn each_app_is_warned_of_once_and_expired_on_the_day_after() {
        let today = date(2027, 11, 20);
        let apps = [
            app("a", date(2027, 11, 20), true),
            app("a", date(2027, 11, 20), true),
            app("b", date(2027, 11, 19), true),
            app("later", date(2028, 1, 1), true),
            app("public", date(2027, 11, 20), false),
        ];
        let found = warnings(&apps, today);
        let told: Vec<_> = found.iter().map(|w| (w.client_id.as_str(), w.days, w.expired)).collect();
        assert_eq!(told, [("a", 0, false), ("b", -1, true)]);
        assert!(found[0].seen.contains("app a expires today, 2027-11-20"), "{}", found[0].seen);
        assert!(found[1].remedy.contains("client_secret_expires"));
    }

    #[test]
    fn each_day_is_warned_of_once_however_often_is_looked_and_however_long_the_relay_runs() {
        let apps = [app("a", date(2027, 11, 20), true)];
        let start: Timestamp = "2027-10-19T23:50:00Z".parse().unwrap();
        let mut said = None;
        let mut told = Vec::new();
        for look in 0..34 * 96 {
            let now = clock::after(start, LOOK_EVERY * look);
            told.extend(due(&apps, day(now), &mut said).iter().map(|warning| (day(now), warning.days)));
        }
        let daily = |days| (date(2027, 11, 20).saturating_sub(jiff::Span::new().days(days)), days);
        let expected: Vec<_> = (-2..=30).rev().map(daily).collect();
        assert_eq!(told, expected, "each day from the thirtieth before to the second after");

        // The machine slept for days, then its clock was set back by one.
        let today = date(2027, 11, 19);
        let mut said = Some(date(2027, 11, 1));
        assert_eq!(due(&apps, today, &mut said).len(), 1);
        assert_eq!(due(&apps, today, &mut said), []);
        assert_eq!(due(&apps, today.yesterday().unwrap(), &mut said).len(), 1);
    }
}
