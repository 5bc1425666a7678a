"""ZeRO-3's buffers, as far as the spec leaves them to the model's size; known without torch.

None has been tuned on a GPU: none was at hand. The reasons are by arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from rotescale.spec import EngineSpec

_LEAST = 30_000_000
_MOST_REDUCED = 200_000_000
_GATHERED = 1_000_000_000
KEPT = 100_000
"""Parameters of fewer elements cost less to keep than to gather; as DeepSpeed has it."""
_ALL = 10**12


PAGE_BYTES = 8 << 20
"""Of memory in which ranks on one machine's CPUs exchange gradients and weights; each has two.

Larger messages go in pieces: what was just written is read while caches still hold it.
"""


@dataclass(frozen=True, slots=True)
class Zero3Sizes:
    """What DeepSpeed is told, in elements."""

    bucket: int
    """Gradients that are reduced together."""
    prefetch: int
    """Parameters that are on their way while others compute."""
    gathered: int
    """Parameters that may be whole on a worker at a time."""
    kept: int
    """Parameters of fewer elements stay whole between passes."""
    overlaps: bool
    """Whether gradients are reduced on a stream of their own."""


def zero3_sizes(
    spec: EngineSpec,
    *,
    layer_parameters: int = 0,
    model_parameters: int | None = None,
    on_gpu: bool = False,
) -> Zero3Sizes:
    """The spec's own values, and for ``auto`` what suits a model of such layers.

    ``layer_parameters``: those of the largest decoder layer; ``model_parameters``: of the whole
    model, None while nobody knows. Each ``auto`` has its reason:

    - ``bucket_size``: a layer's gradients, so that they travel while the layer before computes. At
      least 30 M, since below some 100 MB a message's start costs more than its bytes; at most 200
      M, since beside it lie copies of what is reduced, and a larger message is no faster.
    - ``prefetch_size``: a layer's parameters, so that the next layer travels while one computes. On
      CPUs none: no core is idle, steps take as long, and since each module of a layer asks for so
      many more, soon all of the model is on its way, in memory beside what is in use.
    - ``gathered_parameters``: the layer in use and the one on its way, and at least 10⁹, which
      keeps a model of up to half that size whole from forward to backward: its first layer is in
      use again after all others have been twice.
    - ``persistence_threshold``: on CPUs all parameters of a model that ``gathered_parameters`` lets
      be whole from forward to backward: kept until the next pass, they add nothing to that peak,
      and are gathered once in a step, after the update. Else DeepSpeed's 100,000: on a GPU that
      gather would be waited for, and others travel beside computing.
    - ``overlap_communication``: on GPUs, which have streams; on the CPU there is one.
    """
    ahead = max(layer_parameters, _LEAST) if on_gpu else 0
    prefetch = ahead if spec.prefetch_size == "auto" else spec.prefetch_size
    gathered = (
        max(_GATHERED, layer_parameters + prefetch)
        if spec.gathered_parameters == "auto"
        else spec.gathered_parameters
    )
    stays = not on_gpu and model_parameters is not None and 2 * model_parameters <= gathered
    return Zero3Sizes(
        bucket=(
            min(max(layer_parameters, _LEAST), _MOST_REDUCED)
            if spec.bucket_size == "auto"
            else spec.bucket_size
        ),
        prefetch=prefetch,
        gathered=gathered,
        kept=(
            (_ALL if stays else KEPT)
            if spec.persistence_threshold == "auto"
            else spec.persistence_threshold
        ),
        overlaps=(on_gpu if spec.overlap_communication == "auto" else spec.overlap_communication),
    )
