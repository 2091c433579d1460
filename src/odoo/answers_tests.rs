use super::*;

fn traceback(exception: &str) -> String {
    format!(
        "Traceback (most recent call last):\n  File \"/odoo/http.py\", line 1, in x\n    y()\n  \
         File \"/odoo/mail_thread.py\", line 2, in message_process\n    raise z\n    ^^^^^^^\n{exception}\n"
    )
}

fn fault(code: i32, text: &str) -> Reply {
    Reply::Fault { code, text: text.to_owned() }
}

#[test]
fn what_is_done_is_done() {
    let none = traceback("TypeError: cannot marshal None unless allow_none is enabled");
    let rows = [
        (Reply::Value(Value::Integer(17)), Taken::Thread(17)),
        (Reply::Value(Value::Boolean(false)), Taken::Duplicate),
        (Reply::Value(Value::Integer(0)), Taken::Duplicate),
        (Reply::Value(Value::Boolean(true)), Taken::Duplicate),
        (Reply::Value(Value::Nil), Taken::Ignored),
        (Reply::Value(Value::String("odd".to_owned())), Taken::Ignored),
        (fault(1, &none), Taken::Ignored),
        (fault(1, "cannot marshal None unless allow_none is enabled"), Taken::Ignored),
    ];
    for (reply, expected) in rows {
        assert_eq!(of_reply(&reply).map(of_push), Ok(expected), "{reply:?}");
    }
}

#[test]
fn every_fault_has_its_class() {
    use Class::{Administrator, Message, Transient};
    let route = "ValueError: No possible route found for incoming message from a@b.test to c@d.test (Message-Id <x>:). \
                 Create an appropriate mail.alias or force the destination model.";
    let rows = [
        (1, traceback(route), Message, "create an alias"),
        (1, route.to_owned(), Message, "create an alias"),
        (1, "Mailbox unavailable - unknown target model".to_owned(), Message, "`model`"),
        (1, traceback("ValueError: Mailbox unavailable - unknown target model"), Message, "`model`"),
        (1, traceback("LookupError: unknown encoding: foo"), Message, "Odoo's log"),
        (1, "FATAL:  database \"x\" does not exist".to_owned(), Administrator, "`database`"),
        (
            1,
            traceback(
                "psycopg2.OperationalError: connection to server failed: FATAL:  database \"x\" does not exist",
            ),
            Administrator,
            "`database`",
        ),
        (2, "Object mail.foo doesn't exist".to_owned(), Administrator, "`gateway_model`"),
        (3, "Access Denied".to_owned(), Administrator, "`login`"),
        (4, "You are not allowed to access 'Lead' (crm.lead) records.".to_owned(), Administrator, "rights"),
        (2, "The operation cannot be completed".to_owned(), Message, "Odoo's log"),
        (7, "what is this".to_owned(), Message, "Odoo's log"),
        (1, traceback("psycopg2.errors.SerializationFailure: could not serialize access"), Transient, ""),
        (1, traceback("psycopg2.errors.DeadlockDetected: deadlock detected"), Transient, ""),
        (1, traceback("psycopg2.errors.LockNotAvailable: canceling statement"), Transient, ""),
        (1, traceback("psycopg2.OperationalError: server closed the connection unexpectedly"), Transient, ""),
        (1, traceback("psycopg2.InterfaceError: connection already closed"), Transient, ""),
        (1, traceback("psycopg2.pool.PoolError: The Connection Pool Is Full"), Transient, ""),
        (1, traceback("psycopg2.errors.UndefinedColumn: column x does not exist"), Transient, "update"),
        (1, traceback("psycopg2.errors.UndefinedTable: relation x does not exist"), Transient, "update"),
    ];
    let outages = OUTAGES.iter().map(|(exception, advice)| (1, traceback(exception), Transient, *advice));
    let rows: Vec<_> = rows.into_iter().chain(outages).collect();
    for (code, text, class, advice) in &rows {
        let failure = of_reply(&fault(*code, text)).unwrap_err();
        assert_eq!(failure.class, *class, "{text}");
        assert!(failure.advice.contains(advice), "{text}: {}", failure.advice);
        assert_eq!(failure.code, format!("fault {code}"));
        assert!(!failure.reply.contains("File"), "{}", failure.reply);
    }
    let texts = rows.iter().map(|(code, text, ..)| (*code, exception(text).to_owned()));
    let errors = ERRORS.iter().map(|(status, name, message, ..)| {
        (code_of(*status, name), format!("{}: {message}", name.strip_prefix("builtins.").unwrap_or(name)))
    });
    let first_rows: Vec<_> = texts
        .chain(errors)
        .map(|(code, text)| {
            FAULTS.iter().position(|row| {
                (row.code == 0 || row.code == code)
                    && text.starts_with(row.begins)
                    && text.contains(row.contains)
            })
        })
        .collect();
    for (index, row) in FAULTS.iter().enumerate() {
        assert!(first_rows.contains(&Some(index)), "no case for the row {} {}", row.begins, row.contains);
    }
}

