"""What a model may see is no target: every wrapper's targets against their definition, and training on pure chance.

All ids of a batch differ, so that the gradient of a row of the token embedding is that of one token of the inputs; with
all labels but one left out, the loss is that of one target, which must not depend on the target's own token.
"""

import itertools
import math

import pytest
import torch
from quick import quick
from torch import nn

from xflash import (
    AutoregressiveWrapper,
    BlockRecurrentTransformer,
    Decoder,
    Encoder,
    FLASHTransformer,
    MaskedLMWrapper,
    PrefixDecoder,
    RecurrentMemoryWrapper,
    RecurrentTrainerWrapper,
    SegmentWrapper,
    TransformerWrapper,
    XLAutoregressiveWrapper,
    XTransformer,
)

B, N, V, DIM = 3, 11, 37, 14
HOLES = torch.tensor([[1] * N, [1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 1], [0, 0, 1, 1, 1] + [0] * 6]).bool()
DOCS = torch.tensor([[0] * 4 + [1] * 7, [2] * 11, [3] * 9 + [4] * 2])


def model(stack=Decoder, **flags):
    torch.manual_seed(0)
    flags = {"dim": DIM, "depth": 1, "heads": 2, "layers": "attn ff", "pos": "rotary", **flags}
    sizes = {"attn": {"attn_dim_head": 6}, "flash": {"flash_group_size": 3, "flash_query_key_dim": 6}}
    sizes["gau"] = {"gau_query_key_dim": 6}
    for block in ("block_attn", "recurrent"):
        sizes[block] = {f"{block}_block_width": 4, f"{block}_dim_head": 6}
    for block in flags["layers"].split():
        flags |= sizes.get(block, {})
    own = {name: flags.pop(name) for name in ("max_seq_len", "max_mem_len") if name in flags}
    return TransformerWrapper(num_tokens=V, attn_layers=stack(**flags), **own).double()


