"""Reads the same messages as bytes and as text, the way Odoo does, and says in what the two differ.

stdin: a JSON array of [name, base64 of the bytes, text]; stdout: a line for each difference.
"""

import base64
import email
import email.policy
import json
import sys


def parse(raw):
    return email.message_from_bytes(raw, policy=email.policy.SMTP)


def attempt(read):
    try:
        return read()
    except Exception as error:  # What Odoo would stumble over it is to stumble over on both sides.
        return type(error).__name__


def parts(message):
    for number, part in enumerate(message.walk()):
        yield f"{number} type", attempt(part.get_content_type)
        yield f"{number} charset", attempt(part.get_content_charset)
        yield f"{number} filename", attempt(part.get_filename)
        yield f"{number} disposition", attempt(part.get_content_disposition)
        if not part.is_multipart():
            yield f"{number} octets", attempt(lambda part=part: part.get_payload(decode=True))
            yield f"{number} content", attempt(part.get_content)
        for name in part.keys():
            if name.lower() != "content-transfer-encoding":
                yield f"{number} {name}", attempt(lambda: [str(value) for value in part.get_all(name)])


for name, raw, text in json.load(sys.stdin):
    before = list(parts(parse(base64.b64decode(raw))))
    after = list(parts(parse(text.encode("utf-8"))))
    if before != after:
        wrong = [pair for pair in zip(before, after) if pair[0] != pair[1]][:3]
        print(f"{name}: {len(before)} and {len(after)} values: {wrong}")
