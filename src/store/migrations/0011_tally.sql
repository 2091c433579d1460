-- How much of each mailbox's queue there is: to count the messages takes as long as the queue is. Only the triggers below
-- write here.
CREATE TABLE tally (
    mailbox TEXT NOT NULL PRIMARY KEY,
    -- All but those that were given up.
    waiting BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    held BIGINT NOT NULL,
    -- Of the messages that are to be sent.
    recipients BIGINT NOT NULL
) WITHOUT ROWID;

INSERT INTO tally
SELECT mailbox, sum(state <> 'failed'), sum(state = 'failed'), sum(state = 'held'),
    sum(CASE WHEN state NOT IN ('waiting', 'sending') THEN 0
        WHEN json_valid(recipients) THEN json_array_length(recipients) ELSE 1 END)
FROM message GROUP BY mailbox;

CREATE TRIGGER message_enters AFTER INSERT ON message BEGIN
    INSERT INTO tally VALUES (
        NEW.mailbox, NEW.state <> 'failed', NEW.state = 'failed', NEW.state = 'held',
        CASE WHEN NEW.state NOT IN ('waiting', 'sending') THEN 0
            WHEN json_valid(NEW.recipients) THEN json_array_length(NEW.recipients) ELSE 1 END
    ) ON CONFLICT (mailbox) DO UPDATE SET waiting = waiting + excluded.waiting, failed = failed + excluded.failed,
        held = held + excluded.held, recipients = recipients + excluded.recipients;
END;

CREATE TRIGGER message_leaves AFTER DELETE ON message BEGIN
    UPDATE tally SET waiting = waiting - (OLD.state <> 'failed'), failed = failed - (OLD.state = 'failed'),
        held = held - (OLD.state = 'held'),
        recipients = recipients - CASE WHEN OLD.state NOT IN ('waiting', 'sending') THEN 0
            WHEN json_valid(OLD.recipients) THEN json_array_length(OLD.recipients) ELSE 1 END
    WHERE mailbox = OLD.mailbox;
END;

-- Not for the usual way, from waiting to sending.
CREATE TRIGGER message_changes AFTER UPDATE OF mailbox, state, recipients ON message
WHEN OLD.mailbox <> NEW.mailbox OR OLD.recipients <> NEW.recipients
    OR (OLD.state <> NEW.state AND (OLD.state IN ('held', 'failed') OR NEW.state IN ('held', 'failed')))
BEGIN
    UPDATE tally SET waiting = waiting - (OLD.state <> 'failed'), failed = failed - (OLD.state = 'failed'),
        held = held - (OLD.state = 'held'),
        recipients = recipients - CASE WHEN OLD.state NOT IN ('waiting', 'sending') THEN 0
            WHEN json_valid(OLD.recipients) THEN json_array_length(OLD.recipients) ELSE 1 END
    WHERE mailbox = OLD.mailbox;
    INSERT INTO tally VALUES (
        NEW.mailbox, NEW.state <> 'failed', NEW.state = 'failed', NEW.state = 'held',
        CASE WHEN NEW.state NOT IN ('waiting', 'sending') THEN 0
            WHEN json_valid(NEW.recipients) THEN json_array_length(NEW.recipients) ELSE 1 END
    ) ON CONFLICT (mailbox) DO UPDATE SET waiting = waiting + excluded.waiting, failed = failed + excluded.failed,
        held = held + excluded.held, recipients = recipients + excluded.recipients;
END;

-- A mailbox's messages in the order of their arrival.
CREATE INDEX message_mailbox ON message (mailbox, id);

-- The last failures. A message that goes out at the first attempt is never in it.
CREATE INDEX message_tried ON message (changed_at, id) WHERE attempts > 0 AND state <> 'sending';

-- Those to be looked for, among any number that wait.
CREATE INDEX message_unknown ON message (mailbox, next_attempt_at, id)
    WHERE state = 'waiting' AND unknown_since IS NOT NULL;
