//! The pages in a real browser, and the ways of people through them. `OUTLOOK_RELAY_PICTURES=/a/folder` keeps pictures of
//! what was seen.

use crate::company::{self, JANE, JOHN};
use crate::support::browser::Browser;
use crate::support::client::message;
use crate::support::entra::Answer;
use crate::support::relay::{Config, Relay};
use crate::support::script::Rule;
use crate::support::smtp::{Fault, Step};
use crate::support::store;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::path::PathBuf;

const PASSWORD: &str = "correct horse battery staple";

/// Pictures of the page as it is: light, dark, and on a phone.
async fn pictures(browser: &Browser, name: &str) {
    let Some(folder) = std::env::var_os("OUTLOOK_RELAY_PICTURES").map(PathBuf::from) else {
        return;
    };
    std::fs::create_dir_all(&folder).unwrap();
    for (dark, width, kind) in
        [(true, 1200, "dark"), (true, 390, "phone-dark"), (false, 390, "phone"), (false, 1200, "light")]
    {
        browser.dark(dark).await;
        browser.width(width).await;
        browser.picture(&folder.join(format!("{name}-{kind}.png"))).await;
    }
}

/// Nothing is wider than the window: nobody scrolls sideways on a phone.
async fn fits_a_phone(browser: &Browser) {
    browser.width(360).await;
    let fits = browser.script("return document.documentElement.scrollWidth <= window.innerWidth").await;
    assert_eq!(fits, true, "{}", browser.text().await);
    browser.width(1200).await;
}

fn page_of(relay: &Relay) -> String {
    format!("http://localhost:{}/", relay.admin.port())
}

async fn invite(config: &Config, mailbox: &str) -> String {
    config.cli(&["invite", mailbox]).await.success().trim().to_owned()
}

#[tokio::test]
async fn an_owner_opens_the_invitation_and_signs_in_and_the_page_turns_green() {
    let world = World::start().await;
    let mut config = company::config(&world);
    let public = format!("http://localhost:{}", config.admin.port());
    config.text("admin", "public_url", &public);
    config.connect(JANE, &world.entra.add_mailbox(JANE)).await.success();
    let relay = config.start().await;
    until(SOON, "a token", || relay.count_log("token refreshed") == 1).await;

    let administrator = Browser::start().await;
    administrator.open(&page_of(&relay)).await;
    let before = administrator.wait_for("2 mailboxes need a person").await;
    assert!(before.contains("Not connected") && before.contains("Press Connect"), "{before}");
    pictures(&administrator, "page-red").await;
    fits_a_phone(&administrator).await;

    let owner = Browser::start().await;
    let link = invite(&config, JOHN).await;
    owner.open(&link).await;
    let asked = owner.wait_for("Connect john@example.com").await;
    assert!(asked.contains("Your password stays between you and Microsoft"), "{asked}");
    pictures(&owner, "invitation").await;
    fits_a_phone(&owner).await;
    owner.click("button").await;
    owner.wait_for("Sign in").await;
    owner.click("#yes").await;
    let valid = owner.wait_for("Outlook token valid").await;
    assert!(valid.contains(JOHN), "{valid}");
    pictures(&owner, "valid").await;
    assert!(owner.url().await.starts_with(&format!("{public}/microsoft_outlook/confirm?")));

    // Nobody reloads the administrator's page: its script does.
    let after = administrator.wait_for("1 mailbox needs a person").await;
    assert_eq!(after.matches("Outlook token valid").count(), 2, "{after}");
    config.connect(company::NOTIFICATIONS, &world.entra.add_mailbox(company::NOTIFICATIONS)).await.success();
    let well = administrator.wait_for("All is well").await;
    assert!(well.contains("in 90 days"), "{well}");
    pictures(&administrator, "page-green").await;

    owner.open(&link).await;
    owner.wait_for("This link does not count any more").await;
    pictures(&owner, "used").await;
    let tried = [administrator.complaints().await, owner.complaints().await].concat();
    // The used link is answered with 410, which the browser notes, and the scripted Microsoft has no icon.
    let ours = |line: &String| !line.contains("410 (Gone)") && !line.starts_with(&world.entra.authority());
    let complaints: Vec<_> = tried.into_iter().filter(ours).collect();
    assert_eq!(complaints, Vec::<String>::new());
}

#[tokio::test]
async fn the_wrong_account_is_told_so_and_the_right_one_may_follow() {
    let world = World::start().await;
    let config = company::config(&world);
    let relay = config.start().await;
    let browser = Browser::start().await;
    let link = invite(&config, JOHN).await;
    browser.open(&link).await;
    browser.click("button").await;
    browser.wait_for("Sign in").await;
    browser.script("document.querySelector('[name=login]').value = 'somebody.else@example.com'").await;
    browser.click("#yes").await;
    let wrong = browser.wait_for("That was another account").await;
    for part in ["signed in as somebody.else@example.com", "this is for john@example.com", "private window"] {
        assert!(wrong.contains(part), "{part}: {wrong}");
    }
    pictures(&browser, "wrong-account").await;
    fits_a_phone(&browser).await;

    browser.open(&link).await;
    browser.click("button").await;
    browser.wait_for("Sign in").await;
    browser.click("#no").await;
    let declined = browser.wait_for("Microsoft said no").await;
    assert!(declined.contains("AADSTS65004") && declined.contains("open the link again"), "{declined}");
    pictures(&browser, "declined").await;
    assert_eq!(relay.count_log("mailbox connected"), 0);

    browser.open(&link).await;
    browser.click("button").await;
    browser.wait_for("Sign in").await;
    browser.click("#yes").await;
    browser.wait_for("Outlook token valid").await;
}

