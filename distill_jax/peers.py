"""The other processes of a run: one that ends early ends all, with its line and its exit code.

Process 0 holds a connection to each of the others, beside those of JAX. Its end says within
milliseconds that a process is gone, in whatever the others wait, and a message on it says why one
ends. One that is stopped, or whose host is gone, closes nothing: JAX's heartbeats find it.

A run whose processes have lost one ends by os._exit: JAX's own shutdown would wait for the lost one
for minutes, as would a save in flight, and both end in an abort of the C++ runtime.
"""

import contextlib
import ctypes
import json
import os
import re
import secrets
import signal
import socket
import threading
import time
from typing import NamedTuple, NoReturn

from distill_jax import STARTED, signals, streams
from distill_jax.types import UserError

PATIENCE_S = 5.0  # for the others to hear of an end
ECHO_S = 1.0  # in which an error here turns out to be the echo of another process's end
CODE = 70


class Place(NamedTuple):
    """Which process of how many this is. coordinator: of process 0; empty: JAX finds all three."""

    coordinator: str
    count: int
    index: int


class Group:
    """This process and its connections to the others: of process 0 to all, of those to process 0.

    timeout_s: how long one may be away, and how long all wait for the last one to start.
    """

    def __init__(self, timeout_s: int):
        self.timeout_s = timeout_s
        self.index, self.count = 0, 0  # until all have met
        self._links: dict[int, socket.socket] = {}  # to the process of that number
        self._ending, self._over = threading.Lock(), threading.Event()
        self._done, self._closed = threading.Semaphore(0), threading.Semaphore(0)  # of the others
        self._libraries = streams.part_libraries()
        # abort() does not return to the interpreter, which would call a handler in Python.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), self._handler)

    def join(self, place: Place) -> None:
        """Meets the others. Raises UserError where JAX has to find them and does not."""
        import jax
        from jax._src.distributed import global_state  # JAX has no other name for its key store

        limit_s = self.timeout_s * 5 // 6  # JAX is late to notice
        since_start_s = int(time.monotonic() - STARTED)
        limits = {
            "initialization_timeout": max(self.timeout_s // 2, limit_s - since_start_s),
            "heartbeat_timeout_seconds": limit_s,
            "shutdown_timeout_seconds": limit_s,
        }
        if place.coordinator:
            if place.index == 0:
                self._check_port(place.coordinator)
            jax.distributed.initialize(place.coordinator, place.count, place.index, **limits)
        else:
            try:
                jax.distributed.initialize(**limits)
            except ValueError as error:
                raise UserError(
                    f"--distributed finds no other processes here ({error}): give --coordinator,"
                    " --processes and --process instead"
                ) from None
        self.index = global_state.process_id
        count = global_state.num_processes
        self._connect(global_state.client, global_state.coordinator_address, count)
        self.count = count
        for number, link in self._links.items():
            threading.Thread(target=self._listen, args=(number, link), daemon=True).start()

    def leave(self) -> None:
        """Returns once all are done; what JAX has between them is then ended."""
        import jax

        if self.index:
            self._tell({"done": True})
            self._over.wait()
        else:
            for _ in self._links:
                self._done.acquire()
            self._over.set()
            self._tell({"done": True})
        jax.distributed.shutdown()

    def fail(self, code: int, line: str) -> NoReturn:
        """Ends this process with a line and a code, and all others with the same."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # another thread is about to end the process
        signals.write(line)
        self._tell({"code": code, "line": line})
        # JAX's service goes with process 0, and its clients abort without it: they end first.
        until = time.monotonic() + PATIENCE_S
        for _ in self._links if self.index == 0 else ():
            self._closed.acquire(timeout=max(0.0, until - time.monotonic()))
        os._exit(code)

    def await_reason(self) -> None:
        """Gives a listening thread the time to end the process, if an error here is an echo."""
        time.sleep(ECHO_S)

    def _check_port(self, coordinator):
        """JAX ends in a segmentation fault where it cannot listen."""
        try:
            _server(int(coordinator.rpartition(":")[2])).close()
        except OSError as error:
            self.fail(
                CODE,
                f"error: process 0 cannot listen at --coordinator={coordinator}"
                f" ({os.strerror(error.errno)}): end what does, or give another port, and run"
                " again",
            )

    def _connect(self, client, coordinator, count):
        key = "distill_jax/peers"
        if self.index:
            port, token = json.loads(client.blocking_key_value_get(key, self.timeout_s * 1000))
            host = coordinator.rpartition(":")[0].strip("[]")
            link = socket.create_connection((host, port), timeout=self.timeout_s)
            link.sendall(f"{token}{self.index:09}".encode())
            self._links[0] = link
        else:
            token = secrets.token_hex(8)
            with _server(0) as server:
                server.settimeout(self.timeout_s)
                client.key_value_set(key, json.dumps([server.getsockname()[1], token]))
                while len(self._links) < count - 1:
                    link, _ = server.accept()
                    link.settimeout(PATIENCE_S)
                    hello = ""
                    with contextlib.suppress(OSError):
                        hello = link.recv(len(token) + 9, socket.MSG_WAITALL).decode("latin-1")
                    if hello.startswith(token):
                        self._links[int(hello[-9:])] = link
                    else:  # a stranger, such as a scan of ports
                        link.close()
        for link in self._links.values():
            link.settimeout(None)

    def _tell(self, message):
        for link in self._links.values():
            with contextlib.suppress(OSError):  # it is gone, as its own listening thread says
                link.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self, number, link):
        with contextlib.suppress(OSError), link.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                message = json.loads(line)
                if "code" in message:
                    self._closed.release()  # it ends by itself
                    self.fail(message["code"], message["line"])
                self._done.release()
                if self.index:
                    self._over.set()
        self._closed.release()
        if not self._over.is_set():
            time.sleep(ECHO_S / 2)  # a signal to all may be on its way to this one
            self.fail(CODE, f"error: process {number} of {self.count} is gone: run again")

    def _aborted(self, number):
        """What C++ calls instead of ending the process with a core dump; it must not return."""
        key = "config.distributed.timeout_s"
        said = os.pread(self._libraries, 2**20, 0).decode(errors="replace")
        if "distributed service" not in said:
            reason = (re.findall(r"(?m)^F\d{4} .*?\] (.*)", said) or ["no reason given"])[-1]
            self.fail(CODE, f"error: the runtime gave up ({reason[:200]}): run again")
        if not self.count:
            self.fail(
                CODE,
                f"error: not all processes of this run met within {self.timeout_s} s ({key}): start"
                " each of them with the same --coordinator and --processes",
            )
        self.await_reason()  # the connection to process 0 may say more
        self.fail(
            CODE,
            f"error: another process of this run did not answer for {self.timeout_s} s ({key}):"
            " run again",
        )


def _server(port: int) -> socket.socket:
    """A socket that listens at a port of every address of this host; 0: a free one."""
    six = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if six else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=six)
