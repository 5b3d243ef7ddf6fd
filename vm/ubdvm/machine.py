# SPDX-License-Identifier: MIT
"""One QEMU process, the channels to its guest, and the loop that serves them."""

import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
import tty

from ubdvm.splat import Scanner

QEMU = "qemu-system-x86_64"
END_MARKER = b"ubd-vm: end of run"
ESCAPE = b"\x1d"  # Ctrl-]
TIMED_OUT, FAILED = 124, 125

# How long the guest may take for each step that is not the command's own.
BOOT_SECONDS = 180
END_SECONDS = 20
RELEASE_SECONDS = 1
DUMP_SECONDS = 3


class Channel:
    """A socket to a device of the guest. What is read goes to `sink`, what is
    to be sent waits in `pending` until the guest takes it."""

    def __init__(self, sink):
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.sink = sink
        self.pending = bytearray()

    def send(self):
        try:
            del self.pending[: self.ours.send(self.pending)]
        except BlockingIOError:
            pass

    def device(self, name):
        return ["-chardev", f"socket,id={name},fd={self.theirs.fileno()}"]


class Lines:
    """Cuts a stream into lines."""

    def __init__(self, handle):
        self.rest = b""
        self.handle = handle

    def __call__(self, data):
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.handle(line.rstrip(b"\r"))


class Output:
    """One of our own descriptors. Takes everything at once and writes as the
    reader takes it, so that a slow reader does not change what the guest does.

    A stream of the guest ends with `token`, which is for us alone: writes to a
    port are asynchronous, and nothing else tells that the last one has come."""

    def __init__(self, fd, token=None):
        self.fd = fd
        self.pending = bytearray()
        self.token = token
        self.held = b""
        self.finished = token is None

    def __call__(self, data):
        if self.finished:
            self.pending += data
            return
        data = self.held + data
        if data.endswith(self.token):
            self.finished = True
            self.held = b""
            self.pending += data[: -len(self.token)]
            return
        # Hold back what may be the beginning of the token.
        size = next((n for n in range(min(len(data), len(self.token) - 1), 0, -1) if data.endswith(self.token[:n])), 0)
        self.held = data[len(data) - size :]
        self.pending += data[: len(data) - size]

    def release(self):
        self.pending += self.held
        self.held = b""

    def write(self):
        try:
            # A pipe that polls as writable takes this much without blocking.
            done = os.write(self.fd, self.pending[: select.PIPE_BUF])
            del self.pending[:done]
        except BrokenPipeError:
            self.pending.clear()
            return False
        except BlockingIOError:
            pass
        return True


