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
        assert_eq!(of_push(&reply), Ok(expected), "{reply:?}");
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
    for (code, text, class, advice) in &rows {
        let failure = of_push(&fault(*code, text)).unwrap_err();
        assert_eq!(failure.class, *class, "{text}");
        assert!(failure.advice.contains(advice), "{text}: {}", failure.advice);
        assert_eq!(failure.code, format!("fault {code}"));
        assert!(!failure.reply.contains("File"), "{}", failure.reply);
    }
    for (index, row) in FAULTS.iter().enumerate() {
        let covered = |(code, text, ..): &&(i32, String, Class, &str)| {
            let text = exception(text);
            let first = FAULTS.iter().position(|row| {
                (row.code == 0 || row.code == *code)
                    && text.starts_with(row.begins)
                    && text.contains(row.contains)
            });
            first == Some(index)
        };
        assert!(rows.iter().any(|row| covered(&row)), "no case for the row {} {}", row.begins, row.contains);
    }
}

#[test]
fn a_sender_cannot_choose_the_row() {
    let texts = [
        "ValueError: No possible route found for incoming message from FATAL: database does not exist",
        "LookupError: unknown encoding: psycopg2.OperationalError: FATAL:  database \"x\" does not exist",
        "LookupError: unknown encoding: Object x doesn't exist",
    ];
    for text in texts {
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
        assert_eq!(of_status(status, None).class, class, "{status}");
    }
    assert_eq!(of_status(504, None).retry_after, Some(ODOO_GIVES_UP));
    assert!(of_status(301, Some("https://odoo.test/")).reply.contains("https://odoo.test/"));
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
    assert_eq!(of_authenticate(&Reply::Value(Value::Integer(2))), Ok(2));
    let wrong = of_authenticate(&Reply::Value(Value::Boolean(false))).unwrap_err();
    assert_eq!((wrong.class, wrong.code.as_str()), (Class::Administrator, "fault 3"));
    let database = of_authenticate(&fault(1, "FATAL:  database \"x\" does not exist")).unwrap_err();
    assert_eq!(database.class, Class::Administrator);
}

#[test]
fn a_count_is_a_number() {
    assert_eq!(of_count(&Reply::Value(Value::Integer(0))), Ok(false));
    assert_eq!(of_count(&Reply::Value(Value::Integer(2))), Ok(true));
    assert!(of_count(&Reply::Value(Value::Boolean(true))).is_err());
    assert_eq!(of_count(&fault(4, "no")).unwrap_err().class, Class::Administrator);
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
        assert_eq!(is_unclear(&of_status(status, None)), unclear, "{status}");
    }
    assert!(!is_unclear(&of_fault(1, "psycopg2.errors.SerializationFailure: x")));
}
