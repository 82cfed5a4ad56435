"""The flags of what works in blocks of tokens."""

from typing import Literal

from ...base.frozen import frozen
from ...flags.flag import flag, like
from ..scores.read import ReadFlags
from .multi_head import MultiHead

__all__ = ["BlockFlags", "RecurrentFlags"]


@frozen
class BlockFlags(ReadFlags):
    """The flags of `block_attn`."""

    block_width: int = flag(512, "tokens in a block", at_least=1, tried=(8, 6, 16))
    dim_head: int = like(MultiHead.Config, "dim_head")
    heads: int | None = like(MultiHead.Config, "heads")
    kv_heads: int | None = like(MultiHead.Config, "kv_heads")
    reach: Literal["blocks", "sliding"] = flag(
        "blocks",
        "a token sees its block and all of the one before, or block_width tokens, itself included",
        tried=("sliding",),
    )
    rel_pos_bias: Literal["t5"] | None = flag(
        None, "T5's bias by distance, of the layer's own", paper="https://arxiv.org/abs/1910.10683", tried=("t5",)
    )
    cosine: bool = flag(
        False,
        "cosine attention with learned gains per channel",
        paper="https://arxiv.org/abs/2010.04245",
        tried=(True,),
    )
    cosine_scale: float = flag(
        10.0, "what cosine multiplies the cosines by", above=0, tried=({"cosine_scale": 4.0, "cosine": True},)
    )
    dropout: float = like(MultiHead.Config, "dropout")
    flash: bool = flag(True, "the fused softmax kernel", paper="https://arxiv.org/abs/2205.14135", tried=(False,))
    read_from: tuple[int, ...] = flag(
        (),
        "recurrent layers of the column, counted from 1, whose state vectors are read beside the window",
        tried="layouts say it",
    )
    read_cosine: bool = flag(True, "cosine attention to the state vectors of read_from", tried=(False,))
    read_cosine_scale: float = flag(10.0, "what read_cosine multiplies the cosines by", above=0, tried=(4.0,))
    compress: Literal["conv", "mean", "max"] | None = flag(
        None,
        "blocks that fall out of the window are kept, compressed so (conv: learned)",
        paper="https://arxiv.org/abs/1911.05507",
        tried=({"compress": "max", "compress_factor": 2},),
    )
    compress_factor: int | None = flag(
        None,
        "tokens that become one entry (None: 4)",
        at_least=2,
        tried=({"compress_factor": 2, "compress": "conv"},),
    )
    compress_blocks: int | None = flag(
        None,
        "blocks that are kept compressed (None: 2)",
        at_least=1,
        tried=({"compress_blocks": 3, "compress_factor": 2, "compress": "mean"},),
    )
    compress_loss: bool = flag(
        False,
        "the state holds how much of what is read is lost by compressing",
        paper="https://arxiv.org/abs/1911.05507",
        tried=({"compress_loss": True, "compress_factor": 2, "compress": "conv"},),
    )
    retrieve: int | None = flag(
        None,
        "tokens before the window that each query and head finds in a long memory (None: none)",
        at_least=1,
        paper="https://arxiv.org/abs/2203.08913",
        tried=(50,),
    )
    retrieve_len: int | None = flag(
        None,
        "tokens that this memory holds, whole blocks (None: 250,000, rounded up)",
        at_least=1,
        tried=({"retrieve_len": 48, "retrieve": 3},),
    )


@frozen
class RecurrentFlags(BlockFlags):
    """The flags of `recurrent`."""

    num_state_vectors: int = flag(512, "state vectors", at_least=1, tried=(3, 1))
    gate: Literal["fixed", "lstm", "gru"] = flag("fixed", "how state vectors take an update in", tried=("lstm", "gru"))
    update: Literal["skip", "single", "dual"] = flag(
        "skip",
        "attention and a gate; attention, feed-forward and a gate; or a gate behind each of the two",
        tried=("single", "dual"),
    )
    reads: bool = flag(True, "its own tokens read the state vectors (else other layers do)", tried="layouts say it")
    read_layer: int | None = flag(
        None,
        "the layer of the column, from 1, that reads them in its stead: a block_attn or recurrent one",
        at_least=1,
        tried="layouts say it",
    )
    write_from: Literal["block", "window"] = flag(
        "block", "what the vectors attend to: the full block, or two", tried=("window",)
    )
    cosine: bool = like(BlockFlags, "cosine", True, tried=(False,))
