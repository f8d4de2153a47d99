"""Python processes that begin with the big libraries loaded: forks of one that loads them once.

The imports of a script take about four seconds. `start` forks a server instead, which has imported
the libraries (nothing of `eap`). All else is the process's own: group, folder, environment,
`sys.path`, signals, streams, and how it ends; Python that it starts is forked, too, for its
`sys.executable` is a program that asks the server. What a start itself does (which libraries it
loads, how streams are opened, the seed of hashes) is tested with processes of Python's own.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NoReturn

LIBRARIES = (
    "torch.distributed.launcher.api", "transformer_lens.model_bridge", "pandas", "scipy.stats",
    "scipy.optimize", "networkx", "matplotlib.pyplot", "jinja2", "jaxtyping",
)  # fmt: skip
MESSAGE = 1 << 18
"""Bytes of a request, at most."""


# ---- who asks ------------------------------------------------------------------------------------


class Forked:
    """A process as `subprocess.Popen` has it, its output as text.

    Attributes:
        pid: its number.
        returncode: once it has ended; negative for a signal.
        stdout, stderr: its streams.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        cwd: Path,
        environment: Mapping[str, str],
        *,
        joined: bool,
    ) -> None:
        out, to_out = os.pipe()
        err, to_err = (out, to_out) if joined else os.pipe()
        self._server = ask(_server(), arguments, cwd, environment, (0, to_out, to_err))
        for stream in {to_out, to_err}:
            os.close(stream)
        self.pid: int = json.loads(self._server.recv(MESSAGE))
        self.returncode: int | None = None
        self.stdout = os.fdopen(out, encoding="utf8")
        self.stderr = None if joined else os.fdopen(err, encoding="utf8")

    def poll(self) -> int | None:
        """Its status, None while it runs."""
        return self._status(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Its status, when it has ended."""
        if self._status(timeout) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        """All that it says, when it has ended."""
        said: dict[object, str] = self.__dict__.setdefault("_said", {})
        readers = self.__dict__.setdefault("_readers", [])
        if not readers:
            for stream in filter(None, (self.stdout, self.stderr)):
                reader = threading.Thread(
                    target=lambda own=stream: said.update({own: own.read()}), daemon=True
                )
                reader.start()
                readers.append(reader)
        end = time.monotonic() + (timeout or threading.TIMEOUT_MAX / 2)
        for reader in readers:
            reader.join(max(0.0, end - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        self.wait(None if timeout is None else max(0.1, end - time.monotonic()))
        return said[self.stdout], said.get(self.stderr)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it without warning."""
        self.send_signal(signal.SIGKILL)

    def _status(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._server.settimeout(timeout)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                self.returncode = json.loads(self._server.recv(MESSAGE))
        return self.returncode


def start(
    *arguments: object,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    joined: bool = False,
) -> Forked:
    """Start `python <arguments>`; `joined`: errors go where the output goes."""
    return Forked(arguments, cwd or Path.cwd(), environment or os.environ, joined=joined)


def ask(
    address: str,
    arguments: Sequence[object],
    cwd: Path,
    environment: Mapping[str, str],
    streams: Sequence[int],
) -> socket.socket:
    """Ask the server for a process; the socket tells its number and, later, its status."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(address)
    request = json.dumps([list(map(str, arguments)), str(cwd), dict(environment)])
    socket.send_fds(server, [request.encode()], streams)
    return server


@cache
def _server() -> str:
    """The address of this process's server, which ends with it."""
    folder = tempfile.TemporaryDirectory(prefix="forked-")
    address = str(Path(folder.name) / "server")
    reading, writing = os.pipe()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [sys.executable, __file__, address, str(writing)],
        pass_fds=[writing],
        stdin=subprocess.PIPE,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    os.close(writing)
    os.read(reading, 1)  # it listens
    os.close(reading)

    def end() -> None:
        server.stdin.close()
        server.wait()
        folder.cleanup()

    atexit.register(end)
    return address


def stand_in(address: str) -> None:
    """Ask for a process with this one's arguments, and end as it ends."""
    server = ask(address, sys.argv[1:], Path.cwd(), os.environ, (0, 1, 2))
    process = json.loads(server.recv(MESSAGE))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(process, number))
    status = json.loads(server.recv(MESSAGE))
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


# ---- who forks -----------------------------------------------------------------------------------


def serve(address: str, ready: int) -> tuple[list[str], str, dict[str, str], list[int]]:
    """Fork for every request; returns in each fork, with what it is to do."""
    import gc

    for name in LIBRARIES:
        import_module(name)
    gc.freeze()
    program = Path(address).with_name("python")
    program.write_text(
        f"#!{sys.executable} -IS\nimport sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
        f"import forked\nforked.stand_in({address!r})\n"
    )
    program.chmod(0o755)
    sys.executable = str(program)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(address)
    listening.listen(64)
    os.write(ready, b"x")
    os.close(ready)
    wait = selectors.DefaultSelector()
    wait.register(0, selectors.EVENT_READ, "whose tests these are")
    wait.register(listening, selectors.EVENT_READ, "a request")
    running: dict[int, tuple[int, socket.socket]] = {}  # by the process's own descriptor
    while True:
        for key, _ in wait.select():
            if key.data == "whose tests these are":
                sys.exit()
            if key.data == "a request":
                asking, _ = listening.accept()
                request, streams, *_ = socket.recv_fds(asking, MESSAGE, 3)
                process = os.fork()
                if process == 0:
                    wait.close()
                    for own in (listening, asking, *(other for _, other in running.values())):
                        own.close()
                    for descriptor in running:
                        os.close(descriptor)
                    return *json.loads(request), streams
                for stream in streams:
                    os.close(stream)
                os.setpgid(process, process)  # here, too: who asked may signal the group at once
                asking.send(json.dumps(process).encode())
                descriptor = os.pidfd_open(process)
                running[descriptor] = process, asking
                wait.register(descriptor, selectors.EVENT_READ, "an end")
                wait.register(asking, selectors.EVENT_READ, process)
            elif key.data == "an end":
                process, asking = running.pop(key.fd)
                wait.unregister(key.fd)
                os.close(key.fd)
                _, status = os.waitpid(process, 0)
                with contextlib.suppress(KeyError):
                    wait.unregister(asking)
                with contextlib.suppress(OSError):
                    asking.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
                asking.close()
            else:  # nobody waits for it any more
                wait.unregister(key.fileobj)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(key.data, signal.SIGKILL)


def become(arguments: list[str], cwd: str, environment: dict[str, str], streams: list[int]) -> None:
    """Be `python <arguments>`."""
    os.setpgid(0, 0)
    for own, stream in enumerate(streams):
        os.dup2(stream, own)
    for stream in streams:
        os.close(stream)
    sys.stdout = open(1, "w", encoding="utf8", buffering=1 if os.isatty(1) else -1)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf8", errors="backslashreplace", buffering=1)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    kind, *rest = arguments = [word for word in arguments if word != "-u"]
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    first = {"-c": "", "-m": cwd}.get(kind, str(Path(kind).resolve().parent))
    sys.path[:1] = [first, *filter(None, paths)]
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(kind, run_name="__main__")


def end(*work: object) -> NoReturn:
    """Do the work and end as an interpreter does, without the second that it frees memory for."""
    status: object = 0
    try:
        become(*work)
    except SystemExit as asked:
        status = asked.code
        if not isinstance(status, int | None):
            print(status, file=sys.stderr)
            status = 1
    except BaseException as error:
        traceback.print_exc()
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        status = status or 120
    if status and status < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((status or 0) & 255)


if __name__ == "__main__":
    end(*serve(sys.argv[1], int(sys.argv[2])))
