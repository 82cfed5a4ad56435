"""Frequencies of rotary positions for texts longer than those a model was trained on, in the ways of known models."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

from ...base.frozen import frozen
from ...base.shapes import Float, Tensor
from ...flags.flag import check_idle, flag, flags_of
from .angles import inverse_frequencies

__all__ = ["ScalingFlags", "amplitude", "check_factors", "check_scaling", "scaled_frequencies"]


@frozen
class ScalingFlags:
    """The flags of rotary positions that say how frequencies become lower."""

    scaling: Literal["dynamic", "llama3", "yarn", "longrope"] | None = flag(
        None,
        "how frequencies are lowered for texts longer than trained on (interpolation_factor lowers all alike)",
        paper="https://arxiv.org/abs/2309.00071",
        tried=(
            {"scaling": "dynamic", "scaling_factor": 3.0, "scaling_length": 7},
            {"scaling": "llama3", "scaling_factor": 4.0, "scaling_length": 16, "scaling_turns": (0.5, 2.0)},
            {"scaling": "yarn", "scaling_factor": 4.0, "scaling_length": 16, "scaling_truncate": False},
            {"scaling": "longrope", "scaling_factors": (1.5, 3.0), "emb_dim": 4, "scaling_attention": 1.3},
        ),
    )
    scaling_factor: float | None = flag(
        None, "how many times as long texts become", at_least=1, tried="scaling has it beside it"
    )
    scaling_length: int | None = flag(
        None, "how long texts were in training, before", at_least=2, tried="scaling has it beside it"
    )
    scaling_turns: tuple[float, float] | None = flag(
        None,
        "pairs that turn as often in a text of that length, or less, are lowered by the whole factor; as often as the "
        "second number, or more, not at all (None: 1 and 4 of llama3, 1 and 32 of yarn)",
        above=0,
        paper="https://arxiv.org/abs/2407.21783",
        tried="scaling has it beside it",
    )
    scaling_truncate: bool = flag(
        True,
        "yarn lowers from a whole channel to a whole channel (False: gpt-oss)",
        paper="https://arxiv.org/abs/2508.10925",
        tried="scaling has it beside it",
    )
    scaling_factors: tuple[float, ...] | None = flag(
        None,
        "what longrope divides the frequency of each pair by: the short or the long list of a model",
        above=0,
        paper="https://arxiv.org/abs/2402.13753",
        tried="scaling has it beside it",
    )
    scaling_attention: float | None = flag(
        None,
        "what turned channels are multiplied by (None: as yarn and longrope have it by factor and length)",
        above=0,
        tried="scaling has it beside it",
    )


def plain(config: Any, base: float, width: int, where: Tensor) -> Float[Tensor, " half"]:
    """As trained."""
    return inverse_frequencies(width, base, where.device)


def dynamic(config: Any, base: float, width: int, where: Float[Tensor, "_ n"]) -> Float[Tensor, "_ n half"]:
    """NTK-aware bases, of each token that of a text which ends with it, as exact as `where` is."""
    # Not always in float32, where a power depends on how many are computed at once.
    longer = (where + 1).clamp(min=config.scaling_length) / config.scaling_length
    grown = (config.scaling_factor * longer - (config.scaling_factor - 1)) ** (width / max(width - 2, 1))
    return 1 / (base * grown[..., None]) ** (torch.arange(0, width, 2, device=where.device).to(where.dtype) / width)


def llama3(config: Any, base: float, width: int, where: Tensor) -> Float[Tensor, " half"]:
    """Between pairs of few turns and of many a ramp by their number."""
    low, high = config.scaling_turns or (1.0, 4.0)
    frequency = inverse_frequencies(width, base, where.device)
    kept = ((config.scaling_length * frequency / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequency / config.scaling_factor + kept * frequency


def yarn(config: Any, base: float, width: int, where: Tensor) -> Float[Tensor, " half"]:
    """Between pairs of many turns and of few a ramp by their place."""
    low, high = config.scaling_turns or (1.0, 32.0)
    # Which channel turns so often, for pairs that are counted as channels are.
    first, last = (
        width * math.log(config.scaling_length / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (high, low)
    )
    if config.scaling_truncate:
        first, last = math.floor(first), math.ceil(last)
    first = max(first, 0)
    last = max(min(last, width - 1), first)
    frequency = inverse_frequencies(width, base, where.device)
    place = torch.arange(width // 2, device=where.device)
    lowered = ((place - first) / (last - first if last != first else 1e-3)).clamp(0, 1)
    return frequency / config.scaling_factor * lowered + frequency * (1 - lowered)


def longrope(config: Any, base: float, width: int, where: Tensor) -> Float[Tensor, " half"]:
    check_factors(config, width)
    factors = torch.tensor(config.scaling_factors, dtype=torch.float32).to(where.device, non_blocking=True)
    return inverse_frequencies(width, base, where.device) / factors


class Kind(NamedTuple):
    """A way to lower frequencies, the flags that it needs and those that it may have beside them."""

    frequencies: Callable[[Any, float, int, Tensor], Tensor]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


KINDS: dict[str | None, Kind] = {
    None: Kind(plain),
    "dynamic": Kind(dynamic, ("scaling_factor", "scaling_length")),
    "llama3": Kind(llama3, ("scaling_factor", "scaling_length"), ("scaling_turns",)),
    "yarn": Kind(
        yarn,
        ("scaling_factor", "scaling_length"),
        ("scaling_turns", "scaling_truncate", "scaling_attention"),
    ),
    "longrope": Kind(longrope, ("scaling_factors",), ("scaling_factor", "scaling_length", "scaling_attention")),
}


def scaled_frequencies(config: Any, base: float, width: int, where: Float[Tensor, "_ n"]) -> Float[Tensor, "*_ half"]:
    """By which angle each pair of `width` channels is turned from token to token.

    What lowers frequencies by how long a text is, does so for each token by the text up to it (_, n, half): what has
    been turned stays as it is, and a text gives the same however it is cut into calls.
    """
    return KINDS[config.scaling].frequencies(config, base, width, where)


def amplitude(config: Any) -> float:
    """What turned channels of queries and keys are multiplied by."""
    factor, length = config.scaling_factor, config.scaling_length
    if config.scaling_attention is not None:
        return config.scaling_attention
    if config.scaling == "yarn":
        return 0.1 * math.log(factor) + 1
    if config.scaling == "longrope" and factor is not None and length is not None:
        return math.sqrt(1 + math.log(factor) / math.log(length))
    return 1.0


def check_scaling(config: ScalingFlags, name: str) -> None:
    """ValueError where a way lacks a flag that it needs, or has one that it doesn't know."""
    kind, said = KINDS[config.scaling], f"{name}_scaling={config.scaling!r}"
    if any(getattr(config, detail) is None for detail in kind.needs):
        raise ValueError(f"{said} needs {' and '.join(f'{name}_{each}' for each in kind.needs)}")
    known = {"scaling", *kind.needs, *kind.takes}
    idle = [detail for detail in flags_of(ScalingFlags) if detail not in known]
    check_idle(config, idle, f"{said} does not use it", f"{name}_")
    turns = config.scaling_turns
    if turns is not None and turns[0] >= turns[1]:
        raise ValueError(f"{name}_scaling_turns={turns} must be two numbers of which the second is the larger")


def check_factors(config: Any, width: int, name: str = "rotary") -> None:
    """ValueError unless there is a factor for each pair of `width` channels, where there are any."""
    count = None if config.scaling_factors is None else len(config.scaling_factors)
    if count not in (None, width // 2):
        raise ValueError(
            f"{name}_scaling_factors has {count} entries, but {width // 2} pairs of channels are turned: give one a "
            "pair"
        )
