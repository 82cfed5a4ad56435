"""What a layout says of whole layers is what is built: counted, and compared with the same column written by hand."""

from dataclasses import fields

import laws
import pytest
import torch
from cases import build
from torch import nn

from xflash import Ctx, Decoder, Encoder, TransformerWrapper, from_config, norms
from xflash.base.relay import Relay
from xflash.flags.flag import flags_of
from xflash.flags.layout import AROUND
from xflash.layers.apart import Apart
from xflash.layers.blocks.parallel import Parallel
from xflash.layers.norms import Norm
from xflash.layers.positions.position import Position
from xflash.stack.around import Around

SMALL = {"dim": 26, "depth": 1, "heads": 2, "attn_dim_head": 6}


def count(stack, kind: type) -> int:
    return sum(isinstance(module, kind) for module in stack.modules())


def copied(source: nn.Module, target: nn.Module, renamed=lambda name: name) -> nn.Module:
    """`target` with the weights of `source`, by the names that these have there."""
    target.load_state_dict({renamed(name): t for name, t in source.state_dict().items()}, assign=True)
    return target.double().eval()


def alike(one, other, x, *inputs) -> None:
    """Two ways of computing the same, gradients included."""
    ours, theirs = one(x), other(x)
    laws.close(ours, theirs, "outputs")
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), (x, *inputs)) for y in (ours, theirs)), strict=True):
        laws.close(a, b, "gradients")


def sample(stack, n: int = 11) -> torch.Tensor:
    return laws.sample(stack, n).requires_grad_()


def test_groups_are_their_layers_written_out():
    stack = laws.live(Decoder(**SMALL, layers="((attn ff)*2 gau(heads=2))*2", gau_query_key_dim=10))
    flat = Decoder(**SMALL, layers="attn ff attn ff gau(heads=2) attn ff attn ff gau(heads=2)", gau_query_key_dim=10)
    assert len(stack.branches) == 10 and stack.layout == flat.layout == "((attn ff)*2 gau(heads=2))*2"
    assert stack.to_config()["layers"] == "((attn ff)*2 gau(heads=2))*2"
    alike(stack, copied(stack, flat), sample(stack))


def test_a_parallel_layer_by_hand():
    """x + attn(norm(x)) + ff(norm(x)), with one norm, as GPT-J has it; depth counts both blocks."""
    stack = laws.live(Decoder(**SMALL, layers="attn+ff", shift_tokens=1, layer_dropout=0.3, final_norm=False))
    assert len(stack.branches) == 1 and count(stack, Norm) == 1 and len(stack.blocks()) == 2
    assert {block.site.branches for block in stack.blocks()} == {2}
    (branch,) = stack.branches
    attn, ff = stack.blocks()

    def by_hand(x):
        column = stack.column
        ctx = column.context(x, None, None, {}, (False, False, None, Relay()))
        y, _ = branch.shift(branch.before(x, ctx), ctx)
        return x + attn(y, ctx)[0] + ff(y, ctx)[0]

    alike(stack, by_hand, sample(stack), *stack.parameters())


@pytest.mark.parametrize(
    ("layers", "own", "built"), [("attn+ff(norm=own)", 1, 2), ("attn(norm=own)+ff(norm=own)", 2, 2)]
)
def test_members_with_norms_of_their_own(layers, own, built):
    """x + attn(norm1(x)) + ff(norm2(x)), as GPT-NeoX has it."""
    stack = laws.live(Decoder(**SMALL, layers=layers, final_norm=False, norm="rmsnorm", shift_tokens=2))
    (branch,) = stack.branches
    assert count(stack, Norm) == 2 and len(branch.before.own) == own
    attn, ff = stack.blocks()
    first, second = [m for m in branch.before.modules() if isinstance(m, Norm)]

    def by_hand(x):
        ctx = stack.column.context(x, None, None, {}, (False, False, None, Relay()))
        reads = [branch.shift(norm(x, ctx), ctx)[0] for norm in (first, second)]
        return x + attn(reads[0], ctx)[0] + ff(reads[1], ctx)[0]

    alike(stack, by_hand, sample(stack), *stack.parameters())


def test_norms_of_members_have_their_flags():
    stack = Decoder(**SMALL, layers="attn(norm_eps=1e-2)+gau+ff(norm=own, norm_eps=1e-3)", norm_eps=1e-4)
    before = stack.branches[0].before
    assert isinstance(before, Apart) and before.shared.config.eps == 1e-2 and before.own["2"].config.eps == 1e-3
    assert stack.final_norm.config.eps == 1e-4 and count(stack, Norm) == 3


