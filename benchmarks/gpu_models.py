"""The models that are timed and counted on a GPU, at one scale: those of xflash, the libraries that are there, and a
plain transformer, which does nothing but what PyTorch's fused attention and matrix products do.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xflash import BlockRecurrentTransformer, Decoder, Encoder, FLASHTransformer, TransformerWrapper

__all__ = ["FULL", "TINY", "VOCABULARY", "Model", "Plain", "Scale", "made", "models", "ours", "peers", "scale_of"]

VOCABULARY = 256
Row = dict[str, Any]


class Scale(NamedTuple):
    """How large: rows and lengths of a step, width, heads, and how many times 'attn ff'."""

    sizes: tuple[tuple[int, int], ...]
    dim: int
    heads: int
    depth: int

    def of(self, layers: str) -> int:
        """How often a layout is repeated for as many parameters: two gated layers stand for attention and ff."""
        units = sum({"attn": 1, "block_attn": 1, "ff": 2}.get(word.split("(")[0], 1.5) for word in spelled(layers))
        return max(1, round(3 * self.depth / units))


def spelled(layers: str) -> list[str]:
    """'flash*3 ff' as the words it stands for."""
    words = (word.partition("*") for word in layers.split())
    return [name for name, _, times in words for _ in range(int(times or 1))]


# Of the tables; for tests.
FULL, TINY = Scale(((8, 2048), (8, 8192)), 1024, 16, 12), Scale(((2, 48),), 32, 4, 2)


def scale_of(options: Any) -> Scale:
    return TINY if options.tiny else FULL


class Plain(nn.Module):
    """Pre-norm softmax attention and feed-forward on PyTorch's own kernels, positions learned; keys kept on demand."""

    def __init__(self, scale: Scale, n: int, depth: int | None = None):
        super().__init__()
        dim, self.heads = scale.dim, scale.heads
        self.tokens, self.places = nn.Embedding(VOCABULARY, dim), nn.Embedding(n, dim)
        self.qkv, self.out, self.up, self.down = (
            nn.ModuleList(nn.Linear(a * dim, b * dim, bias=bias) for _ in range(depth or scale.depth))
            for a, b, bias in ((1, 3, False), (1, 1, False), (1, 4, True), (4, 1, True))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * len(self.qkv) + 1))
        self.head = nn.Linear(dim, VOCABULARY)

    def forward(self, ids: Tensor, kept: list[tuple[Tensor, Tensor]] | None = None, at: int = 0) -> Tensor:
        """Logits; with buffers (b, h, slots, d) of all layers' keys and values, those of tokens from place `at` on."""
        n = ids.shape[1]
        x = self.tokens(ids) + self.places.weight[at : at + n]
        for i, (qkv, out, up, down) in enumerate(zip(self.qkv, self.out, self.up, self.down, strict=True)):
            heads = qkv(self.norms[2 * i](x)).unflatten(-1, (3, self.heads, -1))
            q, k, v = heads.permute(2, 0, 3, 1, 4)
            if kept is not None:
                for buffer, new in zip(kept[i], (k, v), strict=True):
                    buffer[:, :, at : at + n] = new
                k, v = (buffer[:, :, : at + n] for buffer in kept[i])
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=n > 1)
            x = x + out(mixed.transpose(1, 2).flatten(2))
            x = x + down(F.gelu(up(self.norms[2 * i + 1](x))))
        return self.head(self.norms[-1](x))

    def buffers_for(self, rows: int, slots: int) -> list[tuple[Tensor, Tensor]]:
        weight = self.tokens.weight
        shape = (rows, self.heads, slots, weight.shape[1] // self.heads)
        return [(weight.new_empty(shape), weight.new_empty(shape)) for _ in self.qkv]


def ours(layers: str, scale: Scale, n: int, depth: int | None = None, causal: bool = True, **flags: Any) -> nn.Module:
    """A language model of xflash."""
    absolute = flags.pop("absolute", False)
    kind = Decoder if causal else Encoder
    stack = kind(dim=scale.dim, depth=depth or scale.of(layers), heads=scale.heads, layers=layers, **flags)
    return TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=n, attn_layers=stack, use_abs_pos_emb=absolute)


def documents(rows: int, n: int) -> Row:
    """Four documents a row, their ends by chance."""
    chance = torch.Generator().manual_seed(1)
    ends = torch.rand(rows, n, generator=chance).argsort(1)[:, :3].sort(1).values
    return {"doc_ids": torch.searchsorted(ends, torch.arange(n).expand(rows, -1).contiguous())}