#[tokio::test]
async fn the_administrator_signs_in_and_connects_a_mailbox_without_scripts() {
    let world = World::start().await;
    let mut config = company::config(&world);
    config.secret("admin-password", PASSWORD);
    config.text("admin", "password_file", "admin-password");
    company::connect(&world, &config).await;
    let revoked = Answer::error(
        400,
        "invalid_grant",
        50_173,
        "The provided grant has expired due to it being revoked.",
    );
    world.entra.script(Rule::new((), revoked).always().only(JOHN));
    let relay = config.start().await;
    relay.wait_for_log("token failed").await;

    let browser = Browser::start().await;
    browser.scripts(false).await;
    // By address and not by name: the sign-in begins all the same where Microsoft ends it.
    browser.open(&format!("http://127.0.0.1:{}/", relay.admin.port())).await;
    browser.wait_for("The administrator's password").await;
    browser.write("#password", "open sesame").await;
    browser.click("button").await;
    browser.wait_for("That is not the password").await;
    pictures(&browser, "password").await;
    browser.write("#password", PASSWORD).await;
    browser.click("button").await;
    let red = browser.wait_for("Must be connected anew").await;
    assert!(red.contains("AADSTS50173") && red.contains("owner has to sign in at Microsoft anew"), "{red}");
    pictures(&browser, "page-revoked").await;
    browser.click(&format!("[data-mailbox='{JOHN}'] [formaction^='/test/']")).await;
    let tested = browser.wait_for(&format!("Test of {JOHN}")).await;
    assert!(tested.contains("Fails: token") && tested.contains("AADSTS50173"), "{tested}");
    assert!(
        tested.contains("Works: SMTP connection") && tested.contains("Not tried: SMTP login"),
        "{tested}"
    );
    pictures(&browser, "test-failed").await;
    fits_a_phone(&browser).await;
    browser.click("a.button").await;
    world.entra.clear();

    browser.click(&format!("[data-mailbox='{JOHN}'] button")).await;
    browser.wait_for("Connect john@example.com").await;
    browser.click("button").await;
    browser.wait_for("Sign in").await;
    browser.click("#yes").await;
    browser.wait_for("Outlook token valid").await;
    relay.wait_for_log("mailbox recovered").await;
    browser.open(&format!("http://127.0.0.1:{}/", relay.admin.port())).await;
    browser.wait_for("All is well").await;
    browser.click(&format!("[data-mailbox='{JOHN}'] [formaction^='/test/']")).await;
    let tested = browser.wait_for("All works").await;
    assert!(tested.contains("Works: SMTP login"), "{tested}");
    pictures(&browser, "test").await;
    browser.click("a.button").await;
    browser.click("header button").await;
    browser.wait_for("The administrator's password").await;
}

#[tokio::test]
async fn the_last_failures_say_what_to_do() {
    let world = World::start().await;
    let (_config, relay) = company::start(&world).await;
    world
        .smtp
        .script(Rule::new(Step::AfterDot, Fault::reply("554 5.2.3 Message too large")).always().only(JOHN));
    world.smtp.script(
        Rule::new(Step::AfterDot, Fault::reply("451 4.4.3 Temporary <b>error</b>")).always().only(JANE),
    );
    for mailbox in [JOHN, JANE] {
        relay.send("bounce@example.com", &["a@x.test"], &message(mailbox, "a@x.test", mailbox, "Hi")).await;
    }
    relay.wait_for_log(" failed").await;
    relay.wait_for_log(" deferred").await;
    let browser = Browser::start().await;
    browser.open(&page_of(&relay)).await;
    let page = browser.wait_for("Sending as john@example.com").await;
    for part in ["Message too large", "given up", "This message will not be taken as it is", "1 given up"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    for part in ["Sending as jane@example.com", "Temporary <b>error</b>", "tried again in", "1 waiting"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    pictures(&browser, "failures").await;
    fits_a_phone(&browser).await;

    browser.click("dl.totals a").await;
    let queue = browser.wait_for("The queue").await;
    assert!(queue.contains("Given up") && queue.contains("Tried again later"), "{queue}");
    pictures(&browser, "queue").await;
    fits_a_phone(&browser).await;
    browser.click("article.amber a").await;
    let message = browser.wait_for("Next attempt").await;
    assert!(
        message.contains("451 4.4.3 Temporary <b>error</b>") && message.contains("1. deferred"),
        "{message}"
    );
    pictures(&browser, "message").await;
    fits_a_phone(&browser).await;
    world.smtp.clear();
    browser.click("form.actions button").await;
    relay.wait_for_log(" sent ").await;
}

#[tokio::test]
async fn a_page_that_can_no_longer_be_refreshed_does_not_look_fresh() {
    let world = World::start().await;
    let (config, relay) = company::start(&world).await;
    let browser = Browser::start().await;
    browser.open(&page_of(&relay)).await;
    browser.wait_for("All is well").await;
    let store = store::open(config.dir().join("relay.db"));
    store.execute_batch("ALTER TABLE inbox RENAME TO elsewhere").unwrap();
    let is_stale = async |wanted: bool| {
        let deadline = tokio::time::Instant::now() + SOON;
        let script = "return document.documentElement.classList.contains('stale')";
        while browser.script(script).await != wanted {
            assert!(tokio::time::Instant::now() < deadline, "stale does not become {wanted}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    is_stale(true).await;
    store.execute_batch("ALTER TABLE elsewhere RENAME TO inbox").unwrap();
    is_stale(false).await;
}
