"""`XLAutoregressiveWrapper`: Transformer-XL trained and sampled in segments, with the calls of x-transformers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from ..base.checks import check_switch, given
from ..base.shapes import Float, Int, Tensor
from ..base.state import State
from ..flags.flag import flag, like
from ..saving.configurable import Configurable
from .autoregressive import AutoregressiveWrapper
from .losses import Criterion, Labels, Terms, answer
from .model_state import ModelState
from .options import check_handed_on, check_tokens_only
from .segments import SegmentsReader, detached, has_memory, segments_loss
from .texts import as_text
from .transformer import TransformerWrapper

__all__ = ["SegmentState", "SegmentedReader", "XLAutoregressiveWrapper"]


class SegmentFields(NamedTuple):
    """What a model that reads in segments carries."""

    inner: ModelState
    filled: int


class SegmentState(State, SegmentFields):
    """The state of the net, and how many tokens the open segment has."""

    __slots__ = ()


class SegmentedReader(nn.Module):
    """`net` as it is trained in segments: its state is cut down to its memory whenever a segment is full.

    A step reads any number of tokens behind what came before, or behind `mems` when nothing did.
    """

    causal, length_limit = True, None

    def __init__(self, net: TransformerWrapper, segment_len: int, mems: ModelState | None = None):
        super().__init__()
        self.net, self.segment_len, self.mems = net, segment_len, mems
        self.num_tokens = net.num_tokens

    def forward(self, x: Int[Tensor, "b n"], mask: Tensor | None = None, **kwargs: Any) -> Float[Tensor, "b n v"]:
        """The logits of whole texts."""
        return self.step(x, None, mask, **kwargs)[0]

    def step(
        self, x: Int[Tensor, "b n"], state: SegmentState | None = None, mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Float[Tensor, "b n v"], SegmentState]:
        """The logits of new tokens, and the state with them; `kwargs` are for the first step of the net."""
        if mask is not None:
            raise ValueError(
                "prompts of different lengths have the ends of their segments at different places: generate from "
                "those of one length at a time"
            )
        inner, filled = (self.mems, 0) if state is None else state
        logits, at = [], 0
        while at < x.shape[1]:
            if filled == self.segment_len:
                inner, filled = self.net.remember(cast(ModelState, inner)), 0
            piece = x[:, at : at + self.segment_len - filled]
            y, inner = self.net.step(piece, inner, **kwargs)
            kwargs, at, filled = {}, at + piece.shape[1], filled + piece.shape[1]
            logits.append(y)
        return torch.cat(logits, 1), SegmentState(cast(ModelState, inner), filled)


class XLAutoregressiveWrapper(SegmentsReader, Configurable):
    """Trains and samples a Transformer-XL (https://arxiv.org/abs/1901.02860) in segments of its max_seq_len tokens.

    Each segment reads the keys and values of the last max_mem_len tokens before it. Gradients flow through those of
    `tbptt_steps` segments, their own counted: 1 is Transformer-XL.
    Generation cuts the memory where training does, so that it sees what training saw and costs the same behind any
    number of tokens. Raises ValueError for a net without max_mem_len or max_seq_len, or with learned positions, which
    end where a second segment begins.
    """

    @dataclass(frozen=True)
    class Config(Terms):
        net: TransformerWrapper = flag(doc="a causal model with max_mem_len, and max_seq_len for a segment's length")
        ignore_index: int = like(Labels, "ignore_index")
        pad_value: int = like(Labels, "pad_value")
        _: KW_ONLY
        tbptt_steps: int = flag(1, "segments that gradients flow through before they are cut", at_least=1)

    gives = "a loss of token ids"

    def assemble(self, config: Config) -> None:
        net = config.net
        if not has_memory(net):
            raise ValueError(
                f"{type(net).__name__} has no memory to carry across segments: build it with max_mem_len, or train it "
                "in a SegmentWrapper"
            )
        if net.max_seq_len is None:
            raise ValueError(f"{type(net).__name__} has no max_seq_len, which says how long a segment is")
        if net.length_limit is not None:
            raise ValueError(
                f"learned absolute positions end at max_seq_len={net.length_limit}, where the second segment begins: "
                "use relative ones such as pos='rotary', or scaled_sinu_pos_emb=True"
            )
        check_tokens_only(net, "segments are read with token ids only")
        self.net, self.segment_len, self.tbptt_steps = net, net.max_seq_len, config.tbptt_steps
        self.ignore_index, self.pad_value = config.ignore_index, config.pad_value
        self.label_smoothing, self.z_loss = config.label_smoothing, config.z_loss
        AutoregressiveWrapper(net, ignore_index=self.ignore_index, pad_value=self.pad_value)  # for its checks

    def extra_repr(self) -> str:
        said = f"segment_len={self.segment_len}, ignore_index={self.ignore_index}, pad_value={self.pad_value}"
        return said + Criterion.of(self).shown()

    def read_by(self) -> tuple[Any, Criterion]:
        return self.net, Criterion.of(self)

    def forward(
        self,
        x: Int[Tensor, "b n"],
        mems: ModelState | None = None,
        mask: Tensor | None = None,
        *,
        labels: Int[Tensor, "b n"] | None = None,
        reset: Tensor | None = None,
        reduction: str = "mean",
        loss_weights: Float[Tensor, "b n"] | None = None,
        return_count: bool = False,
        return_mems: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The mean loss of predicting each next real token; with `return_mems` the memory behind all but x's last too.

        The last token is a target only: the call that goes on with these `mems` begins with it. `mask`, `labels`,
        `reset` and what is said of the loss are as in SegmentWrapper. kwargs: for the first `net.step`.
        """
        self.check_mems(mems, x)
        check_switch("return_mems", return_mems)
        loss = (reduction, loss_weights, return_count)
        text = as_text(x, self.segment_len, mask, labels, reset, self.ignore_index, self.pad_value, loss)
        net = self.net
        check_handed_on("the loss", kwargs, XLAutoregressiveWrapper.forward, net.step)
        found, mems = segments_loss(
            self.next_piece,
            text,
            self.segment_len,
            mems,
            enter=lambda before, number: detached(before, number, self.tbptt_steps),
            leave=partial(net.remember, detach=False),
            ignore_index=self.ignore_index,
            kwargs=kwargs,
        )
        return answer(found, [mems.detach()] if return_mems else [])

    def generate(
        self,
        start_tokens: Int[Tensor, "*b n"],
        seq_len: int,
        eos_token: int | Sequence[int] | None = None,
        temperature: float = 1.0,
        filter_logits_fn: str | Callable[..., Tensor] = "top_k",
        filter_kwargs: Mapping[str, Any] | None = None,
        mems: ModelState | None = None,
        **options: Any,
    ) -> Any:
        """The tokens after `start_tokens`, all of one length, behind `mems`; `options` are AutoregressiveWrapper's."""
        options |= {"eos_token": eos_token, "temperature": temperature}
        options |= {"filter_logits_fn": filter_logits_fn, "filter_kwargs": filter_kwargs}
        check_handed_on("generate", options, AutoregressiveWrapper.generate, self.net.step)
        return self.reader(start_tokens, mems).generate(start_tokens, seq_len, **options)

    def stream(
        self, start_tokens: Int[Tensor, "*b n"], seq_len: int, mems: ModelState | None = None, **options: Any
    ) -> Iterator[Int[Tensor, "*b"]]:
        """`generate` one token a row at a time."""
        check_handed_on("stream", options, AutoregressiveWrapper.stream, self.net.step)
        return self.reader(start_tokens, mems).stream(start_tokens, seq_len, **options)

    def beam_search(
        self,
        start_tokens: Int[Tensor, "*b n"],
        seq_len: int,
        beams: int = 4,
        mems: ModelState | None = None,
        **options: Any,
    ) -> Any:
        """AutoregressiveWrapper's, with the memory cut where training cuts it."""
        check_handed_on("beam_search", options, AutoregressiveWrapper.beam_search, self.net.step)
        return self.reader(start_tokens, mems).beam_search(start_tokens, seq_len, beams, **options)

    def reader(self, start_tokens: Any, mems: ModelState | None) -> AutoregressiveWrapper:
        """What generates: the net behind `mems`, its state cut down at the end of each segment."""
        self.check_mems(mems, start_tokens)
        reader = SegmentedReader(self.net, self.segment_len, mems)
        return AutoregressiveWrapper(reader, ignore_index=self.ignore_index, pad_value=self.pad_value)

    def check_mems(self, mems: Any, x: Any) -> None:
        """TypeError or ValueError for memories that are not this model's, or are of another batch size."""
        if mems is None:
            return
        if not isinstance(mems, ModelState):
            raise TypeError(f"mems must be what the model gave, a ModelState, not {given(mems)}")
        if isinstance(x, torch.Tensor) and x.dim() > 0:
            self.net.attn_layers.check_state(mems.stack, x.shape[:-1].numel())
