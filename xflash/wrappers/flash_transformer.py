"""FLASH-pytorch's three modules on xflash's stacks: `FLASHTransformer`, and `GAU` and `FLASH` as whole layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn

from ..base.checks import shown
from ..base.frozen import frozen
from ..base.shapes import Float, Tensor, typed
from ..base.state import StackState
from ..flags.flag import REQUIRED, build, flag, flags_of, like
from ..layers.blocks.flash import MixedChunkAttention
from ..layers.blocks.gau import GatedAttention
from ..layers.embeddings import ScaledSinusoidal
from ..layers.norms import LayerNorm
from ..saving.configurable import Configurable
from ..stack.config import check_known
from ..stack.face import AttentionLayers
from ..stack.stack_config import StackConfig
from ..stack.stacks import Decoder, Encoder
from .attention_pool import NoJoin
from .input_embedding import InputEmbedding
from .options import check_needs_nothing, further_flags
from .transformer import TransformerWrapper

__all__ = ["FLASH", "GAU", "FLASHTransformer"]

SMALL = 0.125
NORM_CLASSES = {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm", "ScaleNorm": "scalenorm"}
# What the switches set.
IMPLIED = ("shift_style", "flash_attn_fn", "flash_global_scope", "gau_attn_fn")
# FLASH's flags in a stack, and what they are called here ('': they cannot be set).
FLASH_FLAGS = {
    "depth": "",
    "layers": "",
    "final_norm": "",
    "flash_group_size": "group_size",
    "flash_query_key_dim": "query_key_dim",
    "flash_expansion_factor": "expansion_factor",
}


@frozen
class Shared:
    """What several of the three can be given."""

    laplace_attn_fn: bool = flag(
        False, "weights are Mega's laplace of the scores, not relu2", paper="https://arxiv.org/abs/2209.10655"
    )
    reduce_group_non_causal_attn: bool = flag(
        True, "the linear part sums over all groups; False: over the token's own (bidirectional only)"
    )
    norm_klass: str | type = flag(
        "layernorm", "the norm in front: a registered one by name, or FLASH-pytorch's class LayerNorm or ScaleNorm"
    )


def one_way(causal: bool) -> type[AttentionLayers]:
    """The class of stack for `causal`."""
    return Decoder if causal else Encoder


def flash_flags(config: Any) -> dict[str, Any]:
    """FLASH-pytorch's switches as flags of a stack."""
    flags: dict[str, Any] = {"shift_tokens": config.shift_tokens}
    if config.shift_tokens:
        flags["shift_style"] = "first_half"
    if config.laplace_attn_fn:
        flags["flash_attn_fn"] = "laplace"
    if not config.reduce_group_non_causal_attn:
        if config.causal:
            raise ValueError("reduce_group_non_causal_attn=False has no meaning with causal=True")
        flags["flash_global_scope"] = "group"
    return flags


def check_flags(flags: Mapping[str, Any], cls: Any, heads: str) -> None:
    """TypeError for a flag that no stack has, ValueError for one that `cls` has under another name, or decides."""
    check_known(flags, cls)
    if "heads" in flags:
        raise ValueError(f"heads={flags['heads']!r} is set, but {heads}")
    for flag_name in cls.decided.keys() & flags.keys():
        ours = cls.decided[flag_name]
        said = f"{flag_name}={shown(flags[flag_name])} is set, but {cls.__name__}"
        raise ValueError(f"{said} {f'has it as {ours!r}' if ours else 'decides that itself'}")


def own_flags(module: Any, config: Any) -> dict[str, Any]:
    """The flags of a stack that are called otherwise here."""
    return {flag_name: getattr(config, name) for flag_name, name in module.decided.items() if name}


