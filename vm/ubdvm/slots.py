# SPDX-License-Identifier: MIT
"""The machine-wide limit on guests: emulation is dear, so one per processor."""

import fcntl
import os
import random
import sys
import time

SLOTS = int(os.environ.get("UBD_VM_SLOTS") or max(2, os.cpu_count() or 2))
SHORT_SECONDS = 60


def _open(name):
    for folder in ("/run/lock", "/tmp"):
        path = f"{folder}/{name}"
        try:
            # Without O_CREAT first: the kernel forbids it on another user's
            # file in a sticky directory.
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            pass
        except OSError:
            continue
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            os.fchmod(fd, 0o666)
            return fd
        except OSError:
            continue
    sys.exit(f"vm/run: cannot make the lock file {name} in /run/lock or /tmp")


def _try(fd):
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def take(seconds):
    """Waits for a slot. It is held until this process ends, however it ends."""
    slots = [_open(f"ubd-vm.slot{i}") for i in range(SLOTS)]
    # Whoever looks when one has become free gets it. Short runs look more
    # often, or they would wait for many times their length.
    pause = 0.05 if 0 < seconds <= SHORT_SECONDS else 0.3
    said = False
    while True:
        for fd in slots:
            if _try(fd):
                return fd
        if not said:
            print(f"vm/run: {SLOTS} guests are running on this machine; waiting for one to end", file=sys.stderr, flush=True)
            said = True
        time.sleep(pause * random.uniform(0.5, 1.5))
