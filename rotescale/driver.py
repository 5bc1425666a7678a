"""Starts the workers of a prepared run with Ray Train, and waits for them."""

from __future__ import annotations

import logging
import os
import random
import socket
from contextlib import suppress
from typing import Any

from rotescale.errors import NodeError, RotescaleError, error_class
from rotescale.fork_server.caller import ForkServer
from rotescale.interrupt import save_before_interrupt, sigint_left_as_it_was
from rotescale.launch_spec import LaunchSpec
from rotescale.nodes import describe_left_out, left_out, read_faults
from rotescale.notices import SUPERVISED, Preemption, request_save
from rotescale.ray_nodes import name_worker, scaling_policy
from rotescale.ray_session import ray_cluster, worker_environment
from rotescale.run_dir import Outcome, RunDir
from rotescale.spec_file import load_spec

log = logging.getLogger(__name__)

WORKER = "rotescale.worker:run_forked_worker"
"""What is called in a forked process of each rank."""
_PRELOAD = ("rotescale.worker", "rotescale.engine.zero3", "datasets")
_PORTS = range(20_000, 32_000)
_CLAIM_SECONDS = 60
"""How long a controller that died may keep others from the resources it had asked for."""


class InterruptedRunError(RotescaleError):
    """Workers were lost more often than allowed; the run can go on from its last checkpoint."""

    exit_code = 4


def train(run_dir: RunDir, launch: LaunchSpec, *, engine: str = "zero3") -> None:
    """Run the workers of a prepared run to its outcome; the eager engine runs in this process.

    Raises the user error that ended the run, with its own class, and InterruptedRunError where
    workers were lost too often. A run that has an outcome starts no worker.
    """
    if launch.cpus_per_worker == "auto":
        prepared = load_spec(LaunchSpec, run_dir.launch_json)
        launch = launch.model_copy(update={"cpus_per_worker": prepared.worker_cores})
    if not launch.gpus_per_worker:
        # Engines take a GPU where they see one, and the launch spec says that there is none.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if Outcome.read(run_dir) is None and engine == "eager":
        import torch

        from rotescale.worker import run_worker

        torch.set_num_threads(_num_threads(launch))
        run_worker(run_dir.root)
    elif Outcome.read(run_dir) is None:
        with ray_cluster(launch):
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

    for node, faults in left_out(read_faults(run_dir)).items():
        log.warning(describe_left_out(run_dir, node, faults))
    least, most = launch.num_workers
    resources = {"CPU": launch.worker_cores}
    if launch.gpus_per_worker:
        resources["GPU"] = launch.gpus_per_worker
    trainer = _trainer_class(RunDir(run_dir.root.absolute()), launch)(
        _worker_loop,
        train_loop_config={
            "run_folder": str(run_dir.root.absolute()),
            "threads": _num_threads(launch),
            "fork": launch.fork_workers,
            "on_gpu": bool(launch.gpus_per_worker),
            "start_seconds": launch.limits.start_seconds,
        },
        backend_config=_rendezvous_config(),
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            elastic_resize_monitor_interval_s=launch.resize_check_seconds,
            use_gpu=bool(launch.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=run_dir.root.name,
            # Ray's own bookkeeping; everything that matters lies in the run folder itself.
            storage_path=str(run_dir.ray_dir.absolute()),
            failure_config=FailureConfig(
                max_failures=launch.max_failures,
                max_preemption_failures=(
                    -1 if launch.max_preemptions is None else launch.max_preemptions
                ),
            ),
            callbacks=[_controller_callback(RunDir(run_dir.root.absolute()), launch)],
            worker_runtime_env={"env_vars": _worker_variables(launch)},
        ),
    )
    try:
        with sigint_left_as_it_was():
            trainer.fit()
    except Exception as error:
        if Outcome.read(run_dir) is None:
            cause = getattr(error, "controller_failure", None)
            if isinstance(cause, NodeError):
                raise InterruptedRunError(
                    f"{run_dir.root}: {cause}. Then run the same command again to go on from the "
                    "last checkpoint"
                ) from error
            raise InterruptedRunError(
                f"{run_dir.root}: workers were lost more than {launch.max_failures} times; "
                f"the last error was: {_last_line(error)}. Run the same command again to go on "
                f"from the last checkpoint (logs: {run_dir.logs_dir})"
            ) from error


def _trainer_class(run_dir: RunDir, launch: LaunchSpec) -> Any:
    """Ray Train's trainer, which leaves out the nodes that have failed twice in this run.

    Ray's handler of Ctrl-C ends the workers at once; here they save first. Should Ray rename the
    method, the steps since the last checkpoint are lost, and a test fails.
    """
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    attempts_before = run_dir.newest_attempt()

    class Trainer(DataParallelTrainer):  # type: ignore[misc]
        def _register_sigint_handler(self, controller: Any) -> None:
            super()._register_sigint_handler(controller)
            if SUPERVISED not in os.environ:
                save_before_interrupt(
                    run_dir,
                    limit_seconds=launch.resize_save_seconds,
                    has_begun=lambda: run_dir.newest_attempt() != attempts_before,
                )

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            policy = scaling_policy(self.scaling_config, run_dir, launch)
            return super()._initialize_and_run_controller(**arguments | {"scaling_policy": policy})

    return Trainer


