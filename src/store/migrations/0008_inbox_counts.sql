-- Rows of messages that Odoo took are removed in time: how many were. And how many of those that it took report a
-- failed delivery.
ALTER TABLE inbox ADD COLUMN pruned BIGINT NOT NULL DEFAULT 0;
ALTER TABLE inbox ADD COLUMN bounces BIGINT NOT NULL DEFAULT 0;