def rotary_flags(query_key_dim: int) -> dict[str, Any]:
    """Rotary embedding of at most 32 channels, neighbours paired, as GPT-J and FLASH-pytorch have it."""
    return {"pos": "rotary", "rotary_emb_dim": min(32, query_key_dim // 2 * 2), "rotary_interleaved": True}


class FLASHTransformer(TransformerWrapper):
    """FLASH layers and nothing else between token ids and logits (https://arxiv.org/abs/2202.10447).

    Scaled sinusoidal positions, a one-headed relative bias in each group and rotary embedding together, as
    FLASH-pytorch's FLASHTransformer has them, with scales that train better and all channels of queries and keys
    rotated, not the first 32; `flags` are further flags of the stack. The last norm is a LayerNorm, whatever
    `norm_type`.
    """

    @frozen
    class Config:
        num_tokens: int = like(InputEmbedding.Config, "num_tokens")
        dim: int = like(StackConfig, "dim")
        depth: int = like(StackConfig, "depth", REQUIRED)
        group_size: int = like(MixedChunkAttention.Config, "group_size")
        query_key_dim: int = like(MixedChunkAttention.Config, "query_key_dim")
        expansion_factor: float = like(MixedChunkAttention.Config, "expansion_factor")
        causal: bool = like(StackConfig, "causal")
        attn_dropout: float = like(MixedChunkAttention.Config, "dropout")
        norm_type: str = like(StackConfig, "norm", "scalenorm")
        shift_tokens: int | tuple[int, ...] | bool = like(StackConfig, "shift_tokens", True)
        laplace_attn_fn: bool = like(Shared, "laplace_attn_fn")
        reduce_group_non_causal_attn: bool = like(Shared, "reduce_group_non_causal_attn")

    takes_flags = True
    presets: ClassVar[Mapping[str, Any]] = {"flash_bias": True, "pos": ("rotary",), "rotary_interleaved": True}
    decided: ClassVar[Mapping[str, str]] = FLASH_FLAGS | {"flash_dropout": "attn_dropout", "norm": "norm_type"}

    def assemble(self, config: Config, **flags: Any) -> None:
        check_flags(flags, FLASHTransformer, "FLASH has one head")
        further = {**self.presets, **flash_flags(config)}
        stack = one_way(config.causal)(
            dim=config.dim,
            depth=config.depth,
            layers="flash",
            final_norm=False,
            **{**further, **own_flags(self, config), **flags},
        )
        around = {"scaled_sinu_pos_emb": True, "logits_bias": True}
        super().assemble(
            build(TransformerWrapper.Config, {"num_tokens": config.num_tokens, "attn_layers": stack, **around})
        )
        self.final_norm = LayerNorm.of(config.dim, bias=True)
        # Tokens and sinusoids start in FLASH-pytorch's proportion, but small, so that what layers add soon counts.
        nn.init.normal_(self.embedding.token_emb.weight, std=SMALL)
        with torch.no_grad():
            cast(ScaledSinusoidal, self.embedding.pos_emb).scale.mul_(SMALL)

    def written_flags(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        return further_flags(self.attn_layers, flags, {"heads", *self.decided, *flags_of(self.Config)}, IMPLIED)

    @typed
    def features(self, y: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The stack's output behind the last norm."""
        return self.final_norm(y)


class WholeLayer(Configurable):
    """One layer with its norm and residual; x (b, n, d) and a mask (b, n) (True = real token) give (b, n, d)."""

    takes_flags = True
    gives = "embeddings of embeddings"

    stack: AttentionLayers
    decided: ClassVar[Mapping[str, str]]

    @property
    def dim(self) -> int:
        return self.stack.dim

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one, so that the layer can be stepped."""
        return self.stack.causal

    def forward(self, x: Float[Tensor, "b n d"], mask: Tensor | None = None) -> Float[Tensor, "b n d"]:
        """The layer on whole sequences; zeros where the mask is False."""
        return self.stack(x, mask)

    def step(
        self, x: Float[Tensor, "b n d"], state: StackState | None = None, mask: Tensor | None = None
    ) -> tuple[Float[Tensor, "b n d"], StackState]:
        """Any number of new tokens behind what `state` has seen (causal layers only), and the state with them."""
        return self.stack.step(x, state, mask)

    def written_flags(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        rotary = ("pos", "rotary_emb_dim", "rotary_interleaved")
        taken = {"heads", *self.decided, *flags_of(self.Config)}
        return further_flags(self.stack, flags, taken, (*IMPLIED, *rotary))

    def named_norm(self, norm: str | type) -> str:
        """The name of a norm given by name or, as in FLASH-pytorch, by class (`norm_klass`); noted in the config."""
        name = NORM_CLASSES.get(norm.__name__) if isinstance(norm, type) else norm
        if name is None:
            known = ", ".join(NORM_CLASSES)
            raise TypeError(f"norm_klass must be the name of a norm, or one of the classes {known}, not {shown(norm)}")
        if "norm_klass" in self.arguments:
            self.arguments = {**self.arguments, "norm_klass": name}
        return name

    def hold(self, causal: bool, **flags: Any) -> None:
        """Builds the one layer; ValueError where it would need more than x in each call."""
        self.stack = one_way(causal)(depth=1, final_norm=False, **flags)
        check_needs_nothing(self.stack, f"a {type(self).__name__} is given x alone: use a stack")


class GAU(WholeLayer):
    """A gated attention unit with its norm and residual (https://arxiv.org/abs/2202.10447).

    `flags` are further flags of a stack whose layout is 'gau'.
    """

    @dataclass(frozen=True)
    class Config:
        dim: int = like(StackConfig, "dim")
        query_key_dim: int = like(GatedAttention.Config, "query_key_dim")
        expansion_factor: float = like(GatedAttention.Config, "expansion_factor")
        add_residual: bool = flag(True, "x is added to what the layer makes of it")
        causal: bool = like(StackConfig, "causal")
        dropout: float = flag(0.0, "dropout of the weights, and of the output", at_least=0, below=1)
        laplace_attn_fn: bool = like(Shared, "laplace_attn_fn")
        rel_pos_bias: bool | Literal["t5", "toeplitz"] | None = flag(
            None, "a learned bias by distance: 't5' (or True), 'toeplitz', or none (None, False)"
        )
        norm_klass: str | type = like(Shared, "norm_klass")

    decided: ClassVar[Mapping[str, str]] = {
        "depth": "",
        "layers": "",
        "final_norm": "",
        "norm": "norm_klass",
        "gau_query_key_dim": "query_key_dim",
        "gau_expansion_factor": "expansion_factor",
        "gau_dropout": "dropout",
        "gau_out_dropout": "dropout",
        "gau_rel_pos_bias": "rel_pos_bias",
    }

    def assemble(self, config: Config, **flags: Any) -> None:
        check_flags(flags, GAU, "a GAU has gau_heads")
        own, bias = own_flags(self, config), config.rel_pos_bias
        own["gau_rel_pos_bias"] = ("t5" if bias else None) if isinstance(bias, bool) else bias
        own["norm"] = self.named_norm(config.norm_klass)
        further = {"gau_attn_fn": "laplace"} if config.laplace_attn_fn else {}
        self.hold(config.causal, dim=config.dim, layers="gau", **{**further, **own, **flags})
        if not config.add_residual:
            self.stack.branches[0].join = NoJoin(NoJoin.Config(), self.stack.blocks()[0].site)


class FLASH(WholeLayer):
    """A FLASH layer with its norm and residual (https://arxiv.org/abs/2202.10447).

    `flags` are further flags of a stack whose layout is 'flash'.
    """

    @dataclass(frozen=True)
    class Config:
        dim: int = like(StackConfig, "dim")
        group_size: int = like(MixedChunkAttention.Config, "group_size")
        query_key_dim: int = like(MixedChunkAttention.Config, "query_key_dim")
        expansion_factor: float = like(MixedChunkAttention.Config, "expansion_factor")
        causal: bool = like(StackConfig, "causal")
        dropout: float = like(MixedChunkAttention.Config, "dropout")
        rotary_pos_emb: bool | None = flag(
            None,
            "up to 32 channels of queries and keys are turned; rotary_base and others set the details",
            paper="https://arxiv.org/abs/2104.09864",
        )
        norm_klass: str | type = like(Shared, "norm_klass")
        shift_tokens: int | tuple[int, ...] | bool = like(StackConfig, "shift_tokens", False)
        laplace_attn_fn: bool = like(Shared, "laplace_attn_fn")
        reduce_group_non_causal_attn: bool = like(Shared, "reduce_group_non_causal_attn")

    decided: ClassVar[Mapping[str, str]] = FLASH_FLAGS | {"flash_dropout": "dropout", "norm": "norm_klass"}

    def assemble(self, config: Config, **flags: Any) -> None:
        check_flags(flags, FLASH, "FLASH has one head")
        further = rotary_flags(config.query_key_dim) if config.rotary_pos_emb else {}
        further |= flash_flags(config)
        own = own_flags(self, config) | {"norm": self.named_norm(config.norm_klass)}
        self.hold(config.causal, dim=config.dim, layers="flash", **{**further, **own, **flags})
