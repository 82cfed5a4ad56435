"""`capture`: what layers do, by their definitions, where the caller's tokens stand, and nothing left behind."""

import gc
import threading
import weakref
from dataclasses import dataclass

import laws
import pytest
import torch
import torch.nn.functional as F
from cases import build
from code_blocks import registries_kept
from graphs import Graphs

import xflash
from xflash import Decoder, Encoder, TransformerWrapper, XTransformer, capture

N = 13
# The stack of a layout, and what its layers show beside the stream.
STACKS = {
    "flash gau": ({"num_memory_tokens": 3, "pos": "rotary"}, ("gates", "near", "far")),
    "attn+gau ff": ({"attn_gate_values": True, "num_memory_tokens": 3, "shift_tokens": 1}, ("maps", "gates")),
    "attn flash": ({"attn_window": 3, "attn_sinks": 1, "attn_gate_value_heads": True}, ("maps", "gates", "near")),
    "attn gau": ({"attn_window": 3, "weight_tie_layers": True}, ("maps", "gates")),
    "state_read flash recurrent": ({"num_memory_tokens": 3}, ("gates", "far")),
}


def stack_of(layers, causal=True):
    return laws.live(build(layers, causal=causal, depth=1 if len(layers.split()) > 2 else 2, **STACKS[layers][0]))


def seen_of(stack, asked, x, mask=None):
    with capture(stack, "hidden", *asked) as seen:
        laws.run(stack, x, mask)
    return {kind: seen[kind] for kind in seen.asked}


def closed(ours, theirs, law):
    for kind in ours:
        assert ours[kind].keys() == theirs[kind].keys() != set()
        for label, t in ours[kind].items():
            laws.close(t, theirs[kind][label], f"{law}: {kind} of {label}")


def normed(stack, x):
    """What the block of the first layer reads."""
    return stack.branches[0].before(x, None)


def test_maps_and_streams_are_those_that_a_call_gives():
    stack = stack_of("attn+gau ff")
    x, mask = laws.sample(stack, N), laws.masks(N)["holes"]
    _, maps, hiddens = stack.attention_maps(x, mask, return_hiddens=True)
    found = seen_of(stack, ["maps"], x, mask)
    assert list(found["maps"]) == ["1 attn", "1 gau", "3 attn", "3 gau"]
    assert list(found["hidden"]) == ["1 attn+gau", "2 ff", "3 attn+gau", "4 ff"]
    assert all(map(torch.equal, found["maps"].values(), maps))
    assert all(map(torch.equal, found["hidden"].values(), hiddens[1:-1]))


def test_near_and_far_of_flash_by_their_definition():
    """Inside a group relu(qk / w)^2 times v, across groups the mean of far_q far_k v over the tokens of closed ones."""
    w = 5
    stack = laws.live(build("flash", depth=1, causal=True, flash_rel_pos_bias=None, flash_group_size=w))
    x, block = laws.sample(stack, N), stack.blocks()[0]
    with capture(stack, "near", "far", "gates") as seen:
        stack(x)
    u, v, z = F.silu(normed(stack, x) @ block.to_hidden.weight.T).split(block.widths, -1)
    q, far_q, k, far_k = (z * gamma + beta for gamma, beta in zip(block.gamma, block.beta, strict=True))
    near, far = torch.zeros_like(v), torch.zeros_like(v)
    for i in range(N):
        start = i // w * w
        for j in range(start, i + 1):
            near[:, i] += ((q[:, i] * k[:, j]).sum(-1, keepdim=True) / w).relu() ** 2 * v[:, j]
        for j in range(start):
            far[:, i] += (far_q[:, i] * far_k[:, j]).sum(-1, keepdim=True) * v[:, j] / start
    assert far.abs().max() > 0.01
    for kind, hand in {"near": near, "far": far, "gates": u}.items():
        laws.close(seen[kind]["1 flash"], hand, kind)
    laws.close(x + block.to_out(u * (near + far)), laws.run(stack, x, return_hiddens=True)[1][1], "the layer")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("flags", [{}, {"attn_fn": "softmax"}, {"dropout": 0.5}], ids=str)
