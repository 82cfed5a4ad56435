"""`TokenHead`: the projection of a stack's output to the vocabulary."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import nn

from ..base.frozen import frozen
from ..base.roles import Role
from ..base.shapes import Float, Tensor, typed
from ..flags.flag import check_idle, flag, flags_of
from ..layers.activations import softclamped
from .head_transform import HeadTransform
from .input_embedding import InputEmbedding
from .mixture_of_softmax import MixtureOfSoftmax
from .own_module import OwnModule

__all__ = ["TokenHead"]


class Heads(nn.ModuleList):
    """Projections side by side."""

    @property
    def roles(self) -> dict[str, Role]:
        return dict.fromkeys(self._modules, "head")


class TokenHead(nn.Module):
    """The part of a model that makes logits: by a projection of its own, by the token embedding, or not at all."""

    @frozen
    class Config:
        tie_embedding: bool = flag(
            False,
            "the head is the token embedding, behind a map to its width where that is another",
            paper="https://arxiv.org/abs/1608.05859",
            tried=(True,),
        )
        tie_embedding_scale: float | None = flag(
            None,
            "what a tied head multiplies its input by (None: 1)",
            above=0,
            tried=({"tie_embedding_scale": 0.5, "tie_embedding": True},),
        )
        logits_dim: int | None = flag(
            None, "logits a token (None: num_tokens)", at_least=1, tried=({"logits_dim": 7, "tie_embedding": False},)
        )
        logits_bias: bool = flag(False, "a bias in the head", tried=(True,))
        logits_softclamp: float | None = flag(
            None, "c of c tanh(l / c), which logits stay below (None: as they are)", above=0,
            paper="https://arxiv.org/abs/2408.00118", tried=(1.5,),
        )  # fmt: skip
        head_transform: str | None = flag(
            None, "the activation of a linear map with a LayerNorm behind it, in front of the head (None: without)",
            paper="https://arxiv.org/abs/1810.04805", tried=("gelu",),
        )  # fmt: skip
        head_transform_eps: float = flag(
            1e-5,
            "added to the variance in that LayerNorm",
            above=0,
            tried=({"head_transform_eps": 1e-3, "head_transform": "relu"},),
        )
        head_transform_bias: bool = flag(
            True,
            "biases of that linear map and of its LayerNorm",
            tried=({"head_transform_bias": False, "head_transform": "silu"},),
        )
        mixture_of_softmax: bool = flag(
            False, "logits are log-probabilities of several softmaxes, mixed by weights that each token says",
            paper="https://arxiv.org/abs/1711.03953",
            tried=({"mixture_of_softmax": True, "mixture_of_softmax_k": 3},),
        )  # fmt: skip
        mixture_of_softmax_k: int = flag(4, "how many of them", at_least=1, tried="beside the mixture")
        num_output_heads: int = flag(
            1, "heads side by side, whose logits come as a tuple", at_least=1,
            tried=({"num_output_heads": 2, "tie_embedding": False},),
        )  # fmt: skip
        to_logits: OwnModule | None = flag(
            None, "a module of one's own from the stack's output to logits, in the head's place",
            tried="what it does is its own affair",
        )  # fmt: skip
        return_only_embed: bool = flag(
            False,
            "no head: the model gives the stack's output, as an encoder does",
            tried=({"return_only_embed": True, "tie_embedding": False},),
        )

    dim: int
    read_width: int
    num_tokens: int
    roles: ClassVar[Mapping[str, Role]] = {"to_logits": "head"}
    gives: str
    to_logits: nn.Module | None
    transform: HeadTransform | None
    project_out: nn.Linear | None
    mixture: MixtureOfSoftmax | None
    tied_bias: nn.Parameter | None
    embedding: InputEmbedding

    def head(self, config: Config, width: int) -> nn.Module | None:
        """The projection to logits; None when it is the token embedding, `width` wide, itself, or there is none."""
        count = config.num_output_heads
        if count > 1:
            self.gives = f"logits of {count} heads"
        self.tie_embedding, self.return_only_embed = config.tie_embedding, config.return_only_embed
        self.tie_embedding_scale = 1.0 if config.tie_embedding_scale is None else config.tie_embedding_scale
        if config.tie_embedding_scale is not None and not config.tie_embedding:
            raise ValueError(f"tie_embedding_scale={config.tie_embedding_scale} is set, but tie_embedding is False")
        check_alone(config)
        if config.tie_embedding and self.read_width != self.dim:
            raise ValueError(
                f"tie_embedding=True needs dim_pooled_tokens ({self.read_width}) to be the stack's dim ({self.dim})"
            )
        narrower = config.tie_embedding and width != self.dim
        self.project_out = nn.Linear(self.dim, width, bias=False) if narrower else None
        self.logits_softclamp, eps = config.logits_softclamp, config.head_transform_eps
        named = config.head_transform
        self.transform = (
            None if named is None else HeadTransform(self.read_width, named, eps, config.head_transform_bias)
        )
        k = config.mixture_of_softmax_k
        self.mixture = MixtureOfSoftmax(self.read_width, k) if config.mixture_of_softmax else None
        tied_bias = config.tie_embedding and config.logits_bias
        self.tied_bias = nn.Parameter(torch.zeros(self.num_tokens)) if tied_bias else None
        if config.tie_embedding or config.return_only_embed:
            return None
        if config.to_logits is not None:
            return cast(nn.Module, config.to_logits)
        heads = [
            projection(self.read_width, config.logits_dim or self.num_tokens, config.logits_bias) for _ in range(count)
        ]
        return heads[0] if count == 1 else Heads(heads)

    def features(self, y: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n d"]:
        """What the head projects, of the stack's output."""
        y = y if self.transform is None else self.transform(y)
        y = y if self.project_out is None else self.project_out(y)
        scale = self.tie_embedding_scale
        return y if self.to_logits is not None or scale == 1 else y * scale

    @typed
    def logits(self, y: Float[Tensor, "b *n d"]) -> Any:
        """The projection (b, *n, v) of the stack's output, pooled or not, to the vocabulary; of several heads each."""
        if self.return_only_embed:
            return y
        return self.projected(y) if self.mixture is None else self.mixture(y, self.projected)

    def projected(self, y: Float[Tensor, "b *n d"]) -> Any:
        """What the head makes of features, of one mixture or of the only one."""
        y = self.features(y)
        if isinstance(self.to_logits, Heads):
            return tuple(self.clamped(head(y)) for head in self.to_logits)
        return self.clamped(F.linear(y, self.table(), self.tied_bias) if self.to_logits is None else self.to_logits(y))

    def clamped(self, logits: Float[Tensor, "b *n v"]) -> Float[Tensor, "b *n v"]:
        """The logits below what bounds them."""
        clamp = self.logits_softclamp
        return logits if clamp is None else softclamped(logits, clamp)

    def table(self) -> Float[Tensor, "v d"]:
        """The token embedding as the weight of the head; TypeError for one that has none."""
        weight = getattr(self.embedding.token_emb, "weight", None)
        if isinstance(weight, Tensor):
            if weight.shape[0] != self.num_tokens:
                raise TypeError(
                    f"tie_embedding=True makes logits of the {weight.shape[0]} rows of the token embedding, but "
                    f"num_tokens is {self.num_tokens}"
                )
            return weight
        kind = type(self.embedding.token_emb).__name__
        raise TypeError(
            f"tie_embedding=True multiplies by the token embedding's weight, but {kind} has no tensor of this name: "
            "give it one, or the model a head of its own (tie_embedding=False)"
        )

    def head_as_product(
        self, y: Float[Tensor, "b *n d"]
    ) -> tuple[Float[Tensor, "b *n d"], Tensor, Tensor | None] | None:
        """What `logits` multiplies: features, weight (v, d) and bias; None where the head is something else."""
        if self.return_only_embed or type(self).logits is not TokenHead.logits or "logits" in vars(self):
            return None
        if self.logits_softclamp is not None or self.mixture is not None:
            return None
        if self.to_logits is None:
            return self.features(y), self.table(), self.tied_bias
        head = self.to_logits
        return (self.features(y), head.weight, head.bias) if is_plain(head) else None


