"""`compare` trains variants alike, says what came of each, and goes on where it was stopped."""

import json
import statistics

import pytest
import torch
from torch import nn

import xflash
from xflash.experiments import lane as lanes
from xflash.experiments import turns


def make(width=3, dropout=0.0):
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 1))


def squares(model, generator):
    """How far a model is from the sum of its input."""
    x = torch.randn(7, 5, generator=generator)
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


TWO = {"narrow": {"width": 2}, "wide": {"width": 11, "dropout": 0.3}}


@pytest.fixture
def compare(tmp_path):
    """The function, small and quiet, with runs kept in a folder of the test."""

    def small(variants=None, data=(make, squares), budget="12 steps", **settings):
        return xflash.compare(
            TWO if variants is None else variants,
            data,
            budget,
            **{"folder": tmp_path / "runs", "progress": False, "lr": 0.01, "looks": 2, **settings},
        )

    return small


@pytest.fixture
def steps(monkeypatch):
    """Every training step as it is made: the variant, the seed, and what its batch is drawn from."""
    made, train = [], lanes.Lane.train

    def noted(lane):
        made.append((lane.name, lane.seed, lane.chance.get_state().sum().item()))
        return train(lane)

    monkeypatch.setattr(lanes.Lane, "train", noted)
    return made


def test_all_variants_see_the_same_data_in_turns(compare, steps):
    compare(seeds=(3, 5))
    orders = {(name, seed): [at for n, s, at in steps if (n, s) == (name, seed)] for name in TWO for seed in (3, 5)}
    assert {len(order) for order in orders.values()} == {12}
    assert orders["narrow", 3] == orders["wide", 3] != orders["narrow", 5] == orders["wide", 5]
    # A slice of each before the next of any.
    slices = [steps[at][:2] for at in range(0, len(steps), lanes.SLICE)]
    assert len(slices) == 12
    assert all(set(slices[at : at + 4]) == set(orders) for at in (0, 4, 8))


def test_the_score_is_the_mean_of_the_seeds_at_the_best_rate(compare):
    found = compare(lr=(1e-5, 0.05), seeds=3)
    for row in found.rows:
        runs = [run for run in found.runs if run.name == row.name]
        by_rate = {rate: [run.score for run in runs if run.lr == rate] for rate in (1e-5, 0.05)}
        best = min(by_rate, key=lambda rate: statistics.mean(by_rate[rate]))
        assert row.lr == best == 0.05
        assert row.score == statistics.mean(by_rate[best])
        assert row.spread == (max(by_rate[best]) - min(by_rate[best])) / 2
        assert list(row.scores.values()) == list(by_rate.values())
    assert found.rows[0].score <= found.rows[1].score
    assert found["wide"].name == "wide"
    with pytest.raises(KeyError, match="no variant 'wild'; there are"):
        found["wild"]


