"""Pictures: what they show are numbers that are known by hand."""

import json
import math

import laws
import pytest
import torch
from torch import nn

import xflash
from xflash import Decoder, Encoder, TransformerWrapper, capture
from xflash.look.losses import curve_of
from xflash.look.states import held_by

N, W = 17, 4


def stack_of(layers="attn ff", cls=Decoder, **flags):
    small = {"attn_dim_head": 6} if "attn" in layers else {}
    return laws.live(cls(**{"dim": 14, "heads": 2, "depth": 1, "layers": layers, **small, **flags}))


def panels(figure):
    figure.savefig("/dev/null", format="png")
    return figure.axes


def test_each_layer_sees_as_far_as_its_window_reaches():
    """Windows of W and 2 and a shift of one token: what is seen has a gradient, and nothing else has."""
    stack = stack_of("attn(window=4) ff attn(window=2,shift_tokens=1)")
    x, at = laws.sample(stack, N), 14
    found = xflash.receptive_field(stack, x, at=at)
    reach = {"1 attn": W - 1, "2 ff": W - 1, "3 attn": W - 1 + 1 + 1}
    for label, back in reach.items():
        assert (found[label] > 0).tolist() == [at - back <= j <= at for j in range(N)], label
    assert all(p.grad is None for p in stack.parameters()) and not stack._forward_pre_hooks


def test_the_field_is_the_norm_of_the_derivatives():
    stack = stack_of("flash ff", flash_group_size=5, flash_query_key_dim=6, num_memory_tokens=2)
    x = laws.sample(stack, 7)
    found = xflash.receptive_field(stack, x, at=-2, draws=None)
    for place, label in enumerate(("1 flash", "2 ff")):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, place=place: stack(x, return_hiddens=True)[1][place + 1][:, 5], x
        )
        hand = torch.stack([jacobian[i, :, i].square().sum((0, 2)) for i in range(len(x))]).mean(0).sqrt()
        laws.close(found[label], hand, label)
        drawn = xflash.receptive_field(stack, x, at=5, draws=400)[label]
        torch.testing.assert_close(drawn[:6], hand[:6], rtol=0.2, atol=0.0)


def test_the_field_of_a_model_is_that_of_its_stack():
    stack = stack_of("gau", cls=Encoder, gau_query_key_dim=6)
    model = TransformerWrapper(num_tokens=31, max_seq_len=N, attn_layers=stack).double().eval()
    ids = torch.randint(31, (2, N))
    found = xflash.receptive_field(model, ids, at=3)
    laws.close(found["1 gau"], xflash.receptive_field(stack, model.embedding(ids, None)[0], at=3)["1 gau"], "model")
    with torch.no_grad():
        assert xflash.receptive_field(model, ids, at=3)["1 gau"].max() > 0
    for at in (N, -N - 1, True):
        with pytest.raises(ValueError, match=f"at must be one of the {N} tokens that the stack is given"):
            xflash.receptive_field(model, ids, at=at)
    with pytest.raises(ValueError, match="draws must be"):
        xflash.receptive_field(model, ids, draws=0)


def test_its_picture_has_means_over_distances_that_double():
    stack = stack_of("attn")
    x = laws.sample(stack, N)
    field = xflash.receptive_field(stack, x)["1 attn"].flip(0)
    (axes,) = panels(xflash.plot_receptive_field(stack, x))
    (line,) = axes.lines
    hand = [float(field[i : 2 * i].mean() / field[0]) for i in (1, 2, 4, 8, 16)]
    assert line.get_label() == "1 attn"
    assert list(line.get_ydata()) == pytest.approx(hand)


def test_attention_is_shown_by_layer_and_head():
    stack = stack_of("attn ff gau", gau_query_key_dim=6)
    x = laws.sample(stack, N)
    maps = stack.attention_maps(x)[1]
    shown = panels(xflash.plot_attention(stack, x, row=1, tokens="abcdefghijklmnopq"))
    assert [panel.get_title() for panel in shown] == ["1 attn, head 1", "1 attn, head 2", "3 gau", ""]
    for panel, hand in zip(shown, [maps[0][1, 0], maps[0][1, 1], maps[1][1, 0]], strict=False):
        torch.testing.assert_close(torch.tensor(panel.images[0].get_array()), hand.float())
    assert [label.get_text() for label in shown[0].get_yticklabels()][:3] == ["a", "b", "c"]
    with capture(stack, "maps") as seen:
        stack(x)
    for source in (seen, seen.maps):
        mean = panels(xflash.plot_attention(source, mean=True))
        torch.testing.assert_close(torch.tensor(mean[0].images[0].get_array()), maps[0][0].mean(0).float())


def test_the_field_of_a_model_that_reads_through_steps():
    model = xflash.BlockRecurrentTransformer(
        num_tokens=11, dim=12, depth=2, heads=2, dim_head=6, block_width=4, num_state_vectors=3
    ).eval()
    found = xflash.receptive_field(model, torch.randint(11, (2, 7)), at=3)
    assert all(bool((field[:4] > 0).any()) and not field[4:].any() for field in found.values())


def test_what_is_no_attention_is_refused():
    with pytest.raises(TypeError, match=r"plot_attention takes a model and its inputs, what capture gave, or maps"):
        xflash.plot_attention(3)
    with pytest.raises(ValueError, match=r"row must be one of the 2 of the batch, -2 to 1, not 2"):
        xflash.plot_attention({"one": torch.ones(2, 1, 3, 3)}, row=2)
    stack = stack_of("ff")
    with pytest.raises(ValueError, match="no layer shows 'maps'"):
        xflash.plot_attention(stack, laws.sample(stack, N))