def test_norms_of_layers():
    first = "attn(norm=rmsnorm, norm_eps=1e-2) ff(norm=none) attn(norm_place=post)"
    stack = Decoder(**SMALL, layers=f"{first} ff(norm_place=after) attn+ff(norm_bias=True)")
    found = [[type(getattr(b, slot)).__name__ for slot in ("before", "after", "final")] for b in stack.branches]
    none = "NoneType"
    assert found == [
        ["RMSNorm", none, none],
        [none, none, none],
        [none, none, "LayerNorm"],
        [none, "LayerNorm", none],
        ["LayerNorm", none, none],
    ]
    assert stack.branches[0].before.config.eps == 1e-2 and stack.branches[4].before.config.bias
    assert count(stack, Norm) == 5


def test_a_norm_after_the_block_by_hand():
    """x + norm(f(x)) and a norm at the end, as OLMo 2 has it."""
    stack = laws.live(Decoder(**SMALL, layers="attn ff", norm="rmsnorm", norm_place="after"))
    assert count(stack, Norm) == 3

    def by_hand(x):
        for branch in stack.branches:
            ctx = stack.column.context(x, None, None, {}, (False, False, None, Relay()))
            x = x + branch.after(branch.block(x, ctx)[0], ctx)
        return stack.final_norm(x, None)

    alike(stack, by_hand, sample(stack), *stack.parameters())


def test_no_norm_at_all():
    stack = laws.live(Decoder(**SMALL, layers="attn ff", norm="none"))
    assert count(stack, Norm) == 0 and stack.to_config()["norm"] == "none"

    def by_hand(x):
        for branch in stack.branches:
            x = x + branch.block(x, stack.column.context(x, None, None, {}, (False, False, None, Relay())))[0]
        return x

    alike(stack, by_hand, sample(stack), *stack.parameters())


def test_scale_join_shift_and_dropout_of_layers():
    layers = "attn(scale='layerscale rezero', shift_tokens=2) ff(join=scaled, layer_dropout=0.25) gau(scale=none)"
    stack = Decoder(**SMALL, layers=layers, scale="layerscale", shift_tokens=(1, 1, 0), layerscale_init=0.3)
    assert [list(b.scale or ()) for b in stack.branches] == [["layerscale", "rezero"], ["layerscale"], []]
    assert [type(b.join).__name__ for b in stack.branches] == ["Add", "Scaled", "Add"]
    assert [b.shift and b.shift.amount for b in stack.branches] == [2, 1, None]
    assert [b.dropout for b in stack.branches] == [0, 0.25, 0]
    again = from_config(stack.to_config())
    assert again.state_dict().keys() == stack.state_dict().keys() and again.maker == stack.maker


def test_positions_of_layers():
    layers = "attn attn(rotary_base=500.0) attn(pos=none) attn(pos='rotary rel_pos', rel_pos_num_buckets=8)"
    stack = Decoder(**SMALL, layers=f"{layers} attn(pos=rel_pos)", pos="rotary", rotary_interleaved=True)
    built = {name: type(module).__name__ for name, module in stack.positions.items()}
    assert built == {"rotary": "Rotary", "rel_pos": "RelPos", "1_rotary": "Rotary", "3_rel_pos": "RelPos"}
    assert count(stack, Position) == 4
    assert stack.positions["1_rotary"].config.base == 500 and stack.positions["1_rotary"].config.interleaved
    pos = [block.site.pos for block in stack.blocks()]
    assert pos == [None, ("1_rotary",), (), ("rotary", "3_rel_pos"), ("rel_pos",)]


@pytest.mark.parametrize("tied", [False, True])
def test_a_position_of_its_own_is_one_a_layer(tied):
    """Weights of its own for each layer that says a flag; layers that are tied are one."""
    stack = Decoder(
        **{**SMALL, "depth": 3}, layers="attn attn(rel_pos_max_distance=64)", pos="rel_pos", weight_tie_layers=tied
    )
    own = ["1_rel_pos"] if tied else ["1_rel_pos", "3_rel_pos", "5_rel_pos"]
    assert list(stack.positions) == ["rel_pos", *own]


def test_layers_with_positions_of_their_own_are_stacks_with_them():
    """Each layer gives what it gives in a stack that has only it, with its positions for all."""
    layers = ["attn", "attn(rotary_base=50.0)", "attn(pos=none)", "attn(pos='rel_pos rotary', rel_pos_num_buckets=8)"]
    alone = [{}, {"rotary_base": 50.0}, {"pos": None}, {"pos": "rel_pos rotary", "rel_pos_num_buckets": 8}]
    stack = laws.live(Decoder(**SMALL, layers=" ".join(layers), pos="rotary", final_norm=False))
    x = sample(stack)

    def by_hand(x):
        for i, flags in enumerate(alone):
            one = Decoder(**{**SMALL, "layers": "attn", "pos": "rotary", "final_norm": False, **flags}).double()
            weights = {n.replace(f"branches.{i}.", "branches.0."): t for n, t in stack.state_dict().items()}
            own = {n.replace(f"positions.{i}_", "positions."): t for n, t in weights.items()}
            one.load_state_dict({n: own[n] for n in one.state_dict()})
            x = one.eval()(x)
        return x

    alike(stack, by_hand, x)


