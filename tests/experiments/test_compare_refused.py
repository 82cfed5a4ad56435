"""What `compare` refuses, before anything is trained, and the sentence it has for it."""

import pytest
import torch
from test_compare_tasks import TEXT, Before

import xflash
from xflash.experiments import lane
from xflash.experiments.tasks.choose import is_own


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    def begin(_):
        raise AssertionError("trained")

    monkeypatch.setattr(lane.Lane, "begin", begin)


class Context(Before):
    """A probe with tokens that no model has a place for."""

    def draw(self, rows, generator):
        ids, labels = super().draw(rows, generator)
        return torch.cat((ids, ids), 1), torch.cat((labels, labels), 1)


ONE, OWN = {"one": {"layers": "attn ff"}}, (lambda **flags: torch.nn.Linear(2, 2), lambda model, generator: None)
REFUSED = {
    "no variants": (ValueError, "there are no variants", {"variants": {}}),
    "no mapping": (TypeError, "variants must be flags by name, or a list of layouts, not 3", {"variants": 3}),
    "a variant": (TypeError, "variant 'one' must be a layout or flags by name, not 3", {"variants": {"one": 3}}),
    "a list": (TypeError, "in a list, variants are layouts such as 'attn ff', not 3", {"variants": [3]}),
    "a flag": (
        TypeError,
        "variant 'two': unknown flag 'flash_grup_size'; did you mean 'flash_group_size'",
        {"variants": {**ONE, "two": {"layers": "flash", "flash_grup_size": 3}}},
    ),
    "a setting": (TypeError, "'warm_up' is no flag, and no setting of compare; did you mean 'warmup'", {"warm_up": 3}),
    "a layout": (ValueError, "variant 'atn ff': .*'attn'", {"variants": ["atn ff"]}),
    "what the data says": (ValueError, "variant 'one': max_seq_len=9 is the data's to say", {"max_seq_len": 9}),
    "of a side": (
        ValueError,
        "variant 'one': enc_num_tokens=9 is the data's to say",
        {"variants": {"one": {"enc_num_tokens": 9}}, "kind": "encoder-decoder"},
    ),
    "no unit": (
        TypeError,
        "budget must be a text with its unit, not 60 of type int; possible are '60s'",
        {"budget": 60},
    ),
    "no budget": (ValueError, "budget='soon' is no number with a unit", {"budget": "soon"}),
    "a unit": (ValueError, "budget='3 setps' has the unit 'setps'; did you mean 'steps'", {"budget": "3 setps"}),
    "no number": (ValueError, "budget='1.2.3s': '1.2.3' is no number", {"budget": "1.2.3s"}),
    "nothing": (ValueError, "budget='0s' buys nothing", {"budget": "0s"}),
    "a short text": (ValueError, "7 bytes is too short: its first nine tenths has 6 tokens", {"data": b"letters"}),
    "a short end": (
        ValueError,
        "its held-out tenth has 10 tokens, and a row of seq_len=11 needs 12",
        {"data": TEXT[:100]},
    ),
    "no data": (TypeError, "data is 3 of type int; possible are bytes, the path of a text", {"data": 3}),
    "no pair": (TypeError, "data is a pair of 3 of type int and 4 of type int", {"data": (3, 4)}),
    "few pairs": (
        ValueError,
        "data has 4 sources and 3 targets",
        {"data": (torch.ones(4, 2).int(), torch.ones(3, 2).int())},
    ),
    "two rows": (ValueError, r"ids must be one row of tokens \(n,\), not \(2, 3\)", {"data": torch.ones(2, 3).int()}),
    "ids": (
        ValueError,
        "ids go from 0 to 8, which are not among num_tokens=7",
        {"data": torch.arange(9), "num_tokens": 7},
    ),
    "a probe": (ValueError, "variant 'one' cannot be trained on before.*22 tokens", {"data": Context()}),
    "rates": (ValueError, "lr is empty", {"lr": ()}),
    "a rate": (ValueError, "lr of variant 'one' must be above 0, not -1", {"variants": {"one": {"lr": -1}}}),
    "seeds": (ValueError, "seeds must be at least 1, not 0", {"seeds": 0}),
    "no seeds": (ValueError, "seeds is empty", {"seeds": ()}),
    "progress": (TypeError, "progress must be True or False", {"progress": 1}),
    "a folder": (TypeError, "folder must be the path of a folder, not 3", {"folder": 3}),
    "a kind": (ValueError, "kind.*'causal'", {"kind": "cusal"}),
    "a device": (ValueError, "compare cannot put weights on the device 'nowhere'", {"device": "nowhere"}),
    "match": (ValueError, "match is 'size'; possible are 'params', 'flops' and None", {"match": "size"}),
    "a fixed width": (
        ValueError,
        "variant 'two' fixes dim=40, which match='params' would have to change: leave it out",
        {"variants": {**ONE, "two": {"layers": "attn ff", "dim": 40}}, "match": "params"},
    ),
    "no width": (
        ValueError,
        "variant 'deep' comes within 2% of the first one's params at no width .*: give it another depth",
        {"variants": {"one": {"layers": "ff", "dim": 1}, "deep": {"layers": "gau", "depth": 3}}, "match": "params"},
    ),
    "own widths": (ValueError, "models of one's own are made as make_model says", {"data": OWN, "match": "params"}),
    "no loss": (TypeError, "loss_fn must give a tensor of one number, not None", {"data": OWN, "shared": {}}),
    "no module": (TypeError, "variant 'one': make_model must give a module, not 3", {"data": (lambda **_: 3, OWN[1])}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_said_in_a_sentence(case, tmp_path):
    kind, message, given = REFUSED[case]
    shared = {"dim": 8, "heads": 2, "seq_len": 11, "folder": tmp_path, "progress": False, **given}
    shared |= shared.pop("shared", {})
    variants, data = shared.pop("variants", ONE), shared.pop("data", TEXT)
    if is_own(data) or isinstance(data, Before):
        del shared["seq_len"]
    with pytest.raises(kind, match=message):
        xflash.compare(variants, data, **shared)
