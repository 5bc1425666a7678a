"""The dependency direction of the packages, lazy imports included, and what a bare import pulls."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each layer imports only earlier ones, and modules of its own package.
LAYERS = [
    {"credentials"},
    {
        *("errors", "cores", "direct", "fork_server", "node_drain", "texts", "freed_memory"),
        *("stopping", "ahead"),
    },
    {"object_client"},
    {"object_store"},
    {"tensors", "storage", "schedule", "faults", "step_clock"},
    {"spec", "ranges", "local_copy"},
    {"hardware", "zero3_sizes", "engine.fused_loss"},
    {"kuberay_spec", "spec_file", "facts", "engine.shared_memory"},
    {"launch_spec", "engine.gloo"},
    {"run_dir", "probe", "engine.mapped"},
    {"records", "watchdog", "notices", "nodes", "log_uploads"},
    {"pace", "memory_gauge", "utilisation", "profiling", "interrupt"},
    {"activity"},
    {"data", "model", "checkpoint", "engine.base", "engine.frozen_rows"},
    {"engine.zero3", "engine.eager", "evaluation", "team", "phase_plan"},
    {"phase_data", "team_checkpoints", "preflight"},
    {"planning"},
    {"devices"},
    {"preparation"},
    {"persistence", "branching"},
    {"phases"},
    {"composition"},
    {"worker"},
    {"study", "ray_nodes", "ray_session"},
    {"driver", "ray_probe", "analysis"},
    {"injection"},
    {"facts_cli", "checkpoint_cli", "study_cli", "report_cli"},
    {"inject_cli", "easyedit_cli", "representations_cli"},
    {"cli"},
]
LAUNCHER_MAY_IMPORT = {
    *("errors", "spec", "spec_file", "launch_spec", "run_dir", "records", "planning"),
    *(
        "checkpoint.manifest",
        "checkpoint.attempts",
        "notices",
        "probe",
        "storage",
        "tensors",
        "object_store",
        "credentials",
        "kuberay_spec",
    ),
    *("log_uploads", "pace", "nodes", "memory_gauge", "activity", "utilisation"),
}
TORCH_FREE = [
    *("rotescale.object_store", "rotescale.ranges", "rotescale.local_copy"),
    *("rotescale.errors", "rotescale.spec", "rotescale.launch_spec", "rotescale.run_dir"),
    *("rotescale.records", "rotescale.facts", "rotescale.planning.plan", "rotescale.pace"),
    *("rotescale.nodes", "rotescale.log_uploads"),
    *("rotescale.planning.workload", "rotescale.planning.place", "rotescale.hardware"),
    *("rotescale.checkpoint.manifest", "rotescale.cli", "launcher.cli"),
]
HEAVY = (
    *("obstore", "torch", "ray", "deepspeed", "transformers", "datasets", "pyarrow", "matplotlib"),
    *("peft", "lm_eval"),
)


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file of every module in a top-level package."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def unit(module: str) -> str:
    """The unit that a module belongs to: a file or package below rotescale, engine by file."""
    parts = module.split(".")[1:]
    if parts[:1] == ["engine"] and len(parts) > 1:
        return ".".join(parts[:2])
    return parts[0] if parts else ""


def layer(name: str) -> int | None:
    return next((i for i, units in enumerate(LAYERS) if name in units), None)


def test_every_module_has_a_layer() -> None:
    units = {unit(module) for module in modules("rotescale")} - {"", "engine"}
    assert units == set().union(*LAYERS)


@pytest.mark.parametrize("module", sorted(modules("rotescale")))
def test_imports_point_to_earlier_layers(module: str) -> None:
    known = modules("rotescale")
    mine = layer(unit(module))
    for imported in imports(known[module]):
        assert not imported.startswith("launcher"), f"{module} imports {imported}"
        if imported not in known or imported == "rotescale" or unit(imported) == unit(module):
            continue
        theirs = layer(unit(imported))
        if theirs is None or mine is None:
            continue
        assert theirs < mine, f"{module} (layer {mine}) imports {imported} (layer {theirs})"


def test_checkpoint_and_engine_never_import_each_other() -> None:
    for module, path in modules("rotescale").items():
        for one, other in (("checkpoint", "engine"), ("engine", "checkpoint")):
            if module.startswith(f"rotescale.{one}"):
                assert not {i for i in imports(path) if i.startswith(f"rotescale.{other}")}


@pytest.mark.parametrize("module", sorted(modules("launcher")))
def test_the_launcher_imports_only_what_is_torch_free(module: str) -> None:
    known = modules("rotescale")
    for imported in imports(modules("launcher")[module]):
        if imported in known and imported != "rotescale":
            name = imported.removeprefix("rotescale.")
            assert name in LAUNCHER_MAY_IMPORT or name.split(".")[0] in LAUNCHER_MAY_IMPORT


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("deepspeed", {"engine/zero3.py"}),
        # The last is a program of its own, which a pod runs before it is stopped.
        ("ray", {"driver.py", "ray_nodes.py", "ray_session.py", "node_drain.py", "ray_probe.py"}),
        ("peft", {"model/adapters.py"}),
    ],
)
def test_each_framework_has_its_owners(library: str, owners: set[str]) -> None:
    users = {
        str(path.relative_to(ROOT / "rotescale"))
        for path in modules("rotescale").values()
        if any(i == library or i.startswith(f"{library}.") for i in imports(path))
    }
    assert users == owners


def test_the_harness_stays_in_its_package() -> None:
    for module, path in modules("rotescale").items():
        if any(one.split(".")[0] == "lm_eval" for one in imports(path)):
            assert module.startswith("rotescale.evaluation.harness."), module


@pytest.mark.parametrize("module", TORCH_FREE)
def test_a_bare_import_pulls_in_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_two_test_files_share_a_name() -> None:
    """Pytest imports them by it, so ``make test-slow``, which collects all, would collect none."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