def test_near_and_far_are_what_the_gate_multiplies(causal, flags):
    flags = {f"flash_{name}": value for name, value in flags.items()}
    stack = laws.live(build("flash", depth=1, causal=causal, **flags))
    x = laws.sample(stack, N)
    with capture(stack, "gates", "near", "far") as seen:
        y = stack(x, return_hiddens=True)[1][1]
    update = stack.blocks()[0].to_out(seen.gates["1 flash"] * (seen.near["1 flash"] + seen.far["1 flash"]))
    laws.close(x + update, y, "a layer")
    # Both are without dropout, and draw nothing.
    stack.train()
    torch.manual_seed(0)
    trained = stack(x)
    torch.manual_seed(0)
    with capture(stack, "near", "far") as again:
        assert torch.equal(stack(x), trained)
    closed({"near": again.near}, {"near": seen.near}, "in training")


@pytest.mark.parametrize(
    ("causal", "flags"), [(True, {}), (False, {}), (False, {"attn_fn": "softmax"}), (False, {"global_scope": "group"})]
)
def test_the_map_of_flash_is_what_it_multiplies_values_by(causal, flags):
    flags = {f"flash_{name}": value for name, value in flags.items()}
    stack = laws.live(build("flash", depth=1, causal=causal, **flags))
    x, block = laws.sample(stack, N), stack.blocks()[0]
    mask = laws.masks(N)["holes"]
    with capture(stack, "near", "far", "maps") as seen:
        stack(x, mask)
    v = F.silu(normed(stack, x) @ block.to_hidden.weight.T).split(block.widths, -1)[1]
    read = (seen.maps["1 flash"] @ v[:, None])[:, 0]
    laws.close(read, seen.near["1 flash"] + seen.far["1 flash"], "maps times values")
    assert not seen.maps["1 flash"][:, 0][~mask].any() and not seen.maps["1 flash"].mT[:, 0][~mask].any()


@pytest.mark.parametrize("flags", [{"gate_values": True}, {"gate_values": True, "gate_values_headwise": True}], ids=str)
@pytest.mark.parametrize("heads", [False, True])
def test_gates_of_attention_are_what_multiplies_the_heads(flags, heads):
    named = {f"attn_{name}": value for name, value in flags.items()}
    stack = laws.live(build("attn", depth=1, causal=True, attn_gate_value_heads=heads, **named))
    x, block = laws.sample(stack, N), stack.blocks()[0]
    with capture(stack, "gates") as seen:
        stack(x)
    y = normed(stack, x)
    hand = torch.sigmoid(y @ block.to_gate.weight.T).unflatten(2, (4, -1))
    if heads:
        hand = hand * torch.sigmoid(y @ block.to_head_gate.weight.T + block.to_head_gate.bias)[..., None]
    laws.close(seen.gates["1 attn"], hand, "gates")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layers", list(STACKS)[:3])
def test_padding_changes_nothing(layers, causal):
    stack, asked = stack_of(layers, causal), STACKS[layers][1]
    x = laws.sample(stack, N)
    for kind in ("left", "holes"):
        mask = laws.masks(N)[kind]
        padded = seen_of(stack, asked, x.masked_fill(~mask[..., None], float("nan")), mask)
        here = mask[0]
        alone = seen_of(stack, asked, x[:1, here])
        for name in padded:
            assert all((t[~mask] == 0).all() for t in padded[name].values() if name != "maps")
        of_row = {
            name: {label: t[:1, :, here][..., here] if name == "maps" else t[:1, here] for label, t in by_layer.items()}
            for name, by_layer in padded.items()
        }
        closed(of_row, alone, kind)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("layers", STACKS)
def test_steps_show_what_the_whole_shows(layers, grad):
    """One token at a time and several; a matrix has a column for each token there has been, given up or not."""
    stack, asked = stack_of(layers), STACKS[layers][1]
    x = laws.sample(stack, N)
    whole = seen_of(stack, asked, x)
    with torch.set_grad_enabled(grad):
        for sizes in ([1] * N, [4, 1, 6, 2]):
            with capture(stack, "hidden", *asked) as seen:
                laws.steps(stack, x, sizes)
            for kind in ("hidden", *asked):
                for label, t in whole[kind].items():
                    if kind == "maps" and "flash" in label:
                        continue
                    parts, start = [], 0
                    for call, size in zip(seen.calls, sizes, strict=True):
                        part = call[kind][label]
                        if kind == "maps":
                            assert part.shape[-1] == start + size
                            part = F.pad(part, (0, N - part.shape[-1])).transpose(1, 2)
                        parts.append(part)
                        start += size
                    laws.close(torch.cat(parts, 1), t.transpose(1, 2) if kind == "maps" else t, f"{kind} of {label}")


