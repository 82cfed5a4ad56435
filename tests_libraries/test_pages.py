"""The page of models: its code runs."""

import code_blocks
import torch


def test_the_code_runs():
    space = code_blocks.run(code_blocks.ROOT / "docs" / "models.md")
    theirs, hybrid, ids = space["theirs"], space["hybrid"], space["ids"]
    expected = theirs(ids, output_hidden_states=True).hidden_states
    found = hybrid(ids, return_hiddens=True)[1]
    assert not torch.allclose(found[4], expected[2], atol=1e-2), "behind the first FLASH it is another model"
