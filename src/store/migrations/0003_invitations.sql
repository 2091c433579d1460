-- Random keys that the relay made for itself, by what they are for.
CREATE TABLE own_key (
    name TEXT NOT NULL PRIMARY KEY,
    key BLOB NOT NULL
);

-- How often a mailbox's invitations were revoked: a link that names another number no longer counts.
CREATE TABLE invitation (
    mailbox TEXT NOT NULL PRIMARY KEY,
    generation BIGINT NOT NULL
);
