"""Submits with Python's smtplib, as any program would: over STARTTLS, then with TLS from the start, then in chunks.

Usage: submission_client.py HOST PORT TLS_PORT CA_FILE USER PASSWORD
Prints one line for each step; the test compares them.
"""

import smtplib
import ssl
import sys


def mail(message_id):
    return b"From: john@example.com\r\nTo: a@x.test\r\nMessage-Id: <%s>\r\n\r\n.Hello\r\n" % message_id.encode()


def main():
    host, port, tls_port, ca_file, user, password = sys.argv[1:]
    context = ssl.create_default_context(cafile=ca_file)

    smtp = smtplib.SMTP(host, int(port), timeout=60)
    smtp.starttls(context=context)
    print("starttls", smtp.login(user, password)[0], smtp.sendmail("john@example.com", ["a@x.test"], mail("python-1")))
    smtp.quit()

    smtp = smtplib.SMTP_SSL(host, int(tls_port), timeout=60, context=context)
    print("has starttls", smtp.has_extn("starttls"))
    try:
        smtp.login(user, "wrong")
    except smtplib.SMTPAuthenticationError as refused:
        print("wrong password", refused.smtp_code)
    print("tls", smtp.login(user, password)[0], smtp.sendmail("john@example.com", ["a@x.test"], mail("python-2")))

    message = mail("python-3")
    smtp.mail("john@example.com", ["size=%d" % len(message)])
    smtp.rcpt("a@x.test")
    for chunk, last in ((message[:7], ""), (message[7:], ""), (b"", " LAST")):
        smtp.send(b"BDAT %d%s\r\n" % (len(chunk), last.encode()) + chunk)
        print("bdat", smtp.getreply()[0])
    smtp.quit()


main()
