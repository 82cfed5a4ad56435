"""Reads, scales and joins: what they compute, alone, computed again, compiled, and in one column."""

import laws
import pytest
import torch
from cases import build
from torch import nn

import xflash
from xflash import Decoder, Site
from xflash.layers.joins.gru import GRU
from xflash.layers.joins.hyper import Hyper, balanced

EVERY = {
    "views": {"reads": "unet lime", "lime_views": True, "join": "hyper", "shift_tokens": 1},
    "gates": {"reads": "lime", "scale": "layerscale", "join": "gru", "norm_place": "sandwich"},
    "values": {"attn_value_residual": True, "reads": "unet", "join": "scaled", "pos": "rotary"},
    "tied": {"attn_value_residual": True, "join": "hyper", "weight_tie_layers": True, "num_memory_tokens": 3},
}


@pytest.mark.parametrize("gain", [True, False])
def test_a_gru_is_torchs_cell(gain):
    join = laws.live(GRU(GRU.Config(gain=gain), Site(13)))
    cell = nn.GRUCell(13, 13).double()
    for name, linear in (("ih", join.update), ("hh", join.stream)):
        getattr(cell, f"weight_{name}").data, getattr(cell, f"bias_{name}").data = linear.weight.data, linear.bias.data
    x, update = torch.randn(2, 2, 5, 13, dtype=torch.float64)
    stream = x * join.gain if gain else x
    expected = cell(update.flatten(0, 1), stream.flatten(0, 1)).view_as(x)
    laws.close(join(x, update, None), expected, "GRU")


def test_a_gru_keeps_the_stream_at_first():
    """The more so, the larger the bias of the gate is."""
    x, update = torch.randn(2, 3, 5, 16)
    gaps = [(GRU(GRU.Config(keep=keep), Site(16))(x, update, None) - x).abs().mean().item() for keep in (0.0, 2.0, 9.0)]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


def test_balanced_matrices():
    torch.manual_seed(0)
    mixes = balanced(torch.randn(3, 7, 5, 5, dtype=torch.float64), 40)
    for axis in (-1, -2):
        laws.close(mixes.sum(axis), torch.ones(3, 7, 5, dtype=torch.float64), "sums")
    assert (mixes > 0).all()
    half = balanced(torch.randn(4, 4).bfloat16(), 5)
    assert half.dtype == torch.bfloat16 and (half.float().sum(-2) - 1).abs().max() < 0.02


def test_streams_are_read_mixed_and_fed():
    """Stream by stream, with numbers where the weights are."""
    join = laws.live(Hyper(Hyper.Config(streams=3), Site(11, places=(4,))))
    x = torch.randn(2, 5, 3, 11, dtype=torch.float64)
    update = torch.randn(2, 5, 11, dtype=torch.float64)
    read, kept = join.take(x, None)
    y = join(kept, update, None)
    for b, i in ((0, 0), (1, 4)):
        normed = nn.functional.layer_norm(x[b, i], (11,), join.gain)
        reads = [torch.sigmoid(join.reads[s] + join.reads_scale * (normed[s] @ join.to_reads)) for s in range(3)]
        laws.close(read[b, i], sum(w * row for w, row in zip(reads, x[b, i], strict=True)), "read")
        mixes = balanced(join.mixes + join.reads_scale * torch.stack([row @ join.to_mixes for row in normed]), 5)
        for t in range(3):
            mixed = sum(mixes[s, t] * x[b, i, s] for s in range(3))
            written = join.writes[t] + join.writes_scale * 2 * torch.sigmoid(normed[t] @ join.to_writes)
            laws.close(y[b, i, t], mixed + 2 * torch.sigmoid(written) * update[b, i], "write")
    assert join.narrow(x).shape == update.shape and not hasattr(join, "starts")


@pytest.mark.parametrize("flags", EVERY.values(), ids=EVERY)
def test_computed_again(flags):
    laws.recomputed(build("attn ff", causal=True, depth=2, layer_dropout=0.3, attn_dropout=0.1, **flags))


@pytest.mark.slow
def test_compiled():
    torch._dynamo.reset()
    flags = {**EVERY["views"], "shift_tokens": 0, "attn_value_residual": True, "hyper_rounds": 2, "hyper_streams": 2}
    stack = build("attn ff", causal=True, depth=2, **flags)
    x = torch.randn(2, 7, stack.dim)
    torch.testing.assert_close(torch.compile(stack, fullgraph=True, backend="eager", dynamic=True)(x), stack(x))


@pytest.mark.parametrize("flags", EVERY.values(), ids=EVERY)
def test_documents(flags):
    if "num_memory_tokens" in flags:
        flags = {**flags, "num_memory_tokens": 0}
    stack = laws.live(build("attn ff", causal=True, depth=2, **flags))
    lengths = [5, 1, 6]
    x, ids = laws.sample(stack, 12), torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    packed = stack(x, doc_ids=ids.expand(laws.BATCH, -1))
    for piece, out in zip(x.split(lengths, 1), packed.split(lengths, 1), strict=True):
        laws.close(out, stack(piece), "documents")


@pytest.mark.parametrize("flags", EVERY.values(), ids=EVERY)
def test_two_calls_share_nothing(flags):
    """What layers leave for each other is gone with the call."""
    stack = laws.live(build("attn ff", causal=True, depth=2, **flags))
    x = laws.sample(stack, 7)
    y = stack(x)
    stack(2 * x[:1])
    assert torch.equal(stack(x), y)
    assert not [name for module in stack.modules() for name, t in vars(module).items() if isinstance(t, torch.Tensor)]


