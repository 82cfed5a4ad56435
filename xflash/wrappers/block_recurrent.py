"""`BlockRecurrentTransformer` and its trainer, with the calls of block-recurrent-transformer-pytorch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch

from ..base.checks import (
    LARGEST,
    as_mask,
    check_count,
    check_share,
    check_switch,
    check_switches,
    describe,
    given,
    integer,
    main_weight,
    number,
    shown,
)
from ..base.shapes import Float, Int, Tensor
from ..base.state import BranchState, StackState
from ..flags.layout import MOST_LAYERS
from ..generation.decoding import token_ids
from ..layers.blocks.block import MOST, SLACK
from ..layers.blocks.block_attention import BlockAttention
from ..layers.blocks.recurrent import RecurrentState
from ..saving.configurable import Configurable
from ..stack.config import check_known
from ..stack.face import Decoder
from .autoregressive import AutoregressiveWrapper
from .losses import check_targets, next_token_loss, next_tokens
from .options import check_handed_on
from .segments import SegmentsReader, as_text, detached, drawn, segments_loss
from .transformer import ModelState, TransformerWrapper

__all__ = ["BlockRecurrentTransformer", "Memories", "RecurrentTrainerWrapper"]

FF_MULT = 4


class Memories(NamedTuple):
    """What attention layers carry from call to call; the state vectors, which are handed on beside it, count apart."""

    state: ModelState


def columns(
    depth: int,
    recurrent_layers: tuple[int, ...] | None,
    read_recurrent_layers: tuple[int, ...] | None,
    all_cosine: bool,
) -> tuple[Any, ...]:
    """The column of attention and feed-forward layers; layers are counted from 1. ValueError for what cannot be."""
    for name, given_layers in (
        ("recurrent_layers", recurrent_layers),
        ("read_recurrent_layers", read_recurrent_layers),
    ):
        if given_layers is not None and not isinstance(given_layers, (tuple, list)):
            raise TypeError(f"{name} must be whole numbers, layers counted from 1, not {shown(given_layers)}")
    writers = (depth // 2 or 1,) if recurrent_layers is None else tuple(recurrent_layers)
    readers = writers if read_recurrent_layers is None else tuple(read_recurrent_layers)
    for name, layers in (("recurrent_layers", writers), ("read_recurrent_layers", readers)):
        for layer in layers:
            if not isinstance(layer, int) or isinstance(layer, bool):
                raise TypeError(f"{name} must be whole numbers, layers counted from 1, not {shown(layer)}")
            if not 1 <= layer <= depth:
                raise ValueError(f"{name} are counted from 1 to the depth {depth}, not {shown(layer)}")
    if len(set(writers)) != len(writers):
        raise ValueError(f"recurrent_layers names a layer twice: {writers}")
    if len(readers) != len(writers):
        raise ValueError(f"read_recurrent_layers has {len(readers)} entries, but recurrent_layers {len(writers)}")
    for reader, writer in zip(readers, writers, strict=True):
        if reader > writer:
            raise ValueError(
                f"read_recurrent_layers={readers}: layer {writer} cannot be read above itself, at {reader}"
            )
    numbers = {writer: number for number, writer in enumerate(sorted(writers), 1)}
    column: list[Any] = []
    for layer in range(1, depth + 1):
        others = tuple(numbers[w] for r, w in zip(readers, writers, strict=True) if r == layer != w)
        flags: dict[str, Any] = {"read_from": others} if others else {}
        if layer in writers:
            own = any(r == w == layer for r, w in zip(readers, writers, strict=True))
            column.append(("recurrent", flags if own else {"reads": False, **flags}))
        else:
            column.append(("block_attn", {"cosine": True, **flags} if all_cosine else flags))
        column.append(("ff", {}))
    return tuple(column)


def gated_width(dim: int, ff_mult: float, flags: Mapping[str, Any]) -> int:
    """The inner width of the feed-forward layers; ValueError when ff_mult and ff_dim are both given."""
    if flags.get("ff_dim") is None:
        return math.floor(dim * number("ff_mult", ff_mult, above=0, at_most=MOST) * 2 / 3 + SLACK)
    if ff_mult != FF_MULT:
        raise ValueError(f"ff_mult={ff_mult} and ff_dim={flags['ff_dim']} both say how wide the layers are; give one")
    return flags["ff_dim"]


class BlockRecurrentTransformer(TransformerWrapper):
    """The block-recurrent transformer (https://arxiv.org/abs/2203.07852) as block-recurrent-transformer-pytorch has it.

    `logits, memories, states = model(ids)` reads any number of tokens and hands on what it carries, always and not
    detached; `model(ids, xl_memories=memories, states=states)` goes on. Either can be left out: the memories are the
    attention layers' blocks, the states the state vectors of each recurrent layer (b, s, dim). Layers are counted from
    1. `step`, `generate` and the rest are those of every causal model. `use_flash_attn=False` leaves the fused kernel
    alone. The feed-forward layers are gated and, as there, 2/3 of `ff_mult` times dim wide, rounded down; `ff_dim` says
    their width itself. `flags` are further flags of the stack (`recurrent_gate='lstm'`).
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        dim: int,
        depth: int,
        dim_head: int = 64,
        heads: int = 8,
        all_layers_qk_rmsnorm: bool = False,
        ff_mult: float = FF_MULT,
        max_seq_len: int = 1024,
        block_width: int = 512,
        recurrent_layers: tuple[int, ...] | None = None,
        read_recurrent_layers: tuple[int, ...] | None = None,
        num_state_vectors: int | None = None,
        ignore_index: int = -100,
        use_flash_attn: bool | None = None,
        use_compressed_mem: bool = False,
        compressed_mem_factor: int = 4,
        **flags: Any,
    ):
        check_known(flags, BlockRecurrentTransformer)
        check_count("dim", dim)
        integer("depth", depth, 1, MOST_LAYERS)
        integer("ignore_index", ignore_index, -LARGEST)
        check_count("max_seq_len", max_seq_len)
        check_count("block_width", block_width)
        check_count("compressed_mem_factor", compressed_mem_factor)
        ff_mult = number("ff_mult", ff_mult, above=0)
        check_switches(
            all_layers_qk_rmsnorm=all_layers_qk_rmsnorm,
            use_flash_attn=True if use_flash_attn is None else use_flash_attn,
            use_compressed_mem=use_compressed_mem,
        )
        if compressed_mem_factor != 4 and not use_compressed_mem:
            raise ValueError(f"compressed_mem_factor={compressed_mem_factor} is set, but use_compressed_mem is False")
        for name in ("layers", "custom_layers"):
            if name in flags:
                raise ValueError(f"{name} cannot be set: depth and recurrent_layers say what the layers are")
        inner = gated_width(dim, ff_mult, flags)
        if max_seq_len % block_width:
            raise ValueError(f"block_width={block_width} does not divide max_seq_len={max_seq_len}")
        column = columns(depth, recurrent_layers, read_recurrent_layers, all_layers_qk_rmsnorm)
        shared: dict[str, Any] = {"block_width": block_width, "dim_head": dim_head, "kv_heads": 1}
        shared["flash"] = use_flash_attn is not False
        if use_compressed_mem:
            shared |= {"compress": "conv", "compress_factor": compressed_mem_factor}
            shared["compress_blocks"] = max(compressed_mem_factor // 2, 1)
        used = {entry[0] for entry in column} - {"ff"}
        given_flags = {f"{block}_{name}": value for block in used for name, value in shared.items()}
        if "recurrent" in used:
            given_flags["recurrent_num_state_vectors"] = block_width if num_state_vectors is None else num_state_vectors
        stack = Decoder(
            **{
                "dim": dim,
                "heads": heads,
                "custom_layers": column,
                "pos": "rotary",
                "rotary_xpos": True,
                "ff_glu": True,
                "ff_no_bias": True,
                "ff_dim": inner,
                **given_flags,
                **flags,
            }
        )
        super().__init__(num_tokens=num_tokens, attn_layers=stack)
        self.max_seq_len = self.segment = max_seq_len
        self.block_width, self.ignore_index = block_width, ignore_index

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
        **kwargs: Any,
    ) -> Any:
        """(logits (b, n, v), memories, states) of the next tokens; with `return_loss` the loss in place of the logits.

        The loss is that of each token after the first that is real (`mask`) and not `ignore_index`.
        """
        check_switch("return_loss", return_loss)
        ids = token_ids("x", x)
        if return_loss:
            if ids.dim() != 2 or ids.shape[1] < 2:
                raise ValueError(f"x has shape {tuple(ids.shape)}, but a loss needs (b, n) with at least n = 2 tokens")
            mask = None if mask is None else as_mask(mask, (ids.shape[0], ids.shape[1]))
            targets = next_tokens(ids, mask, None, self.ignore_index)
            targets = check_targets(targets, self.ignore_index, self.num_tokens)
            ids = ids[:, :-1].masked_fill(ids[:, :-1] == self.ignore_index, 0)
            mask = None if mask is None else mask[:, :-1]
        out, state = self.step(ids, self.joined(xl_memories, states, ids), mask, **kwargs)
        if return_loss:
            out = next_token_loss(out, targets, self.ignore_index)
        return out, Memories(state), self.vectors(state)

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
            self.check_dtype(state.stack)
        branches = list(state.stack.branches)
        given_states = [None] * len(places) if states is None else list(states)
        if len(given_states) != len(places):
            raise ValueError(f"states has {len(given_states)} entries, but there are {len(places)} recurrent layers")
        for place, vectors in zip(places, given_states, strict=True):
            before = cast(RecurrentState, branches[place].block)
            branches[place] = branches[place]._replace(block=self.with_vectors(before, vectors))
        return state._replace(stack=state.stack._replace(branches=tuple(branches)))

    def check_dtype(self, state: StackState) -> None:
        """ValueError for memories of another dtype than the model's, but under autocast, which casts them."""
        wanted = self.like()
        # The first layer is one of attention, with state vectors or without.
        held = state.branches[0].block
        found = (held.window if isinstance(held, RecurrentState) else held).open_k
        if found.dtype != wanted.dtype and not torch.is_autocast_enabled(wanted.device.type):
            raise ValueError(
                f"xl_memories are {found.dtype}, but the model is {wanted.dtype}: cast them with memories.state.to"
            )

    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of what the model computes."""
        weight = main_weight(self)
        return torch.empty(0) if weight is None else weight

    def with_vectors(self, before: RecurrentState, vectors: Tensor | None) -> RecurrentState:
        """The state of a recurrent layer with other state vectors; None: the learned ones it starts with."""
        if vectors is None:
            return before._replace(writes=torch.zeros_like(before.writes))
        if not isinstance(vectors, torch.Tensor) or not vectors.is_floating_point():
            raise TypeError(
                f"states must be floating-point tensors of {tuple(before.vectors.shape)}, not {given(vectors)}"
            )
        if vectors.shape != before.vectors.shape:
            raise ValueError(f"states must be of shape {tuple(before.vectors.shape)}, not {tuple(vectors.shape)}")
        if vectors.dtype != before.vectors.dtype:
            raise ValueError(f"states must be {before.vectors.dtype}, as this model keeps them, not {vectors.dtype}")
        return before._replace(vectors=vectors, writes=before.writes.clamp(min=1))

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

    def generate(self, prime: Int[Tensor, "b n"], length: int | None = None, **options: Any) -> Int[Tensor, "b n"]:
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

    `loss = trainer(ids)` reads segments of max_seq_len tokens, each with what the ones before have left.
    xl_memories_dropout, state_dropout: chance that all rows forget the one or the other before a segment, while
    training.  detach_every: after how many segments gradients are cut (None: never).
    """

    gives = "a loss of token ids"

    def __init__(
        self,
        transformer: BlockRecurrentTransformer,
        xl_memories_dropout: float = 0.0,
        state_dropout: float = 0.0,
        detach_every: int | None = None,
    ):
        super().__init__()
        if not isinstance(transformer, BlockRecurrentTransformer):
            raise TypeError(f"transformer must be a BlockRecurrentTransformer, not {type(transformer).__name__}")
        for name, value in (("xl_memories_dropout", xl_memories_dropout), ("state_dropout", state_dropout)):
            check_share(name, value)
        if detach_every is not None:
            check_count("detach_every", detach_every)
        self.transformer, self.detach_every = transformer, detach_every
        self.xl_memories_dropout, self.state_dropout = xl_memories_dropout, state_dropout

    def read_by(self) -> tuple[Any, int]:
        return self.transformer, self.transformer.ignore_index

    def forward(
        self, x: Int[Tensor, "b n"], return_memories_and_states: bool = False
    ) -> Float[Tensor, ""] | tuple[Float[Tensor, ""], Memories, list[Tensor]]:
        """The mean loss over all tokens but the first that are not the model's ignore_index, of any number of them."""
        check_switch("return_memories_and_states", return_memories_and_states)
        model = self.transformer
        text = as_text(x, model.segment, ignore_index=model.ignore_index)
        loss, state = segments_loss(
            self.next_piece,
            text,
            model.segment,
            enter=lambda state, number: self.entering(detached(state, number, self.detach_every), text.inputs),
            ignore_index=model.ignore_index,
        )
        return (loss, Memories(state), model.vectors(state)) if return_memories_and_states else loss

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

    def generate(self, prime: Int[Tensor, "b n"], length: int | None = None, **options: Any) -> Int[Tensor, "b n"]:
        """The tokens behind `prime` until there are `length` with it (max_seq_len + 1 unless given).

        A token costs the same wherever it stands.
        """
        return self.transformer.generate(prime, length, **options)

    def stream(
        self, prime: Int[Tensor, "b n"], length: int | None = None, **options: Any
    ) -> Iterator[Int[Tensor, " b"]]:
        """`generate` one token a row at a time, as each is drawn."""
        return self.transformer.stream(prime, length, **options)
