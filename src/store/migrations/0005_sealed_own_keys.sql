-- The relay's own keys are sealed, like the tokens. One that lay here in clear is given up: whoever had a copy of the file
-- could sign with it. Invitations that were given out under it no longer count.
DROP TABLE own_key;

CREATE TABLE own_key (
    name TEXT NOT NULL PRIMARY KEY,
    -- See src/sealing.rs.
    sealed BLOB NOT NULL
);
