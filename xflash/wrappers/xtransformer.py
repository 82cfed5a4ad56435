"""`XTransformer`: an encoder and a decoder that attends to it (https://arxiv.org/abs/1706.03762)."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast

import torch

from ..base.checks import check_switch
from ..base.frozen import frozen
from ..base.shapes import Bool, Float, Int, Tensor
from ..flags.flag import Flag, flag, flags_of, like
from ..generation.decoding import evaluating
from ..generation.prompts import Rows, token_ids
from ..saving.configurable import Configurable
from ..stack.face import AttentionLayers
from ..stack.stack_config import StackConfig
from ..stack.stacks import Decoder, Encoder
from .autoregressive import AutoregressiveWrapper
from .losses import Chunks, Labels, Terms
from .options import also_called, check_option_names
from .side_flags import DECIDED, SIDES, inner_flags, read_sides, side_flags
from .sides import check_plain, check_rows, check_sides, check_tied, starts
from .source import Hiddens, Source, encoded
from .transformer import TransformerWrapper

__all__ = ["XTransformer", "drop_tokens"]


class XTransformer(Configurable):
    """An encoder, and a decoder that attends to its output: `model(src, tgt, mask=)` is the loss.

    Flags that begin with `enc_` and `dec_` are those of an `Encoder` and a `Decoder` and the arguments of the
    TransformerWrappers around them. TypeError for a flag that nobody knows, with the nearest one; errors of a side name
    it.
    """

    @frozen
    class Config(Chunks, Terms, Labels):
        dim: int = like(StackConfig, "dim")
        tie_token_emb: bool = flag(
            False,
            "one token embedding for both sides",
            paper="https://arxiv.org/abs/1608.05859",
            tried=(True,),
        )
        cross_attn_tokens_dropout: float = flag(
            0.0,
            "share of the encoder's tokens that the decoder is not shown while training",
            at_least=0,
            below=1,
            tried=(0.2,),
        )

    takes_flags = True
    presets: ClassVar[Mapping[str, Any]] = {"dec_cross_attend": True}

    gives = "a loss of a source and a target"

    def assemble(self, config: Config, **flags: Any) -> None:
        dim, sides = config.dim, read_sides(flags, flags_of(self.Config))
        self.dim, self.cross_attn_tokens_dropout = dim, config.cross_attn_tokens_dropout
        self.encoder = build_side("enc_", Encoder, {"dim": dim, **sides["enc_"]}, {"return_only_embed": True})
        decoder = build_side("dec_", Decoder, {"dim": dim, "cross_attend": True, **sides["dec_"]}, {})
        check_sides(self.encoder.attn_layers, decoder.attn_layers, dim)
        if self.encoder.has_auxiliary_loss:
            raise ValueError(
                f"{self.encoder.auxiliary_flags} (of the encoder) would be lost: the loss has that of the decoder's "
                "layers only"
            )
        for prefix, side in (("enc_", self.encoder), ("dec_", decoder)):
            check_plain(prefix, side)
        if config.tie_token_emb:
            check_tied(self.encoder, decoder)
            decoder.embedding.token_emb = self.encoder.embedding.token_emb
        losses = {name: getattr(config, name) for name in (*flags_of(Labels), *flags_of(Terms), *flags_of(Chunks))}
        self.decoder = AutoregressiveWrapper(decoder, **losses)

    @classmethod
    def hands_on(cls) -> list[str]:
        inner = inner_flags()
        return [*side_flags(inner), *inner]

    def sides(self) -> dict[str, TransformerWrapper]:
        """The two models, by what their flags begin with."""
        return {"enc_": self.encoder, "dec_": cast(TransformerWrapper, self.decoder.net)}

    def flag_rows(self) -> list[tuple[str, Any, Flag]]:
        own = [(name, self.arguments[name], spec) for name, spec in flags_of(self.Config).items()]
        return own + [
            (prefix + name, value, spec._replace(default=self.presets.get(prefix + name, spec.default)))
            for prefix, side in self.sides().items()
            for name, value, spec in side.flag_rows()
            if name not in DECIDED
        ]

    def written_flags(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        left = flags_of(TransformerWrapper.Config).keys() & flags_of(StackConfig).keys()
        return {
            prefix + name: value
            for prefix, side in self.sides().items()
            # What a model leaves to its stack (None) is left to it again.
            for name, value in (side.attn_layers.arguments | side.arguments).items()
            if name not in DECIDED and (value is not None or name not in left)
        }

    def forward(
        self,
        src: Int[Tensor, "b c"],
        tgt: Int[Tensor, "b n"],
        mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        src_prepend_embeds: Float[Tensor, "b p d"] | None = None,
        *,
        src_prepend_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        labels: Int[Tensor, "b n"] | None = None,
        condition: Float[Tensor, "b *n _"] | None = None,
        src_condition: Float[Tensor, "b *c _"] | None = None,
        reduction: str = "mean",
        loss_weights: Float[Tensor, "b n"] | None = None,
        return_count: bool = False,
        return_outputs: bool = False,
        return_hiddens: bool = False,
    ) -> Any:
        """The mean loss of predicting each next token of `tgt`, and with `return_outputs` the logits (b, n - 1, v).

        mask (b, c), tgt_mask (b, n): True = real token. `attn_mask` is the encoder's. `src_prepend_embeds` (b, p, d)
        stand in front of the source, without positions and not counted by `enc_max_seq_len`; `src_prepend_mask`
        (b, p) says which are real. `labels`, `reduction`, `loss_weights` (b, n) and `return_count` are as in
        AutoregressiveWrapper. `condition` and `src_condition` are
        what adaptive parts of the decoder and of the encoder are conditioned on. `return_hiddens` gives the streams of
        both sides too, as last (`Hiddens`).
        """
        tgt = token_ids("tgt", tgt)
        if tgt.dim() != 2 or tgt.shape[1] < 2:
            raise ValueError(f"tgt has shape {tuple(tgt.shape)}, but a loss needs (b, n) with at least n = 2 tokens")
        front: dict[str, Any] = {"src_prepend_mask": src_prepend_mask, "src_condition": src_condition}
        check_switch("return_hiddens", return_hiddens)
        front["return_hiddens"] = return_hiddens
        found, below = encoded(self.encoder, src, mask, attn_mask, src_prepend_embeds, **front)
        check_rows(found.context, tgt.shape[0], "tgt")
        if self.training and self.cross_attn_tokens_dropout:
            found = Source(*drop_tokens(*found, self.cross_attn_tokens_dropout))
        loss = {"labels": labels, "reduction": reduction, "loss_weights": loss_weights, "return_count": return_count}
        loss |= {"return_outputs": return_outputs, "return_hiddens": return_hiddens}
        beside = {"context": found.context, "context_mask": found.mask, "condition": condition}
        out = self.decoder(tgt, tgt_mask, **loss, **beside)
        return (*out[:-1], Hiddens(below, out[-1])) if return_hiddens else out

    def encode(
        self,
        src: Int[Tensor, "b c"],
        mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        src_prepend_embeds: Float[Tensor, "b p d"] | None = None,
        *,
        src_prepend_mask: Tensor | None = None,
        src_condition: Float[Tensor, "b *c _"] | None = None,
    ) -> Source:
        """The encoder's output (b, p + c, d) and its mask: what the decoder takes as context and context_mask."""
        given = src, mask, attn_mask, src_prepend_embeds
        return encoded(self.encoder, *given, src_prepend_mask=src_prepend_mask, src_condition=src_condition)[0]

    @also_called(seq_in="src", seq_out_start="tgt_start")
    def generate(
        self,
        src: Int[Tensor, "b c"],
        tgt_start: Rows,
        seq_len: int,
        mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        src_prepend_embeds: Float[Tensor, "b p d"] | None = None,
        **options: Any,
    ) -> Int[Tensor, "*b n"]:
        """The tokens after `tgt_start`, one start for each source: at most `seq_len`; the source is encoded once.

        x-transformers' names, `seq_in` and `seq_out_start`, are those of the first two as well.
        `options`: `src_prepend_mask`, `tgt_mask` (which tokens of the starts are real), `condition`, `src_condition`,
        and those of
        AutoregressiveWrapper.generate: eos_token, temperature, prompt_lens, ...
        """
        return self.decode("generate", tgt_start, seq_len, options, (src, mask, attn_mask, src_prepend_embeds))

    @also_called(seq_in="src", seq_out_start="tgt_start")
    def stream(
        self,
        src: Int[Tensor, "b c"],
        tgt_start: Rows,
        seq_len: int,
        mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        src_prepend_embeds: Float[Tensor, "b p d"] | None = None,
        **options: Any,
    ) -> Iterator[Int[Tensor, "*b"]]:
        """`generate` one token a row at a time, as each is drawn."""
        return self.decode("stream", tgt_start, seq_len, options, (src, mask, attn_mask, src_prepend_embeds))

    @also_called(seq_in="src", seq_out_start="tgt_start")
    def beam_search(
        self,
        src: Int[Tensor, "b c"],
        tgt_start: Rows,
        seq_len: int,
        beams: int = 4,
        mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        src_prepend_embeds: Float[Tensor, "b p d"] | None = None,
        **options: Any,
    ) -> Any:
        """The continuation with the highest score; `options` are those of AutoregressiveWrapper.beam_search."""
        options = {"beams": beams, **options}
        return self.decode("beam_search", tgt_start, seq_len, options, (src, mask, attn_mask, src_prepend_embeds))

    def decode(self, how: str, tgt_start: Any, seq_len: int, options: Mapping[str, Any], source: tuple) -> Any:
        """What the decoder's method `how` gives for these starts, the source encoded in eval mode."""
        method = getattr(self.decoder, how)
        options = dict(options)
        outer = {name: options.pop(name, None) for name in ("src_prepend_mask", "tgt_mask", "src_condition")}
        known = [p.name for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
        known += ["condition", "beams"] if how == "beam_search" else ["condition"]
        own = inspect.signature(getattr(XTransformer, how)).parameters
        check_option_names(how, options, [*(name for name in known if name != "mask"), *outer], own)
        with evaluating(self):
            found = self.encode(
                *source, src_prepend_mask=outer["src_prepend_mask"], src_condition=outer["src_condition"]
            )
        check_rows(found.context, starts(tgt_start), "tgt_start")
        beside = {"context": found.context, "context_mask": found.mask}
        return method(tgt_start, seq_len, mask=outer["tgt_mask"], **options, **beside)


def build_side(
    prefix: str, cls: type[AttentionLayers], flags: Mapping[str, Any], fixed: Mapping[str, Any]
) -> TransformerWrapper:
    """One side from its flags; its errors say whose they are."""
    outer = {name: flags[name] for name in flags if name in inspect.signature(TransformerWrapper).parameters}
    inner = {name: flags[name] for name in flags if name not in outer}
    try:
        return TransformerWrapper(attn_layers=cls(**inner), **outer, **fixed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"in the {SIDES[prefix]}, whose flags begin with {prefix}: {error}") from None


def drop_tokens(
    context: Float[Tensor, "b c d"], mask: Bool[Tensor, "b c"] | None, p: float
) -> tuple[Float[Tensor, "b k d"], Bool[Tensor, "b k"] | None]:
    """A random share 1 - p of each row's real tokens, one at least, in their order; drawn from torch's generator."""
    b, c, d = context.shape
    chance = torch.rand(b, c, device=context.device)
    if mask is not None:
        chance = chance.masked_fill(~mask, 2.0)
    drawn = chance.argsort(1)
    index = drawn[:, : max(1, round(c * (1 - p)))].sort(1).values
    kept = context.gather(1, index[..., None].expand(-1, -1, d))
    if mask is None:
        return kept, None
    wanted = (mask.sum(1) * (1 - p)).round().clamp(min=1)
    return kept, (mask & (drawn.argsort(1) < wanted[:, None])).gather(1, index)
