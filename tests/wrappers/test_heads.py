"""Heads and embeddings that are otherwise: mixtures of softmaxes, several heads, modules of one's own."""

import model_laws
import pytest
import torch
from laws import live
from torch import nn

import xflash
from xflash import AutoregressiveWrapper, Decoder, TransformerWrapper
from xflash.saving.classes import CLASSES
from xflash.saving.configurable import Configurable

V, D, N = 11, 12, 9


def net(flags=None, **arguments):
    torch.manual_seed(0)
    stack = Decoder(dim=D, depth=1, heads=2, attn_dim_head=6, **(flags or {}))
    return TransformerWrapper(**{"num_tokens": V, "max_seq_len": 67, **arguments}, attn_layers=stack)


@pytest.fixture
def ids():
    return torch.randint(V, (3, N), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def own():
    """An embedding and a head that a config can say, and that registered ones are when the test is over."""
    known = dict(CLASSES)

    class Hashed(Configurable):
        def __init__(self, rows: int, dim: int):
            super().__init__()
            self.table = nn.Embedding(rows, dim)

        def forward(self, ids):
            return self.table(ids % self.table.num_embeddings) + self.table(ids // self.table.num_embeddings)

    class Deep(Configurable):
        def __init__(self, dim: int, count: int):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(dim, 5), nn.Tanh(), nn.Linear(5, count))

        def forward(self, y):
            return self.layers(y)

    yield Hashed, Deep
    CLASSES.clear()
    CLASSES.update(known)


def test_a_mixture_is_the_mean_of_its_softmaxes(ids):
    model = live(net(mixture_of_softmax=True, mixture_of_softmax_k=3, logits_bias=True, logits_softclamp=2.0))
    y = model(ids, return_embeddings=True)
    weights = model.mixture.to_weights(y).softmax(-1)
    parts = model.mixture.to_mixture(y).unflatten(-1, (3, D))
    right = sum(
        weights[..., i : i + 1] * (2 * (model.to_logits(parts[..., i, :]) / 2).tanh()).softmax(-1) for i in range(3)
    )
    torch.testing.assert_close(model(ids), right.log())
    whole = AutoregressiveWrapper(model)(ids)
    torch.testing.assert_close(whole, AutoregressiveWrapper(model, loss_chunk=2)(ids))
    # Probabilities too small for their dtype stay apart as log-probabilities.
    with torch.no_grad():
        model.to_logits.weight.mul_(1e4)
        model.logits_softclamp = None
    assert model(ids).isfinite().all()


def test_several_heads_are_a_tuple(ids):
    model = live(net(num_output_heads=3, logits_dim=7, logits_bias=True, logits_softclamp=2.0))
    y = model(ids, return_embeddings=True)
    found = model(ids)
    assert len(found) == 3 and isinstance(found, tuple)
    for head, logits in zip(model.to_logits, found, strict=True):
        torch.testing.assert_close(logits, 2 * (head(y) / 2).tanh())
    first, state = model.step(ids[:, :4])
    second, _ = model.step(ids[:, 4:], state)
    for parts in zip(first, second, found, strict=True):
        torch.testing.assert_close(torch.cat(parts[:2], 1), parts[2])
    decayed, bare = model.param_groups(0.1), model.param_groups(0.1, head=False)
    assert sum(len(group["params"]) for group in decayed) == len(list(model.parameters()))
    assert len(decayed[0]["params"]) == len(bare[0]["params"]) + 3
    with pytest.raises(TypeError, match="TransformerWrapper gives logits of 3 heads"):
        AutoregressiveWrapper(model)


@pytest.mark.parametrize(
    "given", [{"num_output_heads": 2}, {"mixture_of_softmax": True, "tie_embedding": True}], ids=str
)
def test_the_laws(given, tmp_path):
    model_laws.model_laws(net(**given), tmp_path)


def test_modules_of_ones_own(own, ids, tmp_path):
    hashed, deep = own
    model = net({"pos": "rotary"}, token_emb=hashed(4, 5), to_logits=deep(D, V), emb_dim=5)
    model_laws.model_laws(model, tmp_path)
    assert model.to_config()["token_emb"] == {"class": "Hashed", "rows": 4, "dim": 5}
    y = model(ids, return_embeddings=True)
    torch.testing.assert_close(model(ids), model.to_logits(y))
    assert AutoregressiveWrapper(live(model)).generate(ids, 3).shape == (3, 3)
    torch.testing.assert_close(AutoregressiveWrapper(model, loss_chunk=2)(ids), AutoregressiveWrapper(model)(ids))
    tied = net(token_emb=nn.Embedding(V, D), tie_embedding=True)
    assert tied(ids).shape == (3, N, V)


def test_what_has_no_config_is_not_saved(ids, tmp_path):
    model = net(token_emb=nn.Embedding(V, D), to_logits=nn.Linear(D, V))
    assert model(ids).shape == (3, N, V)
    with pytest.raises(TypeError, match="the argument 'token_emb' keeps this module from having a config: Embedding"):
        model.save(tmp_path)
    assert not list(tmp_path.iterdir())
    other = net(to_logits=nn.Linear(D, V))
    with pytest.raises(TypeError, match="the argument 'to_logits' keeps this module from having a config"):
        xflash.save(other, tmp_path)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"to_logits": nn.Linear(D, V), "tie_embedding": True}, "tie_embedding=True is set, but to_logits is one"),
        ({"to_logits": nn.Linear(D, V), "num_output_heads": 2}, "num_output_heads=2 is set, but to_logits is one"),
        ({"token_emb": nn.Embedding(V, D), "l2norm_embed": True}, "l2norm_embed=True is set, but token_emb is one"),
        ({"mixture_of_softmax_k": 3}, "mixture_of_softmax_k=3 is set, but mixture_of_softmax is False"),
        ({"num_output_heads": 2, "tie_embedding": True}, "tie_embedding=True is set, but num_output_heads is 2"),
        ({"num_output_heads": 2, "mixture_of_softmax": True}, "mixture_of_softmax=True is set, but num"),
        ({"return_only_embed": True, "num_output_heads": 2}, "no head, so num_output_heads cannot be set"),
    ],
    ids=str,
)  # fmt: skip
def test_what_excludes_each_other(given, match):
    with pytest.raises(ValueError, match=match):
        net(**given)


def test_what_is_no_module(ids):
    for name in ("token_emb", "to_logits"):
        with pytest.raises(TypeError, match=f"{name} must be a torch.nn.Module or None, not 'linear'"):
            net(**{name: "linear"})
    with pytest.raises(ValueError, match=r"token_emb given ids \(3, 9\) must give .* \(3, 9, 12\), not \(3, 9, 5\)"):
        net(token_emb=nn.Embedding(V, 5))(ids)
    with pytest.raises(TypeError, match=r"must give embeddings .*, not torch\.int64"):
        net(token_emb=nn.Identity())(ids)
