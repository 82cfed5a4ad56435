"""`SegmentWrapper`: trains a causal model on texts longer than what it reads at a time, its state carried across."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..base.checks import check_switch
from ..base.looks import may_look
from ..base.pieces import Piecewise, borders
from ..base.registry import side_inputs
from ..base.shapes import Bool, Float, Int, Tensor
from ..flags.flag import flag, flags_of
from ..generation.prompts import prefix_of
from .autoregressive import AutoregressiveWrapper
from .losses import Criterion, Labels, Terms, adds_own, answer, reduced, with_own
from .options import check_handed_on, check_lengths, check_tokens_only
from .targets import in_front, unseen_targets
from .texts import Text, as_text

__all__ = [
    "SegmentWrapper",
    "SegmentsReader",
    "detached",
    "drawn",
    "has_memory",
    "segments_loss",
]


def segments_loss(
    segment: Callable[..., tuple[Tensor, Any]],
    text: Text,
    segment_len: int,
    state: Any = None,
    *,
    enter: Callable[[Any, int], Any] = lambda state, number: state,
    leave: Callable[[Any], Any] = lambda state: state,
    forget: Callable[[], bool] = lambda: False,
    ignore_index: int = -100,
    checkpointed: bool = False,
    kwargs: Mapping[str, Any] | None = None,
) -> tuple[list[Tensor], Any]:
    """What is `reduced` of all targets of a text that is read segment by segment, and the state behind it.

    segment: the losses of one and the state behind it, given the state, inputs, targets and what goes beside them.
    enter: the state a segment starts from, given the one before it and the segment's number in this call.  leave: what
    is carried on of the state behind a segment.  forget: asked before each segment, whether all rows start anew.
    checkpointed: nothing inside a segment is kept for its gradients, it is computed again.  kwargs: for the first step.
    """
    b, n = text.inputs.shape
    text = unseen(text, segment_len, kwargs or {}, ignore_index)
    losses: list[Tensor] = []
    for number, (start, end) in enumerate(borders(n, segment_len, [0])):
        state, here = enter(state, number), slice(start, end)
        reset = text.resets[number] if text.resets else None
        if forget():
            reset = torch.ones(b, dtype=torch.bool, device=text.inputs.device)
        beside: dict[str, Any] = {} if text.mask is None else {"mask": text.mask[:, here]}
        if reset is not None and state is not None:
            beside["reset"] = reset
        beside |= of_segment(kwargs or {}, start, end, n + 1)
        given_segment = (state, text.inputs[:, here], text.targets[:, here], beside)
        if checkpointed and torch.is_grad_enabled():
            found, state = checkpoint(segment, *given_segment, use_reentrant=False)
        else:
            found, state = segment(*given_segment)
        losses.append(found)
        state = leave(state)
    return reduced(torch.cat(losses, 1), text.targets != ignore_index, text.ask, text.ask.weights), state


def of_segment(kwargs: Mapping[str, Any], start: int, end: int, n: int) -> dict[str, Any]:
    """What the step of a segment of a text of n tokens is given: what is of tokens is cut, the rest for the first."""
    cut = {name for name in kwargs if name in side_inputs and side_inputs[name]().per_token(kwargs[name], n)}
    if "attn_mask" in kwargs:
        raise TypeError("the loss has no option 'attn_mask': segments see tokens of which it says nothing")
    check_lengths(kwargs, n, "the text")
    return {
        name: value[:, start:end] if name in cut else value
        for name, value in kwargs.items()
        if start == 0 or name in cut
    }


def unseen(text: Text, segment_len: int, first: Mapping[str, Any], ignore_index: int) -> Text:
    """A text without the targets that its first segment, read with `first` beside it, shows."""
    if not first:
        return text
    mask = None if text.mask is None else text.mask[:, :segment_len]
    check_prefix_inside(text.mask, segment_len, first)
    targets = unseen_targets(text.targets[:, :segment_len], mask, first, ignore_index)
    return text._replace(targets=torch.cat((targets, text.targets[:, segment_len:]), 1))


def check_prefix_inside(mask: Bool[Tensor, "b n"] | None, segment_len: int, first: Mapping[str, Any]) -> None:
    """ValueError for a prefix that some row's first segment has too few real tokens for, while more of them follow."""
    if mask is None or (prefix := prefix_of(first, mask.shape[0])) is None:
        return
    real = mask[:, :segment_len].sum(1, keepdim=True)
    prefix = prefix[:, None].to(mask.device) if isinstance(prefix, Tensor) else prefix
    short = (real + in_front(first) < prefix) & (mask.sum(1, keepdim=True) > real)
    if may_look(short) and short.any():
        row = int(short.nonzero()[0, 0])
        raise ValueError(
            f"prefix_attn_len goes beyond the {int(real[row])} real tokens that the first segment has in row {row}: "
            "a prefix is read in one piece; make segment_len larger, or leave out masked tokens in front of it"
        )


