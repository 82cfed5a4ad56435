"""`summary`: parameters, FLOPs and states by formulas by hand, of every wrapper and trainer, on the meta device."""

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import xflash
from xflash import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper, ViTransformerWrapper, summary
from xflash.look.inputs import example_of
from xflash.wrappers.examples import EXAMPLES

D, H, K, E, W, N, V = 22, 2, 10, 44, 4, 12, 31
FLOAT = 4
SIZES = {
    "attn_dim_head": K,
    "gau_query_key_dim": K,
    "gau_rel_pos_bias": None,
    "flash_query_key_dim": K,
    "flash_group_size": W,
    "flash_rel_pos_bias": None,
    "norm": "rmsnorm",
}
# For each layer: parameters with the gain of its norm, FLOPs a token, bytes of its state a token, and always.
INNER = 2 * D * (2 * E + K) + 2 * E * D
OF_HAND = {
    "attn": (D + 4 * D * H * K, 2 * 4 * D * H * K + 4 * N * H * K, 2 * H * K * FLOAT, 8),
    "ff": (D + 8 * D * D + 5 * D, 16 * D * D, 0, 0),
    "gau": (D + D * (2 * E + K) + E * D + 4 * K, INNER + 2 * N * (K + E), (K + E) * FLOAT, 8),
    "flash": (
        D + D * (2 * E + K) + E * D + 8 * K,
        INNER + 2 * W * (K + E) + 4 * K * E,
        0,
        (K * E + W * (2 * K + E)) * FLOAT,
    ),
}


def stack_of(layers, cls=Decoder, **flags):
    used = {name: value for name, value in SIZES.items() if name == "norm" or name.split("_")[0] in layers.split()}
    return cls(dim=D, heads=H, layers=layers, **{"depth": 1, **used, **flags})


@pytest.mark.parametrize("meta", [False, True])
def test_a_stack_is_what_its_formulas_say(meta):
    with torch.device("meta" if meta else "cpu"):
        stack = stack_of("attn ff gau flash", final_norm=False)
    found = summary(stack, seq_len=N)
    assert [row.name for row in found.rows] == ["1 attn", "2 ff", "3 gau", "4 flash"]
    for row, name in zip(found.rows, OF_HAND, strict=True):
        parameters, flops, a_token, always = OF_HAND[name]
        assert (row.parameters, row.flops, row.shape) == (parameters, N * flops, (1, N, D)), name
        assert (row.state_bytes_per_token, row.state_bytes) == (a_token, always), name
        assert (row.seconds is None) == meta
    sums = [sum(column) for column in zip(*OF_HAND.values(), strict=True)]
    assert [found.parameters, found.flops_per_token, found.state_bytes_per_token, found.state_bytes] == sums
    assert found.parameters == sum(p.numel() for p in stack.parameters())


def test_a_trainer_is_what_its_model_is():
    net = TransformerWrapper(num_tokens=V, max_seq_len=N, attn_layers=stack_of("attn ff"), tie_embedding=True)
    found = summary(net, time=False)
    hand = {"1 attn": OF_HAND["attn"][:2], "2 ff": OF_HAND["ff"][:2], "final_norm": (D, 0)}
    # The matrix that is tied counts once, its product where it is made.
    hand |= {"embedding": ((V + N) * D, 0), "TransformerWrapper": (0, 2 * D * V)}
    assert {row.name: (row.parameters, row.flops / N) for row in found.rows} == hand
    assert found.tokens == N and found.seconds is None
    assert summary(AutoregressiveWrapper(net), time=False).rows == found.rows


def test_layers_that_are_tied_have_one_row():
    stack = stack_of("attn ff", depth=3, weight_tie_layers=True, final_norm=False)
    first, second = summary(stack, seq_len=N, time=False).rows
    assert (first.name, second.name) == ("1,3,5 attn", "2,4,6 ff")
    assert (first.parameters, first.flops) == (OF_HAND["attn"][0], 3 * N * OF_HAND["attn"][1])
    assert (first.state_bytes_per_token, first.state_bytes) == (3 * OF_HAND["attn"][2], 3 * 8)


@pytest.mark.parametrize(("name", "meta"), [*((name, True) for name in EXAMPLES), ("FLASHTransformer", False)])
def test_every_wrapper_and_trainer_has_one(name, meta):
    space = {**{each: getattr(xflash, each) for each in xflash.__all__}, "torch": torch}
    lines = [
        line for line in EXAMPLES[name].strip().splitlines() if line.split()[0] in ("net", "stack", "common", "model")
    ]
    with torch.device("meta" if meta else "cpu"):
        exec("\n".join(lines), space)
    model = space["model"]
    found = summary(model, seq_len=9, time=not meta)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    # Where there are no numbers each attention is made of products; on a CPU torch's counter leaves the fused one out.
    model.to("meta")
    example = example_of(model, 9)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        example.model.requires_grad_(False).eval()(*example.inputs, **example.named)
    assert found.flops == counter.get_total_flops() > 0
    causal = getattr(example.model, "causal", False)
    assert (found.state_bytes is not None) == bool(causal or name == "XTransformer")
    if not meta:
        assert 0 < sum(row.seconds or 0 for row in found.rows) < 1.5 * found.seconds


