"""FLASH-pytorch's three modules on xflash's stacks: `FLASHTransformer`, and `GAU` and `FLASH` as whole layers."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from ..base.checks import check_switch, check_switches, shown
from ..base.shapes import Float, Tensor, typed
from ..base.state import Ctx, StackState
from ..flags.flag import check_value, flags_of
from ..layers.embeddings import ScaledSinusoidal
from ..layers.joins.join import Join
from ..layers.norms import LayerNorm
from ..saving.configurable import Configurable
from ..stack.config import StackConfig, check_known
from ..stack.face import AttentionLayers, Decoder, Encoder
from .transformer import TransformerWrapper

__all__ = ["FLASH", "GAU", "FLASHTransformer"]

SMALL = 0.125
NORM_CLASSES = {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm", "ScaleNorm": "scalenorm"}


def one_way(causal: Any) -> type[AttentionLayers]:
    """The class of stack for `causal`; TypeError unless that is True or False."""
    check_switch("causal", causal)
    return Decoder if causal else Encoder


def flash_flags(causal: bool, shift_tokens: Any, laplace_attn_fn: Any, reduce_groups: Any) -> dict[str, Any]:
    """FLASH-pytorch's switches as flags of a stack."""
    check_switches(laplace_attn_fn=laplace_attn_fn, reduce_group_non_causal_attn=reduce_groups)
    flags: dict[str, Any] = {
        "shift_tokens": check_value("shift_tokens", shift_tokens, flags_of(StackConfig)["shift_tokens"])
    }
    if shift_tokens:
        flags["shift_style"] = "first_half"
    if laplace_attn_fn:
        flags["flash_attn_fn"] = "laplace"
    if not reduce_groups:
        if causal:
            raise ValueError("reduce_group_non_causal_attn=False has no meaning with causal=True")
        flags["flash_global_scope"] = "group"
    return flags


def check_flags(flags: Mapping[str, Any], cls: type, heads: str) -> None:
    """TypeError for a flag that no stack has, ValueError for `heads`, which these layers do not have."""
    check_known(flags, cls)
    if "heads" in flags:
        raise ValueError(f"heads={flags['heads']!r} is set, but {heads}")