def front(p=2):
    return torch.randn(B, p, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ar(net=model, **options):
    return lambda: AutoregressiveWrapper(net(), **options)


def prefixed(**flags):
    return lambda: model(PrefixDecoder, **flags)


def segments(**options):
    return lambda: SegmentWrapper(prefixed()(), 6, **options)


def recurrent():
    return model(layers="block_attn recurrent", recurrent_num_state_vectors=3)


ROWS = torch.tensor([7, 3, 0])
# No more than a row's first segment has, unless nothing follows it.
FIRST = torch.tensor([6, 4, 6])
ALL = torch.ones(N, N, dtype=torch.bool)
FRONT = {"prepend_embeds": front()}
HALF = {**FRONT, "prepend_mask": torch.tensor([[1, 1], [0, 1], [0, 0]]).bool()}
CASES = {
    "prefix": (ar(prefixed()), {"prefix_attn_len": 5}),
    "prefix of everything": (ar(prefixed()), {"prefix_attn_len": N - 1}),
    "prefix of each row": (ar(prefixed(num_memory_tokens=2)), {"prefix_attn_len": ROWS}),
    "prefix, gau and shift": (ar(prefixed(layers="gau attn", shift_tokens=1)), {"prefix_attn_len": 5}),
    "prefix of rows with holes": (ar(prefixed()), {"prefix_attn_len": ROWS + 1, "mask": HOLES}),
    "prefix longer than rows": (ar(prefixed()), {"prefix_attn_len": 9, "mask": HOLES}),
    "prefix of rows by length": (ar(prefixed()), {"prefix_attn_len": 5, "lens": [N, 4, 2]}),
    "prefix, in chunks": (ar(prefixed(), loss_chunk=4), {"prefix_attn_len": 5, "mask": HOLES}),
    "embeddings of the prefix": (ar(prefixed()), {"prefix_attn_len": 5, **FRONT}),
    "real embeddings of the prefix": (ar(prefixed()), {"prefix_attn_len": 5, "mask": HOLES, **HALF}),
    "prefix of embeddings only": (ar(prefixed()), {"prefix_attn_len": 2, **FRONT}),
    "segments": (segments(), {"prefix_attn_len": 4}),
    "segments, the first all prefix": (segments(grad_checkpoint=True), {"prefix_attn_len": FIRST, "mask": HOLES}),
    "segments behind embeddings": (segments(), {"prefix_attn_len": ROWS, **FRONT}),
    "Transformer-XL": (
        lambda: XLAutoregressiveWrapper(model(PrefixDecoder, max_seq_len=6, max_mem_len=6)),
        {"prefix_attn_len": 4, "mask": HOLES},
    ),
    "attn_mask shows nothing ahead": (ar(lambda: model(layers="attn gau")), {"attn_mask": ALL}),
    "attn_mask of a prefix": (ar(prefixed()), {"attn_mask": ALL, "prefix_attn_len": 5}),
    "documents": (ar(lambda: model(layers="flash attn gau")), {"doc_ids": DOCS}),
    "holes": (ar(lambda: model(layers="flash gau", shift_tokens=1, shift_style="first_half")), {"mask": HOLES}),
    "recurrent": (ar(recurrent), {"mask": HOLES}),
    "recurrent memory": (ar(lambda: RecurrentMemoryWrapper(model(), 2, 4).double()), {"mask": HOLES}),
    "FLASHTransformer": (
        ar(lambda: FLASHTransformer(num_tokens=V, dim=DIM, depth=1, group_size=3, query_key_dim=6, causal=True)),
        {},
    ),
}


def ids():
    return torch.randperm(V - 1, generator=torch.Generator().manual_seed(2))[: B * N].view(B, N) + 1


def counted(given, first=N - 1) -> set[tuple[int, int]]:
    """The tokens (row, place) that are targets, by definition; `first`: how many tokens the prefix's call is given."""
    found = set()
    for row in range(B):
        lens = given.get("lens", [N] * B)[row]
        real = [j for j in range(lens) if "mask" not in given or given["mask"][row, j]]
        docs = given.get("doc_ids", torch.zeros(B, N))[row]
        p = given["prepend_embeds"].shape[1] if "prepend_embeds" in given else 0
        p = int(given["prepend_mask"][row].sum()) if "prepend_mask" in given else p
        prefix = given.get("prefix_attn_len", 0)
        prefix = int(prefix[row]) if isinstance(prefix, torch.Tensor) else prefix
        shown = set([*[None] * p, *(j for j in real if j < first)][:prefix])
        pairs = itertools.pairwise(real)
        found |= {(row, j) for i, j in pairs if docs[i] == docs[j] and j not in shown}
    return found


@pytest.mark.parametrize("name", quick(CASES, lambda _, number: number % 3 == 0))
def test_no_target_is_seen(name):
    make, given = CASES[name]
    wrapper, x = make().double().train(), ids()
    first = getattr(wrapper, "segment_len", N - 1)
    table = next(p for key, p in wrapper.named_parameters() if key.endswith("token_emb.weight"))
    targets = counted(given, first)
    for row, at in [(row, at) for row in range(B) for at in range(N)]:
        labels = torch.full_like(x, -100)
        labels[row, at] = x[row, at]
        loss = wrapper(x, labels=labels, **given)
        assert (loss.item() != 0) == ((row, at) in targets), f"the token {at} of row {row} is counted wrongly"
        (grad,) = torch.autograd.grad(loss, table)
        assert grad[x[row, at]].abs().max() == 0, f"what predicts the token {at} of row {row} sees it"
    losses = [wrapper(x, labels=x, **given)]
    if "mask" in given:  # what stands at masked places is no label either
        losses.append(wrapper(x, labels=x.masked_fill(~given["mask"], 5), **given))
    if type(wrapper) is AutoregressiveWrapper and wrapper.loss_chunk is None:
        loss, logits = wrapper(x, return_outputs=True, **given)
        real = torch.tensor([[(row, j) in targets for j in range(1, N)] for row in range(B)])
        losses.append(loss)
        if "mask" not in given and "lens" not in given and real.any():
            losses.append(nn.functional.cross_entropy(logits[real], x[:, 1:][real]))
    for loss in losses:
        torch.testing.assert_close(loss, losses[0])


def test_a_prefix_does_show_what_is_no_target():
    """The test above can see what a token depends on."""
    net, x = prefixed()(), ids()
    logits = net(x[:, :-1], prefix_attn_len=5)
    (grad,) = torch.autograd.grad(logits[0, 2].logsumexp(-1), net.embedding.token_emb.weight)
    assert grad[x[0, 4]].abs().max() > 0 and grad[x[0, 5]].abs().max() == 0


def test_a_target_of_a_decoder_is_not_seen():
    """As above, for the target of an encoder and a decoder."""
    torch.manual_seed(0)
    sizes = {"depth": 1, "heads": 1, "num_tokens": V, "max_seq_len": N}
    sides = {f"{side}_{name}": size for side in ("enc", "dec") for name, size in sizes.items()}
    net, x = XTransformer(dim=DIM, **sides).double(), ids()
    table = net.decoder.net.embedding.token_emb.weight
    for at in range(1, N):
        labels = torch.full_like(x, -100)
        labels[1, at] = x[1, at]
        loss = net(x.flip(1), x, labels=labels, tgt_mask=HOLES.flip(0))
        (grad,) = torch.autograd.grad(loss, table)
        assert (loss.item() != 0) == bool(HOLES.flip(0)[1, at]) and grad[x[1, at]].abs().max() == 0


@pytest.mark.parametrize("odd", [0.0, 0.4])
def test_what_is_hidden_does_not_reach_the_net(odd):
    net = MaskedLMWrapper(model(Encoder), mask_token_id=0, replace_prob=1 - odd, random_token_prob=odd)
    x = ids()
    chosen = net.choose(x, None, torch.Generator().manual_seed(3)).chosen
    other = torch.where(chosen, x % 7 + 1, x)
    given = [net.corrupt(t, chosen, torch.Generator().manual_seed(4)) for t in (x, other)]
    assert (other != x).any() and torch.equal(*given)


def small(stack=Decoder, **flags):
    own = {"max_seq_len": 12, "max_mem_len": 6} if flags.pop("xl", False) else {}
    stack = stack(dim=20, depth=1, heads=2, attn_dim_head=8, pos="rotary", **flags)
    return TransformerWrapper(num_tokens=9, attn_layers=stack, **own)


CHANCE = {
    "prefix": lambda: (AutoregressiveWrapper(small(PrefixDecoder)), {"prefix_attn_len": 12}),
    "segments": lambda: (SegmentWrapper(small(PrefixDecoder), 12), {"prefix_attn_len": 9}),
    "Transformer-XL": lambda: (XLAutoregressiveWrapper(small(PrefixDecoder, xl=True)), {"prefix_attn_len": 9}),
    "hidden tokens": lambda: (MaskedLMWrapper(small(Encoder), mask_token_id=0, replace_prob=1.0, mask_prob=0.5), {}),
}


@pytest.mark.parametrize("name", CHANCE)
def test_nothing_is_learned_from_chance(name):
    """Of uniformly random tokens nobody can know more than their entropy, however long one trains."""
    torch.manual_seed(0)
    wrapper, given = CHANCE[name]()
    optimizer = torch.optim.Adam(wrapper.parameters(), 1e-2)
    words = 8 if name == "hidden tokens" else 9
    losses = []
    for _ in range(60):
        x = torch.randint(9 - words, 9, (16, 17))
        loss = wrapper(x, **given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 > math.log(words) - 0.05, "targets leak"
    assert losses[-1] < losses[0] + 0.05, "nothing was trained"


def test_a_trainer_without_labels_has_the_loss_of_one_that_has_them():
    """Its targets are those of the tests above."""
    torch.manual_seed(0)
    net = BlockRecurrentTransformer(
        num_tokens=V, dim=DIM, depth=2, dim_head=6, heads=2, block_width=4, max_seq_len=4, num_state_vectors=3
    )
    losses = [RecurrentTrainerWrapper(net)(ids()), SegmentWrapper(net, 4)(ids()), net(ids(), return_loss=True)[0]]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])


class Inside(nn.Module):
    """A net of one's own around another."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, ids, mask=None):
        return self.net(ids, mask)


def test_a_net_of_ones_own_around_a_bidirectional_stack():
    with pytest.raises(ValueError, match="Inside does not say that it is causal, and all stacks in it"):
        AutoregressiveWrapper(Inside(model(Encoder)))
    AutoregressiveWrapper(Inside(model(Decoder)))
    ours = Inside(model(Encoder))
    ours.causal = True
    AutoregressiveWrapper(ours)