def test_a_step_of_flash_has_no_map():
    stack = stack_of("flash gau")
    x = laws.sample(stack, N)
    with capture(stack, "maps") as seen:
        laws.steps(stack, x, [9, 4])
    assert [list(call["maps"]) for call in seen.calls] == [["1 flash", "2 gau", "3 flash", "4 gau"], ["2 gau", "4 gau"]]


def test_rows_of_other_lengths_have_their_own_tokens_as_columns():
    stack = laws.live(build("attn", depth=1, causal=True, attn_window=3, num_memory_tokens=2))
    x, mask = laws.sample(stack, N), laws.masks(N)["left"]
    with torch.no_grad(), capture(stack, "maps") as seen:
        _, state = stack.step(x, None, mask)
        for _ in range(7):
            _, state = stack.step(x[:, :1], state)
    row = torch.cat([x[0, mask[0]], *[x[0, :1]] * 7])[None]
    whole = seen_of(stack, ["maps"], row)["maps"]["1 attn"]
    n = row.shape[1]
    laws.close(seen.maps["1 attn"][:1, :, :, :n], whole[:, :, -1:], "the last token")
    assert not seen.maps["1 attn"][:1, :, :, n:].any()


def test_a_state_is_what_a_step_gives():
    stack = stack_of("attn+gau ff")
    x = laws.sample(stack, N)
    _, state = laws.go(stack, x)
    with capture(stack, "state") as seen:
        y = laws.run(stack, x)
        assert isinstance(y, torch.Tensor)
    assert list(seen.state) == ["1 attn", "1 gau", "3 attn", "3 gau"]
    for place in (0, 2):
        for name, held in zip(("attn", "gau"), state.branches[place].block, strict=True):
            assert torch.equal(seen.state[f"{place + 1} {name}"].k, held.k)


def test_states_of_a_model_are_those_of_its_stacks_that_have_one():
    model = xflash.XTransformer(
        dim=12, enc_num_tokens=7, enc_depth=1, enc_max_seq_len=5, dec_num_tokens=11, dec_depth=1, dec_max_seq_len=7
    ).eval()
    with capture(model, "state", "hidden") as seen:
        model(torch.randint(7, (2, 5)), torch.randint(11, (2, 7)))
    assert seen.state and all(label.startswith("decoder") for label in seen.state)
    assert any(label.startswith("encoder") for label in seen.hidden)


def test_layers_have_their_names_in_models_with_several_stacks():
    sizes = {"num_tokens": 31, "max_seq_len": N, "depth": 1, "heads": 2, "attn_dim_head": 6}
    both = {f"{side}_{name}": size for side in ("enc", "dec") for name, size in sizes.items()}
    model = XTransformer(dim=20, **both)
    with capture(model, "maps") as seen:
        model(torch.randint(31, (2, 7)), torch.randint(31, (2, 5)))
    assert [(call.stack, *call["maps"]) for call in seen.calls] == [
        ("encoder", "encoder 1 attn"),
        ("decoder", "decoder 1 attn", "decoder 2 cross_attn"),
    ]
    assert seen.maps["decoder 2 cross_attn"].shape == (2, 2, 4, 7)
    twice = Decoder(dim=20, heads=2, layers="attn(window=3)+attn ff", depth=1, attn_dim_head=6)
    with capture(twice, "maps") as seen:
        twice(torch.randn(1, N, 20))
    assert list(seen.maps) == ["1.1 attn", "1.2 attn"]


def test_a_block_of_ones_own_shows_what_it_says():
    with registries_kept():

        @xflash.blocks.register("ema")
        class Ema(xflash.Block):
            @dataclass(frozen=True, kw_only=True)
            class Config:
                pass

            def shows(self):
                return ("double",)

            def forward(self, x, ctx, state=None):
                if ctx.relay.asked:
                    ctx.relay.show(self, "double", 2 * x)
                    ctx.relay.show(self, "unasked", x)
                return x, None

        stack = Decoder(dim=20, layers="ema", depth=2, num_memory_tokens=2, weight_tie_layers=True)
        x, mask = torch.randn(3, N, 20), laws.masks(N)["holes"]
        with capture(stack, "double") as seen:
            stack(x, mask)
        hand = 2 * normed(stack, x)
        assert list(seen.double) == ["1 ema", "2 ema"] and {row.kind for row in seen.calls[0].rows} == {"double"}
        torch.testing.assert_close(seen.double["1 ema"], hand.masked_fill(~mask[..., None], 0))


