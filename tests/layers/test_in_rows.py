"""Packed documents where they lie, against those in groups of their own, as outputs, gradients and work."""

import laws
import pytest
import torch

from xflash import Decoder
from xflash.layers.blocks import flash
from xflash.layers.kernels import groups, in_rows
from xflash.layers.kernels.in_rows import runs, stays_in_rows
from xflash.layers.kernels.mixed_chunk import Heads, Spec, mixed_chunk_slow

B, W, K, E = 3, 5, 2, 7
DOCUMENTS = ([[17], [1, 3, 1, 12], [5, 5, 7]], [[4], [1, 3], [2, 2]], [[23], [11, 12], [6, 1, 10, 6]])
SETTINGS = [
    {"bias": lambda gap: (gap.double() / W).sin()[None]},
    {"fn": "laplace", "divide": 3.0, "normaliser": "sum"},
    {"fn": "softmax"},
]


def heads(n):
    generator = torch.Generator().manual_seed(n)
    parts = (torch.randn(B, n, size, generator=generator, dtype=torch.float64) for size in (K, K, K, K, E))
    return Heads(*(part.requires_grad_() for part in parts))


def numbered(lengths):
    return torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths])


@pytest.mark.parametrize("lengths", DOCUMENTS, ids=["rows", "all open", "many groups"])
@pytest.mark.parametrize("settings", SETTINGS, ids=["relu2", "laplace", "softmax"])
def test_documents_are_what_they_are_alone(settings, lengths):
    settings, n = Spec(W, True, scale=0.4, **settings), sum(lengths[0])
    t = heads(n)
    y = in_rows.in_rows(t, settings, runs(numbered(lengths), None, W))
    rows = []
    for row, sizes in enumerate(lengths):
        alone = (Heads(*p) for p in zip(*(part[row : row + 1].split(sizes, 1) for part in t), strict=True))
        rows.append(torch.cat([mixed_chunk_slow(document, settings) for document in alone], 1))
    wanted = torch.cat(rows)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
    found = [torch.autograd.grad(out.sin().sum(), t, allow_unused=True) for out in (y, wanted)]
    for ours, theirs in zip(*found, strict=True):
        zero = torch.zeros(())
        ours, theirs = (zero if g is None else g for g in (ours, theirs))
        torch.testing.assert_close(ours, theirs.expand_as(ours), rtol=0, atol=1e-11)


def test_rows_stay_where_nobody_may_look(monkeypatch):
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert not stays_in_rows(ids) and stays_in_rows(ids.to("meta"))
    # As if a CPU were none, with masks: what is behind a row's last token is nobody's.
    torch.manual_seed(0)
    stack = laws.live(Decoder(dim=8, depth=2, layers="flash", flash_group_size=W, flash_query_key_dim=4, pos="rotary"))
    x, ids = laws.sample(stack, 23), numbered(DOCUMENTS[2])
    mask = torch.arange(23) < torch.tensor([[23], [15], [0]])
    wanted = stack(x, mask, doc_ids=ids)
    looks = []
    monkeypatch.setattr(flash, "stays_in_rows", lambda ids: True)
    monkeypatch.setattr(groups, "canvas_size", lambda *given: looks.append(given))
    torch.testing.assert_close(stack(x, mask, doc_ids=ids), wanted, rtol=0, atol=1e-9)
    assert not looks


def test_memory_does_not_grow_with_documents():
    sizes = []
    for lengths in ([[40]], [[1] * 40], [[5] * 8]):
        where = runs(numbered(lengths), None, W)
        sizes.append([t.shape for t in where])
        assert where.end.shape == (1, 8)
    assert sizes[0] == sizes[1] == sizes[2]
