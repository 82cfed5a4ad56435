"""What newcomers write to `compare` first is answered with what says it here; nothing given is left unused."""

import pytest
import torch
from test_compare_tasks import TEXT

import xflash
from xflash import probes
from xflash.experiments.misspelt import ELSEWHERE, SETTINGS

ONE = {"one": {"layers": "attn ff"}}
PAIRS = (torch.ones(11, 3).long(), torch.ones(11, 5).long())
LINEAR = (lambda width=3: torch.nn.Linear(5, width), lambda model, generator: torch.tensor(1.0))
TEXTS = "the text of a book, of which this is the first line\n"

SAID = {
    "another name": (TypeError, "compare has no setting 'batch_size': write batch=7", {"batch_size": 7}),
    "steps": (TypeError, r"no setting 'max_steps': write budget='70 steps'", {"max_steps": 70}),
    "a seed": (TypeError, r"no setting 'seed': write seeds=\(5,\)", {"seed": 5}),
    "a slip": (
        TypeError,
        "variant 'one': 'weigth_decay' is no flag, and no setting of compare; did you mean 'weight_decay'",
        {"weigth_decay": 0.1},
    ),
    "a flag": (TypeError, "variant 'one': unknown flag 'hedas'; did you mean 'heads'", {"hedas": 2}),
    "said twice": (ValueError, "layers='gau' is of all variants, but each has layers of its own", {"layers": "gau"}),
    "a probe's length": (
        ValueError,
        r"seq_len is set, but a probe has a length of its own \(probe.longer",
        {"data": probes.parity(seq_len=8), "seq_len": 16},
    ),
    "a probe's name": (ValueError, r"'recall' is a probe: give xflash.probes.recall\(\)", {"data": "recall"}),
    "no call": (
        TypeError,
        "data is probes.recall itself, which makes a probe when it is called",
        {"data": probes.recall},
    ),
    "a text itself": (ValueError, r"data is a text itself, .*: give text.encode\(\)", {"data": TEXTS * 50}),
    "images": (ValueError, "seq_len is set, but images have no tokens of a text", {"data": "digits", "seq_len": 9}),
    "padding": (ValueError, r"every target is padding \(-100\)", {"data": (PAIRS[0], PAIRS[1] * -100)}),
    "a long pair": (ValueError, "seq_len is set, but pairs are as long as they are", {"data": PAIRS, "seq_len": 9}),
    "a memory": (ValueError, "max_mem_len is of texts in segments, but rows of a comparison", {"max_mem_len": 9}),
    "no end": (ValueError, "budget='1e400 steps' has no end", {"budget": "1e400 steps"}),
    "half a step": (ValueError, "budget='0.5 steps' is no whole number of steps", {"budget": "0.5 steps"}),
    "no gradient": (
        TypeError,
        "variant 'one' cannot be trained on .*: loss_fn must give a loss that depends on the model's parameters",
        {"variants": {"one": {}}, "data": LINEAR, "shared": {}},
    ),
    "own batches": (
        ValueError,
        "batch is set, but loss_fn draws its batches",
        {"variants": {"one": {}}, "data": LINEAR, "shared": {}, "batch": 3},
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_it_is_answered(case, tmp_path):
    kind, message, given = SAID[case]
    given = {"budget": "1 step", "seeds": 1, "lr": 0.01, "data": TEXT, "variants": ONE, **given}
    shared = given.pop("shared", {"dim": 8})
    data, variants = given.pop("data"), given.pop("variants")
    if data is TEXT:
        shared |= {"seq_len": 11}
    with pytest.raises(kind, match=message):
        xflash.compare(variants, data, folder=tmp_path, progress=False, **shared, **given)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder='.*file' is a file: give a folder, which is made if there is none"):
        xflash.compare(ONE, TEXT, seq_len=11, folder=tmp_path / "file")


def test_no_other_name_is_a_setting():
    assert not set(ELSEWHERE) & set(SETTINGS)


def test_what_has_no_result_is_not_known_already(tmp_path, capsys):
    def loss(model, generator):
        raise RuntimeError("boom")

    found = xflash.compare({"one": {}}, (LINEAR[0], loss), "2 steps", seeds=1, lr=0.1, folder=tmp_path)
    assert "boom" in found.rows[0].failed and "1 runs, 0 of them known already" in capsys.readouterr().err
