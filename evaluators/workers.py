"""Runs the processes in which answers are judged.

One process, the nursery, loads the algebra system and is then only forked: each worker is a copy of it, there in
milliseconds and small, since it shares what was loaded. So to end a worker costs the next call nothing. A worker limits
itself: timers of the kernel end it where a call takes too much processor time, whatever code it is in, so none outlives
its call even where everybody else has died. Calls and verdicts are lines of JSON.

The nursery and its workers are a group of processes of their own, which Ctrl-C does not reach. They end together: with
``close``, and where the owner is gone, which the nursery sees at the end of its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from speclrm.runtime.errors import GraderError

if TYPE_CHECKING:
    from types import FrameType

START_LIMIT_S = 120.0
END_LIMIT_S = 0.5
BUSY_S = 10.0
"""Real seconds that a call may take beside its processor time: on a busy machine it waits for its turn."""
MEMORY_BYTES = {"math": 1 << 30, "tasks": 4 << 30}
"""The most that a worker may map. Freshly forked it has 80 MB, nearly all of them shared; tasks load numpy besides."""
GROWN_KB = 400_000
"""A worker that has become so large ends after its call."""

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Libraries of numbers begin threads when they are loaded; a process that is forked is to have none."""

Kind = Literal["math", "tasks"]


class Judged(NamedTuple):
    """The result of a call. ``seconds``: processor time, 0 where it is not known.

    ``why`` there is no verdict: the call ran into a limit of time, its worker died (of memory, for one), the rule itself
    failed, or the nursery was lost or closed, which is no call's fault.
    """

    verdict: bool | None
    seconds: float
    why: Literal["", "limit", "died", "error", "lost"] = ""
    error: str | None = None


class Workers:
    """The owner's end. ``kind``: what the workers have loaded: ``tasks`` reasoning-gym, besides.

    ``places``: calls at once; slow ones have half as many of their own. Places are given out in the order of asking.
    Workers are forked as they are needed.
    """

    def __init__(self, kind: Kind, places: int) -> None:
        self._kind: Kind = kind
        self._quick = asyncio.Semaphore(places)
        self._slow = asyncio.Semaphore(max(1, places // 2))
        self._process: subprocess.Popen[bytes] | None = None
        self._line: _Line | None = None
        self._starting = asyncio.Lock()
        self.closed = True

    def open(self) -> None:
        """Allows calls. The processes begin with the first one, or with ``start``."""
        self.closed = False

    async def start(self) -> None:
        """Returns once the nursery is loaded; at once where it is. Raises GraderError where it does not come up."""
        async with self._starting:
            if self._line is not None and not self._line.lost:
                return
            self._end()  # what is left of one that was lost
            self._check_open()
            try:
                await asyncio.wait_for(self._start(), START_LIMIT_S)
            except BaseException as error:
                self._end()
                if isinstance(error, Exception):
                    raise GraderError(f"The processes that judge answers did not start: {error!r}.") from error
                raise

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603  # it returns at once; our own interpreter
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), self._kind],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                process_group=0,  # one to end as a whole, and one that Ctrl-C does not reach
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        line = self._line = _Line()
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: line, sock=ours)
        except BaseException:
            ours.close()
            raise
        await line.ready

    async def call(self, rule: str, gold: str, answer: str, limit_s: float, *, slow: bool) -> Judged:
        """Returns what comes of a call in a worker that has ``limit_s`` of processor time. ``slow``: it takes a place for such.

        A caller that is cancelled leaves the call to its worker: the place is free when that has ended it. Raises
        GraderError where all is closed, now or while it waits, and where the nursery does not come up.
        """
        places = self._slow if slow else self._quick
        await places.acquire()
        try:
            await self.start()
            assert self._line is not None
            future = self._line.send({"rule": rule, "gold": gold, "answer": answer, "limit_s": limit_s})
        except BaseException:
            places.release()
            raise
        future.add_done_callback(lambda _: places.release())
        judged = await asyncio.shield(future)
        if judged.why == "lost":
            self._check_open()
        return judged

    def close(self) -> None:
        """Ends all processes and lets no other begin. Nothing here waits, so nothing can cut it short."""
        self.closed = True
        self._end()

    def _check_open(self) -> None:
        if self.closed:
            raise GraderError("The grader is closed. Use it inside `async with Grader() as grader:`.")

    def _end(self) -> None:
        line, self._line = self._line, None
        process, self._process = self._process, None
        if line is not None:
            line.close()
        if process is not None:
            process.terminate()
            try:
                process.wait(END_LIMIT_S)  # all that it has to do is to end its workers
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class _Line(asyncio.Protocol):
    """The connection to a nursery. ``ready``: done once it is loaded. ``lost``: it is of no use any more."""

    def __init__(self) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = False
        self._transport: asyncio.WriteTransport | None = None
        self._calls: dict[int, asyncio.Future[Judged]] = {}
        self._count = 0
        self._said = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one by its methods alone

    def send(self, call: dict[str, Any]) -> asyncio.Future[Judged]:
        future: asyncio.Future[Judged] = asyncio.get_running_loop().create_future()
        if self.lost or self._transport is None:
            future.set_result(_LOST)
            return future
        self._count += 1
        self._calls[self._count] = future
        self._transport.write(json.dumps({"id": self._count, **call}).encode() + b"\n")
        return future

    def data_received(self, data: bytes) -> None:
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines if not self.lost else ():
            reply: dict[str, Any] = json.loads(line)
            if not reply:
                self.ready.set_result(None)
            else:
                self._calls.pop(reply.pop("id")).set_result(Judged(**reply))

    def connection_lost(self, exc: Exception | None) -> None:
        self.close()

    def close(self) -> None:
        self.lost = True
        if self._transport is not None:
            self._transport.abort()
        calls, self._calls = self._calls, {}
        for future in calls.values():
            future.set_result(_LOST)
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("the process ended at its start"))
            self.ready.exception()  # whoever waits for it hears it all the same


