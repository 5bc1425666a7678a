"""Tasks of the lm-evaluation-harness by name: loaded, and tried before anything starts."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rotescale.errors import DataError, SpecError
from rotescale.spec import EvaluationSpec

SHIPPED = Path(__file__).parents[2] / "texts" / "tasks"
"""Tasks of our own, with their data."""

_FEWSHOT_SEED = 1234
"""The harness's own, so that examples are those of published numbers."""

_ASKED = ("loglikelihood", "loglikelihood_rolling", "generate_until")
_NO_MATTER = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}
"""What may be said of a greedy generation."""


def check_tasks(spec: EvaluationSpec, *, allow_code: bool) -> None:
    """Load the spec's tasks, if it names any, and build the first request of each.

    ``allow_code``: as ``allow_task_code`` of the launch spec. Raises SpecError where a folder of
    tasks is not allowed, the harness is missing or knows a name not, and DataError where a task's
    data cannot be had, or it asks what is not answered here.
    """
    if not spec.harness_tasks:
        return
    # Progress bars of loaders and of the harness, which nobody asked for.
    with redirect_stderr(io.StringIO()):
        loaded = load_tasks(spec, allow_code=allow_code)
        seed_examples(loaded)
        tasks = loaded["tasks"]
        for name, task in tasks.items():
            with _explained(name):
                task.build_all_requests(limit=1)
    for name, task in tasks.items():
        for request in task.instances:
            _check_request(name, request)


def load_tasks(spec: EvaluationSpec, *, allow_code: bool) -> dict[str, Any]:
    """The spec's tasks and groups, as the harness's ``evaluate`` takes them.

    Raises as ``check_tasks``.
    """
    # Before anything of the folder is read: its YAML may name Python files (``!function``), its
    # templates reach Python's objects, and its metrics are fetched as code.
    spec.require_code_allowed(allow_code)
    _require_harness(spec)
    manager = _manager(spec)
    found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in spec.harness_tasks:
        with _explained(name), seeded():
            loaded = manager.load([name])
        for kind, of_kind in found.items():
            of_kind.update(loaded.get(kind, {}))
    for name, task in found["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise DataError(
                f"evaluation.harness_tasks: {name} runs generated code or shows pictures, which "
                "is not done here; leave it out"
            )
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return found


def seed_examples(tasks: dict[str, Any]) -> None:
    """Draw the same examples at every stage."""
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def _require_harness(spec: EvaluationSpec) -> None:
    if find_spec("lm_eval") is None:
        raise SpecError(
            f"evaluation.harness_tasks: {', '.join(spec.harness_tasks)} asked for, but the package "
            "lm-eval is not installed; pip install --constraint constraints.txt -e '.[harness]', "
            "or leave them out"
        )


def _manager(spec: EvaluationSpec) -> Any:
    """What knows all the names; the harness's thousands of files are read where they must be."""
    from lm_eval.tasks import TaskManager

    names = spec.harness_tasks
    folder = None if spec.harness_folder is None else Path(spec.harness_folder)
    if folder is not None and not folder.is_dir():
        raise SpecError(f"evaluation.harness_folder: {folder} is no folder; name one with YAMLs")
    own: list[str | Path] = [SHIPPED, *([folder] if folder is not None else [])]
    manager = TaskManager(include_path=own, include_defaults=False)
    # Groups and tags of one's own may name the harness's tasks.
    if set(names) <= set(manager.all_subtasks):
        return manager
    manager = TaskManager(include_path=own)
    for name in names:
        if name not in manager.all_tasks:
            near = get_close_matches(name, manager.all_tasks, n=3)
            raise SpecError(
                f"evaluation.harness_tasks: {name!r} is no task, group or tag of lm-eval "
                f"{version('lm-eval')} nor of harness_folder ({folder or 'not set'}); "
                + (f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists all")
            )
    return manager


def _check_request(name: str, request: Any) -> None:
    if request.request_type not in _ASKED:
        raise DataError(
            f"evaluation.harness_tasks: {name} asks for {request.request_type}, and only "
            f"{', '.join(_ASKED)} are answered; leave it out"
        )
    if request.request_type != "generate_until":
        return
    from lm_eval.models.utils import normalize_gen_kwargs

    how = normalize_gen_kwargs(request.args[1])
    more = sorted(how.keys() - _NO_MATTER)
    if how["do_sample"] or more:
        raise DataError(
            f"evaluation.harness_tasks: {name} generates with {request.args[1]}, but generation is "
            "greedy here; leave it out, or set do_sample: false in a copy in harness_folder"
        )


def errors_of_tasks() -> tuple[type[Exception], ...]:
    """What the harness, a task's own code and the loaders of its data raise."""
    from jinja2 import TemplateError

    return (
        *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
        *(RuntimeError, ImportError, TemplateError),
    )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what a task raises as it is loaded into an error about the spec."""
    try:
        yield
    except errors_of_tasks() as error:
        raise DataError(
            f"evaluation.harness_tasks: {what} cannot be loaded ({type(error).__name__}: {error}); "
            "put its data into the Hugging Face cache of this machine (HF_HOME) where there is a "
            "network, mend the task in harness_folder, or leave it out"
        ) from error


@contextmanager
def seeded() -> Iterator[None]:
    """Tasks that draw as they load or ask draw the same each time, and disturb nobody else."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(_FEWSHOT_SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