/// What PostgreSQL or the machine stumbles over, whatever the message: the exception's line, and a part of the advice.
const OUTAGES: &[(&str, &str)] = &[
    ("psycopg2.errors.ConnectionException: x", ""),
    ("psycopg2.errors.ConnectionDoesNotExist: x", ""),
    ("psycopg2.errors.ConnectionFailure: x", ""),
    ("psycopg2.errors.AdminShutdown: terminating connection due to administrator command", ""),
    ("psycopg2.errors.CrashShutdown: terminating connection because of crash of another server process", ""),
    ("psycopg2.errors.CannotConnectNow: the database system is starting up", ""),
    ("psycopg2.errors.QueryCanceled: canceling statement due to statement timeout", ""),
    ("psycopg2.errors.IdleInTransactionSessionTimeout: terminating connection", ""),
    ("psycopg2.errors.TooManyConnections: sorry, too many clients already", ""),
    ("psycopg2.errors.InsufficientResources: x", ""),
    ("psycopg2.errors.OutOfMemory: out of memory", "memory"),
    ("psycopg2.errors.DiskFull: could not extend file: No space left on device", "room"),
    ("psycopg2.errors.IoError: could not read block 7", "disk"),
    ("psycopg2.errors.ReadOnlySqlTransaction: cannot execute INSERT in a read-only transaction", "standby"),
    ("OSError: [Errno 28] No space left on device: '/var/lib/odoo/filestore/x'", "filestore"),
    ("OSError: [Errno 122] Disk quota exceeded", "filestore"),
    ("OSError: [Errno 30] Read-only file system", "filestore"),
    ("OSError: [Errno 5] Input/output error", "filestore"),
    ("OSError: [Errno 24] Too many open files", "open files"),
    ("MemoryError", "memory"),
];

#[test]
fn an_outage_is_no_messages_fault_over_json_either() {
    for (exception, advice) in OUTAGES {
        let (name, said) = exception.split_once(": ").unwrap_or((exception, ""));
        let name = if name.contains('.') { name.to_owned() } else { format!("builtins.{name}") };
        let failure = of_error(500, &name, said);
        assert_eq!(failure.class, Class::Transient, "{exception}");
        assert!(failure.advice.contains(advice), "{exception}: {}", failure.advice);
    }
}

