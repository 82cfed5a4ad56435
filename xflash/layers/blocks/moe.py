"""The mixture of experts: feed-forward blocks of which each token goes through a few."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...base.frozen import frozen
from ...base.registry import blocks
from ...base.roles import Role
from ...base.shapes import Bool, Float, Int, Tensor, typed
from ...base.state import Ctx
from ...flags.flag import flag, like
from ..activations import activation_of
from ..kernels.experts import Sorted, grouped_linear, mixed
from ..site import MOST, Site
from .block import Block
from .feedforward import FeedForward, activated, check_glu, inner_width

__all__ = ["Experts", "MixtureOfExperts"]


@blocks.register("moe")
class MixtureOfExperts(Block):
    """Feed-forward blocks of which a router gives each token the best few (https://arxiv.org/abs/1701.06538).

    No token is left out, however many want one expert: what a token gets does not depend on the others. With
    `balance_loss` or `z_loss` a call gives the router's loss too (`return_auxiliary_loss=True`), and wrappers that
    train add it: without, nothing balances the experts.
    """

    steady = True

    @frozen
    class Config:
        experts: int = flag(8, "feed-forward blocks to choose from", at_least=1, at_most=MOST, tried=(3,))
        top_k: int = flag(2, "experts that each token goes through", at_least=1, tried=(1,))
        mult: float | None = flag(
            None,
            "inner width of an expert as a multiple of dim (None: 4, or as moe_dim says)",
            above=0,
            at_most=MOST,
            tried=(2.0,),
        )
        dim: int | None = flag(
            None, "inner width of an expert in channels (None: as moe_mult says)", at_least=1, tried=(25,)
        )
        activation: str | Callable = like(FeedForward.Config, "activation", tried=("silu",))
        glu: bool = like(FeedForward.Config, "glu")
        glu_limit: float | None = like(FeedForward.Config, "glu_limit")
        glu_offset: float = like(FeedForward.Config, "glu_offset")
        glu_softclamp: bool = like(FeedForward.Config, "glu_softclamp")
        glu_gate_softclamp_value: float = like(FeedForward.Config, "glu_gate_softclamp_value")
        glu_up_softclamp_value: float = like(FeedForward.Config, "glu_up_softclamp_value")
        softclamp_value: float | None = like(FeedForward.Config, "softclamp_value")
        no_bias: bool = flag(False, "experts without biases", tried=(True,))
        router: Literal["softmax", "sigmoid"] = flag(
            "softmax", "what makes weights of the router's scores", tried=("sigmoid",)
        )
        router_bias: bool = flag(False, "a bias of the router's scores", tried=(True,))
        normalize: bool | None = flag(
            None, "the weights of a token's experts sum to one (None: where it has several)", tried=(False,)
        )
        shared_dim: int | None = flag(
            None,
            "inner width of an expert that every token goes through too (None: none)",
            at_least=1,
            paper="https://arxiv.org/abs/2401.06066",
            tried=(7,),
        )
        shared_gate: bool = flag(
            False, "a sigmoid gate of each token on the shared expert", tried=({"shared_dim": 7, "shared_gate": True},)
        )
        dropout: float = like(FeedForward.Config, "dropout")
        balance_loss: float = flag(
            0.0,
            "weight of the loss that evens the experts' loads out: one where they are even, experts / top_k at most",
            at_least=0,
            paper="https://arxiv.org/abs/2101.03961",
            tried=({"balance_loss": 0.1, "z_loss": 0.01},),
        )
        z_loss: float = flag(
            0.0,
            "weight of the mean squared logsumexp of the router's scores, which keeps them small",
            at_least=0,
            paper="https://arxiv.org/abs/2202.08906",
            tried=(),
        )

    weighed_by = "balance_loss=0.01"
    mixes_tokens = False
    # Tokens never meet here, so neither can be violated.
    honours = frozenset({"attn_mask", "doc_ids", "prefix"})

    def __init__(self, config: Config, site: Site):
        super().__init__(config, site)
        if config.top_k > config.experts:
            raise ValueError(f"moe_top_k={config.top_k} is more than there are: moe_experts={config.experts}")
        if config.top_k == 1 and config.normalize:
            raise ValueError("moe_normalize=True with moe_top_k=1 weighs every expert 1: its router learns nothing")
        if config.shared_gate and config.shared_dim is None:
            raise ValueError("moe_shared_gate=True, but there is no shared expert: moe_shared_dim is None")
        check_glu("moe", config)
        self.normalize = config.top_k > 1 if config.normalize is None else config.normalize
        self.router = nn.Linear(site.dim, config.experts, bias=config.router_bias)
        self.experts = Experts(config, site, config.experts, inner_width(config, site, "moe"))
        self.shared = None if config.shared_dim is None else FeedForward(shared_config(config), site)
        self.shared_gate = nn.Linear(site.dim, 1, bias=False) if config.shared_gate else None

    @typed
    def forward(self, x: Float[Tensor, "b n d"], ctx: Ctx, state: Any = None) -> tuple[Float[Tensor, "b n d"], None]:
        flat = x.flatten(0, 1)
        scores = self.router(flat)
        weights, chosen = self.routed(scores)
        if ctx.relay.weighing and self.weighs():
            ctx.relay.lose(self.router_sums(scores, chosen, ctx.real(x.shape[1])))
        y = mixed(flat, weights, chosen, self.config.experts, self.experts).unflatten(0, x.shape[:2])
        if self.shared is not None:
            shared, _ = self.shared(x, ctx)
            y = y + (shared if self.shared_gate is None else shared * self.shared_gate(x).sigmoid())
        return y, None

    def routed(self, scores: Float[Tensor, "t e"]) -> tuple[Float[Tensor, "t k"], Int[Tensor, "t k"]]:
        """The weights of each token's experts, and which these are."""
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        # Both ways grow with the scores, so that the best scores are the largest weights.
        best, chosen = scores.topk(self.config.top_k, -1)
        total = scores.logsumexp(-1, keepdim=True)
        logs = best - total if self.config.router == "softmax" else F.logsigmoid(best)
        return logs.softmax(-1) if self.normalize else logs.exp(), chosen

    def weighs(self) -> bool:
        return bool(self.config.balance_loss or self.config.z_loss)

    def router_sums(
        self, scores: Float[Tensor, "t e"], chosen: Int[Tensor, "t k"], real: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, " 2e+2"]:
        """Over the real tokens: how often an expert was chosen, its part of the scores, squares for z, how many."""
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        total = scores.logsumexp(-1, keepdim=True)
        shares = (scores - total).exp() if self.config.router == "softmax" else F.normalize(scores.sigmoid(), 1.0, -1)
        loads = torch.zeros_like(shares).scatter_(1, chosen, 1.0)
        each = torch.cat((loads, shares, total.square(), torch.ones_like(total)), 1)
        return (each if real is None else each * real.reshape(-1, 1)).sum(0)

    def weigh(self, sums: Float[Tensor, " 2e+2"]) -> Float[Tensor, ""]:
        """The two losses with their weights; 0 of no tokens."""
        loads, shares, squares, count = sums.split((self.config.experts, self.config.experts, 1, 1))
        count = count.clamp(min=1)
        balance = self.config.experts / self.config.top_k * ((loads / count) @ (shares / count))
        return self.config.balance_loss * balance + self.config.z_loss * (squares / count)[0]


CLAMPS = ("softclamp_value", "glu_softclamp", "glu_gate_softclamp_value", "glu_up_softclamp_value")


def shared_config(config: MixtureOfExperts.Config) -> FeedForward.Config:
    """The expert that every token goes through: an `ff` like the others, of its own width."""
    same = ("activation", "glu", "glu_limit", "glu_offset", "no_bias", "dropout", *CLAMPS)
    return FeedForward.Config(dim=config.shared_dim, **{name: getattr(config, name) for name in same})


class Experts(nn.Module):
    """`ff` several times, its matrices one behind the other: (experts, out, in)."""

    roles: ClassVar[Mapping[str, Role]] = {"to_inner": "matrix", "to_out": "matrix"}

    def __init__(self, config: Any, site: Site, experts: int, inner: int):
        super().__init__()
        self.activation = activation_of(config.activation, "moe_activation")
        self.config, self.dropout = config, config.dropout
        wide = inner * (2 if config.glu else 1)
        self.to_inner = nn.Parameter(begun(experts, wide, site.dim))
        self.to_out = nn.Parameter(site.started(begun(experts, site.dim, inner)))
        self.inner_bias, self.out_bias = (
            None if config.no_bias else nn.Parameter(torch.zeros(experts, width)) for width in (wide, site.dim)
        )

    def forward(self, rows: Sorted) -> Float[Tensor, "s d"]:
        """What each row's expert makes of it."""
        y = grouped_linear(rows, self.to_inner, self.inner_bias)
        y = activated(y, self.activation, self.config)
        if self.dropout:
            y = F.dropout(y, self.dropout, self.training)
        return grouped_linear(rows._replace(x=y), self.to_out, self.out_bias)


def begun(experts: int, out: int, width: int) -> Float[Tensor, "e o d"]:
    """Matrices as `nn.Linear` begins them."""
    return torch.empty(experts, out, width).uniform_(-(width**-0.5), width**-0.5)
