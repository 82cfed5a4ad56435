"""`StackConfig`: the flags of a stack itself."""

from typing import Any

from ..base.frozen import frozen
from ..flags.flag import flag
from ..layers.branch import NormPlace
from ..layers.shift import ShiftStyle
from ..layers.site import BranchStart

__all__ = ["StackConfig"]


@frozen
class StackConfig:
    """The flags of a stack itself, those without a prefix."""

    dim: int = flag(doc="width of the stream", at_least=1, tried="every combination has its own")
    depth: int | None = flag(
        None, "how often the layout is repeated", at_least=1, tried="every combination has its own"
    )
    heads: int = flag(8, "heads of blocks that don't set their own", at_least=1, tried="every combination has its own")
    causal: bool = flag(False, "no token sees a later one", tried="combinations are tried both ways")
    layers: str | tuple[Any, ...] | None = flag(
        None,
        "the layout: '(flash*3 attn(window=64))*2 attn+ff', '+' for blocks in parallel (None: 'attn ff')",
        # The first of those that have the same blocks is the one that flags are tried in first: all fit it.
        tried=(
            "flash attn gau ff attn",
            "gau ff flash attn",
            "attn ff gau(heads=2) flash(group_size=3) attn(window=4)",
            "attn(norm=rmsnorm)+gau ff(norm_place=post)+flash attn(norm=none, scale=none) ff",
            "(flash(pos=rotary, rotary_base=50.0) gau(pos=alibi)+ff(shift_tokens=1) attn)*2",
            "attn moe",
            "attn(dim_head=6)+moe(norm=own) moe(top_k=1)",
            "cross_attn ff cross_gau cross_attn",
            "attn cross_attn cross_gau",
            "flash cross_attn(heads=2) cross_gau(heads=2)",
            "attn+cross_attn ff+cross_gau",
            "block_attn state_read flash recurrent ff",
            "recurrent block_attn state_read",
            "block_attn+state_read attn+recurrent ff",
            "attn state_read block_attn(read_from=(1,)) recurrent(reads=False)",
            "block_attn state_read recurrent(reads=False) recurrent(read_layer=1)",
            {"layers": "attn flash gau ff", "layers_execute_order": (0, 1, 0, 2, 3, 2), "depth": 1},
        ),
    )
    custom_layers: str | tuple[Any, ...] | None = flag(
        None,
        "the whole column instead of layers and depth: ('a', 'f')",
        tried=(("f", "flash", "a", "gau"), ("a", "c", "cross_gau", "f")),
    )
    sandwich_coef: int | None = flag(
        None,
        "so many repetitions of the layout are taken apart: what mixes tokens in front, what does not behind",
        at_least=1,
        paper="https://arxiv.org/abs/1911.03864",
        tried=({"sandwich_coef": 1, "depth": 2},),
    )
    layers_execute_order: tuple[int, ...] | None = flag(
        None,
        "the layers in the order in which they are run, by number from 0, some of them again",
        paper="https://arxiv.org/abs/2405.15071",
        tried="it is, with a layout of its own: layers",
    )
    norm: str | None = flag(
        "layernorm",
        "a registered norm: layernorm, rmsnorm, simple_rmsnorm, scalenorm, ..., or 'none'",
        tried="all that are registered are",
    )
    norm_place: NormPlace = flag(
        "pre",
        "norms before each block, after each sum, before and after each block, (OLMo 2) only after it, or (KEEL) "
        "before it and after the sum",
        paper="https://arxiv.org/abs/2002.04745",
        tried=("post", "sandwich", "after", "pre_and_post"),
    )
    final_norm: bool | None = flag(
        None, "a norm behind the last layer (None: unless norms stand after sums)", tried=(False, True)
    )
    softclamp_output: bool = flag(
        False,
        "what the last norm reads is kept within softclamp_output_value by a tanh",
        paper="https://arxiv.org/abs/2408.00118",
        tried=(True,),
    )
    softclamp_output_value: float = flag(
        30.0,
        "the bound of softclamp_output",
        above=0,
        tried=({"softclamp_output_value": 2.0, "softclamp_output": True},),
    )
    reads: str | tuple[str, ...] | None = flag(
        None, "what branches read of the stream beside itself: any registered", tried=({"reads": "unet", "depth": 2},)
    )
    scale: str | tuple[str, ...] | None = flag(
        None, "what multiplies updates: any of layerscale, rezero, ...", tried="all that are registered are"
    )
    join: str = flag(
        "add", "how updates join the stream, a registered join: add, scaled, ...", tried="all that are registered are"
    )
    branch_start: BranchStart = flag(
        "even",
        "how large updates start: alike, their sum as large as one; smaller in each repetition of the layout; at zero",
        paper="https://arxiv.org/abs/2501.00656",
        tried=("depth", "zero"),
    )
    pos: str | tuple[str, ...] | None = flag(
        None,
        "relative positions: any of rotary, rel_pos, alibi, dynamic, ... (of one layer: 'attn(rotary_base=1e6)')",
        tried=(("rotary", "alibi"), ("polar", "dynamic")),
    )
    shift_tokens: int | tuple[int, ...] | bool = flag(
        0,
        "tokens by which channels are delayed, or one number a layer",
        at_least=0,
        paper="https://github.com/BlinkDL/RWKV-LM",
        tried=(1, 2),
    )
    shift_style: ShiftStyle = flag(
        "second_half",
        "x-transformers' token shift, or FLASH-pytorch's 'first_half'",
        tried=({"shift_style": "first_half", "shift_tokens": 1},),
    )
    layer_dropout: float | tuple[float, ...] = flag(
        0.0,
        "chance of a row to skip a layer, or one a layer",
        at_least=0,
        below=1,
        paper="https://arxiv.org/abs/1603.09382",
        tried=(0.2,),
    )
    weight_tie_layers: bool = flag(
        False,
        "one set of weights for all repetitions of the layout",
        paper="https://arxiv.org/abs/1909.11942",
        tried=({"weight_tie_layers": True, "depth": 2},),
    )
    cross_attend: bool | None = flag(
        None,
        "layers attend to a context too (None: as the layout says)",
        paper="https://arxiv.org/abs/1706.03762",
        tried=(True,),
    )
    only_cross: bool = flag(False, "the default layout is 'cross_attn ff'", tried="it is the layout without layers")
    dim_condition: int | None = flag(
        None,
        "width of the condition of adaptive parts (None: dim)",
        at_least=1,
        tried=({"dim_condition": 7, "norm": "adaptive_layernorm"},),
    )
    num_memory_tokens: int = flag(
        0, "learned tokens in front of every sequence", at_least=0, paper="https://arxiv.org/abs/2006.11527", tried=(3,)
    )
    grad_checkpoint: bool = flag(
        False,
        "layers are computed again for their gradients, not kept, in training",
        paper="https://arxiv.org/abs/1604.06174",
        tried=(True,),
    )
