"""`XValAutoregressiveWrapper`: the loss of next tokens and numbers, and both from a causal model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import torch

from ..base.checks import check_switch, check_switches
from ..base.shapes import Bool, Float, Int, Tensor
from ..flags.flag import flag
from ..generation.decoding import draws, evaluating, until_ended
from ..generation.nets import check_eos, check_token, ends
from ..generation.prompts import Prompts, check_seq_len, window
from ..generation.sampling import Draw
from ..saving.configurable import Configurable
from .losses import Criterion, Labels, Terms, adds_own, answer, asked, reduced, with_own
from .numbers_read import Numbered, Read, read_numbers
from .options import check_for_new_tokens, check_handed_on, check_tokens_only, without_last
from .targets import labelled, next_tokens, unseen_targets, which_are_real
from .token_head import Heads
from .xval import Predicted, XValTransformerWrapper

__all__ = ["GenerateReturn", "LossBreakdown", "XValAutoregressiveWrapper"]


class LossBreakdown(NamedTuple):
    """The two parts of a loss: it is the first and numerical_loss_weight times the second."""

    cross_entropy_loss: Float[Tensor, ""]
    numerical_mse_loss: Float[Tensor, ""]


class GenerateReturn(NamedTuple):
    """What was made: tokens (b, n), the numbers they stand for (NaN where they stand for none), and where they do."""

    sampled_token_ids: Int[Tensor, "b n"]
    sampled_numbers: Float[Tensor, "b n"]
    is_number_mask: Bool[Tensor, "b n"]


class XValAutoregressiveWrapper(Configurable):
    """Trains and samples a causal `XValTransformerWrapper`: tokens, and the numbers that some of them stand for."""

    @dataclass(frozen=True)
    class Config(Terms, Labels):
        net: XValTransformerWrapper = flag(doc="a causal model of token ids and numbers")
        _: KW_ONLY
        numerical_loss_weight: float = flag(1.0, "what the loss of the numbers is multiplied by", above=0)

    gives = "a loss of token ids and numbers"

    def assemble(self, config: Any) -> None:
        net = config.net
        if not net.causal or net.return_only_embed:
            raise ValueError(
                "the net sees the tokens that it is to predict, pools them or has no head: give an "
                "XValTransformerWrapper with a head, around a Decoder, without pooling"
            )
        if isinstance(net.to_logits, Heads):
            raise ValueError(f"the net gives {net.gives}, but a loss is of one: build it with num_output_heads=1")
        check_token(net, "pad_value", config.pad_value)
        self.net, self.ignore_index, self.pad_value = net, config.ignore_index, config.pad_value
        self.numerical_loss_weight = config.numerical_loss_weight
        self.label_smoothing, self.z_loss = config.label_smoothing, config.z_loss

    def extra_repr(self) -> str:
        said = f"ignore_index={self.ignore_index}, pad_value={self.pad_value}"
        return f"{said}, numerical_loss_weight={self.numerical_loss_weight}{Criterion.of(self).shown()}"

    def forward(
        self,
        x: Int[Tensor, "b n"],
        x_num: Float[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
        *,
        lens: Int[Tensor, " b"] | Sequence[int] | None = None,
        doc_ids: Int[Tensor, "b n"] | None = None,
        reduction: str = "mean",
        loss_weights: Float[Tensor, "b n"] | None = None,
        return_count: bool = False,
        return_loss_breakdown: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The mean loss over targets: cross-entropy, and the squared error of the number where a target is one.

        Targets are as in AutoregressiveWrapper. `return_loss_breakdown` gives (loss, LossBreakdown), whose second part
        counts targets that are no number as 0. `reduction`, `loss_weights` and `return_count` are as in
        AutoregressiveWrapper. Everything else goes to `net`, what is of all n tokens without the last.
        """
        check_switch("return_loss_breakdown", return_loss_breakdown)
        x, _, doc_ids = labelled(x, None, doc_ids)
        ask = asked(reduction, loss_weights, return_count, x)
        numbers, mask = self.net.embedding.check_numbers(x, x_num), which_are_real(x, mask, lens)
        none = x == self.ignore_index
        check_handed_on("the loss", kwargs, XValAutoregressiveWrapper.forward, self.net.forward)
        kwargs = without_last(kwargs, x)
        read = Read(x.masked_fill(none, self.pad_value), numbers.masked_fill(none, 0), mask).part(end=-1)
        if read.mask is not None:
            read = read._replace(ids=read.ids.masked_fill(~read.mask, 0))
        if doc_ids is not None:
            kwargs["doc_ids"] = doc_ids[:, :-1]
        place = torch.arange(x.shape[1], device=x.device).expand_as(x)
        place = unseen_targets(next_tokens(place, mask, doc_ids, -1), read.mask, kwargs, -1)
        targets = x.gather(1, place.clamp(min=0)).masked_fill(place < 0, self.ignore_index)
        # Embeddings in front of the tokens (prepend_embeds) have outputs, but no targets.
        own = {"return_auxiliary_loss": True} if adds_own(self, self.net) else {}
        found = self.net(*read, **kwargs, **own)
        found, lost = found if own else (found, None)
        out = Predicted(*(t[:, 1 - x.shape[1] :] for t in found))
        told, error = self.parts(out, targets, numbers.gather(1, place.clamp(min=0)))
        weights = None if ask.weights is None else next_tokens(ask.weights, mask, doc_ids, 0)
        counted = targets != self.ignore_index
        losses = with_own(told + self.numerical_loss_weight * error, counted, lost)
        found = reduced(losses, counted, ask, weights)
        if not return_loss_breakdown:
            return answer(found, [])
        alone = ask._replace(count=False)
        return answer(found, [LossBreakdown(*(reduced(each, counted, alone, weights)[0] for each in (told, error)))])

    def parts(
        self, out: Predicted, targets: Int[Tensor, "b m"], numbers: Float[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b m"]]:
        """What a target's loss is made of: cross-entropy, and the squared error of its number, 0 where it is none."""
        gap = (out.numbers - numbers).to(torch.promote_types(out.numbers.dtype, torch.float32))
        none = (targets != self.net.numerical_token_id) | (targets == self.ignore_index)
        gap = gap.masked_fill(none, 0)
        return Criterion.of(self).of_logits(out.logits, targets), gap.square()

    def generate(
        self,
        start_tokens: Int[Tensor, "*b n"],
        start_numbers: Float[Tensor, "*b n"],
        seq_len: int,
        *,
        eos_token: int | Sequence[int] | None = None,
        temperature: float = 1.0,
        prompt_lens: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        filter_logits_fn: str | Callable[..., Tensor] = "top_k",
        filter_kwargs: Mapping[str, Any] | None = None,
        filter_thres: float | None = None,
        repetition_penalty: float = 1.0,
        min_tokens: int = 0,
        generator: torch.Generator | None = None,
        restrict_to_max_seq_len: bool = False,
        cache_kv: bool = True,
        **kwargs: Any,
    ) -> GenerateReturn:
        """The tokens after the start, the numbers they stand for, NaN elsewhere, and which of them stand for one.

        start_tokens: (n,) or (b, n), and start_numbers likewise. The rest is as in AutoregressiveWrapper.generate.
        """
        chance: dict[str, Any] = {"eos_token": eos_token, "temperature": temperature, "generator": generator}
        chance |= {"filter_logits_fn": filter_logits_fn, "filter_kwargs": filter_kwargs, "filter_thres": filter_thres}
        draw = Draw(**chance, repetition_penalty=repetition_penalty, min_tokens=min_tokens)
        check_eos(self.net, eos_token)
        check_tokens_only(self.net, "generate makes tokens and numbers only: there would be none of these for new ones")
        check_for_new_tokens("generate", kwargs)
        check_handed_on("generate", kwargs, XValAutoregressiveWrapper.generate, self.net.step)
        check_switches(restrict_to_max_seq_len=restrict_to_max_seq_len, cache_kv=cache_kv)
        read, lead = read_numbers(start_tokens, start_numbers, prompt_lens, mask)
        prompts, net = Prompts(read.ids, read.mask, lead), Numbered(self.net, read.numbers)
        last = window(self.net, prompts, check_seq_len(seq_len), restrict_to_max_seq_len)
        options: dict[str, Any] = {"last": last, "cache_kv": cache_kv, "pad_value": self.pad_value}
        with evaluating(self):
            ids, _ = until_ended(draws(net, prompts, seq_len, draw, kwargs, **options), eos_token is not None)
        counts = ids == self.net.numerical_token_id
        if draw.eos_tokens:
            # What stands behind a row's first end is padding.
            end = ends(ids, draw.eos_tokens)
            counts = counts & (end.cumsum(-1) == end)
        numbers = net.numbers[:, read.ids.shape[1] :][:, : ids.shape[-1]].reshape(ids.shape)
        return GenerateReturn(ids, numbers.masked_fill(~counts, torch.nan), counts)