def test_tables_are_made_once_for_layers_that_are_alike(monkeypatch):
    from xflash.layers.positions.rotary import Rotary

    made = []
    table = Rotary.table
    monkeypatch.setattr(Rotary, "table", lambda self, *given: made.append(self) or table(self, *given))
    stack = Decoder(**SMALL, layers="(attn*2 attn(rotary_base=500.0))*4", pos="rotary")
    stack(torch.randn(2, 7, 26))
    assert count(stack, Rotary) == 5 and len(made) == 2


def test_what_ctx_is_to_a_block_with_other_positions():
    stack = Decoder(**SMALL, layers="attn attn(pos=none)", pos="rotary")
    ctx = stack.column.context(torch.zeros(1, 3, 26), None, None, {"a": 1}, (True, False, [], None))
    seen = ctx.seen_by(())
    assert seen.relative is None and ctx.relative is not None and ctx.seen_by(None) is ctx
    assert all(getattr(seen, name) is getattr(ctx, name) for name in flags_of(type(ctx)) if name != "relative")


def test_state_and_maps_are_those_of_the_members():
    stack = laws.live(Decoder(**SMALL, layers="attn+ff+attn(window=3) gau", gau_query_key_dim=10))
    x = laws.sample(stack, 9)
    y, maps = stack.attention_maps(x)
    assert len(maps) == 3
    laws.close(y, stack(x), "with maps")
    _, state = stack.step(x)
    held = state.branches[0].block
    assert type(held) is tuple and len(held) == 3 and held[1] is None and held[0].k.shape[1] == 2
    assert isinstance(stack.branches[0].block, Parallel)


def test_a_context_is_kept_by_the_member_that_attends_to_it():
    """A row that starts anew keeps its context, though its tokens in the block beside are gone."""
    stack = laws.live(build("attn+cross_attn+ff gau", causal=True, depth=1))
    x, rows = laws.sample(stack, 9), torch.tensor([True, False, True])
    _, state = laws.go(stack, x[:, :6])
    ours, _ = stack.step(x[:, 6:], state, reset=rows)
    fresh, _ = laws.go(stack, x[:, 6:])
    on, _ = stack.step(x[:, 6:], state)
    laws.close(ours, torch.where(rows[:, None, None], fresh, on), "reset")


def test_documents_and_blocks_in_parallel():
    stack = laws.live(build("attn+gau(norm=own) ff+flash", causal=True, depth=1, shift_tokens=1, pos="rotary"))
    lengths = [7, 1, 5]
    x = laws.sample(stack, 13)
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(laws.BATCH, -1)
    for piece, out in zip(x.split(lengths, 1), stack(x, doc_ids=ids).split(lengths, 1), strict=True):
        laws.close(out, stack(piece), "documents")
    crossed = build("attn+cross_attn", causal=True).double()
    with pytest.raises(ValueError, match="CrossAttention cannot honour doc_ids"):
        crossed(x, context=x[..., :22], doc_ids=ids)


@pytest.mark.parametrize("layers", ["attn+recurrent state_read+ff", "state_read+recurrent attn"])
def test_state_vectors_are_read_from_and_beside_blocks_in_parallel(layers):
    """What a reader beside the writer, or below it, sees is what the writer knew before the block of tokens."""
    stack = laws.live(build(layers, causal=True, depth=1))
    (number,) = {n for block in stack.blocks() for n in block.reads_states()}
    assert number == 1
    x = laws.sample(stack, 13)
    y = stack(x)
    reader = next(block for block in stack.blocks() if block.reads_states())
    with torch.no_grad():
        reader.to_out.weight.zero_()
    assert (stack(x)[:, 5:] - y[:, 5:]).abs().max() > 1e-3


def test_losses_of_blocks_in_parallel_count():
    flags = {"block_attn_compress": "conv", "block_attn_compress_factor": 5, "block_attn_compress_loss": True}
    both = laws.live(build("block_attn+ff", causal=True, depth=1, **flags))
    alone = laws.live(build("block_attn", causal=True, depth=1, **flags))
    weights = {n.replace("block.blocks.0", "block"): t for n, t in both.state_dict().items()}
    alone.load_state_dict({n: weights[n] for n in alone.state_dict()})
    x = laws.sample(both, 21)
    losses = [stack.auxiliary_loss(stack.step(x)[1]) for stack in (both, alone)]
    laws.close(*losses, "auxiliary loss")
    assert losses[0] > 0