def test_skips_join_mirrored_repetitions():
    """At first as though there were none; the last repetition is given what the first began with."""
    plain = build("attn ff", causal=False, depth=5)
    stack = build("attn ff", causal=False, depth=5, reads="unet")
    weights = stack.state_dict()
    assert [name for name in weights if "unet" in name] == [f"branches.{i}.reads.unet.combine.weight" for i in (6, 8)]
    plain.load_state_dict({name: t for name, t in weights.items() if "unet" not in name})
    x = torch.randn(1, 4, stack.dim)
    torch.testing.assert_close(stack(x), plain(x))
    with torch.no_grad():
        weights["branches.8.reads.unet.combine.weight"].copy_(torch.eye(stack.dim, 2 * stack.dim))
    begun = stack.branches[9](stack.branches[8].block(stack.branches[8].before(x), CTX)[0] + x, CTX, None, 9)[0]
    torch.testing.assert_close(stack(x), stack.final_norm(begun))


CTX = xflash.base.state.Ctx(0, None, None, torch.arange(4)[None])


def test_integrated_layers_begin_as_their_own():
    stack = build("attn ff", causal=True, depth=3, reads="lime", lime_weights="relu")
    with torch.no_grad():
        for branch in stack.branches:
            branch.reads["lime"].score.weight.zero_()
    plain = build("attn ff", causal=True, depth=3)
    plain.load_state_dict({name: t for name, t in stack.state_dict().items() if "lime" not in name})
    x = torch.randn(2, 5, stack.dim)
    torch.testing.assert_close(stack(x), plain(x))


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"reads": "unet", "depth": 1}, r"reads='unet' joins repetitions .* only once \(depth=1\)"),
        (
            {"reads": "unet", "weight_tie_layers": True},
            "reads='unet' joins two halves .* weight_tie_layers=True",
        ),
        (
            {"reads": "lime", "weight_tie_layers": True},
            "reads='lime' mixes all layers .* but weight_tie_layers=True",
        ),
        (
            {"gate_residual": True, "num_residual_streams": 2},
            "gate_residual=True means join='gru', but num_residual",
        ),
        (
            {"attn_value_residual_learned": False},
            "attn_value_residual_learned=False is set, but attn_value_residual",
        ),
        (
            {"layers": "attn attn(dim_head=5) ff", "attn_value_residual": True},
            "first 'attn' layer, which has dim_head=64 where another has 5",
        ),
        (
            {"layers": "attn attn(heads=2) ff", "attn_value_residual": True},
            "first 'attn' layer, which has heads=4 where another has 2",
        ),
        (
            {"depth": 1, "attn_value_residual": True},
            "attn_value_residual=True mixes values with those of the first 'attn' layer, but the stack has only one",
        ),
        (
            {"depth": 1, "attn_scores": "residual"},
            "attn_scores has 'residual', which adds scores .* but only one attn layer of the stack has it",
        ),
        (
            {"layers": "gau ff", "reads": "lime", "lime_views": True},
            "lime_views=True, but no block of the stack reads several mixtures .those that do: attn",
        ),
        ({"num_residual_streams": 0}, "num_residual_streams must be at least 1, not 0"),
    ],
    ids=lambda given: "" if isinstance(given, str) else str(given),
)
def test_refused(flags, match):
    with pytest.raises(ValueError, match=match):
        Decoder(**{"dim": 24, "depth": 2, "heads": 4, **flags})


def test_heads_that_are_said_are_those_of_the_stack():
    for flags in ({"attn_value_residual": True}, {"attn_scores": "residual"}):
        Decoder(dim=24, depth=1, heads=4, layers="attn(heads=4) attn", **flags)
    # cross_attn has taken the flag over, and stands once.
    Decoder(dim=24, depth=1, heads=4, layers="attn attn cross_attn", attn_value_residual=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_streams_stay_in_full_precision_under_autocast(dtype):
    stack = build("attn ff", causal=True, depth=2, join="hyper", scale="layerscale")
    seen = []
    for branch in stack.branches:
        branch.register_forward_hook(lambda _m, _i, out: seen.append(out[0].dtype))
    with torch.autocast("cpu", dtype=dtype):
        stack(torch.randn(1, 5, stack.dim))
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("shape", [(laws.BATCH, 24), (laws.BATCH, 5, 24)], ids=["a row", "a token"])
@pytest.mark.parametrize(
    "flags", [{"join": "hyper", "norm_place": "post"}, {"reads": "lime", "lime_views": True}], ids=["streams", "views"]
)
def test_a_condition_of_several_streams(flags, shape):
    """It is a token's, whatever stands between tokens and channels."""
    given = {"dim": 24, "depth": 2, "heads": 4, "attn_dim_head": 6, "norm": "adaptive_rmsnorm"}
    stack = laws.live(Decoder(**given, **flags))
    x, condition = laws.sample(stack, 5), torch.randn(shape, dtype=torch.float64)
    y = stack(x, condition=condition)
    for row in range(laws.BATCH):
        for n in (1, 5):
            cut = condition[row : row + 1] if len(shape) == 2 else condition[row : row + 1, :n]
            laws.close(stack(x[row : row + 1, :n], condition=cut), y[row : row + 1, :n], f"row {row}")
    assert (stack(x, condition=2 * condition) - y).abs().max() > 1e-3
