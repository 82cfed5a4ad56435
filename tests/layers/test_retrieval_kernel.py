"""The kernel of retrieval against its definition: outputs, gradients, tiles, and the parts it is made of."""

import laws
import pytest
import torch

import xflash.layers.kernels.retrieval as kernel
from xflash.layers.kernels.retrieval import Piece, held, retrieve, retrieve_slow, taken, taken_whole, top, visible


def memory(b=2, kv=2, h=4, n=7, w=3, sizes=(2, 1, 3), width=5, ragged=True, seed=0):
    """Queries in blocks 3 and on, pieces of random keys and values, blocks in any order and some of nothing."""
    chance = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=chance, dtype=torch.float64, requires_grad=True)

    rows = b if ragged else 1
    where = 3 + torch.arange(n) // 2 + torch.arange(rows)[:, None]
    numbers = torch.stack([torch.randperm(sum(sizes) + 1, generator=chance)[: sum(sizes)] - 1 for _ in range(rows)])
    pieces = [
        Piece(draw(b, kv, p * w, width), draw(b, kv, p * w, width), number)
        for p, number in zip(sizes, numbers.split(sizes, 1), strict=True)
    ]
    return draw(b, h, n, width), where, pieces


def joined(pieces):
    return (torch.cat([getattr(p, name) for p in pieces], 2) for name in ("k", "v"))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("tile", "span"), [(2**23, 2**15), (40, 6)])
@pytest.mark.parametrize("count", [1, 4, 50])
def test_kernel_is_its_definition(monkeypatch, ragged, tile, span, count):
    monkeypatch.setattr(kernel, "TILE", tile)
    monkeypatch.setattr(kernel, "SPAN", span)
    q, where, pieces = memory(ragged=ragged)
    number = torch.cat([p.number for p in pieces], 1)
    mask = visible(number, where, 3).repeat_interleave(3, 2).expand(2, -1, -1)
    assert mask.any() and not mask.all()
    k, v = joined(pieces)
    slow = retrieve_slow(q, k, v, mask, count, 0.7)
    fast = retrieve(q, where, pieces, count, 3, 0.7)
    laws.close(fast, slow, "retrieve")
    leaves = [q, *(t for p in pieces for t in p[:2])]
    chance = torch.randn(slow.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for a, b in zip(*(torch.autograd.grad((y * chance).sum(), leaves) for y in (fast, slow)), strict=True):
        laws.close(a, b, "gradient")


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(kernel, "TILE", 40)
    q, where, pieces = memory(n=3, h=2, kv=1, width=3)
    leaves = [q, *(t for p in pieces for t in p[:2])]

    def fn(q, *flat):
        held = [Piece(*flat[2 * i : 2 * i + 2], p.number) for i, p in enumerate(pieces)]
        return retrieve(q, where, held, 4, 3, 0.7)

    assert torch.autograd.gradcheck(fn, leaves)


def test_nothing_to_see_gives_zeros():
    q, where, pieces = memory()
    assert torch.equal(retrieve(q, torch.ones_like(where), pieces, 2, 3, 1.0), torch.zeros_like(q))
    # The first queries see nothing, beside others that do.
    where[:, :3] = 1
    y = retrieve(q, where, pieces, 2, 3, 1.0)
    (grad,) = torch.autograd.grad(y.sum(), q)
    assert (y[:, :, :3] == 0).all() and (y[:, :, 3:] != 0).all()
    assert (grad[:, :, :3] == 0).all() and grad.isfinite().all() and (grad[:, :, 3:] != 0).any()
    assert (retrieve(q, where, [], 2, 3, 1.0) == 0).all()


@pytest.mark.parametrize(("m", "count"), [(17, 3), (160, 3), (163, 10), (2, 5), (1000, 1)])
def test_top_is_topk(m, count):
    scores = torch.randn(2, 3, m, generator=torch.Generator().manual_seed(m))
    scores[0, 0, m // 3 :] = -torch.inf
    values, index = top(scores, count)
    assert torch.equal(values.sort(-1).values, scores.topk(min(count, m), -1).values.flip(-1))
    assert torch.equal(scores.gather(-1, index), values)
    assert all(len(set(row)) == len(row) for row in index.flatten(0, 1).tolist())


def test_taken_from_parts():
    parts = [torch.randn(2, 2, m, 3) for m in (5, 1, 7)]
    index = torch.randint(13, (2, 4, 6, 3), generator=torch.Generator().manual_seed(0))
    whole = torch.cat(parts, 2).repeat_interleave(2, 1)
    expected = whole.gather(2, index.flatten(2)[..., None].expand(-1, -1, -1, 3)).view(*index.shape, 3)
    assert torch.equal(taken(parts, index), expected)
    row, head = torch.arange(2)[:, None, None, None], (torch.arange(4) // 2)[:, None, None]
    row, head = row.expand_as(index), head.expand_as(index)
    assert torch.equal(taken_whole(parts, [0, 5, 6, 13], row, head, index), expected)


def test_ring():
    for count in range(11):
        slots = [-1] * 4
        for j in range(count):
            slots[j % 4] = j
        got = held(torch.tensor([count]), 4, 3)[0]
        assert [s if s >= 0 else -1 for s in got.tolist()] == slots[:3]