/// Errors of JSON-2: status, name, message, and what they mean: class, the code that is shown, a part of the advice.
const ERRORS: &[(u16, &str, &str, Class, &str, &str)] = {
    use Class::{Administrator, Message, Transient};
    &[
        (
            500,
            "builtins.ValueError",
            "No possible route found for incoming message from a to b (Message-Id <x>:). Create \
         an appropriate mail.alias or force the destination model.",
            Message,
            "error 500",
            "create an alias",
        ),
        (
            500,
            "builtins.ValueError",
            "Mailbox unavailable - unknown target model x",
            Message,
            "error 500",
            "`model`",
        ),
        (500, "builtins.LookupError", "unknown encoding: foo", Message, "error 500", "Odoo's log"),
        (401, "werkzeug.exceptions.Unauthorized", "Invalid apikey", Administrator, "error 401", "API key"),
        (403, "odoo.exceptions.AccessDenied", "Access Denied", Administrator, "error 401", "`login`"),
        (
            403,
            "odoo.exceptions.AccessError",
            "You are not allowed to access 'Lead'.",
            Administrator,
            "error 403",
            "rights",
        ),
        (
            404,
            "werkzeug.exceptions.NotFound",
            "the model 'mail.foo' does not exist",
            Administrator,
            "error 404",
            "`gateway_model`",
        ),
        (
            404,
            "odoo.exceptions.MissingError",
            "Record does not exist or has been deleted.",
            Message,
            "error 404",
            "Odoo's log",
        ),
        (
            422,
            "odoo.exceptions.ValidationError",
            "The operation cannot be completed",
            Message,
            "error 422",
            "Odoo's log",
        ),
        (
            422,
            "werkzeug.exceptions.UnprocessableEntity",
            "missing a required argument: 'model'",
            Administrator,
            "error 422",
            "`gateway_model`",
        ),
        (
            400,
            "werkzeug.exceptions.BadRequest",
            "could not parse the body as json",
            Message,
            "error 400",
            "Odoo's log",
        ),
        (409, "odoo.exceptions.LockError", "Cannot grab a lock on records", Transient, "error 409", ""),
        (500, "odoo.exceptions.ConcurrencyError", "x", Transient, "error 500", ""),
        (
            500,
            "psycopg2.errors.SerializationFailure",
            "could not serialize access",
            Transient,
            "error 500",
            "",
        ),
        (500, "psycopg2.errors.DeadlockDetected", "deadlock detected", Transient, "error 500", ""),
        (500, "psycopg2.errors.LockNotAvailable", "x", Transient, "error 500", ""),
        (
            500,
            "psycopg2.OperationalError",
            "server closed the connection unexpectedly",
            Transient,
            "error 500",
            "",
        ),
        (
            500,
            "psycopg2.OperationalError",
            "FATAL:  database \"x\" does not exist",
            Administrator,
            "error 500",
            "`database`",
        ),
        (500, "psycopg2.pool.PoolError", "The Connection Pool Is Full", Transient, "error 500", ""),
        (500, "psycopg2.errors.UndefinedColumn", "column x does not exist", Transient, "error 500", "update"),
        (
            413,
            "werkzeug.exceptions.RequestEntityTooLarge",
            "x",
            Message,
            "HTTP 413",
            "web.max_file_upload_size",
        ),
        (429, "werkzeug.exceptions.TooManyRequests", "x", Transient, "HTTP 429", ""),
        (503, "werkzeug.exceptions.ServiceUnavailable", "x", Transient, "HTTP 503", ""),
    ]
};

#[test]
fn every_error_has_its_class() {
    for (status, name, message, class, code, advice) in ERRORS {
        let failure = of_error(*status, name, message);
        assert_eq!((failure.class, failure.code.as_str()), (*class, *code), "{name}: {message}");
        assert!(failure.advice.contains(advice), "{name}: {message}: {}", failure.advice);
        // Odoo's own error undid what it did; only a server before it leaves that open.
        assert_eq!(is_unclear(&failure), *status == 503, "{name}: {message}");
    }
    assert!(is_no_rights(&of_error(403, "odoo.exceptions.AccessError", "x")));
    assert!(is_no_rights(&of_fault(4, "x")));
    assert!(!is_no_rights(&of_error(403, "odoo.exceptions.AccessDenied", "x")));
    let quotes = of_error(422, "odoo.exceptions.ValidationError", "No\nFailing row contains (the body)");
    assert_eq!(quotes.reply, "odoo.exceptions.ValidationError: No");
}

#[test]
fn what_is_done_over_json_is_done() {
    let rows = [
        ("17", Taken::Thread(17)),
        ("false", Taken::Duplicate),
        ("0", Taken::Duplicate),
        ("true", Taken::Duplicate),
        ("null", Taken::Ignored),
        ("[17]", Taken::Ignored),
        ("\"odd\"", Taken::Ignored),
    ];
    for (json, expected) in rows {
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(of_push(Returned::from(&value)), expected, "{json}");
    }
    assert_eq!(of_context(&serde_json::json!({ "lang": "en_US", "uid": 7 })), Ok(7));
    assert!(of_context(&serde_json::json!({ "lang": "en_US" })).is_err());
}

