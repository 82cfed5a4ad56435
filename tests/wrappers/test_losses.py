from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lm import TinyLM
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import xflash
from xflash import (
    AutoregressiveWrapper,
    Decoder,
    Encoder,
    FLASHTransformer,
    MaskedLMWrapper,
    TransformerWrapper,
    XTransformer,
)
from xflash.layers.kernels.chunked_losses import chunked_losses, token_losses
from xflash.wrappers.losses import next_token_loss
from xflash.wrappers.targets import check_targets, next_tokens

rows = st.integers(2, 11).flatmap(
    lambda n: st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 2)), min_size=n, max_size=n)
)


def slow_targets(row, ignore):
    """For each place but the last: the label of the next real place of the same document."""
    targets = []
    for i, (_, real, doc) in enumerate(row[:-1]):
        later = [(label, its_doc) for label, its_real, its_doc in row[i + 1 :] if its_real]
        targets.append(later[0][0] if real and later and later[0][1] == doc else ignore)
    return targets


@settings(deadline=None)
@given(rows)
def test_targets_are_the_next_real_tokens(row):
    labels, mask, docs = (torch.tensor([column]) for column in zip(*row, strict=True))
    assert next_tokens(labels, mask, docs, -7).tolist() == [slow_targets(row, -7)]
    alone = [(label, real, 0) for label, real, _ in row]
    assert next_tokens(labels, mask, None, -7).tolist() == [slow_targets(alone, -7)]
    unmasked = [(label, True, doc) for label, _, doc in row]
    assert next_tokens(labels, None, docs, -7).tolist() == [slow_targets(unmasked, -7)]


def test_targets_by_hand():
    labels = torch.tensor([[5, 3, 8, 2, 9]])
    mask = torch.tensor([[0, 1, 0, 1, 1]]).bool()
    assert next_tokens(labels).tolist() == [[3, 8, 2, 9]]
    assert next_tokens(labels, mask).tolist() == [[-100, 2, -100, 9]]


def test_loss_is_the_mean_over_targets():
    logits, targets = torch.randn(3, 5, 7, dtype=torch.double), torch.randint(0, 7, (3, 5))
    targets[0, :2], targets[2] = -100, -100
    picked = torch.stack([-logits[i, j].log_softmax(-1)[targets[i, j]] for i, j in (targets != -100).nonzero()])
    assert len(picked) == 8
    torch.testing.assert_close(next_token_loss(logits, targets), picked.mean())


def test_loss_without_targets_is_zero_with_a_gradient():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = next_token_loss(logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(2, 3, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_of_half_logits_is_summed_in_float32(dtype):
    logits, targets = torch.randn(7, 1009, 13).to(dtype), torch.randint(0, 13, (7, 1009))
    loss = next_token_loss(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), next_token_loss(logits.double(), targets), rtol=1e-5, atol=0)


def test_a_target_outside_the_vocabulary_is_refused():
    check_targets(torch.tensor([[-100, 0, 6]]), -100, 7)
    with pytest.raises(ValueError, match=r"the target 7 is not in the vocabulary of 7 tokens \(0 to 6\)"):
        check_targets(torch.tensor([[-100, 0, 7]]), -100, 7)
    with pytest.raises(ValueError, match="the target -1 is not in the vocabulary"):
        check_targets(torch.tensor([[-100, 0, -1]]), -100, 7)


def test_targets_and_loss_compile_for_any_length():
    def both(logits, labels, mask):
        return next_token_loss(logits, next_tokens(labels, mask))

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="eager")
    for n in (5, 7, 11, 13):
        logits, labels, mask = torch.randn(3, n - 1, 17), torch.randint(0, 17, (3, n)), torch.rand(3, n) < 0.7
        torch.testing.assert_close(compiled(logits, labels, mask), both(logits, labels, mask))


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.numel = max([self.numel, *made])
        return out


def loss_and_grads(model, *inputs, **given):
    torch.manual_seed(11)
    loss = model(*inputs, **given)
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


V, D = 211, 6
HEADS = {
    "head": {},
    "bias": {"logits_bias": True},
    "tied": {"tie_embedding": True, "tie_embedding_scale": 0.5},
    "tied with bias": {"tie_embedding": True, "logits_bias": True, "head_transform": "gelu"},
    "clamped": {"logits_softclamp": 0.7},
    "other": {},
}


