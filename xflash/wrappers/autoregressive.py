"""`AutoregressiveWrapper`: the next-token loss of a causal model, and text from it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..base.checks import check_switch, check_switches
from ..base.shapes import Bool, Float, Int, Tensor
from ..flags.flag import flag
from ..generation.beam import beam_search
from ..generation.decoding import draws, evaluating, until_ended
from ..generation.nets import check_causal, check_eos, check_gives_logits, check_token, only_logits
from ..generation.prompts import (
    Rows,
    check_seq_len,
    read_prompts,
    window,
)
from ..generation.sampling import Draw
from ..saving.configurable import Configurable
from .forgetting import Forgetful, check_can_forget, forgetful
from .losses import Chunks, Criterion, Labels, Terms, answer, asked, reduced
from .options import (
    check_for_new_tokens,
    check_gives_hiddens,
    check_handed_on,
    check_loss_chunk,
    check_tokens_only,
    without_last,
)
from .targets import labelled, next_tokens, unseen_targets, which_are_real

__all__ = ["AutoregressiveWrapper"]


class AutoregressiveWrapper(Configurable):
    """Trains and samples a causal `net` with `net(ids, mask=) -> logits` and `net.step(ids, state, mask=)`.

    Raises TypeError when `net` is no module and ValueError when it is not causal; one of your own that says nothing of
    `causal` is believed, unless all stacks in it are bidirectional.
    """

    @dataclass(frozen=True)
    class Config(Forgetful, Chunks, Terms, Labels):
        net: nn.Module = flag(doc="a causal model from token ids to logits")

    gives = "a loss of token ids"

    def assemble(self, config: Any) -> None:
        net = config.net
        check_gives_logits(net)
        pooled: Any = getattr(net, "pooled", None)
        if pooled is not None:
            raise ValueError(f"{type(net).__name__} pools its outputs ({pooled.kind}=True): it predicts no next token")
        check_causal(net)
        check_token(net, "pad_value", config.pad_value)
        check_loss_chunk(net, config.loss_chunk)
        check_can_forget(net, config.mask_prob)
        self.net, self.ignore_index, self.pad_value = net, config.ignore_index, config.pad_value
        self.loss_chunk, self.mask_prob = config.loss_chunk, config.mask_prob
        self.label_smoothing, self.z_loss = config.label_smoothing, config.z_loss

    def extra_repr(self) -> str:
        forgets = f", mask_prob={self.mask_prob}" if self.mask_prob else ""
        return f"ignore_index={self.ignore_index}, pad_value={self.pad_value}{Criterion.of(self).shown()}{forgets}"

    def forward(
        self,
        x: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
        *,
        lens: Int[Tensor, " b"] | Sequence[int] | None = None,
        labels: Int[Tensor, "b n"] | None = None,
        doc_ids: Int[Tensor, "b n"] | None = None,
        reduction: str = "mean",
        loss_weights: Float[Tensor, "b n"] | None = None,
        return_count: bool = False,
        return_outputs: bool = False,
        return_hiddens: bool = False,
        **kwargs,
    ) -> Any:
        """The mean loss of predicting each row's next real token, and with `return_outputs` all their logits too.

        `net` is given the first n - 1 tokens. A token is a target when it and the token before it are real (`mask`,
        or the first `lens` of each row), its label (`labels`, x itself unless given) is not `ignore_index`, both are
        of one document (a run of equal `doc_ids`), and no prefix shows it (`prefix_attn_len`). Without any target the
        loss is 0. `return_hiddens` gives the net's streams too, as last. Everything else goes to `net`, `embed_ids` and
        `attn_mask`, which are of all n tokens, without the last.

        reduction: 'mean', 'sum', or 'none' for the losses (b, n - 1), that of a token's next one at its place and 0
        where there is no target. loss_weights (b, n): what each token of x counts for as a target. return_count: also
        what the mean divides by, the number of targets or the sum of their weights, behind the loss.
        """
        check_switch("return_outputs", return_outputs)
        check_gives_hiddens(self.net, return_hiddens)
        x, labels, doc_ids = labelled(x, labels, doc_ids)
        ask, mask = asked(reduction, loss_weights, return_count, x), which_are_real(x, mask, lens)
        inputs, kwargs = self.inputs(x, mask, doc_ids, kwargs)
        targets = next_tokens(labels, mask, doc_ids, self.ignore_index)
        targets = unseen_targets(targets, kwargs.get("mask"), kwargs, self.ignore_index)
        weights = None if ask.weights is None else next_tokens(ask.weights, mask, doc_ids, 0)
        criterion, chunked = Criterion.of(self), self.loss_chunk is not None and not return_outputs
        wanted = {"return_embeddings": chunked, "return_hiddens": return_hiddens}
        y = self.net(inputs, **kwargs, **{name: True for name, on in wanted.items() if on})
        y, *noted = y if return_hiddens else (y,)
        # Embeddings in front of the tokens (prepend_embeds) have logits, but no targets.
        if chunked:
            losses = criterion.of_embeddings(self.net, y[:, -inputs.shape[1] :], targets)
        else:
            logits = only_logits(self.net, y, inputs)[:, -inputs.shape[1] :]
            losses = criterion.of_logits(logits, targets)
            noted = [logits, *noted] if return_outputs else noted
        return answer(reduced(losses, targets != self.ignore_index, ask, weights), noted)

    def inputs(
        self, x: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None, doc_ids: Tensor | None, beside: Mapping[str, Any]
    ) -> tuple[Int[Tensor, "b n-1"], dict[str, Any]]:
        """What the net is given of n tokens: all but the last, and so of what is beside them."""
        check_handed_on("the loss", beside, AutoregressiveWrapper.forward, self.net.forward)
        if self.mask_prob and self.training:
            beside = {**beside, "attn_mask": forgetful(x, mask, doc_ids, beside, self.mask_prob)}
        beside = without_last(beside, x)
        inputs = x[:, :-1].masked_fill(x[:, :-1] == self.ignore_index, self.pad_value)
        if mask is not None:
            inputs, beside["mask"] = inputs.masked_fill(~mask[:, :-1], 0), mask[:, :-1]
        if doc_ids is not None:
            beside["doc_ids"] = doc_ids[:, :-1]
        return inputs, beside

    def generate(
        self,
        prompts: Rows,
        seq_len: int,
        *,
        eos_token: int | None = None,
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
        **kwargs,
    ) -> Int[Tensor, "*b n"]:
        """The tokens after the prompts, without the prompts: at most `seq_len`, fewer when all rows have ended.

        prompts: (n,), (b, n), or a list of (n,) of any lengths; in a tensor, `prompt_lens` says how many of each row
        count, or `mask` which.
        eos_token: ends its row; `pad_value` follows. min_tokens: how many tokens come before it at least.
        temperature: 0 takes the likeliest token always. generator: where the chance comes from.
        filter_logits_fn: 'top_k' (a tenth of the vocabulary), 'top_p', 'top_a', 'min_p', 'none' or a callable, with
        `filter_kwargs`; it sees the logits before the temperature. filter_thres: `thres` among filter_kwargs.
        repetition_penalty: above 1 makes tokens of the prompt and of what was generated less likely.
        restrict_to_max_seq_len: go on beyond the learned positions by reading only the last tokens, anew for each one.
        cache_kv: False reads everything anew for each token. kwargs: for the first `net.step` (`context=`, ...).
        """
        chance: dict[str, Any] = {"eos_token": eos_token, "temperature": temperature, "generator": generator}
        chance |= {"filter_logits_fn": filter_logits_fn, "filter_kwargs": filter_kwargs, "filter_thres": filter_thres}
        chance |= {"repetition_penalty": repetition_penalty, "min_tokens": min_tokens}
        reading = {"restrict_to_max_seq_len": restrict_to_max_seq_len, "cache_kv": cache_kv}
        steps = self._draws("generate", (prompts, prompt_lens, mask), seq_len, chance, reading, kwargs)
        with evaluating(self):
            return until_ended(steps, eos_token is not None)

    def stream(
        self,
        prompts: Rows,
        seq_len: int,
        *,
        eos_token: int | None = None,
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
        **kwargs,
    ) -> Iterator[Int[Tensor, "*b"]]:
        """`generate` one token a row at a time, as each is drawn; the arguments are checked before the first.

        The model is in eval mode while a token is made and in its own mode in between.
        """
        chance: dict[str, Any] = {"eos_token": eos_token, "temperature": temperature, "generator": generator}
        chance |= {"filter_logits_fn": filter_logits_fn, "filter_kwargs": filter_kwargs, "filter_thres": filter_thres}
        chance |= {"repetition_penalty": repetition_penalty, "min_tokens": min_tokens}
        reading = {"restrict_to_max_seq_len": restrict_to_max_seq_len, "cache_kv": cache_kv}
        steps = self._draws("stream", (prompts, prompt_lens, mask), seq_len, chance, reading, kwargs)

        def each() -> Iterator[Tensor]:
            while True:
                with evaluating(self):
                    made = next(steps, None)
                if made is None:
                    return
                yield made[0]
                if eos_token is not None and bool(made[1].all()):
                    return

        return each()

    def _check_sampling(self, how: str, kwargs: Mapping[str, Any]) -> None:
        """TypeError for an option that neither `how` nor the net has, ValueError for a net that needs other ids too."""
        check_tokens_only(self.net, f"{how} makes token ids only: there would be none of these for new tokens")
        check_for_new_tokens(how, kwargs)
        step: Any = getattr(self.net, "step", None)
        if step is not None:
            check_handed_on(how, kwargs, getattr(AutoregressiveWrapper, how), step)

    def _draws(
        self,
        how: str,
        prompts: tuple[Rows, Any, Any],
        seq_len: int,
        chance: Mapping[str, Any],
        reading: Mapping[str, bool],
        kwargs: Mapping[str, Any],
    ) -> Iterator[tuple[Int[Tensor, "*b"], Bool[Tensor, " b"]]]:
        """`draws` for the arguments of `how`, once they are checked."""
        self._check_sampling(how, kwargs)
        check_eos(self.net, chance["eos_token"])
        draw = Draw(**chance)
        check_switches(**reading)
        aligned = read_prompts(*prompts)
        last = window(self.net, aligned, check_seq_len(seq_len), reading["restrict_to_max_seq_len"])
        cache_kv = reading["cache_kv"]
        return draws(self.net, aligned, seq_len, draw, kwargs, last=last, cache_kv=cache_kv, pad_value=self.pad_value)

    def beam_search(
        self,
        prompts: Rows,
        seq_len: int,
        beams: int = 4,
        *,
        eos_token: int | None = None,
        length_penalty: float = 1.0,
        temperature: float = 1.0,
        return_beams_and_scores: bool = False,
        prompt_lens: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        restrict_to_max_seq_len: bool = False,
        cache_kv: bool = True,
        **kwargs,
    ) -> Int[Tensor, "*b n"] | tuple[Int[Tensor, "a *b n"], Float[Tensor, "a *b"]]:
        """The continuation with the highest score that a beam of `beams` hypotheses finds for each prompt.

        The score is log-probability / tokens ** length_penalty, the end token counted and the logits divided by
        `temperature` before. An ended hypothesis stays in the beam as long as its score does; the search stops when
        nothing open can overtake it. With as many beams as there are sequences the search is exhaustive, with one it
        is greedy. `return_beams_and_scores` gives all beams, best first, and their scores. The rest is as in
        `generate`.
        """
        self._check_sampling("beam_search", kwargs)
        check_switches(
            return_beams_and_scores=return_beams_and_scores,
            restrict_to_max_seq_len=restrict_to_max_seq_len,
            cache_kv=cache_kv,
        )
        aligned = read_prompts(prompts, prompt_lens, mask)
        with evaluating(self):
            found, scores = beam_search(
                self.net,
                aligned,
                seq_len,
                kwargs,
                beams=beams,
                eos_token=eos_token,
                length_penalty=length_penalty,
                temperature=temperature,
                pad_value=self.pad_value,
                all_beams=return_beams_and_scores,
                restrict_to_max_seq_len=restrict_to_max_seq_len,
                cache_kv=cache_kv,
            )
        if not return_beams_and_scores:
            return found[:, 0].reshape(*aligned.lead, -1)
        a, n = found.shape[1:]
        return found.transpose(0, 1).reshape(a, *aligned.lead, n), scores.T.reshape(a, *aligned.lead)