@pytest.mark.parametrize("every", [1, 5])
def test_states_are_those_of_steps(every):
    stack = stack_of("attn flash ff", flash_group_size=5, flash_query_key_dim=6, num_memory_tokens=2)
    x = laws.sample(stack, N)
    held = held_by(stack, x, every=every, row=1)
    assert list(held) == ["1 attn", "2 flash"]
    with torch.no_grad():
        for i, n in enumerate(held["2 flash"].tokens):
            _, state = stack.step(x[:, :n])
            closed, kv = state.branches[1].block.closed[1], state.branches[0].block
            if (n + 2) % 5:  # A group that is just full is closed by the next call.
                assert held["2 flash"].sizes["closed"][i] == pytest.approx(math.sqrt((closed**2).mean()), rel=1e-5)
            assert held["1 attn"].sizes["k"][i] == pytest.approx(math.sqrt((kv.k[1] ** 2).mean()), rel=1e-5)
    assert held["2 flash"].tokens[-1] == N and held["1 attn"].parts["k"].shape == (2 * (N + 2), 6)
    torch.testing.assert_close(held["2 flash"].parts["closed"], closed.float())
    shown = panels(xflash.plot_state(stack, x, every=every, row=1))
    assert [panel.get_title() for panel in shown] == ["1 attn: k", "1 attn: size", "2 flash: closed", "2 flash: size"]
    torch.testing.assert_close(torch.tensor(shown[2].images[0].get_array()), closed.float())
    assert list(shown[3].lines[0].get_xdata()) == held["2 flash"].tokens


def test_states_of_models_and_of_what_has_none():
    model = TransformerWrapper(num_tokens=31, max_seq_len=N, attn_layers=stack_of("attn").float())
    assert list(held_by(xflash.AutoregressiveWrapper(model), torch.randint(31, (1, 5)))) == ["1 attn"]
    with pytest.raises(ValueError, match="a Sequential has no step, and so no state"):
        xflash.plot_state(nn.Sequential(stack_of("attn")), torch.ones(1, 2, 14))
    with pytest.raises(ValueError, match=r"a bidirectional stack \(Encoder\) has no state"):
        xflash.plot_state(stack_of("attn", cls=Encoder), torch.ones(1, 2, 14))
    with pytest.raises(ValueError, match="every must be"):
        xflash.plot_state(model, torch.ones(1, 2).long(), every=0)


@pytest.fixture
def log(tmp_path):
    """What a run of an example leaves, killed while it wrote."""
    folder = tmp_path / "mine"
    folder.mkdir()
    entries = [{"step": i, "bits": 8 / i, "seconds": i / 2} for i in range(1, 6)]
    entries[3]["valid_bits"] = 2.5
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"step": 6, "bi')
    return folder


def test_losses_are_those_of_the_log(log):
    curve = curve_of(log)
    assert curve == curve_of(str(log / "log.jsonl")) == ([1, 2, 3, 4, 5], [8, 4, 8 / 3, 2, 1.6], [4], [2.5])
    assert curve_of(log, by="seconds").steps == [0.5, 1, 1.5, 2, 2.5]
    assert curve.smoothed(3) == pytest.approx([8, 6, (12 + 8 / 3) / 3, (6 + 8 / 3) / 3, (3.6 + 8 / 3) / 3])
    assert curve_of(torch.tensor([3.0, 2.0])) == curve_of([3, 2]) == ([1, 2], [3, 2], [], [])


def test_losses_of_several_runs_are_lines_by_name(log):
    (axes,) = panels(xflash.plot_loss(log, [3.0, 1.0], {"other": log / "log.jsonl"}, last=[2.0], smooth=2))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mine", "run 2", "other", "last"]
    raw, mean, held = axes.lines[:3]
    assert list(raw.get_ydata()) == [8, 4, 8 / 3, 2, 1.6] and list(held.get_xdata()) == [4]
    assert list(mean.get_ydata()) == pytest.approx([8, 6, (4 + 8 / 3) / 2, (2 + 8 / 3) / 2, 1.8])


def test_what_is_no_run_is_refused(log, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "lr": 1}\n')
    for run, message in {
        tmp_path / "none": "there is no log in .*none: give the folder of a run",
        tmp_path: "no entry of .*log.jsonl has 'bits' or 'loss'",
    }.items():
        with pytest.raises(ValueError, match=message):
            xflash.plot_loss(run)
    with pytest.raises(ValueError, match=r"entries of .* have no 'hours'; they have 'step', 'bits', 'seconds'"):
        xflash.plot_loss(log, by="hours")
    with pytest.raises(ValueError, match="plot_loss needs a run"):
        xflash.plot_loss()
    with pytest.raises(ValueError, match="two runs are called 'mine'"):
        xflash.plot_loss(log, log)
    with pytest.raises(TypeError, match=r"a run is a folder, a log.jsonl or a list of numbers, not int"):
        xflash.plot_loss(3)
    with pytest.raises(ValueError, match="by is 'seconds', but of a list of numbers nothing is known"):
        xflash.plot_loss([3.0], by="seconds")
    with pytest.raises(ValueError, match=r"a list of numbers, one at least, not \[\]"):
        xflash.plot_loss([])
    with pytest.raises(ValueError, match="smooth must be"):
        xflash.plot_loss(log, smooth=0)


def test_a_notebook_is_given_a_picture():
    assert xflash.plot_loss([3.0, 2.0])._repr_png_()[1:4] == b"PNG"
