"""CheckpointStore: where one attempt saves, what it resumes from, what it may remove. No torch."""

from __future__ import annotations

from collections.abc import Collection

from rotescale.checkpoint.attempts import Checkpoint, newest, open_checkpoint, visible
from rotescale.checkpoint.manifest import MANIFEST, DamagedManifestError, is_published
from rotescale.faults import fault_point
from rotescale.run_dir import CheckpointKind, CheckpointName, RunDir
from rotescale.storage import StoragePath, remove, remove_folder, step_aside, step_back

DAMAGED = f"{MANIFEST}.damaged"
"""What the manifest of a damaged checkpoint is called from then on."""


class CheckpointStore:
    """The checkpoints of a run as attempt number ``attempt`` sees them."""

    def __init__(self, run_dir: RunDir, attempt: int) -> None:
        self._run_dir = run_dir
        self._attempt = attempt

    def directory(
        self, phase: str, *, phase_index: int, step: int, kind: CheckpointKind
    ) -> StoragePath:
        """Where this attempt saves that checkpoint; the folder need not exist yet."""
        return self._run_dir.checkpoint(
            CheckpointName(self._attempt, phase_index, phase, step, kind)
        )

    def is_newest(self) -> bool:
        """Whether no later attempt has started."""
        return self._run_dir.is_newest(self._attempt)

    def newest(self) -> Checkpoint | None:
        """The checkpoint to go on from, full or the end of a phase; None: start at step 0."""
        return newest(self._run_dir, self._attempt)

    def phase_end(self, phase: str) -> Checkpoint | None:
        """The checkpoint at the end of ``phase``; None where it has not ended yet."""
        for name in reversed(visible(self._run_dir, self._attempt)):
            if name.phase == phase:
                checkpoint = open_checkpoint(self._run_dir, name)
                if checkpoint.manifest.phase_end:
                    return checkpoint
        return None

    def prune(
        self,
        keep_last: int,
        *,
        keep_every: int | None = None,
        keep: Collection[tuple[str, int]] = (),
    ) -> list[CheckpointName]:
        """Remove all but the last ``keep_last`` full checkpoints; returns what was removed.

        Ends of phases and weights stay, with ``keep_every`` those whose step is a multiple, and
        those whose (phase, step) is in ``keep``. Nothing is removed once a newer attempt has
        started, whose resume point may be any of them, nor before this attempt has published a
        checkpoint of its own: until then the one it resumed from is all there is.
        """
        assert keep_last >= 1, keep_last
        if not self.is_newest():
            return []
        if not self._has_own():
            return []
        full = [name for name in visible(self._run_dir, self._attempt) if name.kind == "full"]
        removed: list[CheckpointName] = []
        for name in full[:-keep_last]:
            if keep_every is not None and name.step % keep_every == 0:
                continue
            if (name.phase, name.step) in keep:
                continue
            try:
                if open_checkpoint(self._run_dir, name).manifest.phase_end:
                    continue
            except DamagedManifestError:
                # It may have been the end of a phase.
                continue
            if not self._unpublish(name):
                break
            fault_point("prune", phase=name.phase, rank=0, attempt=self._attempt)
            remove_folder(self._run_dir.checkpoint(name))
            removed.append(name)
        return removed

    def set_aside(self, directory: StoragePath) -> bool:
        """Take a damaged checkpoint out of every attempt's sight; False where a newer one started.

        Its manifest stays beside its files as ``manifest.json.damaged`` until orphans are
        collected. A superseded attempt changes nothing: what it misses may have been removed.
        """
        manifest = directory / MANIFEST
        aside = manifest.with_name(DAMAGED)
        if not self.is_newest():
            return False
        step_aside(manifest, aside)
        if self.is_newest():
            return True
        step_back(aside, manifest)
        return False

    def collect_orphans(self) -> list[CheckpointName]:
        """Remove what earlier attempts left and no attempt can ever see; returns what was removed.

        Folders without a manifest go at once. Checkpoints published past the resume point of a
        successor go when this attempt has published its own. Only the newest attempt removes.
        """
        if not self.is_newest():
            return []
        seen = set(visible(self._run_dir, self._attempt))
        has_own = self._has_own()
        removed: list[CheckpointName] = []
        for attempt in self._run_dir.checkpoint_attempts():
            if attempt >= self._attempt:
                continue
            for name in self._run_dir.checkpoint_folders(attempt, listed_only=True):
                if name in seen:
                    continue
                directory = self._run_dir.checkpoint(name)
                published = is_published(directory)
                # Of what was set aside as damaged somebody may still want the rest.
                if not has_own and (published or (directory / DAMAGED).exists()):
                    continue
                if published and not self._unpublish(name):
                    return removed
                remove_folder(directory)
                removed.append(name)
        return removed

    def _has_own(self) -> bool:
        """Whether this attempt has published what a later one could go on from."""
        try:
            latest = self.newest()
        except DamagedManifestError:
            # Whoever loads next says so; until then the ones before it are needed.
            return False
        return latest is not None and latest.manifest.attempt == self._attempt

    def _unpublish(self, name: CheckpointName) -> bool:
        """Take the manifest away, unless a newer attempt has started; then all stays as it was.

        The manifest steps aside before the look for newer attempts, and a starting attempt looks
        for the manifest after its own file exists: one of the two always sees the other.
        """
        manifest = self._run_dir.manifest(name)
        aside = manifest.with_name(f".{manifest.name}.removed")
        step_aside(manifest, aside)
        if self.is_newest():
            remove(aside)
            return True
        step_back(aside, manifest)
        return False
