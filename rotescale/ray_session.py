"""A Ray cluster for the time being: started on this machine or joined, and what its workers get."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rotescale.credentials import found_in, names_one
from rotescale.errors import SpecError
from rotescale.faults import VARIABLE as FAULT_VARIABLE
from rotescale.launch_spec import LaunchSpec
from rotescale.notices import SUPERVISED
from rotescale.object_client import PASSED_ON

# Each is set unless the environment has it already. Ray Train's defaults in brackets.
ENVIRONMENT = {
    # How often the controller looks at its workers, and so how soon it sees that one is dead [2].
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # How long a worker may leave a poll unanswered, such as one on a host that stands still [600].
    # The poll is trivial and has a thread of its own; but where workers are not forked, a long call
    # in C may hold that process's lock.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    # How long workers may take to be placed [60]. After a node is lost the controller believes
    # for a while in resources that are gone, and finds out only by this limit.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # How often Ray looks for nodes that are about to be taken away [5]; notice may be 30 s.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # Ray warns of what is the default already.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
}
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
MODE_VARIABLE = "RAY_AUTH_MODE"
_AUTHENTICATION = (MODE_VARIABLE, TOKEN_VARIABLE, "RAY_AUTH_TOKEN_PATH")
_TOKEN_BYTES = 32
_WANTED = (FAULT_VARIABLE, "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_NAME_A_FILE = (
    *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
)
"""A path, which is no secret, though the name is a credential's."""


@contextmanager
def ray_cluster(launch: LaunchSpec) -> Iterator[None]:
    """A Ray cluster on this machine for the time being, or the one that the launch spec names.

    Raises SpecError where Ray would join that one without a token.
    """
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    import ray

    if ray.is_initialized():
        yield
        return
    if launch.place == "ray":
        require_token(os.environ)
        _read_authentication_anew()
        ray.init(address=launch.address, log_to_driver=False, logging_level=logging.ERROR)
        yield from _until_done()
        return
    with _own_token():
        _start_local_ray(launch)
        yield from _until_done()


def require_token(environment: Mapping[str, str]) -> None:
    """SpecError unless Ray is told to join a running cluster with a token."""
    mode = environment.get(MODE_VARIABLE)
    if mode is None or mode.lower() != "token":
        said = "is not set" if mode is None else f"is {mode}"
        raise SpecError(
            f"{MODE_VARIABLE} {said}, and whoever reaches a Ray cluster that asks for no token "
            f"runs code there: start each of its nodes with {MODE_VARIABLE}=token and one token in "
            f"{TOKEN_VARIABLE}, and set both here"
        )


def _until_done() -> Iterator[None]:
    import ray

    if SUPERVISED in os.environ and threading.current_thread() is threading.main_thread():
        # Ray, which has just set a handler that ends the driver at once, sends this to every
        # process of a job that is stopped; the supervisor is among them, and saves first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        ray.shutdown()


def _start_local_ray(launch: LaunchSpec) -> None:
    import ray

    ray.init(
        # Never a cluster that happens to run here: its resources are not this launch spec's.
        address="local",
        num_cpus=round(launch.num_workers[1] * launch.worker_cores) + 1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
    )


@contextmanager
def _own_token() -> Iterator[None]:
    """Have Ray ask for a token, one of this cluster alone, which its processes inherit.

    Whatever the environment says: Ray would let anybody in where that says ``disabled``, and would
    else write a token into ``~/.ray``, one for all clusters.
    """
    before = {name: os.environ.pop(name, None) for name in _AUTHENTICATION}
    os.environ[MODE_VARIABLE] = "token"
    os.environ[TOKEN_VARIABLE] = secrets.token_hex(_TOKEN_BYTES)
    _read_authentication_anew()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        # Else what this process starts or joins next would be asked for this cluster's token.
        _read_authentication_anew()


def _read_authentication_anew() -> None:
    """Ray reads its variables when it is imported, and a token once in a process.

    There is no public call for it. Should these names change, no local run starts.
    """
    from ray._raylet import (  # type: ignore[attr-defined]
        AuthenticationTokenLoader,
        Config,
    )

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables of the driver that its workers and their controller need too.

    Ray keeps them, and may log them, so no credential is among them: workers of a local cluster
    inherit those, and nodes of another one have their own.
    """
    passed = {
        name: value
        for name, value in environment.items()
        if (name in _WANTED or name.startswith(PASSED_ON)) and not _is_secret(name, value)
    }
    return {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **passed}


def _is_secret(name: str, value: str) -> bool:
    return found_in(value) is not None or (names_one(name) and name not in _NAME_A_FILE)
