"""Passes on what a driver prints, and keeps it in the run's folder."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from rotescale.errors import StorageError
from rotescale.run_dir import RunDir

_UPLOAD_SECONDS = 30.0
_END_SECONDS = 30.0


class DriverOutput:
    """Passes a driver's output on, and keeps it in the run folder."""

    def __init__(self, driver: subprocess.Popen[bytes], log: Path, run_dir: RunDir) -> None:
        self.last_line = ""
        """The last that was printed and is not empty."""
        self._driver = driver
        self._log = log
        self._run_dir = run_dir
        self._done = threading.Event()
        log.parent.mkdir(parents=True, exist_ok=True)
        targets = (self._pass_on, self._upload)
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Wait until all of it is kept."""
        self._threads[0].join(timeout=_END_SECONDS)
        self._done.set()
        self._threads[1].join()

    def _pass_on(self) -> None:
        assert self._driver.stdout is not None
        with self._driver.stdout as lines, self._log.open("ab") as log:
            for line in lines:
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
                # A full disk must not end the run; what is lost here was printed above.
                with suppress(OSError):
                    log.write(line)
                    log.flush()
                self.last_line = line.decode(errors="replace").strip() or self.last_line

    def _upload(self) -> None:
        while not self._done.wait(_UPLOAD_SECONDS):
            self._upload_once()
        self._upload_once()

    def _upload_once(self) -> None:
        with suppress(StorageError):
            self._run_dir.upload_log(self._log)
