"""`MultiHead`: what softmax attention over tokens and over a context have in common."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...base.frozen import frozen
from ...base.shapes import Float, Tensor
from ...base.state import AttentionMap, Ctx
from ...flags.aliases import names
from ...flags.flag import flag
from ..scores.read import SoftmaxRead, in_front
from ..scores.step import Read
from ..site import Site
from .masks import Sight
from .outward import OutFlags, Outward
from .qk_norm import QKFlags, QKNorm
from .valued import Valued, ValueFlags

__all__ = ["MultiHead", "count_heads", "split_heads"]


def count_heads(kind: str, config: Any, site: Site) -> tuple[int, int]:
    """The heads of queries and of keys and values; ValueError unless each of these serves equally many of those."""
    heads = config.heads or site.heads
    kv_heads = config.kv_heads or heads
    if heads % kv_heads:
        raise ValueError(f"{kind}_kv_heads={kv_heads} does not divide the {heads} heads")
    return heads, kv_heads


def split_heads(t: Float[Tensor, "b n hk"], width: int) -> Float[Tensor, "b h n k"]:
    """Channels (h k) as heads; without einops, which takes longer than one token's projection."""
    b, n, channels = t.shape
    # Not -1, which a batch of no rows would leave open.
    return t.reshape(b, n, channels // width, width).transpose(1, 2)


class MultiHead(Valued, Outward, QKNorm):
    """Heads, memory keys and values and the read; query head h uses key/value head h // r, r to each."""

    @frozen
    class Config(OutFlags, ValueFlags, QKFlags):
        dim_head: int = flag(64, "width of a head", at_least=1, tried=(6,))
        heads: int | None = flag(None, "query heads (None: the stack's)", at_least=1, tried=(2,))
        kv_heads: int | None = flag(
            None,
            "key/value heads, shared by groups of query heads (None: as many)",
            at_least=1,
            paper="https://arxiv.org/abs/2305.13245",
            tried=(1, 2),
        )
        flash: bool | None = flag(
            None,
            "the fused softmax kernel (None: where possible; not FLASH, that is the block)",
            paper="https://arxiv.org/abs/2205.14135",
            tried=(True, False),
        )
        dropout: float = flag(0.0, "dropout of the attention weights", at_least=0, below=1, tried=(0.1,))
        num_mem_kv: int = flag(
            0,
            "learned keys and values that every query sees",
            at_least=0,
            paper="https://arxiv.org/abs/1907.01470",
            tried=(2,),
        )
        qkv_bias: bool = flag(
            False,
            "queries, keys and values with biases, zero at first",
            paper="https://arxiv.org/abs/2309.16609",
            tried=(True,),
        )

        z_loss: float = flag(
            0.0,
            "weight of the mean squared logsumexp of each query's scores, which keeps them small while training",
            at_least=0,
            paper="https://arxiv.org/abs/2202.08906",
            tried="it changes no output",
        )

    weighed_by = "z_loss=0.0001"

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        self.heads, self.kv_heads = count_heads(self.kind, config, site)
        width, self.value_width = config.dim_head, config.value_dim_head or config.dim_head
        self.build_out(config, site)
        scale = self.build_qk_norm(config, width)
        self.reader = SoftmaxRead(
            self.kind, config, site, self.heads, scale, dropout=config.dropout, flash=config.flash
        )
        if config.z_loss:
            self.reader.check_scores(f"{self.kind}_z_loss={config.z_loss}", config)
        if config.num_mem_kv:
            self.build_memory(config.num_mem_kv, width)
        self.build_gates(config, site)
        self.build_values(config)

    def build_memory(self, tokens: int, width: int) -> None:
        """Learned keys and values, in one tensor where they are equally wide."""
        if self.value_width == width:
            self.mem_kv = nn.Parameter(torch.randn(2, self.kv_heads, tokens, width))
        else:
            self.mem_k, self.mem_v = (
                nn.Parameter(torch.randn(self.kv_heads, tokens, each)) for each in (width, self.value_width)
            )

    def refuses_maps(self) -> str:
        if not self.config.flash:
            return ""
        return f"{self.kind}_flash=True: the fused kernel never makes them; leave it out, and it is used where possible"

    def check_shard(self, kv_heads: int, ctx: Ctx) -> None:
        """ValueError where only some heads are here (tensor parallel) and something is laid out for all of them."""
        config, mask = self.config, ctx.attn_mask
        for_all = {
            "num_mem_kv": config.num_mem_kv,
            "head_scale": config.head_scale,
            "value_rmsnorm": config.value_rmsnorm,
            "qk_norm_dim_scale": config.qk_norm_dim_scale,
        }
        said = [f"{self.kind}_{name}={value}" for name, value in for_all.items() if value]
        if config.qk_rmsnorm == "width":
            said.append(f"{self.kind}_qk_rmsnorm='width'")
        if next(self.reader.parameters(), None) is not None or any(step.across_heads for step in self.reader.ordered()):
            said.append(f"{self.kind}_scores={' '.join(names(self.config.scores))!r}")
        if ctx.relative is not None and ctx.relative.biases and self.bias_heads() is not None:
            said.append("a bias by position")
        if mask is not None and mask.shape[1] > 1:
            said.append("an attn_mask for each head")
        if said:
            raise ValueError(
                f"a projection of {self.kind} gave {kv_heads} of {self.kv_heads} key/value heads, but {said[0]} is "
                "there for all of them: leave the projection whole, or that out"
            )

    def read(
        self,
        q: Float[Tensor, "b h n k"],
        k: Float[Tensor, "b h m k"],
        v: Float[Tensor, "b h m e"],
        sight: Sight,
        *,
        bias: Float[Tensor, "_ h n m"] | None = None,
        read: Read | None = None,
        ctx: Ctx,
        over_tokens: bool = True,
    ) -> Float[Tensor, "b h n k"]:
        """What the queries read from keys and values, memory ones included.

        `read` is what the steps on the scores may know, where there are any. The maps of `ctx`, when there, get the
        weights, `over_tokens` saying whether the keys are the stack's own tokens, and its relay the loss of scores.
        """
        if read is not None:
            bias = self.reader.biased(bias, read)
        if self.config.num_mem_kv:
            k, v, sight, bias = self.with_memory(k, v, sight, bias, q.shape[2])
            if read is not None:
                read.k, read.memory = k, self.config.num_mem_kv
        mask, causal, blind = sight
        if mask is not None and blind is not None:
            # A softmax over nothing is NaN, in gradients too: what is read of everything is hidden below.
            mask = mask | blind
            if read is not None:
                read.blind = blind
        told = partial(self.lose, ctx, blind) if ctx.relay.weighing and self.weighs() else None
        y, weights = self.reader(q, k, v, mask, bias, causal, read, ctx.maps is not None, told)
        if ctx.maps is not None and weights is not None:
            weights = weights if blind is None else weights.masked_fill(blind, 0)
            ctx.maps.append(AttentionMap(weights[..., self.config.num_mem_kv :], over_tokens))
        if blind is not None:
            y = y.masked_fill(blind, 0)
        return self.gained(y)

    def gained(self, y: Float[Tensor, "b h n k"]) -> Float[Tensor, "b h n k"]:
        """What the heads have read, each times its gain."""
        return y * self.head_gain.to(y.dtype) if self.config.head_scale else y

    def weighs(self) -> bool:
        return bool(self.config.z_loss)

    def lose(self, ctx: Ctx, blind: Tensor | None, s: Float[Tensor, "b h n m"]) -> None:
        """Leaves, over the queries of real tokens that see a key: the squares of the logsumexps, and how many."""
        total = s.to(torch.promote_types(s.dtype, torch.float32)).logsumexp(-1)
        hidden = torch.zeros_like(total, dtype=torch.bool)
        if (real := ctx.real(s.shape[2])) is not None:
            hidden = hidden | ~real[:, None]
        if blind is not None:
            hidden = hidden | blind[..., 0]
        squares = total.square().masked_fill(hidden, 0)
        ctx.relay.lose(torch.stack((squares.sum(), (~hidden).sum().to(squares.dtype))))

    def weigh(self, sums: Float[Tensor, " 2"]) -> Float[Tensor, ""]:
        return self.config.z_loss * sums[0] / sums[1].clamp(min=1)

    def memory(self, k: Float[Tensor, "b g m k"]) -> tuple[Float[Tensor, "b g t k"], Float[Tensor, "b g t e"]]:
        """The learned keys and values, for each row of these keys."""
        both = self.mem_kv if self.value_width == self.config.dim_head else (self.mem_k, self.mem_v)
        mem_k, mem_v = (t.to(k.dtype).expand(k.shape[0], -1, -1, -1) for t in both)
        return self.normed(mem_k[:1], "k").expand_as(mem_k), mem_v

    def with_memory(
        self, k: Tensor, v: Tensor, sight: Sight, bias: Tensor | None, n: int
    ) -> tuple[Tensor, Tensor, Sight, Tensor | None]:
        """Learned keys and values in front of the others (https://arxiv.org/abs/1907.01470): always seen, no bias.

        No query is blind beside them.
        """
        t = self.config.num_mem_kv
        mask = in_front(t, sight.mask, sight.causal, n, k)
        k, v = (torch.cat(pair, 2) for pair in zip(self.memory(k), (k, v), strict=True))
        return k, v, Sight(mask), None if bias is None else F.pad(bias, (t, 0))
