"""Names of Kubernetes objects: legal, one for a run wherever it is submitted, none for two."""

from __future__ import annotations

import hashlib
import re

from rotescale.run_dir import RunDir

RUN_LABEL = "rotescale/run"
"""On everything of a run: its name."""
FOLDER_ANNOTATION = "rotescale/run-folder"
"""On a run's RayJob: its folder, as the pods see it."""
MANAGER_LABEL, MANAGER = "app.kubernetes.io/managed-by", "rotescale-launch"
"""On everything that is created here."""
QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
"""By which Kueue knows where a RayJob waits."""
MAX_JOB_NAME = 47
"""KubeRay adds up to 16 characters for what it makes, and 63 are allowed."""
_DIGEST_CHARACTERS = 8
_NOT_ALLOWED = re.compile(r"[^a-z0-9]+")


def job_name(experiment: str, *, storage: str) -> str:
    """The RayJob of a run: its experiment's name as far as it fits, and a digest of its folder.

    A run is known by its folder, so that submitting it twice, from wherever, meets one object.
    """
    words = _NOT_ALLOWED.sub("-", experiment).strip("-")
    legible = words if words[:1].isalpha() else f"run-{words}"
    room = MAX_JOB_NAME - _DIGEST_CHARACTERS - 1
    folder = str(RunDir.of(storage, experiment).root)
    return f"{legible[:room].rstrip('-')}-{digest(folder)}"


def digest(text: str) -> str:
    """Eight hex digits that tell texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]