def rotary_flags(query_key_dim: int) -> dict[str, Any]:
    """Rotary embedding of at most 32 channels, neighbours paired, as GPT-J and FLASH-pytorch have it."""
    width = query_key_dim if isinstance(query_key_dim, int) else 32
    return {"pos": "rotary", "rotary_emb_dim": min(32, width // 2 * 2), "rotary_interleaved": True}


class FLASHTransformer(TransformerWrapper):
    """FLASH layers and nothing else between token ids and logits (https://arxiv.org/abs/2202.10447).

    Scaled sinusoidal positions, a one-headed relative bias in each group and rotary embedding together, as
    FLASH-pytorch's FLASHTransformer has them, with scales that train better and all channels of queries and keys
    rotated, not the first 32; `flags` are further flags of the stack. The last norm is a LayerNorm, whatever
    `norm_type`.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        dim: int,
        depth: int,
        group_size: int = 256,
        query_key_dim: int = 128,
        expansion_factor: float = 2.0,
        causal: bool = False,
        attn_dropout: float = 0.0,
        norm_type: str = "scalenorm",
        shift_tokens: bool = True,
        laplace_attn_fn: bool = False,
        reduce_group_non_causal_attn: bool = True,
        **flags: Any,
    ):
        check_flags(flags, FLASHTransformer, "FLASH has one head")
        stack = one_way(causal)(
            dim=dim,
            depth=depth,
            layers="flash",
            norm=norm_type,
            final_norm=False,
            flash_group_size=group_size,
            flash_query_key_dim=query_key_dim,
            flash_expansion_factor=expansion_factor,
            flash_dropout=attn_dropout,
            **{
                "flash_bias": True,
                "pos": "rotary",
                "rotary_interleaved": True,
                **flash_flags(causal, shift_tokens, laplace_attn_fn, reduce_group_non_causal_attn),
                **flags,
            },
        )
        super().__init__(num_tokens=num_tokens, attn_layers=stack, scaled_sinu_pos_emb=True, logits_bias=True)
        self.final_norm = LayerNorm.of(dim, bias=True)
        # Tokens and sinusoids start in FLASH-pytorch's proportion, but small, so that what layers add soon counts.
        nn.init.normal_(self.embedding.token_emb.weight, std=SMALL)
        with torch.no_grad():
            cast(ScaledSinusoidal, self.embedding.pos_emb).scale.mul_(SMALL)

    @typed
    def features(self, y: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The stack's output behind the last norm."""
        return self.final_norm(y)


class NoJoin(Join):
    """f(x) alone."""

    def forward(self, x: Float[Tensor, "b n d"], update: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b n d"]:
        return update


class WholeLayer(Configurable):
    """One layer with its norm and residual; x (b, n, d) and a mask (b, n) (True = real token) give (b, n, d)."""

    gives = "embeddings of embeddings"

    stack: AttentionLayers

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

    def named_norm(self, norm: Any) -> str:
        """The name of a norm given by name or, as in FLASH-pytorch, by class (`norm_klass`); noted in the config."""
        name = NORM_CLASSES.get(norm.__name__) if isinstance(norm, type) else norm
        if not isinstance(name, str):
            known = ", ".join(NORM_CLASSES)
            raise TypeError(f"norm_klass must be the name of a norm, or one of the classes {known}, not {shown(norm)}")
        if "norm_klass" in self.arguments:
            self.arguments = {**self.arguments, "norm_klass": name}
        return name


class GAU(WholeLayer):
    """A gated attention unit with its norm and residual (https://arxiv.org/abs/2202.10447).

    `rel_pos_bias`: None (or False), 't5' (or True), 'toeplitz'. `dropout` is of the weights and of the output.
    `flags` are further flags of a stack whose layout is 'gau'.
    """

    def __init__(
        self,
        dim: int,
        query_key_dim: int = 128,
        expansion_factor: float = 2.0,
        add_residual: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
        laplace_attn_fn: bool = False,
        rel_pos_bias: bool | str | None = None,
        norm_klass: str | type[nn.Module] = "layernorm",
        **flags: Any,
    ):
        super().__init__()
        check_flags(flags, GAU, "a GAU has gau_heads")
        check_switches(add_residual=add_residual, laplace_attn_fn=laplace_attn_fn)
        if laplace_attn_fn:
            flags = {"gau_attn_fn": "laplace", **flags}
        if isinstance(rel_pos_bias, bool):
            rel_pos_bias = "t5" if rel_pos_bias else None
        self.stack = one_way(causal)(
            dim=dim,
            depth=1,
            layers="gau",
            norm=self.named_norm(norm_klass),
            final_norm=False,
            gau_query_key_dim=query_key_dim,
            gau_expansion_factor=expansion_factor,
            gau_dropout=dropout,
            gau_out_dropout=dropout,
            gau_rel_pos_bias=rel_pos_bias,
            **flags,
        )
        if not add_residual:
            self.stack.branches[0].join = NoJoin(NoJoin.Config(), self.stack.blocks()[0].site)


class FLASH(WholeLayer):
    """A FLASH layer with its norm and residual (https://arxiv.org/abs/2202.10447).

    `rotary_pos_emb=True` turns up to 32 channels of queries and keys. `flags` are further flags of a stack whose
    layout is 'flash'.
    """

    def __init__(
        self,
        dim: int,
        group_size: int = 256,
        query_key_dim: int = 128,
        expansion_factor: float = 2.0,
        causal: bool = False,
        dropout: float = 0.0,
        rotary_pos_emb: bool | None = None,
        norm_klass: str | type[nn.Module] = "layernorm",
        shift_tokens: bool = False,
        laplace_attn_fn: bool = False,
        reduce_group_non_causal_attn: bool = True,
        **flags: Any,
    ):
        super().__init__()
        check_flags(flags, FLASH, "FLASH has one head")
        if not isinstance(rotary_pos_emb, bool | None):
            raise TypeError(
                f"rotary_pos_emb must be True or False, not {type(rotary_pos_emb).__name__}; rotary_base and others "
                "set the details, and xflash.convert.from_flash_pytorch takes layers that were built with a module"
            )
        self.stack = one_way(causal)(
            dim=dim,
            depth=1,
            layers="flash",
            norm=self.named_norm(norm_klass),
            final_norm=False,
            flash_group_size=group_size,
            flash_query_key_dim=query_key_dim,
            flash_expansion_factor=expansion_factor,
            flash_dropout=dropout,
            **(rotary_flags(query_key_dim) if rotary_pos_emb else {}),
            **flash_flags(causal, shift_tokens, laplace_attn_fn, reduce_group_non_causal_attn),
            **flags,
        )
