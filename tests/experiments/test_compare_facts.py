"""What is known of a variant without training, counted by hand; and the widths that make variants alike."""

import pytest
import torch
from torch import nn

from xflash.experiments.budget import read_budget
from xflash.experiments.clock import flushed, seconds_of
from xflash.experiments.facts import decode_times, flops_of, on_cpu, peak_bytes, size_of, state_bytes
from xflash.experiments.matching import match_widths
from xflash.experiments.settings import Settings
from xflash.experiments.tasks.choose import choose
from xflash.experiments.variants import read_variants

N, ROWS, D, H, K, V = 13, 2, 12, 2, 5, 256
CPU = torch.device("cpu")
FLAGS = {"dim": D, "heads": H}


def task_of(data=bytes(600), **settings):
    return choose(data, Settings(**{"seq_len": N, "batch": ROWS, **settings}))


def variants(given, task, **shared):
    return read_variants(given, {**FLAGS, **shared}, (0.01,), task)


def test_flops_of_a_transformer():
    task = task_of()
    (variant,) = variants({"softmax": {"layers": "attn(dim_head=5) ff", "depth": 1}}, task)
    weights = D * 3 * H * K + H * K * D + 2 * D * 4 * D + D * V
    forward = 2 * weights + 2 * 2 * N * H * K  # scores and values, of all tokens as PyTorch counts them
    found, both = flops_of(variant, task)
    assert found == forward
    assert both == 3 * forward  # two products for each of the forward's


def test_flops_of_ones_own_model_count_attention_on_a_cpu():
    def attend(model, generator):
        x = model(torch.randn(1, 3, 7, 4, generator=generator))
        return nn.functional.scaled_dot_product_attention(x, x, x).sum()

    task = task_of((lambda: nn.Linear(4, 4), attend))
    (variant,) = read_variants({"own": {}}, {}, (0.01,), task)
    assert flops_of(variant, task)[0] == 2 * 3 * 7 * 4 * 4 + 2 * 2 * 3 * 7 * 7 * 4


def test_a_state_grows_by_keys_and_values():
    task = task_of()
    several = {"attn(dim_head=5) ff": 2 * H * K * 4, "flash(group_size=3)": 0}
    for variant in variants({name: {"layers": name, "depth": 1} for name in several}, task):
        assert state_bytes(task.net(variant.built(task)), 12, CPU) == several[variant.name]


def test_memory_is_what_is_held_at_once():
    def work():
        first = torch.ones(1000, 250)
        second = first + 1
        del first
        return second * 2

    assert on_cpu(work) == pytest.approx(2_000_000, rel=1e-3)


def test_peak_of_a_training_step():
    def loss(model, generator):
        return model(torch.ones(1, 500)).sum()

    task = task_of((lambda: nn.Linear(500, 500, bias=False), loss))
    model = task.build({})
    peak = peak_bytes(model, torch.optim.AdamW(model.parameters(), foreach=False, fused=False), task, CPU)
    # Weights, two moments, gradients, and one denominator at a time.
    assert peak == pytest.approx(5 * 4 * 250_000, rel=0.21)
    assert peak > 4 * 4 * 250_000


def test_a_decoded_token_is_timed_behind_half_a_row_in_turns():
    calls = []

    class Net(nn.Module):
        def step(self, ids, state=None):
            calls.append((self.name, ids.shape[1], state))
            return None, (state or 0) + ids.shape[1]

    nets = {name: Net() for name in "ab"}
    for name, net in nets.items():
        net.name = name
    found = decode_times(nets, 20, CPU)
    assert calls[:2] == [("a", 10, None), ("b", 10, None)]
    assert calls[2:] == [(name, 1, 10 + i) for i in range(10) for name in "ab"]
    assert set(found) == {"a", "b"} and all(0 <= value < 1000 for value in found.values())


def test_the_clock_counts_work_and_no_waiting():
    import time

    assert seconds_of(lambda: time.sleep(0.2), CPU)[1] < 0.1
    result, spent = seconds_of(lambda: sum(range(300_000)), CPU)
    assert result == 44_999_850_000 and spent > 0


def test_numbers_too_small_are_0_for_a_while():
    tiny = torch.tensor([2.0**-126])
    for before in (True, False):
        torch.set_flush_denormal(before)
        with flushed():
            assert (tiny / 2).item() == 0
        assert ((tiny / 2).item() == 0) is before


@pytest.mark.parametrize("by", ["params", "flops"])
def test_widths_are_matched_within_two_percent(by):
    task = task_of(num_layers=2)
    several = variants(
        {"softmax": {"layers": "attn ff", "dim": 40}, "GAU": {"layers": "gau"}, "wide": {"layers": "ff"}}, task
    )
    said = match_widths(several, by, task)

    def measured(variant):
        return size_of(variant.built(task)) if by == "params" else flops_of(variant, task)[0]

    goal = measured(several[0])
    assert several[0].flags["dim"] == 40
    for variant, line in zip(several[1:], said, strict=True):
        assert variant.flags["dim"] != D and abs(measured(variant) / goal - 1) <= 0.02
        assert line.startswith(f"{variant.name}: dim {D} -> {variant.flags['dim']}, {measured(variant):,.0f} ")


def test_what_is_alike_already_is_not_changed():
    task = task_of()
    both = variants({"one": {"layers": "attn ff"}, "same": {"layers": "attn ff"}}, task)
    assert match_widths(both, "params", task)[0].startswith("same: dim 12 -> 12, ")
    assert match_widths(both, None, task) == []


@pytest.mark.parametrize(
    ("text", "amount", "unit", "steps"),
    [
        ("60s", 60, "seconds", None),
        ("1.5 min", 90, "seconds", None),
        ("2000 steps", 2000, "steps", 2000),
        ("5M tokens", 5_000_000, "tokens", 50_000),
        ("2e3tokens", 2000, "tokens", 20),
        ("1,000 tokens", 1000, "tokens", 10),
        ("7 tokens", 7, "tokens", 1),
    ],
)
def test_budgets(text, amount, unit, steps):
    budget = read_budget(text)
    assert (budget.amount, budget.unit, budget.steps(100)) == (amount, unit, steps)
    assert read_budget(str(budget)) == budget


@pytest.mark.parametrize(
    ("num_layers", "layout", "depth"), [(4, "attn ff", 2), (4, "flash", 4), (4, "flash*3 attn ff", 1)]
)
def test_a_layout_without_a_depth_is_repeated(num_layers, layout, depth):
    assert task_of(num_layers=num_layers).completed({"layers": layout})["depth"] == depth
    assert task_of().completed({"layers": layout, "depth": 7})["depth"] == 7
    assert "depth" not in task_of().completed({"custom_layers": ("a", "f")})
