"""What the forward pass keeps for the backward pass."""

from __future__ import annotations

from rotescale.planning.architecture import Architecture


def layer_activation_bytes(
    shape: Architecture, tokens: int, *, precision: int, attention: str
) -> int:
    """What autograd keeps of one decoder layer for a row of ``tokens``, in bytes.

    Counted as "Reducing Activation Recomputation in Large Transformer Models" (Korthikanti et al.,
    2022) counts, for RMSNorm in fp32, rotary attention and a gated MLP without dropout, as
    transformers writes them; a test compares with what autograd keeps. Two norms: their input in
    fp32, normalised and scaled. Attention: queries, keys and values by query heads, the output
    twice, the log-sum-exp; the mask that keeps packed examples apart, or, in eager attention, the
    softmax of all scores in fp32 and in the model's precision. MLP: gate and up, the activation
    and the product. Attention ``auto`` counts as sdpa, which keeps more than flash attention.
    """
    norms = 2 * (4 + 2 * precision) * shape.hidden_size
    heads = 5 * precision * shape.query_size + 4 * shape.num_heads
    mlp = 4 * precision * shape.intermediate_size
    squared = 0
    if attention == "eager":
        squared = shape.num_heads * (4 + (precision if precision != 4 else 0))
    elif attention in ("sdpa", "auto"):
        squared = precision
    return tokens * (norms + heads + mlp) + tokens**2 * squared