class Other(TransformerWrapper):
    """A model whose logits are no plain product."""

    def logits(self, y):
        return super().logits(y) + y[..., :1]


def net(cls=Decoder, emb_dropout=0.0, model=TransformerWrapper, **head):
    torch.manual_seed(7)
    stack = cls(dim=D, depth=1, heads=2, attn_dim_head=2, layers="attn ff")
    return model(num_tokens=V, max_seq_len=32, attn_layers=stack, emb_dropout=emb_dropout, **head).double()


def both_losses(wrap):
    """The model with its loss over all tokens at once, and with that in chunks."""
    return wrap(None), wrap(7)


def check_the_same(models, *inputs, n=19, most=0, **given):
    found, largest = [], []
    for model in models:
        with Largest() as seen:
            found.append(loss_and_grads(model, *inputs, **given))
        largest.append(seen.numel)
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    # No logits of all tokens, only of a chunk; `most`: what else there is.
    assert largest[0] == 3 * n * V and largest[1] <= max(7 * V, most)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("given", ["plain", "mask", "doc_ids", "labels"])
def test_loss_in_chunks(kind, given):
    made = {name: partial(net, emb_dropout=0.1, **head) for name, head in HEADS.items()}
    made["other"].keywords["model"] = Other
    models = both_losses(lambda chunk: AutoregressiveWrapper(made[kind](), loss_chunk=chunk))
    assert (models[0].net.head_as_product(torch.zeros(1, 1, D).double()) is None) == (kind in ("clamped", "other"))
    ids = torch.randint(0, V, (3, 20))
    beside = {
        "plain": {},
        "mask": {"mask": (torch.rand(3, 20) < 0.6)},
        "doc_ids": {"doc_ids": torch.tensor([[0] * 4 + [1] * 9 + [2] * 7]).expand(3, -1)},
        "labels": {"labels": torch.where(torch.rand(3, 20) < 0.5, ids, -100)},
    }
    check_the_same(models, ids, **beside[given])


def test_loss_in_chunks_behind_embeddings_and_a_context():
    front = torch.randn(3, 2, D, dtype=torch.double)
    models = both_losses(lambda chunk: AutoregressiveWrapper(net(), loss_chunk=chunk))
    plain, pieces = (model(torch.arange(60).view(3, 20), prepend_embeds=front) for model in models)
    torch.testing.assert_close(pieces, plain, rtol=0, atol=1e-10)
    flags = {"enc_num_tokens": V, "dec_num_tokens": V, "enc_depth": 1, "dec_depth": 1, "enc_heads": 1, "dec_heads": 1}
    models = both_losses(lambda chunk: seeded_seq2seq(loss_chunk=chunk, **flags))
    src, tgt = torch.randint(0, V, (3, 5)), torch.randint(0, V, (3, 20))
    check_the_same(models, src, tgt, tgt_mask=torch.rand(3, 20) < 0.8, most=3 * 19 * 3 * 64)


def seeded_seq2seq(**flags):
    torch.manual_seed(7)
    return XTransformer(dim=D, enc_max_seq_len=20, dec_max_seq_len=20, **flags).double()


def test_masked_loss_in_chunks():
    models = both_losses(lambda chunk: MaskedLMWrapper(net(Encoder), mask_token_id=0, loss_chunk=chunk))
    check_the_same(models, torch.randint(1, V, (3, 19)), mask=torch.rand(3, 19) < 0.8)


def test_loss_in_chunks_without_targets_is_zero():
    model = AutoregressiveWrapper(net(), loss_chunk=7)
    found = loss_and_grads(model, torch.randint(0, V, (3, 20)), labels=torch.full((3, 20), -100))
    assert all((t == 0).all() for t in found)


def test_loss_in_chunks_under_autocast():
    models = both_losses(lambda chunk: AutoregressiveWrapper(net(tie_embedding=True).float(), loss_chunk=chunk))
    ids = torch.randint(0, V, (3, 20))
    with torch.autocast("cpu", torch.bfloat16):
        plain, pieces = (loss_and_grads(model, ids) for model in models)
    assert pieces[0].dtype == torch.float32
    for ours, expected in zip(pieces, plain, strict=True):
        assert ours.dtype == expected.dtype == torch.float32
        assert (ours - expected).norm() <= 0.01 * expected.norm()


