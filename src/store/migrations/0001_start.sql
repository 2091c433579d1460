-- Times are milliseconds since 1970, UTC. Addresses of mailboxes are normalised.

-- One row for each accepted message that is not done with yet.
CREATE TABLE message (
    id BIGINT NOT NULL PRIMARY KEY,
    received_at BIGINT NOT NULL,
    mail_from TEXT NOT NULL,
    -- JSON: [{"address", "state": "waiting" | "sent" | "failed", "reply"}]
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
    -- waiting | sending | failed
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    next_attempt_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL
);

CREATE INDEX message_due ON message (mailbox, next_attempt_at, id) WHERE state = 'waiting';
CREATE INDEX message_unusual ON message (state, id) WHERE state <> 'waiting';

-- Apart from the row, so that listing and claiming never touch a body.
CREATE TABLE content (
    message BIGINT NOT NULL PRIMARY KEY REFERENCES message (id) ON DELETE CASCADE,
    raw BLOB NOT NULL
);

-- Each attempt, booked before the network is touched; ended_at stays null when a crash cut it short.
CREATE TABLE attempt (
    message BIGINT NOT NULL REFERENCES message (id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    ended_at BIGINT,
    -- sent | deferred | failed | unknown
    outcome TEXT,
    class TEXT,
    code TEXT,
    reply TEXT,
    PRIMARY KEY (message, number)
);

-- What a mailbox's owner consented to. Rows are only ever replaced, never deleted.
CREATE TABLE token (
    mailbox TEXT NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    client_id TEXT NOT NULL,
    refresh_token TEXT NOT NULL,
    consented_at BIGINT NOT NULL,
    refreshed_at BIGINT
);

-- Up to where an inbox was looked through.
CREATE TABLE inbox (
    mailbox TEXT NOT NULL,
    folder TEXT NOT NULL,
    uidvalidity BIGINT NOT NULL,
    uid BIGINT NOT NULL,
    looked_at BIGINT NOT NULL,
    PRIMARY KEY (mailbox, folder)
);

-- The ledger: each message found in an inbox, and what became of it.
CREATE TABLE received (
    mailbox TEXT NOT NULL,
    folder TEXT NOT NULL,
    uidvalidity BIGINT NOT NULL,
    uid BIGINT NOT NULL,
    message_id TEXT,
    -- waiting | pushing | pushed | done | refused | gone
    state TEXT NOT NULL,
    tries BIGINT NOT NULL,
    next_try_at BIGINT NOT NULL,
    found_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    -- What Odoo answered.
    answer TEXT,
    PRIMARY KEY (mailbox, folder, uidvalidity, uid)
);

CREATE INDEX received_open ON received (mailbox, folder, uidvalidity, uid) WHERE state <> 'done' AND state <> 'gone';
CREATE INDEX received_message_id ON received (message_id) WHERE message_id IS NOT NULL;