def _worker_variables(launch: LaunchSpec) -> dict[str, str]:
    """Those of the driver that workers need, and where they are to compute on CPUs that they do.

    Ray hides no GPU from a worker that has asked for none, and engines take one where they see it.
    """
    variables = worker_environment(os.environ)
    return variables if launch.gpus_per_worker else {**variables, "CUDA_VISIBLE_DEVICES": ""}


def _num_threads(launch: LaunchSpec) -> int:
    return max(1, int(launch.worker_cores))


def _rendezvous_config() -> Any:
    """What Ray Train has its workers agree on before they begin: where torch's ranks meet.

    Ray's own for torch imports it in each of its processes, which here only wait for a forked one.
    """
    from ray.train.backend import Backend, BackendConfig

    class Rendezvous(Backend):  # type: ignore[misc]
        # Each process sees all GPUs of its node's workers, and takes that of its local rank.
        share_cuda_visible_devices = True

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_set_ranks, worker_group.execute_single(0, _free_address))

    class RendezvousConfig(BackendConfig):  # type: ignore[misc]
        backend_cls = Rendezvous

    return RendezvousConfig()


def _free_address() -> tuple[str, int]:
    """This node's address, and a port that nobody listens on now.

    Seconds may pass until rank 0 listens there, so it is none that Linux gives to connections, nor
    one of Ray's workers.
    """
    import ray.util

    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return ray.util.get_node_ip_address(), port
    raise OSError(f"no free port from {_PORTS[0]} to {_PORTS[-1]} on this node")


def _set_ranks(address: tuple[str, int]) -> None:
    """The variables from which torch makes a process group, and the node's name."""
    from ray.train import get_context

    name_worker()
    context = get_context()
    os.environ |= {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "MASTER_ADDR": address[0],
        "MASTER_PORT": str(address[1]),
    }


def _worker_loop(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker: it waits for the forked process that does the work."""
    if not config["fork"]:
        import torch

        from rotescale.worker import run_worker

        torch.set_num_threads(config["threads"])
        run_worker(RunDir.at(config["run_folder"]).root, preemption=preemption_notice)
        return
    import ray

    # Workers are children of the raylet. Another driver may have other code.
    raylet, job = os.getppid(), ray.get_runtime_context().get_job_id()
    key = f"{raylet}-{job}-{'gpu' if config['on_gpu'] else 'cpu'}"
    server = ForkServer(key, preload=_PRELOAD, owner=raylet)
    server.call(WORKER, config, notice=_preemption_to_tell, start_seconds=config["start_seconds"])


def _preemption_to_tell() -> dict[str, Any] | None:
    notice = preemption_notice()
    return None if notice is None else notice.to_json()


def preemption_notice() -> Preemption | None:
    """In a worker of Ray Train: the nodes that it is about to lose; None outside of one.

    Ray's public call for it is a barrier over all workers, which stages without collectives
    cannot take part in; so this reads what that call would send around. The training loop lets
    the ranks agree by itself.
    """
    from ray.train.v2._internal.execution import context

    try:
        info = context.get_train_context().preemption_context.preemption_info
    except RuntimeError:
        return None
    if info is None:
        return None
    deadline = None if info.deadline_ms is None else info.deadline_ms / 1000
    return Preemption(tuple(sorted(info.preempted_node_ids)), deadline)


def _controller_callback(run_dir: RunDir, launch: LaunchSpec) -> Any:
    """What Ray Train's controller calls: has the workers save before it resizes them.

    Ray has no public hook for it: a planned resize is known by the controller's state. Should that
    name change, a resize loses the steps since the last checkpoint, and a test fails.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback

    limit = launch.resize_save_seconds
    # The controller reads the run's storage too, and Ray gives it no variables of ours. It is told
    # these in what Ray keeps of it, so no credential is among them either.
    passed_on = worker_environment(os.environ)

    class SaveBeforeResize(ControllerCallback):  # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            os.environ.update(passed_on)
            # A controller renews its claim to resources every 20 s. Where its driver is killed,
            # the next one waits until the claim lapses, after 180 s if nothing is done.
            with suppress(ImportError):
                from ray.train.v2._internal.execution.scaling_policy import (
                    autoscaling_coordinator_client as client,
                )

                client.AUTOSCALING_REQUESTS_EXPIRE_TIME_S = _CLAIM_SECONDS

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            if type(current_state).__name__ != "ResizingState":
                return
            try:
                wanted = current_state.scaling_decision.num_workers
                request_save(run_dir, f"resize to {wanted} workers", limit_seconds=limit)
            except Exception as error:  # noqa: BLE001 (an error here would end the run)
                # A resize that loses some steps is better than none.
                log.warning("no checkpoint before a resize: %s", error)

    return SaveBeforeResize()


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