_LOST = Judged(None, 0.0, "lost")


# ------------------------------------------------------------------------------------------------- in the nursery


class _Worker:
    """A worker as the nursery sees it. ``call``: what it is at."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.call: int | None = None
        self.said = b""


class _Nursery:
    """Hands each call to a worker that is free, or to one forked for it, and its verdict back to the owner."""

    def __init__(self, owner: socket.socket) -> None:
        self._owner = owner
        self._idle: list[_Worker] = []
        self._said = b""
        self._ears = selectors.DefaultSelector()
        self._ears.register(owner, selectors.EVENT_READ)

    def serve(self) -> None:
        """Returns once the owner is gone. No worker is left then."""
        try:
            self._serve()
        finally:
            workers = [key.data for key in self._ears.get_map().values() if isinstance(key.data, _Worker)]
            for worker in workers:
                os.kill(worker.pid, signal.SIGKILL)
            for worker in workers:
                os.waitpid(worker.pid, 0)

    def _serve(self) -> None:
        while True:
            for key, _ in self._ears.select():
                if isinstance(key.data, _Worker):
                    self._hear(key.data)
                    continue
                data = self._owner.recv(1 << 16)
                if not data:
                    return
                *calls, self._said = (self._said + data).split(b"\n")
                for call in calls:
                    self._hand_out(call)

    def _hand_out(self, call: bytes) -> None:
        worker = self._idle.pop() if self._idle else self._fork()
        worker.call = json.loads(call)["id"]
        with contextlib.suppress(OSError):  # that it died is yet to be heard
            worker.channel.sendall(call + b"\n")

    def _hear(self, worker: _Worker) -> None:
        with contextlib.suppress(ConnectionResetError):
            if data := worker.channel.recv(1 << 16):
                worker.said += data
                if worker.said.endswith(b"\n"):
                    last, said = worker.said[:1] == b"-", worker.said[1:]
                    worker.said, worker.call = b"", None
                    if not last:
                        self._idle.append(worker)
                    self._owner.sendall(said)
                return
        self._ears.unregister(worker.channel)
        worker.channel.close()
        _, status = os.waitpid(worker.pid, 0)
        if worker in self._idle:
            self._idle.remove(worker)
        if worker.call is not None:
            ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            self._tell(worker.call, "limit" if ended_by in (signal.SIGPROF, signal.SIGALRM) else "died")

    def _tell(self, call: int, why: str) -> None:
        self._owner.sendall(json.dumps({"id": call, "verdict": None, "seconds": 0.0, "why": why}).encode() + b"\n")

    def _fork(self) -> _Worker:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                # What the nursery holds is not the worker's: an open copy would hide another's end.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                for key in self._ears.get_map().values():
                    os.close(key.fd)
                ours.close()
                _work(theirs)
                code = 0
            finally:
                os._exit(code)
        theirs.close()
        worker = _Worker(pid, ours)
        self._ears.register(ours, selectors.EVENT_READ, worker)
        return worker


def _work(channel: socket.socket) -> None:
    """Works as a worker: judges one call after the other. What it says begins with a minus where it is its last."""
    from speclrm.evaluators import grader_worker

    with channel.makefile("rb") as calls:
        for line in calls:
            call: dict[str, Any] = json.loads(line)
            signal.setitimer(signal.ITIMER_PROF, call["limit_s"])
            signal.setitimer(signal.ITIMER_REAL, call["limit_s"] + BUSY_S)
            verdict, error = None, None
            started = time.process_time()
            try:
                verdict = grader_worker.judge(call["rule"], call["gold"], call["answer"])
            except Exception as failure:  # noqa: BLE001  # a parser's bug: never the run's problem
                error = repr(failure)[:200]
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            seconds = time.process_time() - started
            last = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > GROWN_KB
            said = {
                "id": call["id"],
                "verdict": verdict,
                "seconds": seconds,
                "why": "error" if error else "",
                "error": error,
            }
            channel.sendall((b"-" if last else b"+") + json.dumps(said).encode() + b"\n")
            if last:
                return


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit()


def main(channel: str, kind: Kind) -> None:
    """Runs the nursery. ``channel``: a file descriptor."""
    from speclrm.evaluators import grader_worker

    signal.signal(signal.SIGTERM, _leave)
    for number in (signal.SIGINT, signal.SIGHUP):  # the owner decides when we end
        signal.signal(number, signal.SIG_IGN)
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off, as meant
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES[kind], MEMORY_BYTES[kind]))
    grader_worker.prepare(tasks=kind == "tasks")
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, every page that workers share
    with socket.socket(fileno=int(channel)) as owner, contextlib.suppress(OSError):
        owner.sendall(b"{}\n")
        _Nursery(owner).serve()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])  # type: ignore[arg-type]
