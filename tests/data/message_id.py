"""Reads the Message-Id of messages the way Odoo does.

stdin: a JSON array of messages; stdout: a JSON array of what was read, or of the name of the exception.
"""

import email
import email.policy
import json
import sys


def read(text):
    message = email.message_from_bytes(text.encode("utf-8"), policy=email.policy.SMTP)
    try:
        return str(message.get("Message-Id"))
    except Exception as error:
        return type(error).__name__


json.dump([read(text) for text in json.load(sys.stdin)], sys.stdout)
