"""`StreamModel`: what models have in common whose tokens come one after the other, whatever a token is."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from ..base.checks import as_doc_ids, as_rows, check_switch
from ..base.frozen import frozen
from ..base.shapes import Bool, Float, Tensor
from ..flags.flag import flag
from ..stack.face import AttentionLayers
from ..stack.memory import moved_down
from .compiled_step import CompilableStep
from .model import Model, behind
from .model_state import ModelState, stack_state
from .passes import Passes
from .pooled_output import PooledOutput
from .stack_given import memory_length, memory_shift
from .wanted import Wanted

__all__ = ["StreamModel"]

FRONT = ("prepend_embeds", "prepend_mask")


class StreamModel(CompilableStep, Model):
    """A model of tokens x (b, n, ...), through whole sequences or, where its stack is causal, from a state to the next.

    Its `embedding` is a `StreamInput`; `beside_tokens` names what that is given for each token beside x.
    """

    @frozen
    class Config(PooledOutput.Config):
        attn_layers: AttentionLayers = flag(
            doc="the stack: Decoder(...), Encoder(...) or another", tried="every combination has its own"
        )
        num_memory_tokens: int | None = flag(
            None, "learned tokens in front of every sequence (None: as the stack says)", at_least=0,
            paper="https://arxiv.org/abs/2006.11527", tried=(3,),
        )  # fmt: skip
        max_mem_len: int | None = flag(
            None, "tokens whose keys and values are carried on to the next segment (None: no memory)", at_least=0,
            paper="https://arxiv.org/abs/1901.02860", tried=(29,),
        )  # fmt: skip
        shift_mem_down: int = flag(
            0, "each layer is given what the layer so many below it has read before, as its memory", at_least=0,
            paper="https://arxiv.org/abs/2012.15688", tried=({"shift_mem_down": 1, "max_mem_len": 29},),
        )  # fmt: skip

    beside_tokens: ClassVar[tuple[str, ...]] = ()
    maker: ClassVar[str] = "AutoregressiveWrapper(model).{how} makes tokens"
    filler: ClassVar[str] = "it sees all tokens at once; a Decoder makes one after the other"
    passes: Passes | None
    max_mem_len: int | None
    read_width: int
    max_seq_len: int | None

    def hold(self, config: Any) -> None:
        """Takes the stack of a config, its memory and its pooling."""
        self.attn_layers, self.max_seq_len = config.attn_layers, config.max_seq_len or None
        self.read_width, self.passes = config.dim_pooled_tokens or self.dim, None
        if config.num_memory_tokens:
            self.attn_layers.set_memory_tokens(config.num_memory_tokens)
        self.max_mem_len = memory_length(config.max_mem_len, self.attn_layers)
        self.shift_mem_down = memory_shift(config.shift_mem_down, self.max_mem_len, self.attn_layers)

    @property
    def causal(self) -> bool:
        """Whether no output depends on later tokens, so that the model can be stepped."""
        return self.attn_layers.causal and self.pooled is None

    @property
    def length_limit(self) -> int | None:
        """The most tokens a row can have; None when any number is possible."""
        return self.embedding.length_limit

    def call(
        self,
        x: Any,
        mask: Tensor | None,
        front: Mapping[str, Any],
        beside: dict[str, Any],
        wanted: Wanted,
        mems: ModelState | None,
        again: Callable[..., Tensor] | None = None,
    ) -> Any:
        """What `forward` gives of x; front: what the embedding is given beside it, beside: what the stack is.

        again: passes of the stack before the last one, as in `through`.
        """
        whole = {name: beside.get(name) for name in ("attn_mask", "doc_ids")}
        wanted.check(mems, **whole)
        if mems is not None or wanted.mems:
            sides = {name: value for name, value in beside.items() if name not in whole}
            logits, state, *noted = self.go_on(x, mems, mask, front, sides, None, wanted.of_layers())
            out = (logits, self.remember(state), *noted) if wanted.mems else (logits, *noted)
            return out if len(out) > 1 else logits
        y, noted = self.outputs(x, mask, front, beside, wanted, again)
        return self.answer(wanted, y, lambda: y, noted)

    def outputs(
        self,
        x: Any,
        mask: Tensor | None,
        front: Mapping[str, Any],
        beside: dict[str, Any],
        wanted: Wanted,
        again: Callable[..., Tensor] | None = None,
    ) -> tuple[Float[Tensor, "b *n d"], list]:
        """What the head reads of whole sequences, and what was asked for of the layers."""
        x, mask = self.embedding.check(x, mask)
        if beside.get("doc_ids") is not None:
            beside["doc_ids"] = as_doc_ids(beside["doc_ids"], (x.shape[0], x.shape[1]))
        embedded, mask = self.embedding(x, mask, doc_ids=beside.get("doc_ids"), **front)
        beside = behind(x, embedded.shape[1] - x.shape[1], beside)
        if self.pooled is not None and beside.get("doc_ids") is not None:
            raise ValueError(f"doc_ids and {self.pooled.kind} exclude each other: documents would be pooled together")
        y, mask, noted = self.through(embedded, mask, beside, wanted, again)
        return (y if self.pooled is None else self.pooled(y, mask)), noted

    def go_on(
        self,
        x: Any,
        state: ModelState | None,
        mask: Tensor | None,
        front: Mapping[str, Any],
        beside: dict[str, Any],
        reset: Tensor | None,
        noted: Mapping[str, bool],
    ) -> tuple[Any, ...]:
        """What `step` gives of x; noted: what of the layers is wanted, by switches of the stack's."""
        self.check_steppable(getattr(state, "stack", None))
        x, mask = self.embedding.check(x, mask)
        reset = None if reset is None else as_rows("reset", reset, x.shape[0])
        if state is not None:
            self.attn_layers.check_state(stack_state(state), x.shape[0])
            if reset is not None:
                state = self.reset(state, reset)
        own = {name: front[name] for name in self.beside_tokens}
        others = (*(front[name] for name in FRONT), *beside.values())
        plain = all(value is None for value in others) and all(on is False for on in noted.values())
        if state is not None and x.shape[1] == 1 and plain and not torch.is_grad_enabled() and self.compiled_step:
            self.embedding.check_given(x, own)
            return self.compiled_step(x, state, mask, own)
        return self.advance(x, state, mask, front, beside, noted)

    def check_steppable(self, state: Any = None) -> None:
        """ValueError with the reason when the model cannot be stepped; state: what its stack is to go on from."""
        if self.pooled is not None:
            raise ValueError(f"a model with {self.pooled.kind}=True has no step: its output is of the whole sequence")
        if self.passes is not None:
            raise ValueError(
                f"a model with {self.passes.kind}=True has no step: a state holds what one pass has seen, not several "
                "(generate does without one with cache_kv=False)"
            )
        self.attn_layers.check_steppable(state)

    def advance(
        self,
        x: Tensor,
        state: ModelState | None,
        mask: Bool[Tensor, "b n"] | None,
        front: Mapping[str, Any],
        beside: dict[str, Any],
        noted: Mapping[str, bool] | None = None,
    ) -> tuple[Any, ...]:
        """`go_on` with checked tokens, mask and state."""
        past, length = (0, None) if state is None else (state.bound, state.length)
        embedded, full = self.embedding(x, mask, past=past, length=length, **front)
        inputs: dict[str, Any] = {**behind(x, embedded.shape[1] - x.shape[1], beside), **(noted or {})}
        y, stack, *found = self.attn_layers.step(embedded, None if state is None else state.stack, full, **inputs)
        if mask is not None:
            length = mask.sum(1) + (past if length is None else length)
        elif length is not None:
            length = length + x.shape[1]
        return self.logits(y), ModelState(stack, past + x.shape[1], length), *found

    def generate(self, *given: Any, **options: Any) -> Any:
        """TypeError that says what makes tokens."""
        raise TypeError(makes_none(self, "generate"))

    def stream(self, *given: Any, **options: Any) -> Any:
        """As `generate`."""
        raise TypeError(makes_none(self, "stream"))

    def beam_search(self, *given: Any, **options: Any) -> Any:
        """As `generate`."""
        raise TypeError(makes_none(self, "beam_search"))

    def auxiliary_loss(self, state: ModelState, since: ModelState | None = None) -> Float[Tensor, ""]:
        """What the stack's layers lose beside the model's own loss, between two states: see AttentionLayers."""
        return self.attn_layers.auxiliary_loss(stack_state(state), None if since is None else stack_state(since))

    def reset(self, state: ModelState, rows: Tensor) -> ModelState:
        """`state` with the rows where the boolean `rows` (b,) is True as fresh as before their first token."""
        held = stack_state(state)
        rows = as_rows("rows", rows, state.rows)
        stack = self.attn_layers.reset(held, rows)
        before = torch.full_like(rows, state.bound, dtype=torch.long) if state.length is None else state.length
        return ModelState(stack, state.bound, before.masked_fill(rows, 0))

    def remember(self, state: ModelState, detach: bool = True) -> ModelState:
        """What is left of a state behind a segment: the last `max_mem_len` tokens (None: all), cut from its graph."""
        self.attn_layers.check_state(stack_state(state))
        check_switch("detach", detach)
        state = state.detach() if detach else state
        if self.max_mem_len is None:
            return state
        stack = self.attn_layers.shorten(state.stack, self.max_mem_len)
        if self.shift_mem_down:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
                stack = moved_down(self.attn_layers.column, stack, self.shift_mem_down)
        return state._replace(stack=stack)


def makes_none(model: StreamModel, how: str) -> str:
    """What to do with a model that makes no tokens itself."""
    does = model.maker.format(how=how)
    if model.pooled is not None:
        does = "its output is one of whole sequences"
    elif not model.causal:
        does = model.filler
    return f"{type(model).__name__} has no {how}: {does}"
