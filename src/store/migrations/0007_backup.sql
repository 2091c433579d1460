-- At most one row: this store is, or was put back from, a copy that was made then. The copy's maker writes the row, into stores
-- of earlier versions, too.
CREATE TABLE IF NOT EXISTS backup (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    made_at BIGINT NOT NULL,
    -- When a daemon first started with it; null: none has yet.
    started_at BIGINT
);
