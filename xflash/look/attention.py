"""`plot_attention`: the matrices of attention as pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..base.checks import given
from ..base.shapes import Float, Tensor
from .capture import Seen, capture
from .picture import check_row, grid

__all__ = ["plot_attention"]

# So many tokens have their names beside a panel.
NAMED = 40


def plot_attention(
    model: Any,
    *inputs: Any,
    row: int = 0,
    mean: bool = False,
    tokens: Sequence[str] | str | None = None,
    **named: Any,
) -> Any:
    """A matplotlib figure of attention: a line of panels for each layer that has a matrix, a panel for each head.

    From white, 0, to dark, the largest weight of the panel; queries go down, keys to the right. model: a model with
    the `inputs` of a call, or what `capture(model, 'maps')` gave, or maps (b, h, n, m) by the names of layers.
    row: of the batch.  mean: one panel a layer, the mean of its heads.  tokens: what to write beside queries and keys.
    """
    maps = maps_of(model, inputs, named)
    heads = [of_row(label, found, row) for label, found in maps.items()]
    heads = [found.mean(0, keepdim=True) for found in heads] if mean else heads
    figure, panels = grid(len(heads), max(map(len, heads)))
    for line, label, found in zip(panels, maps, heads, strict=True):
        for i, panel in enumerate(line):
            if i >= len(found):
                panel.set_axis_off()
                continue
            panel.imshow(found[i].numpy(), cmap="Blues", vmin=0, interpolation="nearest", aspect="auto")
            panel.set_title(label if mean or len(found) == 1 else f"{label}, head {i + 1}", fontsize=8)
            panel.tick_params(labelsize=6)
            name_tokens(panel, found[i], tokens)
    return figure


def maps_of(model: Any, inputs: tuple, named: dict[str, Any]) -> Mapping[str, Tensor]:
    """The maps by layer, of a call that is made or was made."""
    if isinstance(model, nn.Module):
        with torch.no_grad(), capture(model, "maps") as seen:
            model(*inputs, **named)
        return seen.maps
    if isinstance(model, Seen):
        return model.maps
    if isinstance(model, Mapping) and model:
        return model
    raise TypeError(
        f"plot_attention takes a model and its inputs, what capture gave, or maps by name, not {given(model)}"
    )


def of_row(label: str, maps: Any, row: int) -> Float[Tensor, "h n m"]:
    """The matrices of one row; ValueError for what is none."""
    if not isinstance(maps, torch.Tensor) or maps.dim() != 4:
        raise ValueError(f"the maps of {label!r} must be (batch, heads, queries, keys), not {given(maps)}")
    check_row(row, len(maps))
    return maps[row].detach().float().cpu()


def name_tokens(panel: Any, weights: Float[Tensor, "n m"], tokens: Sequence[str] | str | None) -> None:
    """Writes tokens beside a panel whose queries, or keys, they are."""
    if tokens is None or len(tokens) > NAMED:
        return
    if weights.shape[0] == len(tokens):
        panel.set_yticks(range(len(tokens)), list(tokens), fontsize=6)
    if weights.shape[1] == len(tokens):
        panel.set_xticks(range(len(tokens)), list(tokens), fontsize=6)
