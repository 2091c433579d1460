-- Who sent a received message that may begin a record in Odoo; null: that is not known yet, or it is a reply. Besides waiting
-- | pushing | pushed | done | refused | gone, its state may be "moved" (it lies in the quarantine folder) or "returning" (a
-- person wants it back from there).
ALTER TABLE received ADD COLUMN sender TEXT;

-- When it was last pushed.
ALTER TABLE received ADD COLUMN pushed_at BIGINT;

CREATE INDEX received_sender ON received (sender, pushed_at) WHERE sender IS NOT NULL;