#[test]
fn a_sender_cannot_choose_the_row() {
    let texts = [
        "ValueError: No possible route found for incoming message from FATAL: database does not exist",
        "LookupError: unknown encoding: psycopg2.OperationalError: FATAL:  database \"x\" does not exist",
        "LookupError: unknown encoding: Object x doesn't exist",
        "ValueError: No possible route found for incoming message from \"cannot marshal None\" <a@b.test>",
    ];
    for text in texts {
        assert!(of_reply(&fault(1, &traceback(text))).is_err(), "{text}");
        assert_eq!(of_fault(1, &traceback(text)).class, Class::Message, "{text}");
    }
}

#[test]
fn only_the_exceptions_line_is_quoted() {
    let text = traceback(
        "psycopg2.errors.NotNullViolation: null value\nDETAIL:  Failing row contains (the body).\n",
    );
    let failure = of_fault(1, &text);
    assert_eq!(failure.reply, "psycopg2.errors.NotNullViolation: null value");
    assert_eq!(exception("\n  File \"only a frame"), "");
}

#[test]
fn every_status_has_its_class() {
    use Class::{Administrator, Message, Transient};
    let rows = [
        (301, Administrator),
        (308, Administrator),
        (400, Message),
        (401, Administrator),
        (403, Administrator),
        (404, Administrator),
        (405, Administrator),
        (413, Message),
        (429, Transient),
        (500, Transient),
        (502, Transient),
        (503, Transient),
        (504, Transient),
    ];
    for (status, class) in rows {
        for protocol in [Protocol::XmlRpc, Protocol::Json2] {
            assert_eq!(of_status(protocol, status, None).class, class, "{status}");
        }
    }
    assert_eq!(of_status(Protocol::XmlRpc, 504, None).retry_after, Some(ODOO_GIVES_UP));
    assert!(
        of_status(Protocol::XmlRpc, 301, Some("https://odoo.test/")).reply.contains("https://odoo.test/")
    );
}

#[test]
fn every_break_has_its_class() {
    use Class::{Administrator, Transient};
    let rows = [
        (Broken::Connect, Transient, None),
        (Broken::Timeout, Transient, Some(ODOO_GIVES_UP)),
        (Broken::Cut, Transient, None),
        (Broken::Damaged, Transient, None),
        (Broken::NotOdoo, Administrator, None),
    ];
    for (broken, class, wait) in rows {
        let failure = of_broken(broken, "words");
        assert_eq!((failure.class, failure.retry_after), (class, wait), "{broken:?}");
    }
}

#[test]
fn a_login_gives_a_user_or_a_reason() {
    assert_eq!(of_authenticate(Returned::Number(2)), Ok(2));
    let wrong = of_authenticate(Returned::Bool(false)).unwrap_err();
    assert_eq!((wrong.class, wrong.code.as_str()), (Class::Administrator, "fault 3"));
    let database = of_reply(&fault(1, "FATAL:  database \"x\" does not exist")).unwrap_err();
    assert_eq!(database.class, Class::Administrator);
}

#[test]
fn a_count_is_a_number() {
    assert_eq!(of_count(Returned::Number(0)), Ok(false));
    assert_eq!(of_count(Returned::Number(2)), Ok(true));
    assert!(of_count(Returned::Bool(true)).is_err());
    assert!(of_count(Returned::Nothing).is_err());
}

#[test]
fn only_an_answer_of_odoos_own_is_clear() {
    for broken in [Broken::Timeout, Broken::Cut, Broken::Damaged] {
        assert!(is_unclear(&of_broken(broken, "")), "{broken:?}");
    }
    for broken in [Broken::Connect, Broken::NotOdoo] {
        assert!(!is_unclear(&of_broken(broken, "")), "{broken:?}");
    }
    for (status, unclear) in [(301, false), (404, false), (413, false), (500, true), (502, true), (504, true)]
    {
        assert_eq!(is_unclear(&of_status(Protocol::XmlRpc, status, None)), unclear, "{status}");
    }
    assert!(!is_unclear(&of_fault(1, "psycopg2.errors.SerializationFailure: x")));
}
