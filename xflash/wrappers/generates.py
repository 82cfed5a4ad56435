"""`Generates`: what makes tokens behind prompts, with a causal model from token ids to logits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..base.checks import check_switches
from ..base.shapes import Float, Int, Tensor
from ..generation.beam import beam_search
from ..generation.contrast import contrasted
from ..generation.decoding import Drawn, draws, evaluating, until_ended
from ..generation.nets import check_eos
from ..generation.prompts import Rows, check_seq_len, read_prompts, window
from ..generation.sampling import Draw
from .options import check_for_new_tokens, check_handed_on, check_tokens_only

__all__ = ["Generates"]


class Generates(nn.Module):
    """The part of a trainer that samples its `net`, a model with `step(ids, state, mask=) -> (logits, state)`."""

    net: nn.Module
    pad_value: int

    def generate(
        self,
        prompts: Rows,
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
        amateur_model: nn.Module | Sequence[nn.Module] | None = None,
        contrastive_decode_kwargs: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
        restrict_to_max_seq_len: bool = False,
        cache_kv: bool = True,
        return_log_probs: bool = False,
        **kwargs,
    ) -> Any:
        """The tokens after the prompts, without the prompts: at most `seq_len`, fewer when all rows have ended.

        prompts: (n,), (b, n), or a list of (n,) of any lengths; in a tensor, `prompt_lens` says how many of each row
        count, or `mask` which.
        eos_token: ends its row, as each of several does; `pad_value` follows. min_tokens: how many tokens come before
        it at least.
        temperature: 0 takes the likeliest token always. generator: where the chance comes from.
        filter_logits_fn: 'top_k' (a tenth of the vocabulary), 'top_p', 'top_a', 'min_p', 'none' or a callable, with
        `filter_kwargs`; it sees the logits before the temperature. filter_thres: `thres` among filter_kwargs.
        repetition_penalty: above 1 makes tokens of the prompt and of what was generated less likely.
        restrict_to_max_seq_len: go on beyond the learned positions by reading only the last tokens, anew for each one.
        cache_kv: False reads everything anew for each token. kwargs: for the first `net.step` (`context=`, ...).
        amateur_model: a weaker model, or several, to be contrasted with (https://arxiv.org/abs/2309.09117): logits are
        1 + beta times those of the net minus beta times its, of tokens that are at least alpha times as likely as the
        likeliest. contrastive_decode_kwargs: beta (0.5) and alpha (0.1). Then 'top_k' alone filters nothing more.
        return_log_probs: (tokens, log-probabilities), those of the logits before penalty, filter and temperature, 0
        behind a row's end.
        """
        chance: dict[str, Any] = {"eos_token": eos_token, "temperature": temperature, "generator": generator}
        chance |= {"filter_logits_fn": filter_logits_fn, "filter_kwargs": filter_kwargs, "filter_thres": filter_thres}
        chance |= {"repetition_penalty": repetition_penalty, "min_tokens": min_tokens}
        reading: dict[str, Any] = {"restrict_to_max_seq_len": restrict_to_max_seq_len, "cache_kv": cache_kv}
        reading |= {"amateurs": amateur_model, "settings": contrastive_decode_kwargs, "log_probs": return_log_probs}
        held, steps = self.draws("generate", (prompts, prompt_lens, mask), seq_len, chance, reading, kwargs)
        with evaluating(held):
            tokens, likely = until_ended(steps, eos_token is not None)
        return (tokens, likely) if return_log_probs else tokens

    def stream(
        self,
        prompts: Rows,
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
        amateur_model: nn.Module | Sequence[nn.Module] | None = None,
        contrastive_decode_kwargs: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
        restrict_to_max_seq_len: bool = False,
        cache_kv: bool = True,
        return_log_probs: bool = False,
        **kwargs,
    ) -> Iterator[Any]:
        """`generate` one token a row at a time, as each is drawn; the arguments are checked before the first.

        The model is in eval mode while a token is made and in its own mode in between. With `return_log_probs` pairs of
        tokens and their log-probabilities.
        """
        chance: dict[str, Any] = {"eos_token": eos_token, "temperature": temperature, "generator": generator}
        chance |= {"filter_logits_fn": filter_logits_fn, "filter_kwargs": filter_kwargs, "filter_thres": filter_thres}
        chance |= {"repetition_penalty": repetition_penalty, "min_tokens": min_tokens}
        reading: dict[str, Any] = {"restrict_to_max_seq_len": restrict_to_max_seq_len, "cache_kv": cache_kv}
        reading |= {"amateurs": amateur_model, "settings": contrastive_decode_kwargs, "log_probs": return_log_probs}
        held, steps = self.draws("stream", (prompts, prompt_lens, mask), seq_len, chance, reading, kwargs)

        def each() -> Iterator[Any]:
            while True:
                with evaluating(held):
                    made = next(steps, None)
                if made is None:
                    return
                yield made.token if made.log_prob is None else (made.token, made.log_prob)
                if eos_token is not None and bool(made.ended.all()):
                    return

        return each()

    def check_sampling(self, how: str, kwargs: Mapping[str, Any]) -> None:
        """TypeError for an option that neither `how` nor the net has, ValueError for a net that needs other ids too."""
        check_tokens_only(self.net, f"{how} makes token ids only: there would be none of these for new tokens")
        check_for_new_tokens(how, kwargs)
        step: Any = getattr(self.net, "step", None)
        if step is not None:
            # How often a stack is gone through is of calls without a state.
            told = {name: value for name, value in kwargs.items() if name not in ("recycle_steps", "looped_steps")}
            check_handed_on(how, told, getattr(Generates, how), step)

    def draws(
        self,
        how: str,
        prompts: tuple[Rows, Any, Any],
        seq_len: int,
        chance: dict[str, Any],
        reading: Mapping[str, Any],
        kwargs: Mapping[str, Any],
    ) -> tuple[nn.Module, Iterator[Drawn]]:
        """What is to be in eval mode, and `draws` for the arguments of `how`, once they are checked."""
        self.check_sampling(how, kwargs)
        switches = {name: reading[name] for name in ("restrict_to_max_seq_len", "cache_kv")}
        check_switches(**switches, return_log_probs=reading["log_probs"])
        net = self.read_beside(reading, chance)
        check_eos(net, chance["eos_token"])
        draw, aligned = Draw(**chance), read_prompts(*prompts)
        last = window(net, aligned, check_seq_len(seq_len), reading["restrict_to_max_seq_len"])
        options = {"last": last, "cache_kv": reading["cache_kv"], "log_probs": reading["log_probs"]}
        held = self if net is self.net else nn.ModuleList((self, net))
        return held, draws(net, aligned, seq_len, draw, kwargs, pad_value=self.pad_value, **options)

    def read_beside(self, reading: Mapping[str, Any], chance: dict[str, Any]) -> nn.Module:
        """The net, beside its amateurs where there are any: what they leave is filtered only where a filter is said."""
        amateurs, settings = reading["amateurs"], reading["settings"]
        if amateurs is None:
            if settings is not None:
                raise ValueError("contrastive_decode_kwargs say how to contrast with amateur_model, which is not given")
            return self.net
        if chance["filter_logits_fn"] == "top_k" and not chance["filter_kwargs"] and chance["filter_thres"] is None:
            chance["filter_logits_fn"] = "none"
        many = list(amateurs) if isinstance(amateurs, (list, tuple)) else [amateurs]
        many = [net.net if isinstance(net, Generates) else net for net in many]
        return contrasted(self.net, many, settings, reading["cache_kv"])

    def beam_search(
        self,
        prompts: Rows,
        seq_len: int,
        beams: int = 4,
        *,
        eos_token: int | Sequence[int] | None = None,
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
        self.check_sampling("beam_search", kwargs)
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
