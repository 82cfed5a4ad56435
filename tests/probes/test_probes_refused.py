"""What a probe cannot be, and what it cannot be asked: a sentence each."""

import pytest
import torch

from xflash import probes

REFUSED = [
    ("recall", {"pair": 3}, TypeError, "unknown flag 'pair' of probes.recall; did you mean 'pairs'\\?"),
    ("recall", {"pairs": "many"}, TypeError, "pairs of probes.recall must be a whole number, not 'many'"),
    ("recall", {"pairs": 0}, ValueError, "pairs of probes.recall must be at least 1, not 0"),
    ("recall", {"causal": 1}, TypeError, "causal of probes.recall must be True or False, not 1"),
    ("recall", {"pairs": 7, "symbols": 5}, ValueError, "pairs=7 different keys need as many symbols, not symbols=5"),
    ("recall", {"pairs": 3, "seq_len": 8}, ValueError, "their keys once more are 9 tokens, but seq_len=8"),
    ("copy", {"count": 5, "seq_len": 9}, ValueError, "count=5 symbols and where .* are 10 tokens, but seq_len=9"),
    ("induction", {"period": 7}, TypeError, "period of probes.induction must be .*int.*, not 7"),
    ("induction", {"period": (7, 5)}, ValueError, r"period=\(7, 5\) must be the fewest and the most"),
    (
        "induction",
        {"period": (7, 33), "symbols": 31},
        ValueError,
        "the most, at most symbols=31 and fewer than seq_len",
    ),
    ("induction", {"period": (7, 11), "seq_len": 11}, ValueError, "fewer than seq_len=11"),
    ("needle", {"seq_len": 40}, ValueError, "seq_len=40 must be two or more whole segments of segment=16"),
    ("needle", {"seq_len": 16}, ValueError, "seq_len=16 must be two or more whole segments of segment=16"),
    ("needle", {"length": 16}, ValueError, "a needle of length=16 and its sign need a longer segment=16"),
    ("needle", {"gap": (1, 4)}, ValueError, r"gap=\(1, 4\) must be .* fewer than the 4 of seq_len=64"),
    ("needle", {"gap": (3, 2)}, ValueError, r"gap=\(3, 2\) must be the fewest and the most segments"),
    ("needle", {"gap": (0, 2)}, ValueError, "gap of probes.needle must be at least 1, not 0"),
    ("permutations", {"items": 6}, ValueError, "items of probes.permutations must be at most 5, not 6"),
    ("parity", {"seq_len": 1}, ValueError, "seq_len of probes.parity must be at least 2, not 1"),
]


@pytest.mark.parametrize(("name", "settings", "error", "match"), REFUSED)
def test_settings(name, settings, error, match):
    with pytest.raises(error, match=match):
        getattr(probes, name)(**settings)


def test_calls():
    probe, chance = probes.parity(seq_len=5), torch.Generator()
    for rows, error in ((0, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match="rows must be"):
            probe.draw(rows, chance)
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator, not 7 of type int"):
        probe.draw(3, 7)
    with pytest.raises(TypeError, match=r"such as torch.Generator\(\).manual_seed\(0\), not None"):
        probe.draw(3, None)
    with pytest.raises(ValueError, match="seq_len must be at least 5, not 4"):
        probe.longer(4)
    with pytest.raises(ValueError, match="seq_len=24 must be two or more whole segments"):
        probes.needle(seq_len=21, segment=7).longer(24)


def test_scores():
    probe, labels = probes.parity(seq_len=5), torch.zeros(3, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"logits for labels \(3, 5\) must be \(3, 5, 2\), not \(3, 5, 7\)"):
        probe.score(torch.zeros(3, 5, 7), labels)
    with pytest.raises(TypeError, match="labels must be a tensor, not list"):
        probe.score(torch.zeros(3, 5, 2), labels.tolist())
    with pytest.raises(ValueError, match="labels ask nothing: all of them are -100"):
        probe.score(torch.zeros(3, 5, 2), labels - 100)
