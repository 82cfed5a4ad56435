"""Small masked language models, and rows for them."""

import torch

from xflash import Encoder, MaskedLMWrapper, TransformerWrapper

VOCABULARY, N, B = 23, 37, 5
HIDDEN, PAD, CLS, SEP = 22, 0, 20, 21


def encoder(cls=Encoder, num_tokens=VOCABULARY, dim=14, depth=1, **arguments):
    torch.manual_seed(0)
    stack = cls(dim=dim, depth=depth, heads=2, layers="attn ff", attn_dim_head=6, pos="rotary")
    return TransformerWrapper(num_tokens=num_tokens, attn_layers=stack, **arguments)


def masked_lm(net=None, **arguments):
    return MaskedLMWrapper(encoder() if net is None else net, **{"mask_token_id": HIDDEN, **arguments})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(seed=1, rows=B):
    """Rows of different lengths: CLS, ordinary tokens, SEP, padding."""
    ids = torch.randint(1, 20, (rows, N), generator=seeded(seed))
    lengths = torch.tensor([N, 20, 7, 3, 2])[:rows]
    ids[:, 0] = CLS
    ids[torch.arange(rows), lengths - 1] = SEP
    return ids.masked_fill(torch.arange(N) >= lengths[:, None], PAD), lengths


SPECIAL = {"pad_token_id": PAD, "mask_ignore_token_ids": (CLS, SEP)}
