"""Puts logs that grow on this machine into a run at a URL, again and again. No torch.

An object store cannot append, and a process that is killed puts nothing there any more: so what a
log held half a minute before is there.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rotescale.errors import StorageError
from rotescale.object_store import RemotePath
from rotescale.run_dir import RunDir

UPLOAD_SECONDS = 30.0
_END_SECONDS = 150.0
"""How long the end waits for the last uploads: a store that fails is asked for two minutes."""


class LogUploads:
    """A thread that uploads logs which have grown; for a run in a folder it does nothing.

    A store that refuses, or does not answer, fails nothing and is asked again the next time.
    """

    def __init__(
        self, run_dir: RunDir, logs: Sequence[Path], *, every_seconds: float = UPLOAD_SECONDS
    ) -> None:
        """``logs`` need not be there yet."""
        self._run_dir = run_dir
        self._every_seconds = every_seconds
        self._sizes = dict.fromkeys(logs, 0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log-uploads", daemon=True)
        if isinstance(run_dir.root, RemotePath):
            self._thread.start()

    def close(self) -> None:
        """Upload what has grown since; whoever hangs in a store is not waited for."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(_END_SECONDS)

    def _follow(self) -> None:
        while not self._done.wait(self._every_seconds):
            self._upload()
        self._upload()

    def _upload(self) -> None:
        for log, before in self._sizes.items():
            with suppress(StorageError, OSError):
                # Asked first: what is written meanwhile is seen the next time.
                size = log.stat().st_size
                if size != before:
                    self._run_dir.upload_log(log)
                    self._sizes[log] = size