class SegmentsReader(Piecewise):
    """The part of a trainer that reads texts segment by segment: `compile` compiles a segment's loss."""

    def read_by(self) -> tuple[Any, Criterion]:
        """The model that reads, and how its losses are computed."""
        raise NotImplementedError

    def one_piece(
        self, state: Any, inputs: Int[Tensor, "b n"], targets: Int[Tensor, "b n"], beside: Mapping[str, Any]
    ) -> tuple[Float[Tensor, "b n"], Any]:
        """The losses of one segment, and the state behind it."""
        net, criterion = self.read_by()
        own = {"return_auxiliary_loss": True} if adds_own(self, net) else {}
        logits, state, *lost = net.step(inputs, state, **beside, **own)
        # Embeddings in front of the tokens (prepend_embeds) have logits, but no targets.
        losses = criterion.of_logits(logits[:, -inputs.shape[1] :], targets)
        return with_own(losses, targets != criterion.ignore_index, lost[0] if lost else None), state

    def room(self, *piece: Any) -> tuple[Any, int]:
        inputs, _, beside = piece
        tokens = (inputs, beside.get("prepend_embeds"))
        return getattr(self.read_by()[0], "attn_layers", None), sum(t.shape[1] for t in tokens if t is not None)


def detached(state: Any, number: int, every: int | None) -> Any:
    """The state that segment `number` of a call starts from: cut from its graph after each `every` segments."""
    if state is None or every is None or not number or number % every:
        return state
    return state.detach()


def drawn(chance: float) -> bool:
    """Whether what has this chance happens now; drawn from torch's generator."""
    return chance > 0 and bool(torch.rand(()) < chance)


def has_memory(net: Any) -> bool:
    """Whether a model has Transformer-XL's memory: a `max_mem_len` that its `remember` cuts a state down to."""
    return bool(getattr(net, "max_mem_len", None))


class SegmentWrapper(SegmentsReader, AutoregressiveWrapper):
    """Trains a causal `net` on texts of any length in segments of `segment_len` tokens, each behind what came before.

    `net` has `step(ids, state, mask=, reset=)`, as every causal model here has. The loss is that of the text read
    whole, whatever `segment_len` is; what differs is how far gradients reach (truncated backpropagation through time)
    and how much is held for them. Only a net with Transformer-XL's memory (`max_mem_len`, https://arxiv.org/abs/1901.02860)
    knows less: at the end of each segment its state is cut to the last max_mem_len tokens, and detached unless
    `detach_every` says how often.

    `generate`, `stream` and `beam_search` are those of AutoregressiveWrapper, which cuts no memory down
    (XLAutoregressiveWrapper does).
    """

    @dataclass(frozen=True)
    class Config(Terms, Labels):
        net: nn.Module = flag(doc="a causal model with step(ids, state, mask=, reset=)")
        segment_len: int = flag(doc="tokens that are read at a time", at_least=1)
        _: KW_ONLY
        detach_every: int | None = flag(None, "segments that gradients flow through (None: all of a call)", at_least=1)
        memory_dropout: float = flag(
            0.0, "chance, while training, that all rows start anew before a segment", at_least=0, below=1
        )
        grad_checkpoint: bool = flag(False, "what is computed inside a segment is computed again for its gradients")

    def assemble(self, config: Config) -> None:
        net: Any = config.net
        every = config.detach_every
        losses = {name: getattr(config, name) for name in (*flags_of(Labels), *flags_of(Terms))}
        super().assemble(AutoregressiveWrapper.Config(net, **losses))
        if not hasattr(net, "step"):
            raise TypeError(f"{type(net).__name__} has no step(ids, state, mask=): nothing is carried across segments")
        if hasattr(net, "check_steppable"):
            net.check_steppable()
        check_tokens_only(net, "segments are read with token ids only")
        self.segment_len, self.detach_every = config.segment_len, every
        self.memory_dropout, self.grad_checkpoint = config.memory_dropout, config.grad_checkpoint

    def extra_repr(self) -> str:
        return f"segment_len={self.segment_len}, detach_every={self.detach_every}, {super().extra_repr()}"

    def read_by(self) -> tuple[Any, Criterion]:
        return self.net, Criterion.of(self)

    def forward(  # type: ignore[override]
        self,
        x: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
        *,
        state: Any | None = None,
        labels: Int[Tensor, "b n"] | None = None,
        reset: Bool[Tensor, "b *s"] | None = None,
        reduction: str = "mean",
        loss_weights: Float[Tensor, "b n"] | None = None,
        return_count: bool = False,
        return_state: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The mean loss of predicting each next real token; with `return_state` the state behind all but x's last too.

        The last token of a call is a target only: give it again as the first token of the call that goes on with the
        state. A token is a target when it and the one before it are real (`mask`) and of one document, its label
        (`labels`, x itself unless given) is not `ignore_index`, and no prefix shows it. `reset` names the rows that
        begin another document with this call, (b,), or with each of its s segments, (b, s): their state is as new,
        neighbours go on. A document that ends inside a segment is padded up to its end. `reduction`, `loss_weights`
        and `return_count` are as in AutoregressiveWrapper. kwargs: for the first `net.step` (`context=`).
        """
        check_switch("return_state", return_state)
        loss = (reduction, loss_weights, return_count)
        text = as_text(x, self.segment_len, mask, labels, reset, self.ignore_index, self.pad_value, loss)
        net: Any = self.net
        remembers = has_memory(net)
        every = 1 if remembers and self.detach_every is None else self.detach_every
        check_handed_on("the loss", kwargs, SegmentWrapper.forward, net.step)
        found, state = segments_loss(
            self.next_piece,
            text,
            self.segment_len,
            state,
            enter=lambda before, number: detached(before, number, every),
            leave=partial(net.remember, detach=False) if remembers else lambda after: after,
            forget=lambda: self.training and drawn(self.memory_dropout),
            ignore_index=self.ignore_index,
            checkpointed=self.grad_checkpoint,
            kwargs=kwargs,
        )
        state = state.detach() if remembers else state
        return answer(found, [state] if return_state else [])