def test_a_run_is_what_a_loop_written_by_hand_makes(compare):
    found = compare({"narrow": {"width": 2}}, seeds=(4,), warmup=3, weight_decay=0.2, clip=0.5)
    torch.manual_seed(4)
    model = make(2)
    decayed, others = [p for p in model.parameters() if p.dim() == 2], [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
    optimizer, chance = torch.optim.AdamW(groups, betas=(0.9, 0.98)), torch.Generator().manual_seed(4)
    losses = []
    for step in range(12):
        loss = squares(model, chance)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        cosine = 0.1 + 0.45 * (1 + torch.tensor((step - 3) / 9 * torch.pi).cos().item())
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * ((step + 1) / 3 if step < 3 else cosine)
        optimizer.step()
        losses.append(loss.item())
    chance = torch.Generator().manual_seed(2**31 - 1)
    with torch.no_grad():
        held = [squares(model.eval(), chance).item() for _ in range(32)]
    assert [step for step, _ in found.runs[0].looks] == [4, 8, 12]
    assert found.runs[0].looks[-1][1] == pytest.approx(sum(held[:4]) / 4, rel=1e-5)
    assert found.runs[0].score == pytest.approx(sum(held) / 32, rel=1e-5)
    assert [step for step, _ in found.runs[0].losses] == list(range(1, 13))
    assert [value for _, value in found.runs[0].losses] == pytest.approx(losses, rel=1e-5)


def test_ones_own_chance_and_settings_are_left_alone(compare):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    compare()
    assert torch.equal(torch.rand(3), expected)
    assert (torch.tensor(2.0**-126) / 2).item() > 0


def test_seconds_buy_each_variant_the_steps_of_its_speed(compare, monkeypatch):
    pace = {"narrow": 0.25, "wide": 0.5}

    def advance(lane):
        before = lane.step
        step(lane)
        lane.seconds += pace[lane.name] * (lane.step - before) - lane.paces[-1] * (lane.step - before)
        lane.paces[-1] = pace[lane.name]

    step = lanes.Lane.advance
    monkeypatch.setattr(lanes.Lane, "advance", advance)
    found = compare(budget="10s")
    assert {run.name: run.step for run in found.runs} == {"narrow": 40, "wide": 20}
    assert {round(run.seconds, 3) for run in found.runs} == {10.0}
    assert found["narrow"].speed == pytest.approx(4) and found["wide"].speed == pytest.approx(2)
    # A seed that joins later, on a machine that has become faster, makes as many.
    pace.update(narrow=0.01, wide=0.01)
    assert {run.step for run in compare(budget="10s", seeds=(7,)).runs} == {40, 20}


def forbidden(*_):
    raise AssertionError("trained what is known")


def test_what_is_known_is_not_trained_again(compare, monkeypatch):
    first = compare()
    advance = lanes.Lane.advance
    monkeypatch.setattr(lanes.Lane, "advance", forbidden)
    again = compare()
    assert str(again) == str(first) and again.to_json() == first.to_json()
    monkeypatch.setattr(lanes.Lane, "advance", advance)
    for changed in ({"budget": "13 steps"}, {"lr": 0.02}, {"seeds": (8,)}, {"clip": 2.0}):
        assert compare(**changed).to_json() != first.to_json()
    names = {"narrow": {"width": 2}, "other": {"width": 4}}
    assert compare(names)["narrow"].score == first["narrow"].score


def test_only_what_is_known_is_shown_when_nothing_is_to_be_trained(compare, monkeypatch):
    compare({"wide": TWO["wide"]})
    monkeypatch.setattr(lanes.Lane, "advance", forbidden)
    found = compare(train=False)
    assert [row.name for row in found.rows] == ["wide", "narrow"]
    assert found["wide"].score is not None and found["narrow"].failed == "not trained yet"


class Killed(BaseException):
    """Nobody catches it, as nobody catches a kill."""


@pytest.mark.parametrize("end", [Killed, KeyboardInterrupt])
def test_a_run_that_was_stopped_goes_on_exactly(compare, tmp_path, monkeypatch, end):
    settings = {"budget": "40 steps", "save_every": 0.0 if end is Killed else 1000.0}
    whole = compare(folder=tmp_path / "whole", **settings)
    take, taken = turns.take_turn, []

    def stopped(lane):
        taken.append(lane.name)
        if len(taken) == 9:
            raise end
        take(lane)

    monkeypatch.setattr(turns, "take_turn", stopped)
    with pytest.raises(end):
        compare(**settings)
    assert list((tmp_path / "runs").rglob("*.pt"))
    parts = [compare(**settings)]
    made = len(taken) - 9
    assert made == 40 - 8  # four runs of ten slices, of which eight had been kept
    assert not list((tmp_path / "runs").rglob("*.pt"))
    for one, other in zip(whole.runs, parts[0].runs, strict=True):
        assert one.losses == other.losses and one.looks == other.looks and one.score == other.score


def test_what_fails_or_diverges_is_said_in_its_row_and_stops_nothing(compare):
    def loss(model, generator):
        if model[0].out_features == 6 and model.training and generator.initial_seed() == 1:
            raise RuntimeError("no\n  luck")
        return squares(model, generator) * (float("inf") if model[0].out_features == 4 else 1.0)

    variants = {"fine": {"width": 3}, "diverges": {"width": 4, "lr": 0.3}, "fails": {"width": 6}}
    found = compare(variants, (make, loss), lr=(0.01, 0.02))
    assert found.rows[2].name == "diverges"
    assert found["fine"].score > 0 and not found["fine"].lost
    assert found["diverges"].failed.startswith("diverged: the loss of step 1 is inf")
    assert found["fails"].score is not None and found["fails"].spread is None
    assert found["fails"].lost == {f"{rate}, seed 1": "RuntimeError: no luck" for rate in ("0.01", "0.02")}
    assert "0.01, seed 1 RuntimeError: no luck" in str(found)


def test_what_cannot_be_kept_is_trained_each_time(compare, tmp_path):
    made = {"width": nn.Linear(1, 1).weight.shape[0]}
    source = "def loss(model, generator):\n    return model(generator_input(generator)).square().mean()\n"
    space = {"generator_input": lambda generator: torch.randn(7, 5, generator=generator)}
    exec(source, space)  # a function that nobody can read the source of
    assert compare({"one": made}, (make, space["loss"])).rows[0].score is not None
    assert not list((tmp_path / "runs").rglob("*"))


def test_json_has_the_numbers_of_the_rows(compare):
    found = compare()
    read = json.loads(found.to_json())
    assert [row["name"] for row in read["rows"]] == [row.name for row in found.rows]
    assert [row["score"] for row in read["rows"]] == [row.score for row in found.rows]
    assert read["score"] == "loss" and read["better"] == "less"
