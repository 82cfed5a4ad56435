"""Packed documents in what works in blocks of tokens: each gives what it gives alone, however many they are."""

import itertools

import laws
import pytest
import torch
from cases import build

from xflash.layers.blocks import recurrence
from xflash.layers.kernels import packed_windows
from xflash.stack import block_by_block

# Blocks have five tokens. Documents of one, of less than a block, of whole blocks, of one more, of many.
LENGTHS = ([1, 1, 4, 5, 6, 1, 10, 3, 1], [32], [2, 21, 9])
N = 32
IDS = torch.stack([torch.repeat_interleave(torch.arange(len(row)) % 3, torch.tensor(row)) for row in LENGTHS])

STACKS = {
    "sliding": {"layers": "block_attn", "block_attn_reach": "sliding", "pos": "rotary", "shift_tokens": 1},
    "compressed": {"layers": "block_attn", "block_attn_compress": "conv", "block_attn_compress_factor": 5}
    | {"pos": "alibi", "block_attn_rel_pos_bias": "t5"},
    "retrieves": {"layers": "block_attn", "block_attn_retrieve": 3, "block_attn_retrieve_len": 10},
    "both": {"layers": "recurrent ff", "recurrent_write_from": "window", "recurrent_gate": "lstm", "pos": "rotary"}
    | {"recurrent_retrieve": 50, "recurrent_compress": "max", "recurrent_compress_factor": 5, "grad_checkpoint": True}
    | {"weight_tie_layers": True},
    "beside others": {"layers": "flash+recurrent gau attn"},
    "feedback": {"layers": "state_read recurrent flash attn", "shift_tokens": 1, "pos": "rotary"},
    "read by another": {"layers": "block_attn recurrent(read_layer=1)", "recurrent_retrieve": 3},
}


def stack_of(name: str):
    return laws.live(build(causal=True, depth=1, **STACKS[name])).train("grad_checkpoint" in STACKS[name])


def alone(stack, x):
    """Each document by itself."""
    rows = []
    for row, ids in enumerate(IDS):
        runs = [list(run) for _, run in itertools.groupby(range(N), lambda i, ids=ids: ids[i].item())]
        rows.append(torch.cat([stack(x[row : row + 1, run]) for run in runs], 1))
    return torch.cat(rows)


def outcome(call, stack):
    x = laws.sample(stack, N).requires_grad_()
    y = call(x)
    push = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=y.dtype)
    wanted = [x, *stack.parameters()]
    return [y, *torch.autograd.grad((y * push).sum(), wanted, allow_unused=True, materialize_grads=True)]


def same(found, expected):
    for ours, right in zip(found, expected, strict=True):
        laws.close(ours, right, "documents")


@pytest.mark.parametrize("name", STACKS)
def test_a_document_gives_what_it_gives_alone(name, monkeypatch):
    stack = stack_of(name)
    expected = outcome(lambda x: alone(stack, x), stack)
    same(outcome(lambda x: stack(x, doc_ids=IDS), stack), expected)
    # As on a device, whose values nobody waits for.
    monkeypatch.setattr(packed_windows, "may_look", lambda t: False)
    monkeypatch.setattr(block_by_block, "has_values", lambda t: False)
    same(outcome(lambda x: stack(x, doc_ids=IDS), stack), expected)


def test_many_documents_take_few_blocks(monkeypatch):
    """Twice those of one document at most, whatever is known of them."""
    monkeypatch.setattr(packed_windows, "may_look", lambda t: False)
    for ids in (IDS, torch.zeros_like(IDS), torch.arange(N).expand(3, -1)):
        numbers = (ids.diff(dim=1, prepend=ids[:, :1] - 1) != 0).cumsum(1)
        position = torch.arange(N) - (numbers[:, :, None] > numbers[:, None]).sum(2)
        assert packed_windows.document_blocks(numbers, position, 5).layout.groups == 2 * 7


def test_what_is_noted_of_the_pieces_is_of_the_whole_row():
    stack = stack_of("feedback")
    x = laws.sample(stack, N)
    y, hiddens = stack(x, doc_ids=IDS, return_hiddens=True)
    laws.close(y, alone(stack, x), "documents")
    assert len(hiddens) == 6 and torch.equal(hiddens[0], x) and torch.equal(hiddens[-1], y)


def test_the_operator_of_compiled_layers_knows_where_documents_begin(monkeypatch):
    stack = stack_of("beside others")
    expected = outcome(lambda x: stack(x, doc_ids=IDS), stack)
    used, real = [], recurrence.renewed

    def renewed(layer, *given):
        if layer not in list(stack.modules()):  # What the operator is made of.
            return real(layer, *given)
        used.append(given[4])
        return recurrence.recurrence(layer, *given)

    monkeypatch.setattr(recurrence, "renewed", renewed)
    same(outcome(lambda x: stack(x, doc_ids=IDS), stack), expected)
    # 32 tokens have six full blocks that another follows; of documents of 6, 10 tokens one each, of 21, 9 four and one.
    begins, renews = recurrence.BEGINS, recurrence.RENEWS
    assert used[0].tolist() == [
        [begins, begins, *[recurrence.KEEPS] * 4],
        [begins, *[renews] * 5],
        [begins, *[renews] * 3, begins, recurrence.KEEPS],
    ]


def test_pieces_in_a_graph_are_refused(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(ValueError, match=r"doc_ids in a compiled stack whose .*; model.compile\(\) compiles what is"):
        block_by_block.document_cuts(IDS, 5, None)
