"""What masked language models refuse, each in a sentence."""

import re

import pytest
import torch
from hidden_tokens import HIDDEN, batch, encoder, masked_lm

from xflash import Decoder, NonAutoregressiveWrapper


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: masked_lm(3),
            TypeError,
            "net must be a model from token ids to logits such as TransformerWrapper, not 3",
        ),
        (
            lambda: masked_lm(encoder(Decoder)),
            ValueError,
            "TransformerWrapper is causal: it would guess a hidden token from those before it only; use an Encoder",
        ),
        (
            lambda: masked_lm(encoder(average_pool_embed=True)),
            ValueError,
            "TransformerWrapper pools its outputs (average_pool_embed=True): it tells no single tokens",
        ),
        (lambda: masked_lm(torch.nn.Embedding(2, 2)), TypeError, "num_tokens must be a whole number, not None"),
        (lambda: masked_lm(mask_token_id=23), ValueError, "mask_token_id must be below num_tokens=23, not 23"),
        (lambda: masked_lm(mask_token_id=-1), ValueError, "mask_token_id must be at least 0, not -1"),
        (lambda: masked_lm(num_tokens=9), ValueError, "mask_token_id must be below num_tokens=9, not 22"),
        (lambda: masked_lm(pad_token_id=1.0), TypeError, "pad_token_id must be a whole number or None, not 1.0"),
        (lambda: masked_lm(pad_token_id=22), ValueError, "mask_token_id and pad_token_id are both 22"),
        (
            lambda: masked_lm(mask_ignore_token_ids=3),
            TypeError,
            "mask_ignore_token_ids must be a tuple of whole numbers, not 3",
        ),
        (lambda: masked_lm(mask_ignore_token_ids=(99,)), ValueError, "mask_ignore_token_ids must be below num_tokens"),
        (lambda: masked_lm(mask_ignore_token_ids=tuple(range(22))), ValueError, "all 23 tokens are special ones"),
        (lambda: masked_lm(mask_prob=0), ValueError, "mask_prob must be above 0, not 0"),
        (lambda: masked_lm(mask_prob=1.5), ValueError, "mask_prob must be at most 1, not 1.5"),
        (lambda: masked_lm(mask_prob=None), TypeError, "mask_prob must be a number or a text, not None"),
        (lambda: masked_lm(mask_prob="cosin"), ValueError, "mask_prob='cosin' is no schedule; did you mean 'cosine'?"),
        (lambda: masked_lm(replace_prob=-0.5), ValueError, "replace_prob must be at least 0, not -0.5"),
        (lambda: masked_lm(random_token_prob=2), ValueError, "random_token_prob must be at most 1, not 2"),
        (lambda: masked_lm(random_token_prob=0.2), ValueError, "replace_prob=0.9 and random_token_prob=0.2 are more"),
        (lambda: masked_lm(mask_probability=0.2), TypeError, "MaskedLMWrapper has no argument 'mask_probability'; did"),
        (lambda: masked_lm()(torch.ones(2, 3)), TypeError, "x must hold integer token ids, not torch.float32"),
        (lambda: masked_lm()([1, 2]), TypeError, "x must be a tensor of integer token ids, not [1, 2]"),
        (lambda: masked_lm()(torch.ones(3).long()), ValueError, "x must be (batch, tokens) with at least one token"),
        (lambda: masked_lm()(torch.full((1, 2), 23)), ValueError, "token ids must be from 0 to 22, but they go from"),
        (lambda: masked_lm()(batch()[0], torch.ones(2, 3).bool()), ValueError, "mask has shape (2, 3)"),
        (lambda: masked_lm()(batch()[0], generator=7), TypeError, "generator must be a torch.Generator, not 7"),
        (
            lambda: masked_lm(encoder(logits_dim=4))(batch()[0]),
            ValueError,
            "is not in the vocabulary of 4 tokens (0 to 3)",
        ),
        (lambda: masked_lm().generate(), ValueError, "generate needs ids, or seq_len: the model has no max_seq_len"),
        (
            lambda: masked_lm().generate(batch()[0], seq_len=3),
            ValueError,
            "ids already say how many rows and tokens there are: leave out batch_size and seq_len",
        ),
        (lambda: masked_lm().generate(seq_len=0), ValueError, "seq_len must be at least 1, not 0"),
        (lambda: masked_lm().generate(seq_len=3, batch_size=0), ValueError, "batch_size must be at least 1, not 0"),
        (lambda: masked_lm().generate(seq_len=3, steps=0), ValueError, "steps must be at least 1, not 0"),
        (lambda: masked_lm().generate(seq_len=3, temperature=-1), ValueError, "temperature must be at least 0, not -1"),
        (lambda: masked_lm().generate(seq_len=3, schedule=2), TypeError, "schedule must be the name of a schedule"),
        (lambda: masked_lm().generate(seq_len=3, schedule="lin"), ValueError, "schedule='lin' is no schedule"),
        (lambda: masked_lm().generate(seq_len=3, filter_logits_fn="topk"), ValueError, "unknown filter 'topk'"),
        (lambda: masked_lm().generate(seq_len=3, generator=7), TypeError, "generator must be a torch.Generator, not 7"),
        (lambda: masked_lm().generate(torch.ones(2, 2, 2).long()), ValueError, "x must be (batch, tokens)"),
        (
            lambda: NonAutoregressiveWrapper(encoder(), mask_id=HIDDEN, self_cond=True),
            TypeError,
            "NonAutoregressiveWrapper has no argument 'self_cond'",
        ),
        (
            lambda: NonAutoregressiveWrapper(encoder(), mask_id=HIDDEN, no_replace_prob=0.95),
            ValueError,
            "no_replace_prob=0.95 and random_token_prob=0.1 are more than 1",
        ),
        (
            lambda: NonAutoregressiveWrapper(encoder(), mask_id=HIDDEN, schedule="cos"),
            ValueError,
            "schedule='cos' is no schedule",
        ),
        (
            lambda: NonAutoregressiveWrapper(encoder(), mask_id=HIDDEN).generate(filter_thres=2),
            ValueError,
            "filter_thres must be at most 1, not 2",
        ),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
