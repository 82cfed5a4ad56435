"""Pooled tokens: learned queries that weigh the outputs of a row, or attend to them."""

import model_laws
import pytest
import torch
from laws import close, live

from xflash import AttentionPool, Decoder, Encoder, TransformerWrapper, from_config
from xflash.wrappers.pooling import LearnedPool, attention_pool

B, N, D, K = 3, 9, 12, 2
MASK = torch.arange(N) < torch.tensor([[N], [4], [0]])


@pytest.fixture
def x():
    return torch.randn(B, N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pool(**given):
    torch.manual_seed(0)
    return live(
        AttentionPool(**{"dim": 10, "dim_context": D, "num_pooled_tokens": K, "heads": 2, "dim_head": 3, **given})
    )


def net(cls=Encoder, **arguments):
    torch.manual_seed(0)
    stack = cls(dim=D, depth=1, heads=2, attn_dim_head=6)
    return TransformerWrapper(num_tokens=11, max_seq_len=67, attn_layers=stack, attn_pool=True, **arguments)


def test_it_is_attention_of_learned_queries(x):
    model = pool()
    block = model.reader.blocks()[0]
    k, v = (x @ block.key_value.weight.T).unflatten(-1, (2, 6)).transpose(1, 2).split(3, -1)
    q = (model.queries @ block.to_q.weight.T).unflatten(-1, (2, 3)).transpose(0, 1)
    right = torch.nn.functional.scaled_dot_product_attention(q.expand(B, -1, -1, -1), k, v)
    right = right.transpose(1, 2).flatten(2) @ block.to_out.weight.T
    close(model(x), right, "by hand")
    close(pool(add_residual=True)(x), right + model.queries, "with its queries")
    close(model(x, queries=model.queries[1:].expand(B, -1, -1)), right[:, 1:], "queries that are given")
    assert model(x).shape == (B, K, 10)


@pytest.mark.parametrize(
    "given", [{}, {"depth": 2}, {"use_transformer_blocks": True, "attn_kwargs": {"qk_norm": True}}], ids=str
)
def test_only_real_tokens_are_read(given, x):
    model = pool(**given)
    broken = x.masked_fill(~MASK[..., None], torch.nan)
    found = model(broken.nan_to_num(7.0), MASK)
    for row, n in enumerate((N, 4)):
        close(found[row], model(x[row : row + 1, :n])[0], "padding")
    assert found.isfinite().all()
    again = from_config(model.to_config())
    assert again.to_config() == model.to_config()
    if "attn_kwargs" in given:
        assert model.reader.blocks()[0].config.qk_norm


def test_several_weightings(x):
    queries = torch.randn(K, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = attention_pool(x, queries, MASK)
    close(found, torch.stack([attention_pool(x, query, MASK) for query in queries], 1), "each")
    assert (found[2] == 0).all()
    assert LearnedPool(D, K).query.shape == (K, D) and LearnedPool(D).query.shape == (D,)


CASES = {
    "weightings": (Decoder, {"num_pooled_tokens": 3}),
    "read": (Encoder, {"num_pooled_tokens": 2, "attn_pool_depth": 1, "dim_pooled_tokens": 7, "num_memory_tokens": 2}),
    "read twice": (Decoder, {"attn_pool_depth": 2, "dim_pooled_tokens": 7, "mixture_of_softmax": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_laws_of_models_that_pool(name, tmp_path):
    cls, arguments = CASES[name]
    model = net(cls, **arguments)
    model_laws.model_laws(model, tmp_path)
    count = arguments.get("num_pooled_tokens", 1)
    width = arguments.get("dim_pooled_tokens", D)
    ids = torch.randint(11, (B, N))
    pooled = model(ids, MASK, return_embeddings=True)
    assert pooled.shape == ((B, width) if count == 1 else (B, count, width)) and (pooled[2] == 0).all()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"attn_pool": False, "num_pooled_tokens": 2}, "num_pooled_tokens=2 is set, but attn_pool is False"),
        ({"attn_pool": False, "attn_pool_depth": 1}, "attn_pool_depth=1 is set, but attn_pool is False"),
        ({"dim_pooled_tokens": 7}, "dim_pooled_tokens=7 is set, but attn_pool_depth is 0"),
        (
            {"dim_pooled_tokens": 7, "attn_pool_depth": 1, "tie_embedding": True},
            r"needs dim_pooled_tokens \(7\) to be the stack's dim \(12\)",
        ),
    ],
    ids=str,
)
def test_what_contradicts_a_pool(given, match):
    stack = Encoder(dim=D, depth=1, heads=2)
    with pytest.raises(ValueError, match=match):
        TransformerWrapper(**{"num_tokens": 11, "max_seq_len": 9, "attn_pool": True, **given}, attn_layers=stack)


def test_what_a_pool_cannot_be(x):
    with pytest.raises(ValueError, match="depth=2 needs use_transformer_blocks"):
        pool(depth=2, use_transformer_blocks=False)
    with pytest.raises(ValueError, match="add_residual=True is set, but transformer blocks"):
        pool(depth=2, add_residual=True)
    # What is said of its attention is heard at any depth, and answered.
    for depth in (1, 2):
        with pytest.raises(TypeError, match="unknown flag 'cross_attn_qk_nrm'; did you mean 'cross_attn_qk_norm'"):
            pool(depth=depth, attn_kwargs={"qk_nrm": True})
    with pytest.raises(ValueError, match="queries must be given: the pool was built with num_pooled_tokens=0"):
        pool(num_pooled_tokens=0)(x)
    with pytest.raises(ValueError, match=r"queries must be \(batch, any number, 10\), not"):
        pool()(x, queries=x)