def check_alone(config: TokenHead.Config) -> None:
    """ValueError for flags of a head that is not there, or that is the token embedding; and of no transform."""
    flags = ("tie_embedding", "logits_dim", "logits_bias", "logits_softclamp", "head_transform", "mixture_of_softmax")
    flags = (*flags, "num_output_heads", "to_logits")
    for name in flags if config.return_only_embed else ():
        if getattr(config, name) not in (None, False, flags_of(type(config))[name].default):
            raise ValueError(f"return_only_embed=True leaves no head, so {name} cannot be set")
    if config.to_logits is not None:
        check_idle(config, ("tie_embedding", "logits_dim", "logits_bias", "num_output_heads"), "to_logits is one's own")
    if not config.mixture_of_softmax:
        check_idle(config, ("mixture_of_softmax_k",), "mixture_of_softmax is False")
    if config.num_output_heads > 1:
        check_idle(config, ("tie_embedding", "mixture_of_softmax"), f"num_output_heads is {config.num_output_heads}")
    if config.tie_embedding and config.logits_dim is not None:
        raise ValueError("tie_embedding=True uses the token embedding as the head, so logits_dim cannot be set")
    if config.head_transform is None:
        check_idle(config, ("head_transform_eps", "head_transform_bias"), "head_transform is None")


def projection(dim: int, count: int, bias: bool) -> nn.Linear:
    """A head, its bias zero at first."""
    head = nn.Linear(dim, count, bias=bias)
    if bias:
        nn.init.zeros_(head.bias)
    return head


def is_plain(head: Any) -> TypeGuard[nn.Linear]:
    """Whether a head does nothing but multiply: what stands in its place, or is hooked to it, may do more."""
    if type(head) is not nn.Linear:
        return False
    hooks = head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks
    return type(head.weight) is nn.Parameter and not any(hooks) and "forward" not in vars(head)