class Machine:
    def __init__(self, job, log=None, verbose=False):
        self.job = job
        self.log_file = log
        self.verbose = verbose
        self.scanner = Scanner()
        self.tail = []
        self.status = None
        self.refusal = None
        self.started = None
        self.exited = None
        self.released = False
        self.ended = False
        self.process = None
        token = None if job.interactive else job.token.encode()
        self.out, self.err = Output(1, token), Output(2, token)
        self.note = Output(2)
        self.channels = {
            "qemu": Channel(Lines(self._qemu_line)),
            "log": Channel(Lines(self._log_line)),
            "ctl": Channel(Lines(self._control)),
            "out": Channel(self.out),
            "err": Channel(self.err),
        }
        if job.feed_stdin:
            self.channels["in"] = Channel(lambda data: None)
        if job.interactive:
            self.channels["tty"] = Channel(self.out)

    # What the guest says

    def _log_line(self, line):
        if END_MARKER in line:
            self.ended = True
        text = line.decode(errors="replace")
        self.scanner.feed(text)
        # What comes before the first process is of no interest once it runs.
        self.tail = [] if "Run /init as init process" in text else [*self.tail[-39:], text]
        if self.log_file:
            self.log_file.write(text + "\n")
        if self.verbose:
            self.note(line + b"\n")

    def _qemu_line(self, line):
        if b"terminating on signal" not in line:
            self.note(line + b"\n")

    def _control(self, line):
        word, _, rest = line.decode(errors="replace").partition(" ")
        if word == "started":
            self.started = time.monotonic()
        elif word == "exit":
            self.status = int(rest)
            self.exited = time.monotonic()
        elif word == "refuse":
            self.refusal = rest

    # The machine

    def _arguments(self):
        args = [QEMU, *self.job.qemu, "-device", "virtio-serial-pci,max_ports=16"]
        ports = {"out": 1, "err": 2, "ctl": 3, "in": 4}
        for name, channel in self.channels.items():
            if name == "qemu":
                continue
            args += channel.device(name)
            if name == "log":
                args += ["-serial", "chardev:log"]
            elif name == "tty":
                args += ["-device", "virtconsole,nr=0,chardev=tty"]
            else:
                args += ["-device", f"virtserialport,nr={ports[name]},chardev={name},name=ubd.{name}"]
        return args

    def start(self, fds):
        keep = [c.theirs.fileno() for c in self.channels.values()] + fds
        # setpriv: the kernel ends QEMU when we end, even by SIGKILL. A session
        # of its own keeps the terminal's Ctrl-C from reaching it before us.
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *self._arguments()],
            stdin=subprocess.DEVNULL, stdout=self.channels["qemu"].theirs, stderr=subprocess.STDOUT,
            pass_fds=keep, start_new_session=True,
        )
        for channel in self.channels.values():
            channel.theirs.close()
        self.born = time.monotonic()

    def stop(self):
        if not self.process:
            return
        # SIGTERM first: QEMU then flushes the disks it has been given.
        for sign, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, None)):
            self.process.send_signal(sign)
            try:
                self.process.wait(patience)
                return
            except subprocess.TimeoutExpired:
                pass

    # The loop

    def serve(self, timeout):
        """Runs until the guest is done; returns the exit status of the run."""
        verdict = None
        deadline = self.born + BOOT_SECONDS
        dump = None
        while True:
            alive = self._turn()
            now = time.monotonic()
            if self.ended and self.status is not None and (self.refusal or self._streams_ended()):
                break
            if self.status is not None and not self.released and now > self.exited + RELEASE_SECONDS:
                self.released = True
                self.channels["ctl"].pending += b"release\n"
            if not alive:
                verdict = f"the guest ended without reporting a status (QEMU exit {self.process.wait()})"
                break
            if self.job.escaped:
                verdict = "ended by Ctrl-]"
                break
            if self.status is not None or self.ended:
                deadline = min(deadline, now + END_SECONDS) if dump is None else deadline
            elif dump is None and self.started is not None:
                deadline = self.started + timeout if timeout else float("inf")
            if now < deadline:
                continue
            if self.started is None:
                verdict = f"the guest did not come up within {BOOT_SECONDS} s"
                break
            if self.status is not None or self.ended:
                break
            if dump is None:
                dump = deadline = now + DUMP_SECONDS
                self.channels["ctl"].pending += b"w\n"
                continue
            self.status = TIMED_OUT
            break
        return self._judge(verdict, dump is not None)

    def _streams_ended(self):
        return self.out.finished and self.err.finished

    def _turn(self):
        """Moves what can be moved now; False when the guest is gone."""
        poll = select.poll()
        by_fd = {c.ours.fileno(): c for c in self.channels.values()}
        for fd, channel in by_fd.items():
            poll.register(fd, select.POLLIN | (select.POLLOUT if channel.pending else 0))
        outputs = [o for o in (self.out, self.err, self.note) if o.pending]
        for output in outputs:
            poll.register(output.fd, select.POLLOUT)
        source = self._input()
        if source:
            poll.register(0, select.POLLIN)
        alive = True
        for fd, events in poll.poll(200):
            if fd in by_fd:
                if events & select.POLLOUT:
                    by_fd[fd].send()
                if events & ~select.POLLOUT:
                    alive &= self._read(by_fd[fd])
            elif fd == 0:
                self._read_input(source)
            else:
                output = next(o for o in outputs if o.fd == fd)
                if not output.write() and output is self.out:
                    raise BrokenPipeError
        return alive

    @staticmethod
    def _read(channel):
        try:
            data = channel.ours.recv(1 << 16)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        channel.sink(data)
        return bool(data)

    def _input(self):
        """The channel that takes our input, while it has room for more."""
        channel = self.channels.get("tty" if self.job.interactive else "in")
        if self.started is None or channel is None or channel.pending or self.job.input_ended:
            return None
        return channel

    def _read_input(self, channel):
        data = os.read(0, 4096)
        if self.job.interactive:
            self.job.escaped = ESCAPE in data or not data
            channel.pending += data
            return
        # Each piece says its size, and one of size 0 is the end: closing the
        # channel instead would lose what the guest has not read yet.
        channel.pending += b"%d\n" % len(data) + data
        self.job.input_ended = not data

    def _judge(self, verdict, late):
        self._drain()
        tail = [] if self.verbose or self.scanner.count else self.tail
        say = lambda text: print(f"vm/run: {text}", file=sys.stderr, flush=True)
        status = FAILED if self.status is None else self.status
        if self.refusal:
            say(self.refusal)
            status = FAILED
        elif verdict:
            say(verdict)
            if not self.job.escaped:
                self._print("the end of the kernel log", tail)
            status = FAILED
        elif late:
            say("time limit reached")
            self._print("the end of the kernel log", tail)
            status = TIMED_OUT
        if self.scanner.count:
            self._print(f"the kernel complained {self.scanner.count} time(s)", self.scanner.lines)
            status = status if late else FAILED
        return status

    @staticmethod
    def _print(title, lines):
        if not lines:
            return
        text = "".join(f"    {line}\n" for line in lines)
        print(f"vm/run: {title}:\n{text}", end="", file=sys.stderr, flush=True)

    def _drain(self):
        """The rest of what the guest sent, to the very end."""
        for channel in self.channels.values():
            while True:
                try:
                    data = channel.ours.recv(1 << 16)
                except (BlockingIOError, ConnectionResetError):
                    break
                if not data:
                    break
                channel.sink(data)
        for output in (self.out, self.err, self.note):
            output.release()
            while output.pending:
                if not output.write():
                    break


class RawTerminal:
    """The caller's terminal, raw while the guest's is shown on it."""

    def __init__(self, wanted):
        self.saved = termios.tcgetattr(0) if wanted else None

    def __enter__(self):
        if self.saved:
            tty.setraw(0)

    def __exit__(self, *_):
        if self.saved:
            termios.tcsetattr(0, termios.TCSADRAIN, self.saved)
