"""`TokenHead`: the projection of a stack's output to the vocabulary."""

import torch.nn.functional as F
from torch import nn

from ..base.checks import number, shown
from ..base.shapes import Float, Tensor, typed
from .input_embedding import InputEmbedding

__all__ = ["TokenHead", "scale_of_tied"]


def scale_of_tied(tied: bool, scale: float | None) -> float:
    """What a head that is the token embedding multiplies by; TypeError or ValueError for another head that has one."""
    if scale is not None and not tied:
        raise ValueError(f"tie_embedding_scale={shown(scale)} is set, but tie_embedding is False")
    return number("tie_embedding_scale", 1.0 if scale is None else scale, above=0)


class TokenHead(nn.Module):
    """The part of a model that makes logits: by a projection of its own, by the token embedding, or not at all."""

    dim: int
    num_tokens: int
    return_only_embed: bool
    tie_embedding_scale: float
    to_logits: nn.Linear | None
    embedding: InputEmbedding

    def head(self, tied: bool, logits_dim: int | None, bias: bool, width: int) -> nn.Linear | None:
        """The projection to logits; None when it is the token embedding itself, or there is none."""
        if self.return_only_embed:
            for name, clash in (("tie_embedding", tied), ("logits_dim", logits_dim is not None), ("logits_bias", bias)):
                if clash:
                    raise ValueError(f"return_only_embed=True leaves no head, so {name} cannot be set")
            return None
        if not tied:
            head = nn.Linear(self.dim, logits_dim or self.num_tokens, bias=bias)
            if bias:
                nn.init.zeros_(head.bias)
            return head
        for name, clash in (("logits_dim", logits_dim is not None), ("logits_bias", bias)):
            if clash:
                raise ValueError(f"tie_embedding=True uses the token embedding as the head, so {name} cannot be set")
        if width != self.dim:
            raise ValueError(f"tie_embedding=True needs emb_dim ({width}) to be the stack's dim ({self.dim})")
        return None

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


def is_plain(head: nn.Linear) -> bool:
    """Whether a projection does nothing but multiply: what stands in its place, or is hooked to it, may do more."""
    hooks = head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks
    return (
        type(head) is nn.Linear and type(head.weight) is nn.Parameter and not any(hooks) and "forward" not in vars(head)
    )
