"""What systemd does for a socket unit: holds the port open, and hands it to the daemon each time it starts it anew."""
import os
import signal
import socket
import subprocess
import sys

port, command = int(sys.argv[1]), sys.argv[2:]
listener = socket.create_server(("127.0.0.1", port), backlog=4096)
os.dup2(listener.fileno(), 3, inheritable=True)
environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "submission"}
# The daemon's own pid has to be told, which only it knows; and it ends with whoever started it.
shell = ["sh", "-c", 'LISTEN_PID=$$ exec setpriv --pdeathsig KILL "$@"', "sh", *command]
daemon = None


def end(*_):
    daemon.terminate()
    sys.exit(daemon.wait())


signal.signal(signal.SIGTERM, end)
while True:
    daemon = subprocess.Popen(shell, env=environment, pass_fds=[3])
    print(daemon.pid, flush=True)
    daemon.wait()
