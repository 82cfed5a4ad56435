"""What a model can be called with, made up: for counts and times, for which its values do not matter."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from ..base.checks import main_weight
from ..stack.face import AttentionLayers
from ..wrappers.attention_pool import AttentionPool
from ..wrappers.continuous import ContinuousTransformerWrapper
from ..wrappers.flash_transformer import WholeLayer
from ..wrappers.model import Model
from ..wrappers.multi_input import MultiInputTransformerWrapper
from ..wrappers.transformer import TransformerWrapper
from ..wrappers.vit import ViTransformerWrapper
from ..wrappers.xtransformer import XTransformer
from ..wrappers.xval import XValTransformerWrapper

__all__ = ["Example", "beside_stack", "example_of", "model_of"]

# Tokens where nothing says how many there can be, and the most.
USUAL, MOST = 256, 1024


class Example(NamedTuple):
    """A call of a model: one row of `tokens`."""

    model: nn.Module
    inputs: tuple[Any, ...]
    named: dict[str, Any]


def model_of(module: nn.Module) -> nn.Module:
    """What a trainer trains; a model itself."""
    for name in ("net", "transformer"):
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module) and not isinstance(module, (Model, AttentionLayers)):
            return model_of(inner)
    return module


def example_of(module: nn.Module, tokens: int | None) -> Example | None:
    """A call of the model in `module`, of so many tokens (None: its max_seq_len, 1,024 at most); None if unknown."""
    model = model_of(module)
    make = next((make for kind, make in EXAMPLES.items() if isinstance(model, kind)), None)
    if make is None:
        return None
    n = tokens or min(getattr(model, "max_seq_len", None) or USUAL, MOST)
    return Example(model, *make(cast(Any, model), n, Maker(model)))


class Maker:
    """Tensors where the weights of a model are, of their dtype."""

    def __init__(self, model: nn.Module):
        weight = main_weight(model)
        self.device = torch.device("cpu") if weight is None else weight.device
        self.dtype = torch.get_default_dtype() if weight is None else weight.dtype

    def floats(self, *shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=self.dtype, device=self.device)

    def ids(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.long, device=self.device)


def beside_stack(stack: AttentionLayers, n: int, make: Maker, first: bool = True) -> dict[str, Any]:
    """What a call of a stack must be given beside n tokens; first: whether no state holds what it keeps."""
    found: dict[str, Any] = {}
    widths = [width for block in stack.blocks() if (width := block.context_width()) is not None]
    if widths and first:
        found["context"] = make.floats(1, n, widths[0])
    if "condition" in stack.heeded and first:
        found["condition"] = make.floats(1, stack.dim_condition)
    if "grid" in stack.heeded:
        found["grid"] = torch.stack((make.ids(1, n), make.ids(1, n)), -1)
    return found


def of_stack(stack: AttentionLayers, n: int, make: Maker) -> tuple:
    return (make.floats(1, n, stack.dim),), beside_stack(stack, n, make)


def of_ids(model: TransformerWrapper, n: int, make: Maker) -> tuple:
    beside = beside_stack(model.attn_layers, n, make)
    if names := getattr(model.embedding, "embed_num_tokens", None):
        beside["embed_ids"] = {name: make.ids(1, n) for name in names}
    return (make.ids(1, n),), beside


def of_numbers(model: XValTransformerWrapper, n: int, make: Maker) -> tuple:
    return (make.ids(1, n), make.floats(1, n)), of_ids(cast(Any, model), n, make)[1]


def of_several(model: MultiInputTransformerWrapper, n: int, make: Maker) -> tuple:
    ids = {name: make.ids(1, n) for name in model.embedding.num_tokens}
    return (ids,), beside_stack(model.attn_layers, n, make)


def of_frames(model: ContinuousTransformerWrapper, n: int, make: Maker) -> tuple:
    return (make.floats(1, n, model.dim_in),), beside_stack(model.attn_layers, n, make)


def of_images(model: ViTransformerWrapper, n: int, make: Maker) -> tuple:
    """One image, of as many tokens as it has."""
    image = make.floats(1, model.embedding.channels, *model.embedding.image_size)
    beside = beside_stack(model.attn_layers, n, make)
    return (image,), {name: value for name, value in beside.items() if name != "grid"}


def of_pairs(model: XTransformer, n: int, make: Maker) -> tuple:
    """A source, and a target with the token to be predicted last."""
    sides = {side: part.attn_layers for side, part in model.sides().items()}
    needed = {side: beside_stack(stack, n, make).get("condition") for side, stack in sides.items()}
    named = {"condition": needed["dec_"], "src_condition": needed["enc_"]}
    given = {name: value for name, value in named.items() if value is not None}
    source, target = (min(n, side.length_limit or n) for side in model.sides().values())
    return (make.ids(1, source), make.ids(1, target + 1)), given


def of_layer(layer: WholeLayer, n: int, make: Maker) -> tuple:
    return (make.floats(1, n, layer.dim),), {}


def of_pool(pool: AttentionPool, n: int, make: Maker) -> tuple:
    queries = {} if pool.queries is not None else {"queries": make.floats(1, 1, pool.dim)}
    return (make.floats(1, n, pool.dim_context),), queries


EXAMPLES: dict[type, Callable[[Any, int, Maker], tuple]] = {
    AttentionLayers: of_stack,
    XValTransformerWrapper: of_numbers,
    MultiInputTransformerWrapper: of_several,
    ContinuousTransformerWrapper: of_frames,
    ViTransformerWrapper: of_images,
    TransformerWrapper: of_ids,
    XTransformer: of_pairs,
    WholeLayer: of_layer,
    AttentionPool: of_pool,
}
