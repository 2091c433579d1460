-- How often Odoo itself refused it, or failed at it while it took others: an outage does not count against a message.
ALTER TABLE received ADD COLUMN refusals BIGINT NOT NULL DEFAULT 0;
UPDATE received SET refusals = tries WHERE state IN ('refused', 'moved', 'returning');