def test_nothing_is_kept_afterwards_and_nothing_is_written_on_the_model():
    stack = stack_of("flash gau")
    x, before = laws.sample(stack, N), [dict(vars(module)) for module in stack.modules()]
    with capture(stack, "gates", "state") as seen:
        stack(x)
        assert [dict(vars(module)) for module in stack.modules()] == before
    refs = [weakref.ref(t) for t in seen.gates.values()]
    with pytest.raises(ZeroDivisionError), capture(stack, "gates") as other:
        raise ZeroDivisionError
    stack(x)
    assert len(seen.calls) == 1 and other.calls == []
    del seen
    gc.collect()
    assert [ref() for ref in refs] == [None] * 4


def test_two_can_look_at_once_and_only_at_their_own_thread():
    stack, other = stack_of("flash gau"), stack_of("attn gau")
    x = laws.sample(stack, N)
    with capture(stack, "gates") as outer, capture(stack, "near") as inner, capture(other, "gates") as third:
        _, hiddens = stack(x, return_hiddens=True)
        thread = threading.Thread(target=stack, args=(x,))
        thread.start()
        thread.join()
    assert len(outer.calls) == len(inner.calls) == 1 and not third.calls and len(hiddens) == 6
    assert {row.kind for row in outer.calls[0].rows} == {"gates"}
    with pytest.raises(AttributeError, match="'near' was not asked for; what was: gates"):
        _ = outer.near


def test_layers_that_are_computed_again_show_what_they_do_once():
    stack = build("flash gau", grad_checkpoint=True, causal=True).train()
    with capture(stack, "gates", "maps") as seen:
        y = stack(torch.randn(2, N, stack.dim))
    y.sum().backward()
    assert [row.label for row in seen.calls[0].rows if row.kind == "gates"] == ["1 flash", "2 gau", "3 flash", "4 gau"]


def test_compiled_models_are_seen_and_keep_their_graphs():
    stack = stack_of("flash gau")
    x, graphs = laws.sample(stack, N), Graphs()
    compiled = torch.compile(stack, fullgraph=True, backend=graphs)
    with torch.no_grad():
        y = compiled(x)
        with capture(stack, "gates") as seen:
            laws.close(compiled(x), y, "in eager")
        again = compiled(x)
    assert len(graphs.ran) == 1 and torch.equal(again, y)
    closed({"gates": seen.gates}, seen_of(stack, ["gates"], x), "compiled")


REFUSED = [
    ("attn ff", ["near"], {}, r"no layer shows 'near'; attn has maps; all layers have hidden and state"),
    (
        "flash",
        ["gate"],
        {},
        r"no layer shows 'gate'; did you mean 'gates'\?; flash has gates, near, far, maps; all layers",
    ),
    ("flash gau", [], {}, r"say what to capture: gates, near, far, maps, hidden, state"),
    ("attn", ["maps"], {"attn_flash": True}, r"'maps' are asked for, but attn_flash=True: the fused kernel"),
    ("gau", ["state"], {"causal": False}, r"a bidirectional stack \(AttentionLayers\) has no state"),
    ("attn state_read recurrent", ["maps"], {}, r"'maps' are asked for, but a stack whose layers read each other's"),
]


@pytest.mark.parametrize(("layers", "asked", "flags", "message"), REFUSED)
def test_what_no_layer_has_is_refused(layers, asked, flags, message):
    stack = build(layers, **{"causal": True, **flags})
    with pytest.raises(ValueError, match=message), capture(stack, *asked):
        raise AssertionError("it was not refused")


def test_what_is_no_stack_is_refused():
    with (
        pytest.raises(TypeError, match=r"model must be a stack or a model or trainer with one inside, not int"),
        capture(3),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"there is no stack in this Linear: give a Decoder"),
        capture(torch.nn.Linear(2, 2), "maps"),
    ):
        pass
    model = TransformerWrapper(num_tokens=31, max_seq_len=N, attn_layers=Encoder(dim=20, depth=1, heads=2))
    with capture(model, "maps") as seen, pytest.raises(ValueError, match="nothing is captured yet: call the model"):
        _ = seen.maps
    with pytest.raises(KeyError, match="'hidden' was not asked for; what was: maps"):
        _ = seen["hidden"]
