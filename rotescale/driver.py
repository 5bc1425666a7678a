"""The only file that knows Ray Train: starts the workers of a prepared run and waits for them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rotescale.errors import RotescaleError, error_class
from rotescale.faults import VARIABLE as FAULT_VARIABLE
from rotescale.launch_spec import LaunchSpec
from rotescale.run_dir import Outcome, RunDir

# Ray warns of what is the default already, polls too seldom, and waits long for lost nodes.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
}


class InterruptedRunError(RotescaleError):
    """Workers were lost more often than allowed; the run can go on from its last checkpoint."""

    exit_code = 4


@contextmanager
def local_ray(launch: LaunchSpec) -> Iterator[None]:
    """A Ray cluster on this machine for the time being, or the one that is running already."""
    os.environ.update({key: value for key, value in _ENVIRONMENT.items() if key not in os.environ})
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(
        # Never a cluster that happens to run here: its resources are not this launch spec's.
        address="local",
        num_cpus=round(launch.num_workers[1] * launch.cpus_per_worker) + 1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
    )
    try:
        yield
    finally:
        ray.shutdown()


def train(run_dir: RunDir, launch: LaunchSpec, *, engine: str = "zero3") -> None:
    """Run the workers of a prepared run to its outcome; the eager engine runs in this process.

    Raises the user error that ended the run, with its own class, and InterruptedRunError where
    workers were lost too often. A run that has an outcome starts no worker.
    """
    if not launch.gpus_per_worker:
        # Engines take a GPU where they see one, and the launch spec says that there is none.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if Outcome.read(run_dir) is None and engine == "eager":
        _worker_loop(
            {"run_folder": str(run_dir.root), "threads": max(1, int(launch.cpus_per_worker))}
        )
    elif Outcome.read(run_dir) is None:
        with local_ray(launch):
            _fit(run_dir, launch)
    raise_outcome(run_dir)


def raise_outcome(run_dir: RunDir) -> None:
    """Raise what the run's outcome says went wrong; return where it finished."""
    outcome = Outcome.read(run_dir)
    if outcome is None:
        raise InterruptedRunError(
            f"{run_dir.root}: the workers ended without an outcome; run the same command again to "
            f"go on from the last checkpoint (logs: {run_dir.logs_dir})"
        )
    if outcome.status == "failed":
        raise error_class(outcome.error or "")(outcome.message)


def _fit(run_dir: RunDir, launch: LaunchSpec) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    least, most = launch.num_workers
    resources = {"CPU": launch.cpus_per_worker}
    if launch.gpus_per_worker:
        resources["GPU"] = launch.gpus_per_worker
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={
            "run_folder": str(run_dir.root.absolute()),
            "threads": max(1, int(launch.cpus_per_worker)),
        },
        torch_config=TorchConfig(backend="nccl" if launch.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=bool(launch.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=run_dir.root.name,
            # Ray's own bookkeeping; everything that matters lies in the run folder itself.
            storage_path=str(run_dir.ray_dir.absolute()),
            failure_config=FailureConfig(max_failures=launch.max_failures),
            worker_runtime_env={"env_vars": _worker_environment()},
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        if Outcome.read(run_dir) is None:
            raise InterruptedRunError(
                f"{run_dir.root}: workers were lost more than {launch.max_failures} times; "
                f"the last error was: {_last_line(error)}. Run the same command again to go on "
                f"from the last checkpoint (logs: {run_dir.logs_dir})"
            ) from error


def _worker_loop(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker."""
    import torch

    from rotescale.worker import run_worker

    torch.set_num_threads(config["threads"])
    run_worker(Path(config["run_folder"]))


def _worker_environment() -> dict[str, str]:
    """Variables of the driver that its workers need too."""
    wanted = (FAULT_VARIABLE, "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    passed = {name: os.environ[name] for name in wanted if name in os.environ}
    return {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **passed}


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
