-- What is written for each message, made less: an id that is SQLite's own key needs no index beside it. An attempt under way
-- is the message's own row ("sending", attempts, changed_at), and gets one of its own only when it ends otherwise than in
-- "sent": most messages never need one.
CREATE TABLE narrower (
    id INTEGER NOT NULL PRIMARY KEY,
    received_at BIGINT NOT NULL,
    mail_from TEXT NOT NULL,
    -- JSON: [{"address", "state": "waiting" | "sent" | "failed" | "unknown", "reply"}]
    recipients TEXT NOT NULL,
    smtputf8 BIGINT NOT NULL,
    eight_bit BIGINT NOT NULL,
    header_from TEXT,
    message_id TEXT,
    size BIGINT NOT NULL,
    mailbox TEXT NOT NULL,
    rule TEXT NOT NULL,
    -- The From that the header gets on the way out; null: unchanged.
    new_from TEXT,
    -- waiting | sending | held | failed
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    next_attempt_at BIGINT NOT NULL,
    -- Of one that is "sending": when the attempt began.
    changed_at BIGINT NOT NULL,
    -- Since when it is not known whether the service took it; null: it is known.
    unknown_since BIGINT,
    -- From when on it is tried for [delivery] retry_for; null: since it was accepted.
    tried_since BIGINT
);

INSERT INTO narrower SELECT id, received_at, mail_from, recipients, smtputf8, eight_bit, header_from, message_id, size, mailbox,
    rule, new_from, state, attempts, next_attempt_at, changed_at, unknown_since, tried_since FROM message;

CREATE TABLE narrower_content (
    message INTEGER NOT NULL PRIMARY KEY REFERENCES narrower (id) ON DELETE CASCADE,
    raw BLOB NOT NULL
);

INSERT INTO narrower_content SELECT message, raw FROM content WHERE message IN (SELECT id FROM narrower);

CREATE TABLE narrower_attempt (
    message BIGINT NOT NULL REFERENCES narrower (id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    ended_at BIGINT NOT NULL,
    -- deferred | failed | unknown
    outcome TEXT NOT NULL,
    class TEXT,
    code TEXT,
    reply TEXT,
    PRIMARY KEY (message, number)
) WITHOUT ROWID;

INSERT INTO narrower_attempt SELECT message, number, started_at, ended_at, coalesce(outcome, 'unknown'), class, code, reply
    FROM attempt WHERE ended_at IS NOT NULL AND message IN (SELECT id FROM narrower);

DROP TABLE attempt;
DROP TABLE content;
DROP TABLE message;
ALTER TABLE narrower RENAME TO message;
ALTER TABLE narrower_content RENAME TO content;
ALTER TABLE narrower_attempt RENAME TO attempt;

CREATE INDEX message_due ON message (mailbox, next_attempt_at, id) WHERE state = 'waiting';
CREATE INDEX message_unusual ON message (state, id) WHERE state <> 'waiting';
