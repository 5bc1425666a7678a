"""A run's report for a person."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from launcher.account import Progress
from launcher.report import RunReport
from rotescale.activity import Activity

_COLORS = {
    "pending": "yellow",
    "running": "green",
    "finished": "bold green",
    "failed": "bold red",
    "stopped": "yellow",
    "unknown": "magenta",
}
_BAR = 30


def page(report: RunReport) -> RenderableType:
    """Everything on one screen, what matters first."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    table.add_row("run", report.name)
    table.add_row("folder", report.run_folder)
    table.add_row("place", report.place)
    table.add_row("state", Text(report.state, style=_COLORS[report.state]))
    if report.reason:
        table.add_row("why", Text(report.reason))
    for name, words in report.layers:
        table.add_row(name, Text(words))
    if report.age_seconds is not None:
        ago = f"{span(report.age_seconds)} ago by the run's supervisor"
        table.add_row("told", f"{ago}; its folder cannot be read from here")
    progress = report.progress
    if progress is not None:
        _add_progress(table, progress, is_over=report.state == "finished")
    elif report.outcome is None:
        table.add_row("progress", "none yet, as far as can be seen from here")
    if report.outcome is not None:
        table.add_row("outcome", Text(report.outcome))
    for ending in report.restarts:
        table.add_row(f"start {ending.number}", Text(f"{ending.kind}: {ending.reason}"))
    for slow in report.stragglers:
        words = f"on {slow.node}: a step takes up to {slow.ratio:.2g} times as long as without it"
        table.add_row(f"rank {slow.rank}", Text(words))
    if report.memory is not None:
        table.add_row("memory", Text(report.memory.describe()))
    for event in report.events:
        table.add_row(event.name, Text(f"{event.time}  {event.message}"))
    return Group(table)


def short(report: RunReport) -> str:
    """Its progress in a few words."""
    progress = report.progress
    if progress is None:
        return ""
    words = f"{progress.activity.stage} {_share(progress.activity)}".strip()
    left = progress.activity.seconds_left
    return words if left is None or report.state != "running" else f"{words}, {span(left)} left"


def span(seconds: float) -> str:
    """A length of time, such as ``1 h 20 min``."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _add_progress(table: Table, progress: Progress, *, is_over: bool) -> None:
    activity = progress.activity
    table.add_row("attempt", str(progress.attempt))
    stage = Text(f"{activity.stage}  {_share(activity)}")
    table.add_row("stage", stage)
    if activity.total is not None and not is_over:
        bar = ProgressBar(total=activity.total, completed=activity.done, width=_BAR)
        table.add_row("", bar)
    if activity.loss is not None:
        table.add_row("loss", f"{activity.loss:.4f}")
    if activity.seconds_per_step is not None:
        table.add_row("step", f"{activity.seconds_per_step:.2f} s{_parts(activity)}")
    if activity.flops_per_second is not None:
        table.add_row("computes", _computes(activity, activity.flops_per_second))
    if activity.seconds_left is not None and not is_over:
        table.add_row("left", _left(activity, activity.seconds_left))
    table.add_row("checkpoint", progress.checkpoint or "none yet")


def _left(activity: Activity, seconds: float) -> str:
    words = f"{span(seconds)} of this phase"
    if activity.run_seconds_left is None:
        return words
    whole = span(activity.run_seconds_left)
    return f"{words}; about {whole} of the run's steps, without evaluations and exports"


def _parts(activity: Activity) -> str:
    """What takes a hundredth of a step or more, such as ``: backward 48%, forward 31%``."""
    told = [f"{name} {share:.0%}" for name, share in activity.parts.items() if share >= 0.01]
    return f": {', '.join(told)}" if told else ""


def _computes(activity: Activity, flops: float) -> str:
    """All workers' operations per second, and of how much more they would be able."""
    unit, scale = ("TFLOP/s", 1e12) if flops >= 1e12 else ("GFLOP/s", 1e9)
    share = activity.share_of_peak
    told = "" if share is None else f", {share:.1%} of the devices' peak"
    return f"{flops / scale:,.3g} {unit} of the model's own{told}"


def _share(activity: Activity) -> str:
    if activity.total is None:
        return f"step {activity.done}" if activity.done else ""
    epoch = "" if activity.epoch is None else f", epoch {activity.epoch}"
    return f"{activity.done}/{activity.total}{epoch}"