@pytest.mark.parametrize(
    ("layers", "flags"),
    [
        ("attn cross_attn", {}),
        ("attn ff", {"norm": "adaptive_rmsnorm"}),
        ("attn ff", {"pos": "rotary2d"}),
        ("state_read recurrent", {}),
    ],
)
def test_what_a_stack_must_be_given_is_made_up(layers, flags):
    stack = stack_of(layers, **{"norm": "rmsnorm", **flags})
    found = summary(stack, seq_len=N, time=False)
    assert found.parameters == sum(p.numel() for p in stack.parameters()) and found.flops > 0


@pytest.mark.parametrize("layers", ["attn ff", "state_read recurrent"])
def test_tokens_are_those_of_the_caller(layers):
    """Without memory tokens, and all of them where a stack runs piece after piece."""
    found = summary(stack_of(layers, num_memory_tokens=3), seq_len=N, time=False)
    assert found.tokens == N and {row.shape for row in found.rows if row.name[0].isdigit()} == {(1, N, D)}


def test_experts_count_for_those_that_a_token_goes_through():
    stack = Encoder(dim=D, layers="moe", depth=1, moe_experts=5, moe_top_k=3, moe_dim=7, final_norm=False)
    (row,) = summary(stack, seq_len=N, time=False).rows
    assert row.flops == N * (2 * D * 5 + 3 * 2 * (2 * D * 7))


def test_what_a_position_computes_counts_for_the_layer_that_asks_first():
    stack = stack_of("attn attn", Encoder, pos="dynamic", dynamic_width=7)
    rows = {row.name: row for row in summary(stack, seq_len=N, time=False).rows}
    network = 2 * (2 * N - 1) * (1 * 7 + 7 * 7 + 7 * H)
    assert [rows[name].flops for name in ("1 attn", "2 attn")] == [
        N * OF_HAND["attn"][1] + network,
        N * OF_HAND["attn"][1],
    ]
    assert rows["positions"].parameters == sum(p.numel() for p in stack.positions.parameters()) > 0


def test_a_module_of_ones_own_is_given_what_it_takes():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.out = stack_of("ff"), nn.Linear(D, 3)
            self.gain = nn.Parameter(torch.ones(D))

        def forward(self, x, twice=1):
            return self.out(self.inside(x) * self.gain) @ torch.ones(3, 2, device=x.device) * twice

    model = Own()
    found = summary(model, torch.randn(2, N, D), twice=2, time=False)
    assert {row.name: (row.parameters, row.flops / (2 * N)) for row in found.rows} == {
        "Own": (D, 2 * 3 * 2),
        "inside 1 ff": (OF_HAND["ff"][0], OF_HAND["ff"][1]),
        "inside.final_norm": (D, 0),
        "out": (3 * D + 3, 2 * D * 3),
    }
    assert found.tokens == 2 * N
    with pytest.raises(ValueError, match=r"what a Own is called with is not known: give it, as in summary\(model, x\)"):
        summary(model)
    with pytest.raises(TypeError, match="model must be a model, a trainer or a stack, not str"):
        summary("model")
    with pytest.raises(ValueError, match="seq_len must be"):
        summary(model, seq_len=0)
    with pytest.raises(TypeError, match="time must be True or False, not 1"):
        summary(model, time=1)


def test_it_leaves_the_model_as_it_was_and_draws_nothing():
    model = ViTransformerWrapper(
        image_size=8, patch_size=4, num_classes=3, attn_layers=stack_of("attn ff", Encoder, attn_dropout=0.5)
    )
    before, chance = [dict(vars(module)) for module in model.modules()], torch.get_rng_state()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    found = summary(model)
    assert found.tokens == 4 and model.training
    assert [dict(vars(module)) for module in model.modules()] == before and torch.equal(torch.get_rng_state(), chance)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks


def test_it_is_shown_as_text_html_and_json():
    found = summary(stack_of("ff", final_norm=False), seq_len=N, time=False)
    parameters, flops = OF_HAND["ff"][:2]
    assert str(found).splitlines() == [
        "            gives  parameters  FLOPs a token  state bytes a token  and always",
        f"1 ff  1 x 12 x 22       {parameters:,}          {flops:,}                    0           0",
        f"all                     {parameters:,}          {flops:,}                    0           0",
        "Decoder, one row of 12 tokens",
    ]
    html = found._repr_html_()
    assert html.count("<tr>") == 3 and f">{flops:,}</td>" in html and repr(found) == str(found)
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["parameters"] == parameters
