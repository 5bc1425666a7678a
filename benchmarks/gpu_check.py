"""What has to be seen on GPUs, in one command: ``make gpu-check``, where there are 1 to 8 of them.

Run it from the repository: ``python benchmarks/gpu_check.py [--model NAME] [--out FILE]``. It tells
what it finds and writes all of it, numbers and errors, into one file to send back. Nothing of it
has been run on a GPU yet; on a machine without one, or with ``--cpu``, it does on the CPU, in fp32
and with two workers, what can be done there, and says what it left out.

Each check is done, whatever came of the others; a check that fails makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.markup import escape
from rich.table import Table

import gpu_kernels
import gpu_scoring
from gpu_limits import (
    ALIKE,
    BF16_OF_FP32,
    CONTROL_COSINE,
    FP32_OF_CPU,
    OF_FALL,
    WHOLE_ROW,
    MissedError,
    require,
    require_apart,
    require_below,
    require_cosine,
)
from gpu_machine import DRIVER, installed, machine, told_by
from gpu_runs import WEIGHTS, Runs, Site
from report import CONSOLE

Status = Literal["ok", "failed", "left out"]


class LeftOutError(Exception):
    """A check that this machine cannot do; says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check came to."""

    check: str
    status: Status
    message: str
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def main() -> None:
    """Do every check, print a line of each, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        default=None,
        choices=sorted(WEIGHTS),
        help="by default: llama-1b on GPUs, micro else",
    )
    parser.add_argument("--workers", type=int, help="by default: all GPUs; two on the CPU")
    parser.add_argument("--checks", help="comma-separated; by default: all")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="%(default)s")
    parser.add_argument(
        "--cpu", action="store_true", help="check only what a CPU can, on any machine"
    )
    options = parser.parse_args()
    gpus = 0 if options.cpu else torch.cuda.device_count()
    if not gpus and not options.cpu and (driver := told_by(*DRIVER)):
        sys.exit(
            f"the driver ({driver.splitlines()[0]}) knows a GPU, which torch {torch.__version__} "
            "does not see: install torch's CUDA build into this environment (and see "
            "CUDA_VISIBLE_DEVICES), or check what a CPU can with --cpu"
        )
    site = Site(
        model=options.model or ("llama-1b" if gpus else "micro"),
        workers=options.workers or gpus or 2,
        on_gpu=gpus > 0,
    )
    wanted = options.checks.split(",") if options.checks else [*CHECKS]
    unknown = [name for name in wanted if name not in CHECKS]
    if unknown:
        sys.exit(f"--checks {unknown[0]}: no such check, only {', '.join(CHECKS)}")
    findings = []
    with Runs(site) as runs:
        for name in wanted:
            with CONSOLE.status(name):
                findings.append(_do(name, site, runs))
            _tell(findings[-1])
            _write(options.out, site, findings)
    _print(findings)
    CONSOLE.print(f"all numbers: {options.out}; please send it back")
    sys.exit(any(finding.status == "failed" for finding in findings))


def _write(out: Path, site: Site, findings: list[Finding]) -> None:
    """After every check, so that whatever breaks the next one leaves the others' numbers."""
    report = {
        "machine": machine(),
        "site": asdict(site),
        "findings": [asdict(finding) for finding in findings],
    }
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _do(name: str, site: Site, runs: Runs) -> Finding:
    began = time.perf_counter()
    try:
        message, numbers = CHECKS[name](site, runs)
        status: Status = "ok"
    except LeftOutError as why:
        status, message, numbers = "left out", str(why), {}
    except MissedError as missed:
        status, message, numbers = "failed", str(missed), missed.numbers
    except Exception as error:  # noqa: BLE001 - whatever it is, the other checks are done
        status, message = "failed", f"{type(error).__name__}: {error}"
        numbers = {"traceback": traceback.format_exc()}
    return Finding(name, status, message, numbers, round(time.perf_counter() - began, 2))


Result = tuple[str, dict[str, Any]]


def _precision(site: Site, _: Runs) -> Result:
    found = gpu_kernels.precisions(site.prepared(), site.device)
    require_below(BF16_OF_FP32, "bf16_against_fp32", found)
    require_below(FP32_OF_CPU, "fp32_against_cpu", found)
    return "bf16 agrees with fp32, and fp32 with the CPU's, target by target", found


def _packing(site: Site, _: Runs) -> Result:
    found = gpu_kernels.packing(site.prepared(), site.device, attention="sdpa", dtype="fp32")
    require_apart("fp32", "packed_against_alone", found)
    return "texts in one row and alone are told alike, target by target (sdpa, fp32)", found


def _flash(site: Site, _: Runs) -> Result:
    if not site.on_gpu:
        raise LeftOutError("flash attention takes a GPU")
    if installed("flash-attn") is None:
        raise LeftOutError("flash-attn is not installed: pip install flash-attn")
    found = gpu_kernels.packing(
        site.prepared(), site.device, attention="flash_attention_2", dtype="bf16"
    )
    found |= gpu_kernels.attentions(site.prepared(), site.device)
    require_apart("bf16", "packed_against_alone", found)
    require_below(BF16_OF_FP32, "flash_against_sdpa", found)
    require_cosine("bf16", found)
    require(found["control_cosine"] < CONTROL_COSINE, "the control's gradients are alike", found)
    return "flash attention keeps packed texts apart, and is sdpa's equal, gradients too", found


