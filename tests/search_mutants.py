"""Faults put back in, one at a time: the search has to find each of them.

Each is a name and what it changes in xflash while it is there, as patches of functions.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest.mock import patch

import torch

from xflash import stack
from xflash.layers import attention, cross_gau, gau, masks, multi_head, positions, shift

MUTANTS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {}


def mutant(what: str):
    """Enters a fault by what it does wrong."""

    def enter(fn):
        MUTANTS[what] = contextlib.contextmanager(fn)
        return fn

    return enter


@contextlib.contextmanager
def around(owner, name: str, change: Callable) -> Iterator[None]:
    """`owner.name` is called through `change`, which is given it first."""
    original = getattr(owner, name)

    def changed(*args, **kwargs):
        return change(original, *args, **kwargs)

    with patch.object(owner, name, changed):
        yield


@mutant("padding with a document number of its own sees nothing, and becomes NaN")
def blind_padding():
    def change(original, ctx, slots, m, causal, *rest):
        found = original(ctx, slots, m, causal, *rest)
        if causal or ctx.doc_ids is None or ctx.new is None or found.mask is None:
            return found
        return found._replace(mask=found.mask & (torch.arange(m) < ctx.new.clamp(min=1)[:, None])[:, None, None])

    with around(masks, "make_visible", change):
        yield


@mutant("rotary positions go on from document to document, which memory keys do not know")
def positions_across_documents():
    def change(original, self, t, *args, **kwargs):
        args = [replace(arg, doc_ids=None) if hasattr(arg, "doc_ids") else arg for arg in args]
        return original(self, t, *args, **kwargs)

    with around(positions.Relative, "rotate", change), around(positions.Relative, "rotate_both", change):
        yield


@mutant("gau divides by keys that attn_mask hides")
def hidden_keys_count():
    def change(original, self, ctx, *args):
        return original(self, replace(ctx, beside={**ctx.beside, "attn_mask": None}, memo={}), *args)

    with around(gau.GatedAttention, "seen", change):
        yield


@mutant("gau divides by padding")
def padding_counts():
    def change(original, self, ctx, *args):
        return original(self, replace(ctx, new=None, memo={}), *args)

    with around(gau.GatedAttention, "seen", change):
        yield


@mutant("the token shift leaks across documents")
def leaking_shift():
    with around(shift.TokenShift, "same_document", lambda _, self, doc_ids, delay: doc_ids == doc_ids):
        yield


@mutant("a row that is reset keeps the last tokens of its token shift")
def shift_is_kept():
    def change(original, self, state, rows):
        after = original(self, state, rows)
        branches = zip(after.branches, state.branches, strict=True)
        return after._replace(branches=tuple(new._replace(shift=old.shift) for new, old in branches))

    with around(stack.AttentionLayers, "reset", change):
        yield


@mutant("a window gives up a token that is still seen when its buffers are full")
def short_window():
    def change(original, state, tokens, *args):
        # One is kept that a new token, which sees itself, does not need.
        return original(state, max(tokens - 2, 0), *args)

    with around(attention, "shorten", change):
        yield


@mutant("two continuations of a state write into the same buffers")
def shared_buffers():
    def change(original, self, state, n):
        if state is not None and state.lease is not None and not torch.is_grad_enabled():
            state.lease.fill = state.bound
        return original(self, state, n)

    with around(stack.AttentionLayers, "open", change):
        yield


@mutant("a single query of grouped heads reads another group's keys")
def swapped_groups():
    def change(original, t, kv_heads):
        return original(t, kv_heads) if t.shape[1] == 1 else original(t.flip(1), kv_heads).flip(1)

    with around(multi_head, "share", change):
        yield


@mutant("a masked token of the context is seen by cross_gau")
def seen_padding():
    with around(cross_gau, "context_mask", lambda original, held: None):
        yield
