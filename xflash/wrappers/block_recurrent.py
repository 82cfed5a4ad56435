"""`BlockRecurrentTransformer` and its trainer, with the calls of block-recurrent-transformer-pytorch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch

from ..base.checks import as_mask, check_count, check_switch, describe, main_weight
from ..base.shapes import Float, Int, Tensor
from ..base.state import BranchState, StackState, State
from ..flags.flag import build, flag, flags_of, like
from ..generation.prompts import token_ids
from ..layers.blocks.block_attention import BlockAttention
from ..layers.blocks.recurrent import RecurrentState
from ..saving.configurable import Configurable
from ..stack.config import check_known
from ..stack.stacks import Decoder
from .autoregressive import AutoregressiveWrapper
from .block_recurrent_flags import IMPLIED, PRESETS, BlockRecurrentConfig, check_fits, stack_flags
from .losses import Criterion, Terms, answer, next_token_loss
from .options import check_handed_on, check_needs_nothing, further_flags
from .segments import SegmentsReader, SegmentWrapper, detached, drawn, segments_loss
from .state_vectors import check_memories, with_vectors
from .targets import next_tokens
from .texts import as_text
from .transformer import ModelState, TransformerWrapper

__all__ = ["BlockRecurrentTransformer", "Memories", "RecurrentTrainerWrapper"]


class MemoriesFields(NamedTuple):
    """What memories hold."""

    state: ModelState


class Memories(State, MemoriesFields):
    """What attention layers carry from call to call; the state vectors, which are handed on beside it, count apart."""

    __slots__ = ()


class BlockRecurrentTransformer(TransformerWrapper):
    """The block-recurrent transformer (https://arxiv.org/abs/2203.07852) as block-recurrent-transformer-pytorch has it.

    `logits, memories, states = model(ids)` reads any number of tokens and hands on what it carries, always and not
    detached; `model(ids, xl_memories=memories, states=states)` goes on. Either can be left out: the memories are the
    attention layers' blocks, the states the state vectors of each recurrent layer (b, s, dim). Layers are counted from
    1. `step`, `generate` and the rest are those of every causal model. `use_flash_attn=False` leaves the fused kernel
    alone. The feed-forward layers are gated and, as there, 2/3 of `ff_mult` times dim wide, rounded down; `ff_dim` says
    their width itself. `flags` are further flags of the stack (`recurrent_gate='lstm'`).
    """

    Config = BlockRecurrentConfig

    takes_flags = True
    presets: ClassVar[Mapping[str, Any]] = PRESETS

    def assemble(self, config: BlockRecurrentConfig, **flags: Any) -> None:
        check_known(flags, BlockRecurrentTransformer)
        check_fits(config, flags)
        stack = Decoder(**{**stack_flags(config, flags), **flags})
        super().assemble(build(TransformerWrapper.Config, {"num_tokens": config.num_tokens, "attn_layers": stack}))
        self.max_seq_len = self.segment = config.max_seq_len
        self.block_width, self.ignore_index = config.block_width, config.ignore_index

    def written_flags(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        return further_flags(self.attn_layers, flags, ("layers", "custom_layers", *flags_of(self.Config)), IMPLIED)

    @property
    def length_limit(self) -> None:
        """There is none: max_seq_len is how many tokens the trainer reads at a time."""
        return None

    def recurrent_places(self) -> list[int]:
        """Where in the column the layers with state vectors stand."""
        return [p for p, i in enumerate(self.attn_layers.order) if self.attn_layers.blocks()[i].publishes]

    def forward(  # type: ignore[override]
        self,
        x: Int[Tensor, "b n"],
        mask: Tensor | None = None,
        *,
        return_loss: bool = False,
        xl_memories: Memories | None = None,
        states: Sequence[Tensor | None] | None = None,
        return_hiddens: bool = False,
        **kwargs: Any,
    ) -> Any:
        """(logits (b, n, v), memories, states) of the next tokens; with `return_loss` the loss in place of the logits.

        The loss is that of each token after the first that is real (`mask`) and not `ignore_index`. `return_hiddens`
        gives the streams of all layers too, as last.
        """
        check_switch("return_loss", return_loss)
        ids = token_ids("x", x)
        if return_loss:
            if ids.dim() != 2 or ids.shape[1] < 2:
                raise ValueError(f"x has shape {tuple(ids.shape)}, but a loss needs (b, n) with at least n = 2 tokens")
            mask = None if mask is None else as_mask(mask, (ids.shape[0], ids.shape[1]))
            targets = next_tokens(ids, mask, None, self.ignore_index)
            ids = ids[:, :-1].masked_fill(ids[:, :-1] == self.ignore_index, 0)
            mask = None if mask is None else mask[:, :-1]
        before = self.joined(xl_memories, states, ids)
        out, state, *noted = self.step(ids, before, mask, return_hiddens=return_hiddens, **kwargs)
        if return_loss:
            out = next_token_loss(out, targets, self.ignore_index)
        return out, Memories(state), self.vectors(state), *noted

    def vectors(self, state: ModelState) -> list[Float[Tensor, "b s d"]]:
        """The state vectors of each recurrent layer, top to bottom of the column."""
        return [state.stack.branches[place].block.vectors for place in self.recurrent_places()]

    def joined(
        self, memories: Memories | None, states: Sequence[Tensor | None] | None, ids: Int[Tensor, "b n"]
    ) -> ModelState | None:
        """One state from what the caller hands back; TypeError or ValueError where it does not fit."""
        # The port's own spelling of nothing is an empty list.
        memories = None if isinstance(memories, (list, tuple)) and not memories else memories
        if states is not None and not isinstance(states, (list, tuple)):
            raise TypeError(f"states must be a list of what the model gave, not {describe(states)}")
        states = states or None
        if memories is None and states is None:
            return None
        if memories is not None and not isinstance(memories, Memories):
            raise TypeError(f"xl_memories must be what the model gave, Memories, not {type(memories).__name__}")
        places = self.recurrent_places()
        if memories is None:
            state = self.without_memories(ids.shape[0])
        else:
            state = memories.state
            self.attn_layers.check_state(state.stack, ids.shape[0])
            check_memories(state.stack, self.like())
        branches = list(state.stack.branches)
        given_states = [None] * len(places) if states is None else list(states)
        if len(given_states) != len(places):
            raise ValueError(f"states has {len(given_states)} entries, but there are {len(places)} recurrent layers")
        for place, vectors in zip(places, given_states, strict=True):
            before = cast(RecurrentState, branches[place].block)
            branches[place] = branches[place]._replace(block=with_vectors(before, vectors))
        return state._replace(stack=state.stack._replace(branches=tuple(branches)))

    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of what the model computes."""
        weight = main_weight(self)
        return torch.empty(0) if weight is None else weight

    def without_memories(self, batch: int) -> ModelState:
        """A state that has seen nothing."""
        like = self.like()
        branches = []
        for i in self.attn_layers.order:
            block = self.attn_layers.blocks()[i]
            held = block.blank(batch, like) if isinstance(block, BlockAttention) else None
            branches.append(BranchState(None, held))
        stack = StackState(self.attn_layers.maker, 0, None, None, tuple(branches))
        return ModelState(stack, 0, None)

    def generate(self, prime: Int[Tensor, "b n"], length: int | None = None, **options: Any) -> Any:
        """The tokens behind `prime` until there are `length` with it (max_seq_len + 1 unless given).

        options are those of AutoregressiveWrapper.generate.
        """
        check_handed_on("generate", options, AutoregressiveWrapper.generate, self.step)
        return AutoregressiveWrapper(self).generate(prime, self.missing(prime, length), **options)

    def stream(
        self, prime: Int[Tensor, "b n"], length: int | None = None, **options: Any
    ) -> Iterator[Int[Tensor, " b"]]:
        """`generate` one token a row at a time, as each is drawn."""
        check_handed_on("stream", options, AutoregressiveWrapper.stream, self.step)
        return AutoregressiveWrapper(self).stream(prime, self.missing(prime, length), **options)

    def missing(self, prime: Int[Tensor, "b n"], length: int | None) -> int:
        """How many tokens there are to make; ValueError unless `length`, which counts the prime, is longer than it."""
        prime = token_ids("prime", prime)
        length = self.segment + 1 if length is None else length
        check_count("length", length)
        if prime.dim() != 2 or not 0 < prime.shape[1] < length:
            raise ValueError(f"length={length} counts the prime, of shape {tuple(prime.shape)}, and must be longer")
        return length - prime.shape[1]


class RecurrentTrainerWrapper(SegmentsReader, Configurable):
    """Trains a BlockRecurrentTransformer on sequences longer than its max_seq_len, and samples any length.

    `loss = trainer(ids)` reads segments of max_seq_len tokens; gradients are cut after each `detach_every`.
    """

    @dataclass(frozen=True)
    class Config(Terms):
        transformer: BlockRecurrentTransformer = flag(doc="the model that is trained")
        xl_memories_dropout: float = flag(
            0.0, "chance, while training, that all rows forget the attention layers' blocks before a segment",
            at_least=0, below=1,
        )  # fmt: skip
        state_dropout: float = flag(
            0.0, "chance, while training, that all rows forget the state vectors before a segment", at_least=0, below=1
        )
        detach_every: int | None = like(SegmentWrapper.Config, "detach_every")

    gives = "a loss of token ids"

    def assemble(self, config: Config) -> None:
        check_needs_nothing(config.transformer.attn_layers, "its trainer is given ids of tokens only")
        self.transformer, self.detach_every = config.transformer, config.detach_every
        self.xl_memories_dropout, self.state_dropout = config.xl_memories_dropout, config.state_dropout
        self.label_smoothing, self.z_loss = config.label_smoothing, config.z_loss

    @property
    def ignore_index(self) -> int:
        """The model's label that is no target."""
        return self.transformer.ignore_index

    def read_by(self) -> tuple[Any, Criterion]:
        return self.transformer, Criterion.of(self)

    def forward(
        self,
        x: Int[Tensor, "b n"],
        return_memories_and_states: bool = False,
        *,
        reduction: str = "mean",
        loss_weights: Float[Tensor, "b n"] | None = None,
        return_count: bool = False,
    ) -> Any:
        """The mean loss over all tokens but the first that are not the model's ignore_index, of any number of them.

        `reduction`, `loss_weights` and `return_count` are as in AutoregressiveWrapper; with
        `return_memories_and_states` these come behind the loss.
        """
        check_switch("return_memories_and_states", return_memories_and_states)
        model = self.transformer
        text = as_text(x, model.segment, ignore_index=self.ignore_index, loss=(reduction, loss_weights, return_count))
        found, state = segments_loss(
            self.next_piece,
            text,
            model.segment,
            enter=lambda state, number: self.entering(detached(state, number, self.detach_every), text.inputs),
            ignore_index=self.ignore_index,
        )
        return answer(found, [Memories(state), model.vectors(state)] if return_memories_and_states else [])

    def entering(self, state: ModelState | None, ids: Int[Tensor, "b n"]) -> ModelState | None:
        """What a segment starts from: the state before it, while training at times without its memories or vectors."""
        if not self.training:
            return state
        memories, states = not drawn(self.xl_memories_dropout), not drawn(self.state_dropout)
        if state is None or (memories and states):
            return state
        return self.transformer.joined(
            Memories(state) if memories else None, self.transformer.vectors(state) if states else None, ids
        )

    def generate(self, prime: Int[Tensor, "b n"], length: int | None = None, **options: Any) -> Any:
        """The tokens behind `prime` until there are `length` with it (max_seq_len + 1 unless given).

        A token costs the same wherever it stands.
        """
        return self.transformer.generate(prime, length, **options)

    def stream(
        self, prime: Int[Tensor, "b n"], length: int | None = None, **options: Any
    ) -> Iterator[Int[Tensor, " b"]]:
        """`generate` one token a row at a time, as each is drawn."""
        return self.transformer.stream(prime, length, **options)