def padded(rows: int, n: int) -> Row:
    """Rows of half their length to all of it."""
    lengths = torch.linspace(n // 2, n, rows).long()
    return {"mask": torch.arange(n) < lengths[:, None]}


def nothing(rows: int, n: int) -> Row:
    return {}


class Model(NamedTuple):
    """How a model is built for a scale, a length and a depth, and what it is given beside ids.

    layers: what it is as deep as, for as many parameters.  alike: whether each repetition costs the same.
    """

    build: Callable[..., nn.Module]
    beside: Callable[[int, int], Row] = nothing
    layers: str = "attn ff"
    alike: bool = True
    causal: bool = True


def made(layers: str, beside: Callable[[int, int], Row] = nothing, **flags: Any) -> Model:
    return Model(functools.partial(ours, layers, **flags), beside, layers, causal=flags.get("causal", True))


def models() -> dict[str, Model]:
    """What is trained, by name."""
    rotary: Row = {"pos": "rotary"}
    return {
        "attn ff, absolute": made("attn ff", absolute=True),
        "attn ff, rotary": made("attn ff", **rotary),
        "flash": made("flash", **rotary),
        "gau": made("gau", **rotary),
        "flash*3 attn ff": made("flash*3 attn ff", **rotary),
        "attn(window=512) ff": made("attn ff", attn_window=512, **rotary),
        "attn ff, doc_ids": made("attn ff", documents, **rotary),
        "attn ff, alibi": made("attn ff", pos="alibi"),
        "attn ff, rel_pos": made("attn ff", pos="rel_pos"),
        "Encoder attn ff, padded": made("attn ff", padded, causal=False, **rotary),
        "attn ff, masked": made("attn ff", padded, **rotary),
        "flash, doc_ids": made("flash", documents, **rotary),
        "flash, doc_ids, max_documents": made("flash", documents, flash_max_documents=4, **rotary),
        "Encoder flash": made("flash", causal=False, **rotary),
        "block_attn ff": made("block_attn ff", **rotary),
        "block_attn ff, doc_ids": made("block_attn ff", documents, **rotary),
        "gau, laplace": made("gau", gau_attn_fn="laplace", **rotary),
        "BlockRecurrentTransformer": Model(block_recurrent, alike=False),
        **peers(),
    }


def peers() -> dict[str, Model]:
    """The libraries that are there, and what takes one's place."""
    found: dict[str, Model] = {}
    if importlib.util.find_spec("x_transformers"):
        found["x-transformers, rotary, attn_flash"] = Model(x_transformers)
        found["x-transformers, rotary"] = Model(functools.partial(x_transformers, fused=False))
    if importlib.util.find_spec("flash_pytorch"):
        found["FLASH-pytorch FLASHTransformer"] = Model(flash_pytorch, layers="flash")
        found["FLASHTransformer"] = Model(flash_transformer, layers="flash")
        found["FLASH-pytorch GAU"] = Model(gau_pytorch, layers="gau")
    if importlib.util.find_spec("block_recurrent_transformer_pytorch"):
        found["block-recurrent-transformer-pytorch"] = Model(block_recurrent_pytorch, alike=False)
    return found


def x_transformers(scale: Scale, n: int, depth: int | None = None, fused: bool = True) -> nn.Module:
    import x_transformers as library

    stack = library.Decoder(
        dim=scale.dim, depth=depth or scale.depth, heads=scale.heads, rotary_pos_emb=True, attn_flash=fused,
        attn_dim_head=64,
    )  # fmt: skip
    return library.TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=n, attn_layers=stack, use_abs_pos_emb=False)


def flash_pytorch(scale: Scale, n: int, depth: int | None = None) -> nn.Module:
    import flash_pytorch as library

    return library.FLASHTransformer(num_tokens=VOCABULARY, dim=scale.dim, depth=depth or 2 * scale.depth, causal=True)


def flash_transformer(scale: Scale, n: int, depth: int | None = None) -> nn.Module:
    return FLASHTransformer(num_tokens=VOCABULARY, dim=scale.dim, depth=depth or 2 * scale.depth, causal=True)


def gau_pytorch(scale: Scale, n: int, depth: int | None = None) -> nn.Module:
    import flash_pytorch as library

    # Its layers have their own norm and residual.
    layers = [library.GAU(dim=scale.dim, causal=True) for _ in range(depth or 2 * scale.depth)]
    ends = nn.Embedding(VOCABULARY, scale.dim), nn.Linear(scale.dim, VOCABULARY)
    return nn.Sequential(ends[0], *layers, ends[1])


def recurrent_flags(scale: Scale, n: int, depth: int | None) -> dict[str, Any]:
    width = max(2, min(512, n // 4))
    return {
        "num_tokens": VOCABULARY, "dim": scale.dim, "depth": depth or scale.depth, "heads": scale.heads, "dim_head": 64,
        "max_seq_len": n, "block_width": width,
    }  # fmt: skip


def block_recurrent(scale: Scale, n: int, depth: int | None = None) -> nn.Module:
    return BlockRecurrentTransformer(**recurrent_flags(scale, n, depth))


def block_recurrent_pytorch(scale: Scale, n: int, depth: int | None = None) -> nn.Module:
    import block_recurrent_transformer_pytorch as library

    return library.BlockRecurrentTransformer(**recurrent_flags(scale, n, depth), use_flash_attn=True)