def _fused_loss(site: Site, _: Runs) -> Result:
    found = gpu_kernels.fused_loss(site.prepared(), site.device, dtype=site.dtype)
    require_below(ALIKE[site.dtype], "fused_against_plain", found)
    require_below(WHOLE_ROW[site.dtype], "whole_row", found)
    require_cosine(site.dtype, found)
    return f"the fused loss and its gradients are the plain one's ({site.dtype})", found


def _scoring(site: Site, _: Runs) -> Result:
    found = gpu_scoring.scoring(site.prepared(), site.device, dtype=site.dtype)
    require_apart(site.dtype, "trees_against_alone", found)
    return (
        f"options in trees score as alone ({site.dtype}); "
        f"{found['short_prompts_per_second']:.3g} short prompts/s, "
        f"{found['in_context_prompts_per_second']:.3g} behind ten facts",
        found,
    )


def _optimizer(site: Site, _: Runs) -> Result:
    found = gpu_kernels.optimizer(site.device)
    require(found["fused_against_plain"] < 1e-5, f"{found['fused_against_plain']:.1e} apart", found)
    return "fused AdamW makes the updates of the plain one", found


def _preflight(_: Site, runs: Runs) -> Result:
    found = runs.whole().preflight()
    speed = found["all_reduce_gb_per_s"]
    told = "" if speed is None else f", all-reduce {speed:.3g} GB/s"
    return f"slowest product {found['slowest_tflops']:.3g} TFLOP/s{told}", found


def _training(_: Site, runs: Runs) -> Result:
    found = runs.whole().speed()
    told = f"{found['tokens_per_second']:,.0f} tokens/s"
    if found["share_of_peak"] is not None:
        told += f", {found['share_of_peak']:.1%} of the devices' peak"
    return told, found


def _fast_training(site: Site, runs: Runs) -> Result:
    found = {"attention": site.fast_attention, **runs.fast().speed(), **runs.fast_differences()}
    require_below(OF_FALL[site.dtype], "largest_difference", found)
    faster = found["tokens_per_second"] / runs.whole().speed()["tokens_per_second"]
    told = f"{found['tokens_per_second']:,.0f} tokens/s, {faster:.2f} times the plain run's"
    return f"{told} (fused loss, {site.fast_attention}), the same losses", found


def _memory(site: Site, runs: Runs) -> Result:
    found = runs.whole().memory()
    told = f"planned {found['planned'] / 1e9:.2f} GB, measured {found['measured'] / 1e9:.2f} GB"
    if site.on_gpu:
        require(abs(found["error"]) < 0.15, f"{told}: {found['error']:+.0%}", found)
    return told, found


def _stall(site: Site, runs: Runs) -> Result:
    found = runs.whole().stall()
    told = (
        f"a save of {found['total_seconds']:.3f} s (copy {found['copy_seconds']:.3f} s, writing "
        f"{found['write_seconds']:.3f} s) stalls training {found['copy_stall_seconds']:.3f} s until"
        f" its copy is made, {found['stall_seconds']:.3f} s with what the next one waits for it"
    )
    if site.on_gpu:
        # Beside the next step's forward and backward passes, which take their part of it.
        apart = found["copy_stall_seconds"] < 0.9 * found["copy_seconds"]
        require(apart, f"{told}: the copy is made beside nothing", found)
        require(found["pinned"], f"{told}: its memory is not pinned", found)
    return told, found


def _resume(site: Site, runs: Runs) -> Result:
    if site.workers < 2:
        raise LeftOutError("another number of workers takes two GPUs")
    found = runs.resumed()
    require(found["fallen_until_restart"] > 0, "the loss had not fallen by the restart", found)
    require_below(OF_FALL[site.dtype], "after_restart", found)
    require_below(OF_FALL[site.dtype], "largest_difference", found)
    return (
        f"stopped on {site.workers}, finished on {found['workers_after']}: the same losses",
        found,
    )


CHECKS: dict[str, Callable[[Site, Runs], Result]] = {
    "precision": _precision,
    "packing": _packing,
    "flash-attention": _flash,
    "fused-loss": _fused_loss,
    "optimizer": _optimizer,
    "scoring": _scoring,
    "preflight": _preflight,
    "training": _training,
    "fast-training": _fast_training,
    "memory": _memory,
    "stall": _stall,
    "resume": _resume,
}


def _tell(finding: Finding) -> None:
    colour = {"ok": "green", "failed": "red", "left out": "yellow"}[finding.status]
    CONSOLE.print(
        f"[{colour}]{finding.status}[/{colour}] {finding.check}: {escape(finding.message)}"
    )


def _print(findings: list[Finding]) -> None:
    table = Table(title="what was seen", title_justify="left")
    for heading in ("check", "status", "seconds", "what"):
        table.add_column(heading)
    for finding in findings:
        table.add_row(finding.check, finding.status, f"{finding.seconds:.1f}", finding.message[:90])
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
