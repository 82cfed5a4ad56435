"""`ViTransformerWrapper`: images in, logits or patch embeddings out, around any bidirectional stack."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ..base.checks import integer, shown
from ..base.frozen import frozen
from ..base.roles import Role
from ..base.shapes import Float, Tensor
from ..flags.flag import check_idle, flag
from ..layers.norms import LayerNorm
from ..stack.face import AttentionLayers
from .image_input import ImageInput
from .model import Model
from .options import check_needs_nothing
from .paired_head import PairedHead
from .patch_pools import patch_pool
from .pooled_output import PooledOutput
from .pooling import mean_pool
from .wanted import Wanted

__all__ = ["ViTransformerWrapper"]

POOLS = {"mean": "average_pool_embed", "cls": "use_cls_token", "attn": "attn_pool", "cls_mean": "use_cls_token"}
POOLS |= {"cls_pair": "use_cls_token", **dict.fromkeys(("map", "max", "mean_max"), "average_pool_embed")}


class ClassHead(nn.Module):
    """The part of a model that makes logits of one embedding a row, or hands it on."""

    @frozen
    class Config:
        num_classes: int | None = flag(
            None, "logits of an image (None: its pooled embedding instead)", at_least=1, tried=(7,)
        )
        pool: Literal["mean", "cls", "attn", "cls_mean", "cls_pair", "map", "max", "mean_max"] = flag(
            "mean", "what the head reads: the mean of the patches, a class token in front, a learned weighting, a "
            "class token and behind it the mean (2 dim channels), or two class tokens with a head each, whose logits "
            "are averaged (DeiT); a learned token that attends to the patches (SigLIP); of each channel the largest "
            "value, or the mean of that and of its mean",
            paper="https://arxiv.org/abs/2106.04560", tried=("cls", "attn", "cls_mean", "cls_pair", "map", "mean_max"),
        )  # fmt: skip
        pool_norm: bool = flag(
            False, "a LayerNorm of what the head reads (with final_norm=False: in its place)", tried=(True,)
        )
        pool_norm_eps: float = flag(
            1e-5, "what it adds to the variance", above=0, tried=({"pool_norm_eps": 1e-3, "pool_norm": True},)
        )
        pool_norm_bias: bool = flag(
            False, "a learned offset beside its gain", tried=({"pool_norm_bias": True, "pool_norm": True},)
        )

    roles: ClassVar[Mapping[str, Role]] = {"to_logits": "head"}
    to_logits: nn.Linear | PairedHead | None
    pool_norm: LayerNorm | None

    def norm_of(self, config: Config, dim: int) -> LayerNorm | None:
        """The norm of what the head reads; ValueError for flags of one that is not there."""
        if config.pool_norm:
            return LayerNorm.of(dim, eps=config.pool_norm_eps, bias=config.pool_norm_bias)
        check_idle(config, ("pool_norm_eps", "pool_norm_bias"), "pool_norm is False")
        return None

    def head(self, config: Config, dim: int) -> nn.Linear | PairedHead | None:
        """The projection to logits; None when there is none."""
        if config.num_classes is None:
            return None
        heads = [projection(dim, config.num_classes) for _ in range(2 if config.pool == "cls_pair" else 1)]
        return heads[0] if len(heads) == 1 else PairedHead(*heads)

    def logits(self, y: Float[Tensor, "b *c d"]) -> Float[Tensor, "b _"]:
        """The projection of the pooled embedding, or of each of two, behind its norm."""
        y = y if self.pool_norm is None else self.pool_norm(y)
        if self.to_logits is not None:
            return self.to_logits(y)
        return y if y.dim() == 2 else y.mean(1)


def projection(dim: int, count: int) -> nn.Linear:
    """A head as it begins."""
    linear = nn.Linear(dim, count)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


class ViTransformerWrapper(ClassHead, Model):
    """A vision transformer (https://arxiv.org/abs/2010.11929) around an `Encoder` of any layout.

    `model(img)` takes images (b, channels, height, width) and gives logits (b, num_classes), or the pooled embedding
    (b, d) without `num_classes`, (b, 2 d) of `pool='cls_mean'`. Images of another size than
    `image_size` work when patches divide them: learned positions are interpolated (bicubic), those of 'sincos2d' made
    for the new grid; relative positions of the stack count patches row by row, but for pos='rotary2d', which turns by
    rows and columns. Register tokens stand behind the patches, a class token in front of them; neither is among the
    embeddings.
    """

    @frozen
    class Config(ClassHead.Config, ImageInput.Config):
        attn_layers: AttentionLayers = flag(
            doc="the stack, which must be bidirectional: Encoder(...)", tried="every combination has its own"
        )
        pool_layers: AttentionLayers | None = flag(
            None, "what the token of pool='map' attends with (None: CrossAttender(dim=dim, depth=1))",
            tried="with conversions of SigLIP",
        )  # fmt: skip

    gives = "logits of images"
    embedding: ImageInput
    pooled: PooledOutput

    def assemble(self, config: Config) -> None:
        check_stack(config.attn_layers)
        self.attn_layers = config.attn_layers
        self.embedding = inputs = ImageInput(config, self.dim)
        self.image_size, self.patch_size, self.channels = inputs.image_size, inputs.patch_size, inputs.channels
        self.num_classes = config.num_classes
        self.pooled = PooledOutput(self.dim, POOLS[config.pool], 2 if config.pool == "cls_pair" else 1)
        self.patch_pool = patch_pool(config, self.dim)
        self.joins_mean = config.pool == "cls_mean"
        read = self.dim * (2 if self.joins_mean else 1)
        self.pool_norm = self.norm_of(config, read)
        self.to_logits = self.head(config, read)

    def forward(
        self,
        img: Float[Tensor, "b c y x"],
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        *,
        return_hiddens: bool = False,
        return_auxiliary_loss: bool = False,
    ) -> Any:
        """Logits (b, num_classes) of images (b, c, height, width).

        `return_embeddings` gives the patches' embeddings (b, n, d) instead, row by row of the image,
        `return_logits_and_embeddings` both. `return_hiddens` gives, as last, a list of layers + 2 such tensors: what
        the first layer gets of the patches, what each layer leaves, and what the stack gives, behind its last norm.
        `return_auxiliary_loss` gives, behind all else, what layers lose of their own.
        TypeError or ValueError for images that the patches do not fit.
        """
        noting = {"hiddens": return_hiddens, "auxiliary_loss": return_auxiliary_loss}
        wanted = Wanted(return_embeddings, return_logits_and_embeddings, **noting)
        wanted.check(None)
        self.embedding.check(img)
        x = self.embedding(img)
        beside = {"grid": self.embedding.places(img)} if "grid" in self.attn_layers.heeded else {}
        y, _, noted = self.through(self.embedding.with_registers(x), None, beside, wanted)
        # Written out at both: a slice that is kept ties a compiled graph to its numbers.
        front, end = self.pooled.count, self.pooled.count + x.shape[1]
        embeddings = y[:, front:end]
        if return_hiddens:
            noted[0] = [stream[:, front:end] for stream in noted[0]]
        return self.answer(wanted, embeddings, lambda: self.pool(y, embeddings), noted)

    def pool(self, y: Float[Tensor, "b m d"], embeddings: Float[Tensor, "b n d"]) -> Float[Tensor, "b *c _"]:
        """What the head reads of the stack's outputs, among which are the embeddings of the patches."""
        if self.patch_pool is not None:
            return self.patch_pool(embeddings)
        pooled = self.pooled(y if self.pooled.count else embeddings, None)
        return torch.cat((pooled, mean_pool(embeddings)), 1) if self.joins_mean else pooled

    def features(
        self, img: Float[Tensor, "b c y x"], layers: Sequence[int] | None = None
    ) -> list[Float[Tensor, "b d y x"]]:
        """The hiddens of images as maps (b, d, rows, columns of patches), all of them or those that `layers` names.

        As in a list: 0 is what the first layer gets, i what the i-th layer leaves, -1 what the stack gives. TypeError
        or ValueError for what is no number of one.
        """
        count = len(self.attn_layers.order) + 2
        chosen = range(count) if layers is None else layers
        if not isinstance(chosen, (tuple, list, range)):
            raise TypeError(f"layers must be a tuple or list of numbers, such as (1, -1), not {shown(layers)}")
        for i in chosen:
            integer("layers", i, -count, count - 1)
        _, hiddens = self(img, return_embeddings=True, return_hiddens=True)
        return [hiddens[i].mT.unflatten(2, self.embedding.patches(img)) for i in chosen]


def check_stack(attn_layers: AttentionLayers) -> None:
    """ValueError unless the stack is bidirectional, and reads nothing but patches."""
    if attn_layers.causal:
        raise ValueError(
            f"attn_layers is a causal {type(attn_layers).__name__}, in which a patch would see only those above and "
            "before it; images take a bidirectional stack such as Encoder(...)"
        )
    if any(block.takes_context for block in attn_layers.blocks()):
        raise ValueError(f"the layout {attn_layers.layout!r} attends to a context, but images come without one")
    check_needs_nothing(attn_layers, "images come without", but="grid")
