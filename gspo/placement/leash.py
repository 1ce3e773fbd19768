"""A command that ends with the process that started it, however that one ends: python leash.py COMMAND ...

Standard input is the leash, a pipe whose other end the starter alone holds: when it is closed, the command and all that
it started are told to end, and killed `GRACE` seconds later. On standard output stand the command's process number and,
when it has ended, its exit code; what the command says goes to standard error.

Runs as a file by itself, with the standard library alone. It is not a child of its starter: when one of Ray's processes
ends, Ray ends its children before they could end theirs.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

GRACE = 8.0
PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> None:
    if os.fork():
        os._exit(0)
    os.setsid()  # Ctrl-C is the starter's to answer
    libc = ctypes.CDLL(None)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    say(child.pid)
    threading.Thread(target=hold, args=(child,), daemon=True).start()
    code = child.wait()
    end_group(child.pid, signal.SIGKILL)  # what it left behind
    say(code)


def hold(child: subprocess.Popen) -> None:
    """Until the other end is closed."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    end_group(child.pid, signal.SIGTERM)
    time.sleep(GRACE)
    end_group(child.pid, signal.SIGKILL)


def end_group(leader: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


def say(number: int) -> None:
    with suppress(BrokenPipeError):  # nobody listens any more
        os.write(sys.stdout.fileno(), f"{number}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
