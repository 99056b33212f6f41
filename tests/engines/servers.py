"""Starts vLLM's own server in a process, as people do, on a port of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

START_LIMIT_S = 240.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class VllmServer:
    """One server. ``start`` may be called again after ``kill``."""

    def __init__(self, model: Path, log: Path, *, name: str = "served", max_model_len: int = 1536) -> None:
        self._model = model
        self._log = log
        self._name = name
        self._max_model_len = max_model_len
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = [
            *("--model", str(self._model), "--served-model-name", self._name, "--host", "127.0.0.1"),
            *("--port", str(self.port), "--dtype", "float32", "--max-model-len", str(self._max_model_len)),
            *("--max-num-batched-tokens", str(max(2048, self._max_model_len)), "--no-enable-chunked-prefill"),
            *("--max-num-seqs", "16", "--block-size", "32", "--enforce-eager", "--scheduling-policy", "priority"),
            "--enable-prompt-tokens-details",
        ]
        environment = {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Waits until it answers."""
        assert self._process is not None
        until = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(self._log.read_text()[-3000:])
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.5)
        raise TimeoutError(self._log.read_text()[-3000:])

    def kill(self) -> None:
        """Ends it and its engine's processes, as a crash would."""
        if self._process is None:
            return
        try:
            family = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        for one in family:
            try:
                one.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self._process.wait(30)
        self._process = None


@contextmanager
def vllm_server(model: Path, log: Path) -> Generator[VllmServer]:
    server = VllmServer(model, log)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()
