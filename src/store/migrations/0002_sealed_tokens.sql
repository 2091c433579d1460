-- Refresh tokens are sealed. Opening the store seals those of before, and empties clear_token.
ALTER TABLE token RENAME TO clear_token;

CREATE TABLE token (
    mailbox TEXT NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    client_id TEXT NOT NULL,
    -- See src/sealing.rs.
    sealed BLOB NOT NULL,
    consented_at BIGINT NOT NULL,
    refreshed_at BIGINT
);

-- At most one row: the key that tokens are sealed with, and whether what they were before is wiped from the file.
CREATE TABLE sealing (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    key_id BLOB NOT NULL,
    wiped BIGINT NOT NULL
);
