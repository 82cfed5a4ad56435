"""A causal language model small enough to read: what the wrappers are tested with, independent of the stack."""

from typing import NamedTuple

import torch
from torch import nn


class TinyState(NamedTuple):
    hidden: torch.Tensor  # (b, d)
    length: torch.Tensor  # (b,)

    def reorder(self, index):
        return TinyState(self.hidden[index], self.length[index])

    def detach(self):
        return TinyState(self.hidden.detach(), self.length)


class TinyLM(nn.Module):
    """A GRU over token embeddings that skips masked tokens; logits at masked places are garbage on purpose.

    max_seq_len: adds learned absolute positions. `calls` lists (method, tokens, what else was given).
    """

    causal = True

    def __init__(self, num_tokens=11, dim=7, max_seq_len=None):
        super().__init__()
        self.num_tokens, self.max_seq_len, self.calls = num_tokens, max_seq_len, []
        self.embed = nn.Embedding(num_tokens, dim)
        self.place = None if max_seq_len is None else nn.Embedding(max_seq_len, dim)
        self.drop = nn.Dropout(0.3)
        self.cell = nn.GRUCell(dim, dim)
        self.out = nn.Linear(dim, num_tokens)
        for p in self.parameters():
            nn.init.normal_(p, std=0.9)

    def read(self, ids, state=None, mask=None, context=None):
        if ids.shape[1] == 0 or (self.max_seq_len is not None and ids.shape[1] > self.max_seq_len):
            raise ValueError(f"{ids.shape[1]} tokens don't fit")
        if ids.min() < 0 or ids.max() >= self.num_tokens:
            raise ValueError("ids out of range")
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        b, d = len(ids), self.cell.hidden_size
        if state is None:
            hidden = self.cell.bias_hh.new_zeros(b, d) if context is None else context
            state = TinyState(hidden, torch.zeros(b, dtype=torch.long, device=ids.device))
        hidden, length = state
        logits = []
        for token, real in zip(ids.unbind(1), mask.unbind(1), strict=True):
            x = self.embed(token)
            if self.place is not None:
                x = x + self.place(length.clamp(max=self.max_seq_len - 1))
            hidden = torch.where(real[:, None], self.cell(self.drop(x), hidden), hidden)
            length = length + real
            logits.append(self.out(hidden).masked_fill(~real[:, None], 1e4))
        if self.max_seq_len is not None and length.max() > self.max_seq_len:
            raise ValueError(f"{length.max()} tokens don't fit")
        return torch.stack(logits, 1), TinyState(hidden, length)

    def note(self, method, ids, mask, kwargs):
        self.calls.append((method, ids.shape[1], sorted(kwargs) + ["mask"] * (mask is not None)))

    def forward(self, ids, mask=None, **kwargs):
        self.note("forward", ids, mask, kwargs)
        return self.read(ids, None, mask, **kwargs)[0]

    def step(self, ids, state=None, mask=None, **kwargs):
        self.note("step", ids, mask, kwargs)
        return self.read(ids, state, mask, **kwargs)