def test_blocks_in_parallel_are_recomputed():
    chance = {"attn_dropout": 0.1, "ff_dropout": 0.1, "layer_dropout": 0.3, "pos": "rel_pos"}
    laws.recomputed(build("attn+ff(norm=own) attn(rel_pos_num_buckets=8)", causal=True, depth=1, **chance))


def test_values_of_the_first_layer_reach_blocks_in_parallel():
    """The first of its kind is that down the column, in a layer first the left one."""
    stack = Decoder(**SMALL, layers="ff+attn attn+attn", attn_value_residual=True)
    attns = [block for block in stack.blocks() if hasattr(block, "to_mix")]
    assert [block.to_mix is None for block in attns] == [True, False, False]
    tied = Decoder(**{**SMALL, "depth": 2}, layers="attn+attn", attn_value_residual=True, weight_tie_layers=True)
    assert [block.to_mix is None for block in tied.blocks()] == [True, False]


def test_the_table_has_a_row_for_every_override():
    layers = "attn(window=5, norm=rmsnorm, rotary_base=500.0)+ff(mult=2.0) gau"
    stack = Encoder(**SMALL, layers=layers, pos="rotary", attn_window=9)
    rows = [line.split()[:4] for line in stack.flag_table().splitlines()[-4:]]
    assert [" ".join(row[:3]) for row in rows] == [
        "0: attn(window) 5",
        "0: attn(norm) 'rmsnorm'",
        "0: attn(rotary_base) 500.0",
        "0: ff(mult) 2.0",
    ]
    assert all(row[3] == "*" for row in rows) and " 9 " in stack.flag_table().splitlines()[-4]


def test_what_a_layout_keeps_for_itself():
    assert tuple(flags_of(Around)) == AROUND


LIKE = {
    "llama": {"layers": "attn ff", "norm": "rmsnorm", "pos": "rotary", "ff_glu": True, "ff_activation": "silu"}
    | {"ff_no_bias": True, "attn_kv_heads": 2},
    "gpt-j": {"layers": "attn+ff", "pos": "rotary", "rotary_interleaved": True, "rotary_emb_dim": 4, "norm_bias": True},
    "gpt-neox": {"layers": "attn+ff(norm=own)", "pos": "rotary", "rotary_emb_dim": 2, "norm_bias": True},
    "olmo-2": {"layers": "attn ff", "norm": "rmsnorm", "norm_place": "after", "attn_qk_norm": True, "pos": "rotary"}
    | {"attn_qk_norm_dim_scale": True, "ff_glu": True, "ff_activation": "silu"},
    "gemma-3": {"layers": "(attn(window=5) ff)*5 attn(rotary_base=1e6) ff", "norm": "rmsnorm", "pos": "rotary"}
    | {"norm_place": "sandwich", "attn_qk_norm": True, "attn_kv_heads": 2, "ff_glu": True, "depth": 1},
}


@pytest.mark.parametrize("flags", LIKE.values(), ids=list(LIKE))
def test_models_decode_exactly(flags):
    """Whole, a token at a time, and after a prompt with padding: one result."""
    stack = Decoder(**{"dim": 28, "depth": 2, "heads": 4, "attn_dim_head": 6, **flags})
    model = TransformerWrapper(num_tokens=19, max_seq_len=64, attn_layers=stack)
    model = laws.live(from_config(model.to_config()))
    ids = torch.randint(19, (3, 23), generator=torch.Generator().manual_seed(5))
    whole = model(ids)
    state, found = None, []
    for token in ids.split(1, 1):
        logits, state = model.step(token, state)
        found.append(logits)
    laws.close(torch.cat(found, 1), whole, "a token at a time")
    mask = torch.arange(9) >= torch.tensor([[0], [4], [2]])
    _, state = model.step(ids[:, :9], mask=mask)
    after, _ = model.step(ids[:, 9:], state)
    for row, hidden in enumerate((0, 4, 2)):
        laws.close(after[row], model(ids[row : row + 1, hidden:])[0, 9 - hidden :], "after padding")


def test_every_registered_norm_can_be_a_layers():
    for name in norms:
        stack = Decoder(**SMALL, layers=f"attn(norm={name}) ff")
        assert type(stack.branches[0].before) is norms[name]


def test_what_a_block_with_positions_of_its_own_sees_is_the_same_call_otherwise():
    values = {field.name: object() for field in fields(Ctx)} | {"apart": {("own",): "its positions"}}
    ctx = Ctx(**values)
    seen = {field.name: getattr(ctx.seen_by(("own",)), field.name) for field in fields(Ctx)}
    assert seen == {**values, "relative": "its positions"} and ctx.seen_by(None) is ctx
