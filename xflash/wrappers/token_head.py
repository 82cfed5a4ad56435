"""`TokenHead`: the projection of a stack's output to the vocabulary."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from ..base.shapes import Float, Tensor, typed
from ..flags.flag import flag
from .input_embedding import InputEmbedding

__all__ = ["TokenHead"]


class TokenHead(nn.Module):
    """The part of a model that makes logits: by a projection of its own, by the token embedding, or not at all."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        tie_embedding: bool = flag(False, "the head is the token embedding", paper="https://arxiv.org/abs/1608.05859")
        tie_embedding_scale: float | None = flag(None, "what a tied head multiplies its input by (None: 1)", above=0)
        logits_dim: int | None = flag(None, "logits a token (None: num_tokens)", at_least=1)
        logits_bias: bool = flag(False, "a bias in the head")
        return_only_embed: bool = flag(False, "no head: the model gives the stack's output, as an encoder does")

    dim: int
    num_tokens: int
    to_logits: nn.Linear | None
    embedding: InputEmbedding

    def head(self, config: Config, width: int) -> nn.Linear | None:
        """The projection to logits; None when it is the token embedding, `width` wide, itself, or there is none."""
        self.tie_embedding, self.return_only_embed = config.tie_embedding, config.return_only_embed
        self.tie_embedding_scale = 1.0 if config.tie_embedding_scale is None else config.tie_embedding_scale
        if config.tie_embedding_scale is not None and not config.tie_embedding:
            raise ValueError(f"tie_embedding_scale={config.tie_embedding_scale} is set, but tie_embedding is False")
        check_alone(config)
        if config.tie_embedding and width != self.dim:
            raise ValueError(f"tie_embedding=True needs emb_dim ({width}) to be the stack's dim ({self.dim})")
        if config.tie_embedding or config.return_only_embed:
            return None
        head = nn.Linear(self.dim, config.logits_dim or self.num_tokens, bias=config.logits_bias)
        if config.logits_bias:
            nn.init.zeros_(head.bias)
        return head

    def features(self, y: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n d"]:
        """What the head projects, of the stack's output."""
        scale = self.tie_embedding_scale
        return y if self.to_logits is not None or scale == 1 else y * scale

    @typed
    def logits(self, y: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n v"]:
        """The projection of the stack's output, pooled or not, to the vocabulary."""
        if self.return_only_embed:
            return y
        y = self.features(y)
        return F.linear(y, self.table()) if self.to_logits is None else self.to_logits(y)

    def table(self) -> Float[Tensor, "v d"]:
        """The token embedding as the weight of the head; TypeError for one that has none."""
        weight = getattr(self.embedding.token_emb, "weight", None)
        if isinstance(weight, Tensor):
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
        if self.to_logits is None:
            return self.features(y), self.table(), None
        head = self.to_logits
        if not is_plain(head):
            return None
        return self.features(y), head.weight, head.bias


def check_alone(config: TokenHead.Config) -> None:
    """ValueError for flags of a head beside one that leaves none of its own."""
    own = ("logits_dim", config.logits_dim is not None), ("logits_bias", config.logits_bias)
    for name, is_set in (("tie_embedding", config.tie_embedding), *own):
        if config.return_only_embed and is_set:
            raise ValueError(f"return_only_embed=True leaves no head, so {name} cannot be set")
    for name, is_set in own:
        if config.tie_embedding and is_set:
            raise ValueError(f"tie_embedding=True uses the token embedding as the head, so {name} cannot be set")


def is_plain(head: nn.Linear) -> bool:
    """Whether a projection does nothing but multiply: what stands in its place, or is hooked to it, may do more."""
    hooks = head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks
    return (
        type(head) is nn.Linear and type(head.weight) is nn.Parameter and not any(hooks) and "forward" not in vars(head)
    )
