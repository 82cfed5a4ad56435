"""`MaskedLMWrapper`: a bidirectional model is trained to tell tokens that are hidden from it, and fills them in."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import torch
from torch import nn

from ..base.checks import as_mask, check_generator, check_switch, integer, number
from ..base.shapes import Bool, Float, Int, Tensor
from ..flags.flag import flag
from ..generation.decoding import evaluating
from ..generation.nets import check_bidirectional, only_logits
from ..generation.prompts import token_ids
from ..generation.sampling import filter_settings, find_filter, sample, wide
from ..saving.configurable import Configurable
from .hiding import SCHEDULES, SLACK, Choice, check_schedule, random_subset, reveal, uniform
from .input_embedding import in_range
from .losses import Chunks, Criterion, Terms, adds_own, answer, asked, reduced, with_own
from .options import check_handed_on, check_loss_chunk

__all__ = ["MaskedLMWrapper"]


class MaskedLMWrapper(Configurable):
    """Trains a bidirectional `net` as BERT is trained (https://arxiv.org/abs/1810.04805), and fills in what is hidden.

    Of each row's real tokens a share `mask_prob` is chosen (rounded up, at least one), or a share that is drawn anew
    for each row when that is the name of a schedule ('linear', 'cosine': what `generate` should be trained with). Of
    these, `replace_prob` become the mask token, `random_token_prob` another token (BERT: 0.8 and 0.1), the rest stay;
    the net is to tell them all. Padding (`pad_token_id`, or the mask of a call), the mask token itself and
    `mask_ignore_token_ids` are never chosen, drawn or generated. TypeError or ValueError for a net that is no module,
    that pools or is causal, and for ids that are not among `num_tokens` (unless given, those of the net).
    """

    @dataclass(frozen=True)
    class Config(Chunks, Terms):
        net: nn.Module = flag(doc="a bidirectional model from token ids to logits")
        _: KW_ONLY
        mask_token_id: int = flag(doc="the token that stands for hidden ones", at_least=0)
        pad_token_id: int | None = flag(None, "the token that is padding", at_least=0)
        mask_prob: float | str = flag(
            0.15, "share of a row's tokens that are to be told; 'linear' or 'cosine': drawn anew for each row",
            above=0, at_most=1,
        )  # fmt: skip
        replace_prob: float = flag(0.9, "share of these that become the mask token", at_least=0, at_most=1)
        random_token_prob: float = flag(0.0, "share of these that become another token", at_least=0, at_most=1)
        mask_ignore_token_ids: tuple[int, ...] = flag(
            (), "tokens that are never chosen, drawn or generated", at_least=0
        )
        num_tokens: int | None = flag(None, "token ids that there are (None: those of the net)", at_least=1)
        ignore_index: int = flag(-100, "the label that is never told; where x holds it, the net reads mask_token_id")
        mdlm_weights: bool = flag(
            False, "weights that make the loss, of tokens masked by a schedule, a bound on the negative log-likelihood",
            paper="https://arxiv.org/abs/2406.07524",
        )  # fmt: skip

    gives = "a loss of token ids"

    def assemble(self, config: Config) -> None:
        net = self.net = config.net
        check_bidirectional(net)
        check_loss_chunk(net, config.loss_chunk)
        self.loss_chunk, self.ignore_index = config.loss_chunk, config.ignore_index
        self.label_smoothing, self.z_loss = config.label_smoothing, config.z_loss
        num_tokens = getattr(net, "num_tokens", None) if config.num_tokens is None else config.num_tokens
        self.num_tokens = integer("num_tokens", num_tokens, 1)
        self.mask_token_id, self.pad_token_id = config.mask_token_id, config.pad_token_id
        self.mask_prob = config.mask_prob
        if isinstance(self.mask_prob, str):
            check_schedule("mask_prob", self.mask_prob)
        elif config.mdlm_weights:
            raise ValueError(
                f"mdlm_weights=True weighs shares that a schedule draws, but mask_prob={self.mask_prob} is the same "
                "for all rows: give mask_prob='linear' or 'cosine'"
            )
        self.mdlm_weights = config.mdlm_weights
        self.replace_prob, self.random_token_prob = config.replace_prob, config.random_token_prob
        if self.replace_prob + self.random_token_prob > 1 + 1e-6:
            raise ValueError(
                f"replace_prob={self.replace_prob} and random_token_prob={self.random_token_prob} are more than 1"
            )
        special = self.special_tokens(config)
        runs = itertools.groupby(enumerate(special), lambda pair: pair[1] - pair[0])
        found = [[token for _, token in run] for _, run in runs]
        self.special = [(ids[0], ids[-1] + 1) for ids in found]
        self.words = self.num_tokens - len(special)

    def special_tokens(self, config: Config) -> list[int]:
        """The tokens that are never hidden, in order; ValueError for ids that are none of the vocabulary, or all."""
        named = {"mask_token_id": config.mask_token_id, "pad_token_id": config.pad_token_id}
        ids = [*named.items(), *(("mask_ignore_token_ids", token) for token in config.mask_ignore_token_ids)]
        for name, token in ids:
            if token is not None and token >= self.num_tokens:
                raise ValueError(f"{name} must be below num_tokens={self.num_tokens}, not {token}")
        if config.pad_token_id == config.mask_token_id:
            raise ValueError(
                f"mask_token_id and pad_token_id are both {config.mask_token_id}: hidden tokens would be padding"
            )
        special = {token for _, token in ids if token is not None}
        if len(special) == self.num_tokens:
            raise ValueError(f"all {self.num_tokens} tokens are special ones: there is none to hide")
        return sorted(special)

    def ordinary(self, device: torch.device) -> Bool[Tensor, " v"]:
        """Which tokens are no special ones: made where it is needed, for no checkpoint would fill a buffer of it."""
        ordinary = torch.ones(self.num_tokens, dtype=torch.bool, device=device)
        # Runs of ids, and no list of them, which would be a copy that a GPU is waited for.
        for start, end in self.special:
            ordinary[start:end] = False
        return ordinary

    def extra_repr(self) -> str:
        said = f"mask_token_id={self.mask_token_id}, pad_token_id={self.pad_token_id}, mask_prob={self.mask_prob}"
        return said + Criterion.of(self).shown()

    def forward(
        self,
        x: Int[Tensor, "b n"],
        mask: Tensor | None = None,
        *,
        labels: Int[Tensor, "b n"] | None = None,
        generator: torch.Generator | None = None,
        reduction: str = "mean",
        loss_weights: Float[Tensor, "b n"] | None = None,
        return_count: bool = False,
        return_outputs: bool = False,
        **kwargs,
    ) -> Any:
        """The mean loss, in nats, of telling the chosen tokens; 0 where no row has one.

        mask (b, n): True = real token. labels (b, n): what each token is to be told as (x itself unless given), a token
        with `ignore_index` is never chosen. generator: where the chance comes from. `return_outputs` gives (loss,
        logits, targets), `ignore_index` standing for what is no target. `reduction`, `loss_weights` and `return_count`
        are as in AutoregressiveWrapper, losses (b, n). Everything else goes to `net`.
        """
        check_switch("return_outputs", return_outputs)
        check_handed_on("the loss", kwargs, MaskedLMWrapper.forward, self.net.forward)
        x, labels, told, mask = self.labelled(x, labels, mask)
        ask, n = asked(reduction, loss_weights, return_count, x), x.shape[1]
        choice = self.choose(x, told if mask is None else told & mask, check_generator(generator))
        if mask is not None:
            kwargs["mask"] = mask
        targets = labels.masked_fill(~choice.chosen, self.ignore_index)
        seen, criterion, noted = self.corrupt(x, choice.chosen, generator), Criterion.of(self), []
        # Embeddings in front of the tokens (prepend_embeds) have logits, but nothing hidden.
        own, chunked = adds_own(self, self.net), self.loss_chunk is not None and not return_outputs
        wanted = {"return_embeddings": chunked, "return_auxiliary_loss": own}
        y = self.net(seen, **kwargs, **{name: True for name, on in wanted.items() if on})
        y, lost = y if own else (y, None)
        if chunked:
            losses = criterion.of_embeddings(self.net, y[:, -n:], targets)
        else:
            logits = only_logits(self.net, y, x)[:, -n:]
            losses = criterion.of_logits(logits, targets)
            noted = [logits, targets] if return_outputs else []
        weights, count = self.weigh(choice, ask.weights)
        if lost is not None and count is not None:
            # What divides is not what weighs: the mean is to have it once.
            total = cast(Tensor, weights).masked_fill(~choice.chosen, 0).sum()
            lost = lost * count / (total + (total == 0))
        losses = with_own(losses, choice.chosen, lost)
        return answer(reduced(losses, choice.chosen, ask, weights, count), noted)

    def labelled(self, x: Any, labels: Any, mask: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The ids that the net may read, what they are to be told as, which of them may be, and which are real."""
        ids, mask = self.as_ids(x, mask)
        labels = ids if labels is None else token_ids("labels", labels)
        if labels.shape != ids.shape:
            raise ValueError(f"labels has shape {tuple(labels.shape)}, but x has {tuple(ids.shape)}")
        return ids.masked_fill(ids == self.ignore_index, self.mask_token_id), labels, labels != self.ignore_index, mask

    def weigh(
        self, choice: Choice, given: Float[Tensor, "b n"] | None
    ) -> tuple[Float[Tensor, "b n"] | None, Tensor | None]:
        """What the chosen tokens count for, and what the mean divides by: None where it is their number."""
        if not self.mdlm_weights:
            return given, None
        weights = choice.weights(str(self.mask_prob)).expand(choice.chosen.shape)
        if given is None:
            return weights, choice.allowed.sum()
        return weights * given, given.masked_fill(~choice.allowed, 0).sum()

    def as_ids(self, x: Any, mask: Any) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"] | None]:
        """The ids, 0 at masked places, and which are real; TypeError or ValueError for other things."""
        x = token_ids("x", x)
        if x.ndim != 2 or x.shape[1] < 1:
            raise ValueError(f"x must be (batch, tokens) with at least one token, not {tuple(x.shape)}")
        mask = None if mask is None else as_mask(mask, (x.shape[0], x.shape[1]))
        if self.pad_token_id is not None:
            there = x != self.pad_token_id
            mask = there if mask is None else mask & there
        return (x if mask is None else x.masked_fill(~mask, 0)), mask

    def choose(
        self, x: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None, generator: torch.Generator | None = None
    ) -> Choice:
        """The tokens that the net is to tell, of those that are ordinary and not masked."""
        # An id outside the vocabulary is left for the net to refuse.
        allowed = self.ordinary(x.device)[x.clamp(0, self.num_tokens - 1)]
        allowed = allowed if mask is None else allowed & mask
        share, time = self.mask_prob, torch.ones_like(x[:, 0], dtype=torch.float)
        if isinstance(share, str):
            time = uniform(x[:, 0], generator)
            share = SCHEDULES[share](time)
        count = (allowed.sum(1) * share - SLACK).ceil().clamp(min=1).long()
        return Choice(random_subset(allowed, count, generator), allowed, time)

    def corrupt(
        self, x: Int[Tensor, "b n"], chosen: Bool[Tensor, "b n"], generator: torch.Generator | None = None
    ) -> Int[Tensor, "b n"]:
        """What the net is given instead of x."""
        fate = uniform(x, generator)
        y = x.masked_fill(chosen & (fate < self.replace_prob), self.mask_token_id)
        if not self.random_token_prob:
            return y
        nth = (uniform(x, generator) * self.words).long().clamp(max=self.words - 1)
        # The ordinary token that has `nth` ordinary ones before it.
        drawn = torch.searchsorted(self.ordinary(x.device).cumsum(0), nth + 1)
        odd = (fate >= self.replace_prob) & (fate < self.replace_prob + self.random_token_prob)
        return torch.where(chosen & odd, drawn, y)

    def generate(
        self,
        ids: Tensor | None = None,
        *,
        batch_size: int | None = None,
        seq_len: int | None = None,
        mask: Tensor | None = None,
        steps: int = 18,
        schedule: str = "cosine",
        temperature: float = 1.0,
        filter_logits_fn: str | Callable[..., Tensor] = "none",
        filter_kwargs: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
        **kwargs,
    ) -> Int[Tensor, "*b n"]:
        """`ids` (b, n) or (n,) with every mask token filled in, or new rows (`batch_size` of `seq_len` tokens).

        In `steps` calls of the net: each draws all hidden tokens, keeps those it is surest of and hides the others
        again, as many as the schedule says (https://arxiv.org/abs/2202.04200). The temperature of the draw, and of the
        noise on how sure it is, falls to 0 with the last call; 0 takes the likeliest always. filter_logits_fn,
        filter_kwargs: as in AutoregressiveWrapper.generate. kwargs: for the net.
        """
        check_handed_on("generate", kwargs, MaskedLMWrapper.generate, self.net.forward)
        steps, share = integer("steps", steps, 1), SCHEDULES[check_schedule("schedule", schedule)]
        temperature, generator = number("temperature", temperature, at_least=0), check_generator(generator)
        keep = find_filter(filter_logits_fn, filter_settings(filter_kwargs))
        given = self.blank(batch_size, seq_len) if ids is None else token_ids("ids", ids)
        if ids is not None and (batch_size is not None or seq_len is not None):
            raise ValueError("ids already say how many rows and tokens there are: leave out batch_size and seq_len")
        rows = given if given.ndim != 1 else given[None]
        x, real = self.as_ids(rows, mask)
        if real is not None:
            kwargs["mask"] = real
        x = in_range("ids", x, self.num_tokens)
        hidden = (x == self.mask_token_id) if real is None else (x == self.mask_token_id) & real
        start = hidden.sum(1)
        with evaluating(self):
            for step in range(1, steps + 1):
                # On the CPU it costs nothing to see that nothing is left to do.
                if x.device.type == "cpu" and not hidden.any():
                    break
                warmth = temperature * (steps - step) / steps
                logits = only_logits(self.net, self.net(x, **kwargs), x)[:, -x.shape[1] :]
                drawn, sure = self.draw(logits, keep, warmth, generator)
                left = (share(torch.tensor(step / steps)) * start + SLACK).floor().long()
                stay = reveal(sure, hidden, left)
                x, hidden = torch.where(hidden & ~stay, drawn, x), stay
        filled = x if real is None else torch.where(real, x, rows)
        return filled.reshape(given.shape)

    def draw(
        self, logits: Float[Tensor, "b n v"], keep: Callable, warmth: float, generator: torch.Generator | None
    ) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b n"]]:
        """A token for each place, and how sure the net is of it."""
        logits = wide(logits).clone()
        logits[..., : self.num_tokens].masked_fill_(~self.ordinary(logits.device)[: logits.shape[-1]], -math.inf)
        logits[..., self.num_tokens :] = -math.inf
        drawn = sample(keep(logits) if warmth > 0 else logits, warmth, generator)
        sure = logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
        if warmth > 0:
            noise = torch.empty_like(sure).exponential_(generator=generator)
            sure = sure - warmth * noise.clamp_min_(torch.finfo(noise.dtype).tiny).log()
        return drawn, sure

    def blank(self, batch_size: Any, seq_len: Any) -> Int[Tensor, "b n"]:
        """Rows in which everything is hidden, on the net's device."""
        if seq_len is None:
            seq_len = getattr(self.net, "max_seq_len", None)
        if seq_len is None:
            raise ValueError("generate needs ids, or seq_len: the model has no max_seq_len that would say how many")
        shape = (1 if batch_size is None else integer("batch_size", batch_size, 1), integer("seq_len", seq_len, 1))
        held = next(itertools.chain(self.parameters(), self.buffers()), None)
        return torch.full(shape, self.mask_token_id, device=None if held is None else held.device)