def test_logits_are_given_where_they_are_asked_for():
    plain, pieces = both_losses(lambda chunk: AutoregressiveWrapper(net(), loss_chunk=chunk))
    ids = torch.randint(0, V, (3, 20))
    loss, logits = pieces(ids, return_outputs=True)
    assert torch.equal(logits, plain(ids, return_outputs=True)[1]) and torch.equal(loss, plain(ids))


def test_a_head_that_was_changed_is_asked_itself():
    model = AutoregressiveWrapper(net(), loss_chunk=7)
    model.net.to_logits = torch.nn.Sequential(model.net.to_logits, torch.nn.Tanh())
    assert model.net.head_as_product(torch.zeros(1, 1, D)) is None
    ids = torch.randint(0, V, (3, 20))
    torch.testing.assert_close(model(ids), model(ids, return_outputs=True)[0], rtol=0, atol=1e-10)


def test_flash_transformers_loss_in_chunks():
    made = {"num_tokens": V, "dim": D, "depth": 1, "group_size": 5, "query_key_dim": 4, "causal": True}

    def wrap(chunk):
        torch.manual_seed(7)
        return AutoregressiveWrapper(FLASHTransformer(**made).double(), loss_chunk=chunk)

    check_the_same(both_losses(wrap), torch.randint(0, V, (3, 20)), most=3 * 19 * (4 * D + 4))


@pytest.mark.parametrize(("smoothing", "z"), [(0.0, 0.0), (0.1, 0.3)])
def test_the_operator_of_chunked_losses(smoothing, z):
    y, weight, bias = (
        torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((11, 5), (13, 5), (13,))
    )
    targets = torch.tensor([0, 12, -7, 3, 3, 5, -7, -7, 1, 2, 8])
    how = -7, smoothing, z
    for b in (None, bias):
        for chunk in (4, 11, 100):
            given = y, weight, b, targets, chunk, *how
            torch.testing.assert_close(chunked_losses(*given), token_losses(F.linear(y, weight, b), targets, *how))
            wanted = (y, weight) if b is None else (y, weight, b)
            fill = (None,) * (3 - len(wanted))
            assert torch.autograd.gradcheck(
                lambda *t, fill=fill, c=chunk: chunked_losses(*t, *fill, targets, c, *how), wanted
            )
        torch.library.opcheck(chunked_losses, given)


@pytest.mark.slow
def test_loss_in_chunks_compiles():
    """A graph for any number of chunks."""
    model = AutoregressiveWrapper(net(), loss_chunk=7)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(model, fullgraph=True, backend=counter)
    for n in (20, 5, 31, 12):
        ids = torch.randint(0, V, (3, n))
        for ours, expected in zip(loss_and_grads(fast, ids), loss_and_grads(model, ids), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    assert counter.frame_count <= 2


def test_loss_chunk_is_refused():
    with pytest.raises(TypeError, match=r"loss_chunk=5 needs a net that gives its embeddings .* TinyLM does not"):
        AutoregressiveWrapper(TinyLM(), loss_chunk=5)
    with pytest.raises(ValueError, match="loss_chunk must be at least 1, not 0"):
        AutoregressiveWrapper(net(), loss_chunk=0)
    with pytest.raises(TypeError, match=r"loss_chunk must be a whole number or None, not 1\.5"):
        MaskedLMWrapper(net(Encoder), mask_token_id=0, loss_chunk=1.5)
    with pytest.raises(ValueError, match="the target 211 is not in the vocabulary of 211 tokens"):
        AutoregressiveWrapper(net(), loss_chunk=7)(torch.zeros(3, 5).long(), labels=torch.full((3, 5), V))


def test_loss_chunk_is_saved_and_shown():
    model = AutoregressiveWrapper(net(), loss_chunk=7)
    assert xflash.from_config(model.to_config()).loss_chunk == 7
    assert "loss_chunk=7" in model.module_tree()
