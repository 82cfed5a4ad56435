"""What a target's loss is, and how losses are put together: alike in every wrapper that has one."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from xflash import (
    AutoregressiveWrapper,
    BlockRecurrentTransformer,
    Decoder,
    Encoder,
    MaskedLMWrapper,
    NonAutoregressiveWrapper,
    RecurrentMemoryWrapper,
    RecurrentTrainerWrapper,
    SegmentWrapper,
    TransformerWrapper,
    XLAutoregressiveWrapper,
    XTransformer,
    from_config,
)

B, N, V, DIM = 4, 11, 13, 10
TERMS = {"label_smoothing": 0.2, "z_loss": 0.3}


def net(stack=Decoder, **own):
    flags = {"dim": DIM, "depth": 1, "heads": 2, "attn_dim_head": 4, "pos": "rotary"}
    return TransformerWrapper(num_tokens=V, attn_layers=stack(**flags), **own)


def block_recurrent():
    sizes = {"dim_head": 4, "heads": 2, "block_width": 4, "max_seq_len": 4, "num_state_vectors": 3}
    return BlockRecurrentTransformer(num_tokens=V, dim=DIM, depth=2, **sizes)


def pair(**terms):
    sizes = {"depth": 1, "heads": 1, "num_tokens": V, "max_seq_len": N}
    sides = {f"{side}_{name}": size for side in ("enc", "dec") for name, size in sizes.items()}
    return XTransformer(dim=DIM, **sides, **terms)


TRAINERS = {
    "next tokens": lambda **terms: AutoregressiveWrapper(net(), **terms),
    "in chunks": lambda **terms: AutoregressiveWrapper(net(), loss_chunk=7, **terms),
    "recurrent memory": lambda **terms: AutoregressiveWrapper(RecurrentMemoryWrapper(net(), 2, 4), **terms),
    "segments": lambda **terms: SegmentWrapper(net(), 4, **terms),
    "segments again": lambda **terms: SegmentWrapper(net(), 4, grad_checkpoint=True, **terms),
    "Transformer-XL": lambda **terms: XLAutoregressiveWrapper(net(max_seq_len=4, max_mem_len=5), **terms),
    "block-recurrent": lambda **terms: RecurrentTrainerWrapper(block_recurrent(), **terms),
    "pairs": pair,
    "hidden tokens": lambda **terms: MaskedLMWrapper(net(Encoder), mask_token_id=0, mask_prob=0.5, **terms),
    "hidden, in chunks": lambda **terms: MaskedLMWrapper(net(Encoder), mask_token_id=0, loss_chunk=7, **terms),
    "bound": lambda **terms: MaskedLMWrapper(
        net(Encoder), mask_token_id=0, mask_prob="cosine", mdlm_weights=True, **terms
    ),
    "non-autoregressive": lambda **terms: NonAutoregressiveWrapper(net(Encoder), mask_id=0, **terms),
}
# Of these the rows of a part of a batch have the chance of another.
BY_CHANCE = ("hidden tokens", "hidden, in chunks", "bound", "non-autoregressive")


def ids():
    return torch.randint(1, V, (B, N), generator=torch.Generator().manual_seed(2))


def build(name, **terms):
    torch.manual_seed(0)
    return TRAINERS[name](**terms).double()


def loss_of(trainer, x, **given):
    """What the trainer gives of x, always by the same chance."""
    if isinstance(trainer, (MaskedLMWrapper, NonAutoregressiveWrapper)):
        given["generator"] = torch.Generator().manual_seed(5)
    found = trainer(*((x.flip(1).clamp(min=0),) if isinstance(trainer, XTransformer) else ()), x, **given)
    first, rest = (found[0], found[1:]) if given.get("return_count") else (found, ())
    first = first.loss if isinstance(trainer, NonAutoregressiveWrapper) else first
    return (first, *rest) if rest else first


@pytest.mark.parametrize("name", TRAINERS)
def test_losses_are_put_together(name):
    trainer, x = build(name, **TERMS), ids()
    mean, count = loss_of(trainer, x, return_count=True)
    total, alike = loss_of(trainer, x, reduction="sum", return_count=True)
    each = loss_of(trainer, x, reduction="none")
    hidden = name in BY_CHANCE
    assert each.shape == (B, N if hidden else N - 1) and torch.equal(count, alike)
    if name == "bound":
        assert count == B * N
    else:
        assert count == (each != 0).sum() and (count < B * N if hidden else count == B * (N - 1))
    torch.testing.assert_close(total, each.sum())
    torch.testing.assert_close(mean, total / count)
    weights = torch.rand(B, N, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    weighed, sum_of_weights = loss_of(trainer, x, loss_weights=weights, return_count=True)
    weights = weights if hidden else weights[:, 1:]
    torch.testing.assert_close(weighed, (each * weights).sum() / sum_of_weights)
    told = torch.ones_like(each, dtype=torch.bool) if name == "bound" else each != 0
    torch.testing.assert_close(sum_of_weights, weights[told].sum())
    nothing = loss_of(trainer, x, loss_weights=torch.zeros(B, N))
    nothing.backward()
    assert nothing == 0 and all(p.grad is None or not p.grad.any() for p in trainer.parameters())


@pytest.mark.parametrize("name", [name for name in TRAINERS if name not in BY_CHANCE])
def test_accumulated_gradients_are_those_of_the_batch(name):
    trainer, x = build(name, **TERMS), ids()
    x[0, 4:], x[3, 1:7] = -100, -100
    weights = list(trainer.parameters())
    wanted = torch.autograd.grad(loss_of(trainer, x), weights, materialize_grads=True, allow_unused=True)
    found = [torch.zeros_like(p) for p in weights]
    counts = 0
    for part in (x[:1], x[1:]):
        loss, count = loss_of(trainer, part, reduction="sum", return_count=True)
        counts = counts + count
        grads = torch.autograd.grad(loss, weights, materialize_grads=True, allow_unused=True)
        found = [total + grad for total, grad in zip(found, grads, strict=True)]
    assert counts == (x[:, 1:] != -100).sum()
    for ours, there in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours / counts, there)


def by_definition(logits, targets):
    """The loss of each target with `TERMS`, from log-probabilities."""
    log_probs, lse = logits.log_softmax(-1), logits.logsumexp(-1)
    wished = F.one_hot(targets, V) * 0.8 + 0.2 / V
    return -(wished * log_probs).sum(-1) + 0.3 * lse**2


@pytest.mark.parametrize("name", [name for name in TRAINERS if name != "bound"])
def test_smoothing_and_z_loss(name):
    trainer, x = build(name, **TERMS), ids()
    model = getattr(trainer, "net", None)
    given = {"generator": torch.Generator().manual_seed(5)} if name in BY_CHANCE else {}
    if name in BY_CHANCE:
        _, logits, targets = getattr(trainer, "masked", trainer)(x, return_outputs=True, **given)
        told = targets != -100
        wanted = by_definition(logits[told], targets[told]).mean()
    else:
        if name == "pairs":
            found = trainer(x.flip(1), x, return_outputs=True)[1]
        elif name == "block-recurrent":
            found = trainer.transformer(x[:, :-1])[0]
        elif name == "Transformer-XL":
            pieces, mems = [], None
            for piece in x[:, :-1].split(4, 1):
                y, mems = model(piece, mems=mems, return_mems=True)
                pieces.append(y)
            found = torch.cat(pieces, 1)
        else:
            found = model(x[:, :-1])
        wanted = by_definition(found, x[:, 1:]).mean()
    torch.testing.assert_close(loss_of(trainer, x), wanted)
    assert loss_of(build(name), x) != wanted
    assert from_config(trainer.to_config()).to_config() == trainer.to_config()


def test_weights_follow_their_tokens():
    """Through holes, documents and segments; a weight of nothing is a label that is none."""
    mask = torch.rand(B, N, generator=torch.Generator().manual_seed(8)) < 0.7
    keep = torch.rand(B, N, generator=torch.Generator().manual_seed(9)) < 0.6
    x = ids()
    labels, docs = x.masked_fill(~keep, -100), torch.arange(N).expand(B, N) // 4
    for name, given in {"next tokens": {"doc_ids": docs}, "in chunks": {}, "segments": {}, "pairs": {}}.items():
        trainer = build(name)
        given = {**given, ("tgt_mask" if name == "pairs" else "mask"): mask}
        alike = loss_of(trainer, x, loss_weights=keep.double(), **given)
        torch.testing.assert_close(alike, loss_of(trainer, x, labels=labels, **given))


def test_what_is_never_hidden():
    trainer, x = build("hidden tokens", ignore_index=5), ids()
    x[0] = 5
    _, logits, targets = trainer(x, return_outputs=True)
    assert (targets[0] == 5).all() and logits.isfinite().all() and (targets[1:] != 5).any(1).all()
    labels = x.clone()
    labels[:, 3:] = 5
    targets = trainer(x, labels=labels, return_outputs=True)[2]
    assert (targets[:, 3:] == 5).all() and (targets[1:, :3] != 5).any(1).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_bound_of_hidden_tokens(schedule):
    """Its mean over chance is that of the orders in which a row's tokens can be told."""
    torch.manual_seed(1)
    model, n = net(Encoder).double().eval(), 3
    with torch.no_grad():
        model.to_logits.weight.mul_(5)
    x = torch.tensor([[3, 7, 4]])
    wanted = 0.0
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), k))
        for hidden in subsets:
            places = torch.tensor(hidden)
            losses = F.cross_entropy(model(x.index_fill(1, places, 0))[0], x[0], reduction="none")
            wanted += losses[places].mean().item() / (n * len(subsets))
    sizes = {"mask_prob": schedule, "mdlm_weights": True, "replace_prob": 1.0, "mask_token_id": 0}
    trainer = MaskedLMWrapper(model, **sizes)
    rows = 20_000
    with torch.no_grad():
        each = trainer(x.expand(rows, n), reduction="none", generator=torch.Generator().manual_seed(2)).sum(1) / n
    assert abs(each.mean().item() - wanted) < 4 * each.std().item() / math.sqrt(rows)
    assert each.std() / math.sqrt(rows) < 0.02 * wanted


