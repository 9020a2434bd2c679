"""Codecs by the few words that a run says of them."""

from typing import Literal

from strategies.downlink import StepCodec
from strategies.transform import Pipeline, Transform, chain
from strategies.transforms.each_reply import each_reply
from strategies.transforms.entropy_coding import EntropyCoding
from strategies.transforms.feedback import with_feedback
from strategies.transforms.flatten import Flatten
from strategies.transforms.quantize import BITS, Quantize
from strategies.transforms.rotate import Rotate
from strategies.transforms.sparsify import TopK

Rotation = Literal["auto", "on", "off"]
PLAIN_BITS = 32
"""Numbers as they are."""
FEW_BITS = 4
"""From so few on a rotation pays: it spreads what is large before it is rounded."""


def uplink(top_k: float, bits: int, rotation: Rotation, *, private: bool = False) -> Pipeline:
    """What clients do to their updates: the largest share top_k of them (0 = all), in so many bits (32 = as they are).

    What that loses goes with the next update where it is much: of a sparse update, and below 3 bits. `private`: every
    reply is opened by itself, so that nothing stands between noise and sum, and its length tells nothing of its
    content. Raises ValueError for values out of range.
    """
    _check_bits(bits, "bits")
    sparse, few = _is_sparse(top_k, "top-k"), bits < 3
    rotated = rotation == "on" or (rotation == "auto" and bits <= FEW_BITS and not sparse)
    steps: list[Transform] = [TopK(top_k) if sparse else Flatten()]
    if rotated:
        steps.append(Rotate())
    if bits != PLAIN_BITS:
        steps.append(Quantize(bits, rounding="nearest" if few else "stochastic"))
    steps.append(EntropyCoding(padded=private))
    if sparse or few:
        return chain(with_feedback(*steps))
    return chain(each_reply(*steps)) if private else chain(*steps)


def downlink(top_k: float, bits: int) -> StepCodec | None:
    """How the server sends its steps; None for all of the model in every round."""
    _check_bits(bits, "down-bits")
    sparse = _is_sparse(top_k, "down-top-k")
    if not sparse and bits == PLAIN_BITS:
        return None
    steps: list[Transform] = [TopK(top_k) if sparse else Flatten()]
    if bits <= FEW_BITS and not sparse:
        steps.append(Rotate())
    if bits != PLAIN_BITS:
        steps.append(Quantize(bits, rounding="nearest"))
    return StepCodec(chain(*steps, EntropyCoding()))


def _check_bits(bits: int, name: str) -> None:
    if bits not in (*BITS, PLAIN_BITS):
        raise ValueError(
            f"{name}={bits}: expected {', '.join(map(str, BITS))}, or {PLAIN_BITS} for numbers as they are"
        )


def _is_sparse(share: float, name: str) -> bool:
    if not 0 <= share <= 1:
        raise ValueError(f"{name}={share:g}: expected above 0 and at most 1, such as 0.01, or 0 for all")
    return share > 0
