-- Those to be sent, and none of those to be looked for first, of which there may be many after a backup was restored.
DROP INDEX message_due;
CREATE INDEX message_due ON message (mailbox, next_attempt_at, id)
    WHERE state = 'waiting' AND unknown_since IS NULL;
