"""Frequencies of rotary positions for longer texts: each way by hand, under the laws, through every block."""

import math

import laws
import pytest
import torch
from cases import DIM, build

from xflash.base.registry import positions
from xflash.layers.positions.scaling import amplitude, scaled_frequencies

WIDTH, BASE = 14, 10000.0


def config(**flags):
    return positions["rotary"].Config(**flags)


def trained(width=WIDTH):
    return [BASE ** (-2 * i / width) for i in range(width // 2)]


def llama3(factor, length, low, high):
    """A wavelength at a time, as Llama 3.1 has it."""
    found = []
    for frequency in trained():
        wavelength = 2 * math.pi / frequency
        smooth = (length / wavelength - low) / (high - low)
        if wavelength < length / high:
            found.append(frequency)
        elif wavelength > length / low:
            found.append(frequency / factor)
        else:
            found.append((1 - smooth) * frequency / factor + smooth * frequency)
    return found


def yarn(factor, length, slow, fast, truncate):
    """A pair at a time; channel c, counted as pairs are, turns length / (2 pi base ** (2 c / width)) times."""
    first, last = (WIDTH * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(BASE)) for turns in (fast, slow))
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, WIDTH - 1)
    ramp = [min(max((i - first) / (last - first), 0), 1) for i in range(WIDTH // 2)]
    return [f / factor * r + f * (1 - r) for f, r in zip(trained(), ramp, strict=True)]


LISTED = (1.0, 1.25, 1.5, 2.0, 3.5, 5.0, 8.0)
WAYS = {
    "none": ({}, trained()),
    "llama3": (
        {"scaling": "llama3", "scaling_factor": 8.0, "scaling_length": 64},
        llama3(8.0, 64, 1.0, 4.0),
    ),
    "llama3 with turns of its own": (
        {"scaling": "llama3", "scaling_factor": 3.0, "scaling_length": 640, "scaling_turns": (0.5, 9.0)},
        llama3(3.0, 640, 0.5, 9.0),
    ),
    "yarn": (
        {"scaling": "yarn", "scaling_factor": 4.0, "scaling_length": 4096},
        yarn(4.0, 4096, 1.0, 32.0, True),
    ),
    "yarn of gpt-oss": (
        {"scaling": "yarn", "scaling_factor": 32.0, "scaling_length": 4096, "scaling_truncate": False},
        yarn(32.0, 4096, 1.0, 32.0, False),
    ),
    "yarn with turns of its own": (
        {"scaling": "yarn", "scaling_factor": 4.0, "scaling_length": 512, "scaling_turns": (2.0, 9.0)},
        yarn(4.0, 512, 2.0, 9.0, True),
    ),
    "longrope": (
        {"scaling": "longrope", "scaling_factors": LISTED},
        [f / listed for f, listed in zip(trained(), LISTED, strict=True)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_frequencies_by_hand(way):
    flags, expected = WAYS[way]
    found = scaled_frequencies(config(**flags), BASE, WIDTH, torch.arange(3.0)[None])
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    lowered = torch.tensor(expected) < torch.tensor(trained()) * (1 - 1e-6)
    assert not flags or (lowered.any() and not lowered.all()), "the case says nothing"


def test_dynamic_counts_the_text_up_to_each_token():
    """NTK-aware bases: those of training up to its length, then each token's by the text that it ends."""
    factor, length = 3.0, 8
    found = scaled_frequencies(
        config(scaling="dynamic", scaling_factor=factor, scaling_length=length), BASE, WIDTH, torch.arange(29.0)[None]
    )
    assert found.shape == (1, 29, WIDTH // 2)
    for at in range(29):
        grown = factor * max(at + 1, length) / length - (factor - 1)
        base = BASE * grown ** (WIDTH / (WIDTH - 2))
        expected = [base ** (-2 * i / WIDTH) for i in range(WIDTH // 2)]
        torch.testing.assert_close(found[0, at].tolist(), expected, rtol=1e-5, atol=0)


AMPLITUDES = {
    "none": ({}, 1.0),
    "llama3": (WAYS["llama3"][0], 1.0),
    "yarn": (WAYS["yarn"][0], 0.1 * math.log(4) + 1),
    "yarn that says it": ({**WAYS["yarn"][0], "scaling_attention": 0.7}, 0.7),
    "longrope": (WAYS["longrope"][0], 1.0),
    "longrope of Phi-3": (
        {**WAYS["longrope"][0], "scaling_factor": 32.0, "scaling_length": 4096},
        math.sqrt(1 + math.log(32) / math.log(4096)),
    ),
}


@pytest.mark.parametrize("way", AMPLITUDES)
def test_what_is_turned_is_multiplied(way):
    flags, expected = AMPLITUDES[way]
    assert amplitude(config(**flags)) == pytest.approx(expected, abs=1e-12)
    rotary = positions["rotary"](config(**flags), True)
    t = torch.randn(2, 3, 5, WIDTH, dtype=torch.float64)
    turned = rotary.turn(t, rotary.table(torch.arange(5)[None], WIDTH, t.dtype))
    pairs = t.unflatten(-1, (2, -1))
    laws.close(turned.unflatten(-1, (2, -1)).norm(dim=-2), pairs.norm(dim=-2) * expected, way)


# Texts of the laws are about thrice as long as those "trained on", so that all that is lowered is.
SETTINGS = {
    "dynamic": {"rotary_scaling_factor": 3.0, "rotary_scaling_length": 7},
    "llama3": {"rotary_scaling_factor": 4.0, "rotary_scaling_length": 16, "rotary_interleaved": True},
    "yarn": {"rotary_scaling_factor": 4.0, "rotary_scaling_length": 16, "rotary_xpos": True},
    "longrope": {"rotary_scaling_factors": (1.5, 3.0), "rotary_emb_dim": 4, "rotary_scaling_attention": 1.3},
}


@pytest.mark.parametrize("way", SETTINGS)
def test_laws(way, tmp_path):
    """In every block that turns queries and keys, the fused kernels among them."""
    flags = {"pos": "rotary", "rotary_scaling": way, **SETTINGS[way]}
    stack = build("attn flash gau ff", 1, causal=True, num_memory_tokens=2, **flags)
    laws.all_laws(stack, tmp_path, ways=(False,))
    if way != "dynamic":
        stack = laws.live(build("block_attn recurrent", 1, causal=True, **flags))
        laws.chunk(stack, cuts=(5, 9), grads=(False,))
        laws.padding(stack, kinds=("holes",))
    if not flags.get("rotary_xpos"):
        laws.all_laws(build("attn flash ff", 1, **flags), tmp_path / "both ways", ways=(True,))


@pytest.mark.parametrize("way", SETTINGS)
def test_flash_by_its_kernel_and_without(way, monkeypatch):
    """Gradients too, whatever the turned channels are multiplied by."""
    from xflash.layers.blocks import flash

    flags = {"pos": "rotary", "rotary_scaling": way, **SETTINGS[way], "rotary_xpos": False}
    stack = laws.live(build("flash", 1, causal=True, **flags))
    x = laws.sample(stack, 23)
    fast = laws.trained(stack, lambda: [stack(x)])
    with monkeypatch.context() as patch:
        patch.setattr(flash, "operators_work", lambda: False)
        for ours, slow in zip(fast, laws.trained(stack, lambda: [stack(x)]), strict=True):
            laws.close(ours, slow, way)


def test_packed_documents_count_for_themselves():
    stack = laws.live(build("attn ff", 1, causal=True, pos="rotary", rotary_scaling="dynamic", **SETTINGS["dynamic"]))
    x = laws.sample(stack, 23)
    together = stack(x, doc_ids=torch.tensor([[1] * 9 + [2] * 14]).expand(3, -1))
    laws.close(together, torch.cat((stack(x[:, :9]), stack(x[:, 9:])), 1), "packed")


def test_scaling_changes_nothing_within_the_trained_length():
    """So that a model that was trained without it can be given it."""
    plain = laws.live(build("attn ff", 1, causal=True, pos="rotary"))
    scaled = build("attn ff", 1, causal=True, pos="rotary", rotary_scaling="dynamic", **SETTINGS["dynamic"]).double()
    scaled.load_state_dict(plain.state_dict())
    x = laws.sample(plain, 11)
    y, z = plain(x), scaled.eval()(x)
    assert torch.allclose(y[:, :7], z[:, :7], atol=1e-6) and not torch.allclose(y[:, 7:], z[:, 7:], atol=1e-3)


def test_windows_that_count_for_themselves_are_refused():
    message = "rotary_scaling='dynamic' counts the text up to each token, but 'recurrent' counts places inside"
    with pytest.raises(ValueError, match=message):
        build("attn recurrent", causal=True, pos="rotary", rotary_scaling="dynamic", **SETTINGS["dynamic"])


def test_factors_of_blocks_with_other_widths_are_refused():
    flags = {"pos": "rotary", "rotary_scaling": "longrope", "rotary_scaling_factors": (1.5, 2.0, 3.0)}
    assert build("attn", **flags)(torch.randn(2, 5, DIM)).isfinite().all()
    with pytest.raises(ValueError, match="rotary_scaling_factors has 3 entries, but 7 pairs of channels are turned"):
        build("attn gau", **flags)
