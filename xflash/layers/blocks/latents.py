"""`Latents`: multi-latent attention, whose tokens are kept as narrow latents, not as keys and values."""

import torch
import torch.nn.functional as F
from torch import nn

from ...base.frozen import frozen
from ...base.shapes import Float, Tensor
from ...base.state import Ctx
from ...flags.flag import check_idle, flag
from ..projection import linear_in, split_off_values, whole
from ..site import Site
from .key_values import KV
from .multi_head import MultiHead, split_heads

__all__ = ["Latents"]

PAPER = "https://arxiv.org/abs/2405.04434"


class Latents(MultiHead):
    """Base of attention whose queries, and keys and values, may be made of latents (DeepSeek-V2, 2405.04434).

    What is kept of a token is its latent and the keys of its turned heads, in one buffer; keys and values are made of
    it again in each call. In a call of one token their projections act on its queries, and on what these read of the
    latents, where nothing stands between: there is no product then for each token seen. The last heads are turned.
    """

    @frozen
    class Config(MultiHead.Config):
        dim_latent_q: int | None = flag(
            None, "queries are made of a latent of this width (None: of the token)", at_least=1, paper=PAPER, tried=(5,)
        )
        dim_latent_kv: int | None = flag(
            None,
            "keys and values are made of a latent of this width, which is what a state keeps (None: of the token)",
            at_least=1,
            paper=PAPER,
            tried=(5,),
        )
        latent_rope_subheads: int | None = flag(
            None,
            "key heads made of the token itself, the only ones that rotary positions turn (None: they turn all)",
            at_least=1,
            paper=PAPER,
            tried=({"latent_rope_subheads": 1, "dim_latent_kv": 5, "dim_latent_q": 7},),
        )

    def build_latents(self, config: Config, site: Site) -> None:
        """The projections to latents and from them."""
        bias, width, of = config.qkv_bias, config.dim_head, config.dim_latent_kv
        if config.dim_latent_q is not None:
            self.to_latent_q = nn.Linear(site.dim, config.dim_latent_q, bias=False)
        self.to_q = linear_in(config.dim_latent_q or site.dim, self.heads * width, bias)
        self.turned_heads = config.latent_rope_subheads or 0
        # By key/value head, where there is no latent: its key, its value.
        self.of_latent = self.kv_heads - self.turned_heads
        if of is None:
            self.key_value = linear_in(site.dim, self.kv_heads * (width + self.value_width), bias)
            return
        self.to_latent_kv = nn.Linear(site.dim, of, bias=False)
        self.to_k = linear_in(of, self.of_latent * width, bias)
        self.to_v = linear_in(of, self.kv_heads * self.value_width, bias)
        if self.turned_heads:
            self.to_turned_k = linear_in(site.dim, self.turned_heads * width, bias)
        self.turns_kept = not self.turned_heads

    def check_latents(self, config: Config) -> None:
        """ValueError for flags that contradict each other."""
        kind, turned = self.kind, config.latent_rope_subheads or 0
        said = f"{kind}_latent_rope_subheads={turned}"
        if config.dim_latent_kv is None:
            check_idle(config, ("latent_rope_subheads",), f"{kind}_dim_latent_kv is None", f"{kind}_")
            return
        if turned >= self.kv_heads:
            raise ValueError(f"{said} leaves none of the {self.kv_heads} key heads to be made of latents")
        if turned and config.qk_rmsnorm == "width":
            raise ValueError(
                f"{said} keeps the keys of some heads as they are turned, but {kind}_qk_rmsnorm='width' norms all "
                "heads of a token together: leave one out"
            )
        if config.value_residual:
            raise ValueError(
                f"{kind}_value_residual=True mixes the values of each token once, but with {kind}_dim_latent_kv="
                f"{config.dim_latent_kv} they are made again in each call: leave one out"
            )

    def head_counts(self) -> tuple[int, int]:
        heads, kv_heads = super().head_counts()
        turned = self.config.latent_rope_subheads or 0
        return (heads // kv_heads * turned, turned) if turned else (heads, kv_heads)

    def of_latents(
        self, x: Float[Tensor, "b n *v d"], ctx: Ctx
    ) -> tuple[Float[Tensor, "b h n k"], Float[Tensor, "b _ n _"], Float[Tensor, "b _ n _"]]:
        """Queries, turned, and what is kept of the tokens: keys, turned, and values, or all in one and nothing.

        Where queries, keys and values each have a tensor of their own, the latent is that of the mean of the last two.
        """
        first, of_k, of_v = (x, x, x) if x.dim() == 3 else x.unbind(2)
        of_q = first if self.config.dim_latent_q is None else self.to_latent_q(first)
        q = split_heads(whole(self.to_q(of_q), self.heads * self.config.dim_head, self.kind), self.config.dim_head)
        q = self.last_turned(self.normed(q, "q"), ctx, self.heads // self.kv_heads * self.turned_heads)
        if self.config.dim_latent_kv is not None:
            return q, self.kept(of_k if of_k is of_v else (of_k + of_v) / 2, ctx), q.new_zeros(len(x), 1, x.shape[1], 0)
        k, _ = self.key_and_value(of_k)
        _, v = self.key_and_value(of_v)
        return q, self.last_turned(self.normed(k, "k"), ctx, 0, inverse=True), self.valued(v, first, ctx)

    def key_and_value(self, x: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b h n k"], Float[Tensor, "b h n e"]]:
        """Keys and values of the tokens themselves."""
        t = whole(self.key_value(x), self.kv_heads * (self.config.dim_head + self.value_width), self.kind)
        k, v = split_off_values(t, 1, self.config.dim_head, self.value_width)
        return k[:, :, 0], v

    def last_turned(
        self, t: Float[Tensor, "b h n k"], ctx: Ctx, last: int, inverse: bool = False
    ) -> Float[Tensor, "b h n k"]:
        """Queries (or keys, `inverse`) of which the last heads are turned, or all (0)."""
        if ctx.relative is None:
            return t
        if not last:
            return ctx.relative.rotate(t, ctx, inverse)
        return torch.cat((t[:, :-last], ctx.relative.rotate(t[:, -last:], ctx, inverse)), 1)

    def kept(self, x: Float[Tensor, "b n d"], ctx: Ctx) -> Float[Tensor, "b 1 n _"]:
        """The latents of tokens, and the keys of the heads that are turned behind them."""
        latents = self.to_latent_kv(x)
        if not self.turned_heads:
            return latents[:, None]
        k = whole(self.to_turned_k(x), self.turned_heads * self.config.dim_head, self.kind)
        k = self.normed(split_heads(k, self.config.dim_head), "k", some=slice(self.of_latent, None))
        k = self.last_turned(k, ctx, 0, inverse=True)
        return torch.cat((latents, k.transpose(1, 2).flatten(2)), -1)[:, None]

    def made_again(
        self, kept: Float[Tensor, "b 1 m _"], ctx: Ctx, state: KV | None
    ) -> tuple[Float[Tensor, "b h m k"], Float[Tensor, "b h m e"]]:
        """The keys and values of all tokens that are kept."""
        width, of = self.config.dim_head, self.config.dim_latent_kv
        latents, turned = kept[:, 0, :, :of], kept[:, 0, :, of:]
        k = split_heads(whole(self.to_k(latents), self.of_latent * width, self.kind), width)
        k = self.normed(k, "k", some=slice(0, self.of_latent))
        if self.turned_heads:
            k = torch.cat((k, split_heads(turned, width)), 1)
        elif ctx.relative is not None and ctx.relative.turns:
            k = self.turned_again(k, ctx, state)
        v = whole(self.to_v(latents), self.kv_heads * self.value_width, self.kind)
        return k, self.valued(split_heads(v, self.value_width), latents, ctx)

    def turned_again(self, k: Float[Tensor, "b h m k"], ctx: Ctx, state: KV | None) -> Float[Tensor, "b h m k"]:
        """Keys of tokens of former calls too, turned to where they stand."""
        if state is None or not ctx.past:
            return ctx.relative.rotate(k, ctx, inverse=True)
        # Layers that remember alike are turned by one table.
        view = ("kept", *self.seen_window())
        return ctx.relative.turn(k, state.stand(ctx, k.shape[2]), ctx, view, inverse=True)

    def absorbs(self, n: int, ctx: Ctx) -> bool:
        """Whether queries can meet the latents themselves: in a call of one token, if nothing else knows of keys."""
        config = self.config
        if n > 1 or config.dim_latent_kv is None or not self.reader.plain:
            return False
        turned = not self.turned_heads and ctx.relative is not None and bool(ctx.relative.turns)
        between = config.num_mem_kv, config.qk_norm, config.qk_rmsnorm, config.qkv_bias, config.value_rmsnorm, turned
        # A projection that is more than the product with its weight is left to itself.
        return not any(between) and all(is_plain(to) for to in (self.to_k, self.to_v))

    def absorbed(
        self, q: Float[Tensor, "b h 1 k"], kept: Float[Tensor, "b 1 m _"]
    ) -> tuple[Float[Tensor, "b h 1 _"], Float[Tensor, "b 1 m _"], Float[Tensor, "b 1 m _"]]:
        """Queries as they meet what is kept, that, and its latents as values: q W^T c = (q W) c."""
        r, s, width = self.heads // self.kv_heads, self.turned_heads, self.config.dim_head
        groups = q.unflatten(1, (self.kv_heads, r))
        ours = groups[:, : self.of_latent, :, 0] @ self.to_k.weight.unflatten(0, (self.of_latent, width))
        ours = F.pad(ours, (0, s * width))
        if s:
            # Each of the others stands where the key of its head is, beside zeros.
            place = torch.eye(s, dtype=q.dtype, device=q.device)[:, None, :, None]
            others = (groups[:, self.of_latent :, :, 0, None] * place).flatten(3)
            ours = torch.cat((ours, F.pad(others, (self.config.dim_latent_kv, 0))), 1)
        return ours.flatten(1, 2)[:, :, None], kept, kept[..., : self.config.dim_latent_kv]

    def from_latents(self, y: Float[Tensor, "b h 1 _"]) -> Float[Tensor, "b h 1 e"]:
        """What heads would have read of values, from what they read of latents."""
        groups = y.unflatten(1, (self.kv_heads, -1))[:, :, :, 0]
        return (groups @ self.to_v.weight.unflatten(0, (self.kv_heads, -1)).mT).flatten(1, 2)[:, :, None]


def is_plain(linear: nn.Module) -> bool:
    """Whether a projection is the product with its weight, and that a plain tensor."""
    return type(linear) is nn.Linear and type(linear.weight) is nn.Parameter