def test_what_cannot_be_meant_of_a_loss():
    trainer, x = build("next tokens"), ids()
    with pytest.raises(ValueError, match=r"reduction='avg' is not known \(known: 'mean', 'sum', 'none'\)"):
        trainer(x, reduction="avg")
    with pytest.raises(TypeError, match="reduction must be one of 'mean', 'sum', 'none', not None"):
        trainer(x, reduction=None)
    with pytest.raises(TypeError, match=r"loss_weights must be a floating-point tensor \(4, 11\), not torch.int64"):
        trainer(x, loss_weights=x)
    with pytest.raises(ValueError, match=r"loss_weights has shape \(4, 10\), but x has \(4, 11\)"):
        trainer(x, loss_weights=torch.ones(4, 10))
    with pytest.raises(ValueError, match=r"loss_weights must be at least 0 where the loss is a mean, not -1.0: give"):
        trainer(x, loss_weights=-torch.ones(4, 11))
    assert trainer(x, loss_weights=-torch.ones(4, 11), reduction="sum") < 0
    with pytest.raises(TypeError, match="return_count must be True or False, not 1"):
        trainer(x, return_count=1)
    with pytest.raises(ValueError, match=r"label_smoothing must be below 1, not 1\.0"):
        AutoregressiveWrapper(net(), label_smoothing=1.0)
    with pytest.raises(ValueError, match=r"z_loss must be at least 0, not -0\.1"):
        SegmentWrapper(net(), 4, z_loss=-0.1)
    with pytest.raises(ValueError, match=r"mdlm_weights=True weighs shares that a schedule draws, but mask_prob=0.15"):
        MaskedLMWrapper(net(Encoder), mask_token_id=0, mdlm_weights=True)
    with pytest.raises(ValueError, match=r"labels has shape \(4, 10\), but x has \(4, 11\)"):
        MaskedLMWrapper(net(Encoder), mask_token_id=0)(x, labels=x[:, 1:])
