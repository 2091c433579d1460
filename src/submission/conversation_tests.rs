use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::store::{self, Store};
use crate::submission::listener::share;
use crate::submission::listener::tests::{config, routes};

/// What arbitrary clients might say: whole and broken commands, pieces of messages, anything.
fn speech() -> impl Strategy<Value = Vec<u8>> {
    let known = proptest::sample::select(vec![
        "EHLO me\r\n",
        "MAIL FROM:<a@x.test>\r\n",
        "RCPT TO:<b@x.test>\r\n",
        "EHLO me\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\n",
        "MAIL FROM:<>\r\nRCPT TO:<b@x.test>\r\nDATA\r\nFrom: ann@example.com\r\n\r\nbody\r\n.\r\n",
        "MAIL FROM:<>\r\nRCPT TO:<b@x.test>\r\nBDAT 25 LAST\r\nFrom: ann@example.com\r\n\r\n",
        "DATA\r\n",
        "From: ann@example.com\r\n\r\nbody\r\n.\r\n",
        "\n.\r\n",
        ".\r\n",
        "\r\n",
        "\n",
        "\r",
        "\0",
        "BDAT 7\r\n",
        "BDAT 25 LAST\r\n",
        "BDAT 0 LAST\r\n",
        "From: ann@example.com\r\n\r\n",
        "RSET\r\n",
        "AUTH LOGIN\r\n",
        "STARTTLS\r\n",
        "GET / HTTP/1.1\r\n",
        "QUIT\r\n",
    ]);
    let piece = prop_oneof![
        8 => known.prop_map(|text| text.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..20),
    ];
    proptest::collection::vec(piece, 0..25)
        .prop_map(|pieces| [b"EHLO me\r\n", pieces.concat().as_slice()].concat())
}

/// Says everything, in pieces of these lengths, then hangs up; gives what came back, without the ids.
async fn say(shared: &Shared, speech: &[u8], mut cuts: impl Iterator<Item = usize>) -> String {
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let mut talk = shared.talk("127.0.0.1:1".parse().unwrap());
    let mut connection = Connection::new(server);
    let serving = async {
        // How it ends is for the log alone: here every client hangs up.
        let _ = talk.converse(&mut connection).await;
        drop(connection);
    };
    let saying = async {
        let mut rest = speech;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(cuts.next().unwrap_or(rest.len()).min(rest.len()));
            if client.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
            rest = behind;
        }
        let _ = client.shutdown().await;
        let mut heard = String::new();
        client.read_to_string(&mut heard).await.unwrap();
        heard
    };
    let ((), heard) =
        timeout(Duration::from_secs(60), async { tokio::join!(serving, saying) }).await.unwrap();
    let lines = heard.split_inclusive("\r\n");
    lines.map(|line| line.split_once("queued as").map_or(line, |(line, _)| line)).collect()
}

/// A twin for a fuzz target: nothing panics or hangs, and it does not matter how the bytes come.
#[test]
fn any_split_of_anything_gives_the_same_answers() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = store::Config::at(folder.path().join("relay.db"));
    let (store, writer) = runtime.block_on(Store::open(&store)).unwrap();
    runtime.spawn(writer.run());
    let routes = Arc::new(tokio::sync::RwLock::new(routes(&["ann@example.com"])));
    let intake = Intake::new(routes, store.clone());
    let shared = share(config(), 1, intake, CancellationToken::new());
    let case = (speech(), proptest::collection::vec(1usize..40, 1..20));
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    proptest::test_runner::TestRunner::new(config)
        .run(&case, |(speech, cuts)| {
            let (whole, split) = runtime.block_on(async {
                let whole = say(&shared, &speech, std::iter::empty()).await;
                (whole, say(&shared, &speech, cuts.into_iter().cycle()).await)
            });
            for line in whole.split_inclusive("\r\n").filter(|line| line.ends_with("\r\n")) {
                prop_assert!(line.is_ascii() && line.len() <= 512);
            }
            prop_assert_eq!(whole, split);
            Ok(())
        })
        .unwrap();
    let taken = runtime.block_on(store.queued(None, 1_000_000)).unwrap();
    assert!(taken.len() > 10, "only {} messages were taken: do the cases still get that far?", taken.len());
}
