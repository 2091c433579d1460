//! A real browser: headless Chromium, driven over the W3C's WebDriver protocol.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Duration, Instant, sleep, timeout};

use super::http;
use super::wait::SOON;

/// The key under which WebDriver names an element (section 12).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// A browser takes its time to start on a loaded machine.
const START: Duration = Duration::from_secs(60);

/// One window with a profile of its own. Ends when dropped.
pub struct Browser {
    _driver: Child,
    driver_at: SocketAddr,
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// Starts one that reaches this machine alone.
    ///
    /// # Panics
    /// Without `chromium` and `chromedriver`; `tests/run` installs them.
    pub async fn start() -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver: `tests/run` installs it");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = timeout(START, async {
            loop {
                let line = lines.next_line().await.unwrap().expect("chromedriver says its port");
                if let Some((_, port)) = line.split_once("started successfully on port ") {
                    return port.trim_end_matches('.').parse().unwrap();
                }
            }
        });
        let driver_at = SocketAddr::from(([127, 0, 0, 1], port.await.expect("chromedriver starts")));
        let profile = TempDir::new().unwrap();
        let user_data = format!("--user-data-dir={}", profile.path().display());
        let mut browser = Self { _driver: driver, driver_at, session: String::new(), _profile: profile };
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"binary": "/usr/bin/chromium", "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage",
                "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
                "--window-size=1200,900", user_data,
            ]},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let started = browser.call("POST", "/session", &capabilities).await.expect("a session");
        browser.session = started["sessionId"].as_str().unwrap().to_owned();
        browser
    }

    /// One command of the protocol: its value, or the error's.
    async fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value, Value> {
        let headers = [("Content-Type".to_owned(), "application/json".to_owned())];
        let body = if method == "GET" { String::new() } else { body.to_string() };
        let answer = timeout(START, http::request(self.driver_at, method, path, &headers, body.as_bytes()));
        let answer = answer.await.unwrap_or_else(|_| panic!("{path}: no answer")).expect("an answer");
        let mut json: Value = serde_json::from_str(&answer.body).unwrap();
        let value = json["value"].take();
        if answer.status == 200 { Ok(value) } else { Err(value) }
    }

    async fn command(&self, method: &str, path: &str, body: Value) -> Result<Value, Value> {
        self.call(method, &format!("/session/{}/{path}", self.session), &body).await
    }

    /// Opens an address, and waits until it is loaded.
    pub async fn open(&self, url: &str) {
        self.command("POST", "url", json!({"url": url})).await.unwrap();
    }

    /// The address that it shows.
    pub async fn url(&self) -> String {
        self.command("GET", "url", json!({})).await.unwrap().as_str().unwrap().to_owned()
    }

    /// The page's visible text.
    pub async fn text(&self) -> String {
        match self.element("body").await {
            Ok(body) => {
                let text = self.command("GET", &format!("element/{body}/text"), json!({})).await;
                text.ok().and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default()
            }
            Err(_) => String::new(),
        }
    }

    async fn element(&self, css: &str) -> Result<String, Value> {
        let found = self.command("POST", "element", json!({"using": "css selector", "value": css})).await?;
        Ok(found[ELEMENT].as_str().unwrap().to_owned())
    }

    /// Clicks on the first element that the selector finds, once it is there.
    pub async fn click(&self, css: &str) {
        self.retry(css, async |element| {
            self.command("POST", &format!("element/{element}/click"), json!({})).await
        })
        .await;
    }

    /// Types into it.
    pub async fn write(&self, css: &str, text: &str) {
        self.retry(css, async |element| {
            self.command("POST", &format!("element/{element}/value"), json!({"text": text})).await
        })
        .await;
    }

    /// The page may be replaced between finding an element and using it.
    async fn retry(&self, css: &str, act: impl AsyncFn(String) -> Result<Value, Value>) {
        let end = Instant::now() + SOON;
        loop {
            let done = match self.element(css).await {
                Ok(element) => act(element).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(_) => return,
                Err(error) if Instant::now() >= end => panic!("{css}: {error}\n{}", self.text().await),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Waits until the page shows a text, and gives the whole.
    pub async fn wait_for(&self, part: &str) -> String {
        let end = Instant::now() + SOON;
        loop {
            let text = self.text().await;
            if text.contains(part) {
                return text;
            }
            assert!(Instant::now() < end, "{part:?} does not come at {}: {text}", self.url().await);
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// What a script gives back.
    pub async fn script(&self, script: &str) -> Value {
        self.command("POST", "execute/sync", json!({"script": script, "args": []})).await.unwrap()
    }

    /// A command of Chromium's own protocol.
    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.command("POST", "goog/cdp/execute", json!({"cmd": command, "params": parameters})).await.unwrap()
    }

    /// Whether the person prefers dark pages.
    pub async fn dark(&self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// The window's width in CSS pixels; below 600 it is a phone's.
    pub async fn width(&self, width: u32) {
        let metrics = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Whether scripts of pages run.
    pub async fn scripts(&self, run: bool) {
        self.devtools("Emulation.setScriptExecutionDisabled", json!({"value": !run})).await;
    }

    /// Takes a picture of the whole page.
    pub async fn picture(&self, file: &Path) {
        let shot = self.devtools("Page.captureScreenshot", json!({"captureBeyondViewport": true})).await;
        std::fs::write(file, STANDARD.decode(shot["data"].as_str().unwrap()).unwrap()).unwrap();
    }

    /// What pages complained about: violations of their policy, scripts that failed, things not found.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.command("POST", "se/log", json!({"type": "browser"})).await.unwrap();
        let entries = log.as_array().cloned().unwrap_or_default();
        entries.iter().map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium is chromedriver's child, in its process group.
        if let Some(pid) = self._driver.id() {
            let _ =
                std::process::Command::new("kill").args(["-s", "KILL", "--", &format!("-{pid}")]).status();
        }
    }
}
