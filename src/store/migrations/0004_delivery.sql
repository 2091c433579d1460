-- Since when it is not known whether the service took the message; null: it is known. The recipients concerned are
-- "unknown". Besides waiting | sending | failed, a message's state may be "held": a person decides what becomes of it.
ALTER TABLE message ADD COLUMN unknown_since BIGINT;

-- From when on it is tried for [delivery] retry_for; null: since it was accepted. A person may have it tried anew.
ALTER TABLE message ADD COLUMN tried_since BIGINT;

-- At most one row: how often a person changed the queue, so that the daemon sees what the command line did.
CREATE TABLE by_hand (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    count BIGINT NOT NULL
);

-- What each mailbox was made to send, by the minute: its pace survives a restart.
CREATE TABLE pace (
    mailbox TEXT NOT NULL,
    -- Minutes since 1970.
    minute BIGINT NOT NULL,
    messages BIGINT NOT NULL,
    recipients BIGINT NOT NULL,
    PRIMARY KEY (mailbox, minute)
);

-- Reports of failed deliveries (RFC 3464) that Odoo has not taken yet. They outlive the message that they are about.
CREATE TABLE report (
    id BIGINT NOT NULL PRIMARY KEY,
    -- The failed message: its queue id, and its Message-Id.
    message BIGINT NOT NULL,
    message_id TEXT,
    -- JSON: the failed addresses.
    recipients TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- waiting | pushing | refused
    state TEXT NOT NULL,
    tries BIGINT NOT NULL,
    next_try_at BIGINT NOT NULL,
    -- What Odoo answered last.
    answer TEXT,
    raw BLOB NOT NULL
);

CREATE INDEX report_due ON report (next_try_at, id);
