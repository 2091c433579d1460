"""Speaks to the relay as Odoo does: Python's smtplib, with what was recorded of Odoo 16 and 19 on the wire.

Usage: odoo_client.py HOST PORT [USER PASSWORD]
Prints one line for each step; the test compares them.
"""

import smtplib
import sys

BOUNCE = "bounce@example.com"


class Recorded(smtplib.SMTP):
    """Odoo's own lower-case verbs come from smtplib itself; here they are made sure of."""

    def putcmd(self, cmd, args=""):
        super().putcmd(cmd.lower(), args)


def mail(sender, message_id, body=b"Hello\r\n"):
    return (
        b"From: %s\r\nTo: a@x.test, shown-only@x.test\r\nReturn-Path: <bounce@example.com>\r\n"
        b"Message-Id: <%s>\r\nX-Odoo-Objects: mail.message-1\r\nSubject: test\r\n\r\n%s"
        % (sender.encode(), message_id.encode(), body)
    )


def main():
    host, port, *login = sys.argv[1:]
    smtp = Recorded(host, int(port), local_hostname="[127.0.0.1]", timeout=60)
    code, _ = smtp.ehlo()
    print("ehlo", code, " ".join(sorted(name for name in smtp.esmtp_features)))
    if login:
        # smtplib tries CRAM-MD5, PLAIN, LOGIN, as far as they are offered.
        print("login", smtp.login(*login)[0])

    # Each recipient gets a transaction of its own, with the same Message-Id, on one connection.
    for recipient in ("a@x.test", "b@x.test", "c@x.test"):
        smtp.mail(BOUNCE, ["size=742"])
        print("rcpt", smtp.rcpt(recipient)[0])
        print("data", smtp.data(mail("john@example.com", "same@odoo"))[0])

    # A raw 8-bit body without any BODY parameter.
    refused = smtp.sendmail(BOUNCE, ["d@x.test"], mail("john@example.com", "eight@odoo", "žluť 😊\r\n".encode()))
    print("8-bit", refused)

    # Non-ASCII addresses come with SMTPUTF8.
    smtp.mail(BOUNCE, ["size=100", "SMTPUTF8", "BODY=8BITMIME"])
    smtp.command_encoding = "utf-8"
    print("utf8", smtp.docmd("rcpt", "TO:<jörg@x.test>")[0])
    print("data", smtp.data(mail("john@example.com", "utf8@odoo"))[0])

    # A stranger's From.
    print("stranger", smtp.sendmail(BOUNCE, ["f@x.test"], mail('"Eve" <eve@foreign.test>', "eve@odoo")))
    print("vrfy", smtp.docmd("vrfy", "someone")[0], "noop", smtp.noop()[0], "rset", smtp.rset()[0])
    print("quit", smtp.quit()[0])

    # "Test Connection": reads 354, then closes the connection. Nothing may be delivered.
    smtp = Recorded(host, int(port), local_hostname="[127.0.0.1]", timeout=60)
    smtp.ehlo()
    if login:
        smtp.login(*login)
    smtp.mail("noreply@example.com")
    smtp.rcpt("noreply@odoo.com")
    smtp.putcmd("data")
    print("test", smtp.getreply()[0])
    smtp.close()


main()
