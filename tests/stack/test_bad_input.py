"""Wrong calls of stacks and models: a TypeError or ValueError says what was given and what is possible."""

import ast
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import xflash
from xflash import AttentionLayers, Decoder, Encoder, TransformerWrapper

B, N, DIM, HEADS, VOCABULARY, LIMIT = 3, 5, 22, 2, 11, 7
IDS = torch.arange(B * N).reshape(B, N) % VOCABULARY
X = torch.randn(B, N, DIM, generator=torch.Generator().manual_seed(0))
REAL = torch.ones(B, N, dtype=torch.bool)
ROWS = torch.tensor([True, False, True])


def stack(cls=Decoder, **flags):
    torch.manual_seed(0)
    small = {} if "layers" in flags else {"attn_dim_head": 6}
    return cls(**{"dim": DIM, "depth": 1, "heads": HEADS, **small, **flags}).eval()


def model(cls=Decoder, flags=None, **arguments):
    given = {"num_tokens": VOCABULARY, "max_seq_len": LIMIT, "attn_layers": stack(cls, **(flags or {})), **arguments}
    return TransformerWrapper(**given).eval()


def stepped(other):
    """The state of `other` after B rows of N tokens."""
    return other.step(IDS if isinstance(other, TransformerWrapper) else X)[1]


def refuses(call, error, match):
    with pytest.raises(error, match=match) as caught:
        call()
    # An exact class: no IndexError, no type checker's subclass from deep inside.
    assert type(caught.value) is error


def table(*rows):
    """Rows of (call, exception, match), named by what they match."""
    return pytest.mark.parametrize(
        ("call", "error", "match"), rows, ids=[f"{i} {row[2][:40]}" for i, row in enumerate(rows)]
    )


@table(
    (IDS + VOCABULARY, ValueError, "token ids must be from 0 to 10, but they go from 11 to 21"),
    (IDS - 1, ValueError, "token ids must be from 0 to 10, but they go from -1 to 9"),
    (IDS.float(), TypeError, r"must be an integer tensor \(batch, tokens\), not torch.float32"),
    (IDS > 3, TypeError, "must be an integer tensor .* not torch.bool"),
    (IDS.tolist(), TypeError, "must be an integer tensor .* not list"),
    (IDS[0], ValueError, r"must be \(batch, tokens\) with at least one token, not \(5,\)"),
    (IDS[None], ValueError, r"must be \(batch, tokens\) .* not \(1, 3, 5\)"),
    (IDS[:, :0], ValueError, r"with at least one token, not \(3, 0\)"),
    (
        IDS.repeat(1, 2),
        ValueError,
        "10 tokens are more than max_seq_len=7, .* or relative positions such as pos='rotary'",
    ),
)
def test_ids(call, error, match):
    net = model()
    refuses(lambda: net(call), error, match)
    refuses(lambda: net.step(call), error, match)


@table(
    (REAL.float(), TypeError, r"mask must be boolean \(True = real token\) or 0/1 integers, not torch.float32"),
    (REAL[:, 1:], ValueError, r"mask has shape \(3, 4\), but the tokens it stands for have \(3, 5\)"),
    (REAL[:1], ValueError, r"mask has shape \(1, 5\), but"),
    (REAL[0], ValueError, r"mask has shape \(5,\), but"),
    (REAL.tolist(), TypeError, r"mask must be a tensor of shape \(3, 5\), not list"),
    (REAL * 2, ValueError, "mask must be boolean or 0/1 integers, but it goes from 2 to 2"),
    (-REAL.long(), ValueError, "mask must be .* but it goes from -1 to -1"),
)
def test_masks(call, error, match):
    for net, tokens in ((stack(), X), (stack(Encoder), X), (model(), IDS), (model(Encoder), IDS)):
        refuses(lambda net=net, tokens=tokens: net(tokens, mask=call), error, match)
        if net.causal:
            refuses(lambda net=net, tokens=tokens: net.step(tokens, None, call), error, match)


def test_masks_of_zeros_and_ones_are_booleans():
    mask = torch.arange(N) < torch.tensor([[N], [2], [1]])
    for net, tokens in ((stack(), X), (model(Encoder), IDS)):
        for dtype in (torch.long, torch.int32, torch.uint8):
            assert torch.equal(net(tokens, mask=mask.to(dtype)), net(tokens, mask=mask))
    prefix, net = X[:, :2], model()
    expected = net(IDS, mask=mask, prepend_embeds=prefix, prepend_mask=REAL[:, :2])
    assert torch.equal(net(IDS, mask=mask.long(), prepend_embeds=prefix, prepend_mask=REAL[:, :2].long()), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_ids_of_any_integer_type_are_the_same(dtype):
    net, docs = model(), (torch.arange(N) > 2).long().expand(B, N)
    assert torch.equal(net(IDS.to(dtype)), net(IDS))
    assert torch.equal(net(IDS, doc_ids=docs.to(dtype)), net(IDS, doc_ids=docs))


@table(
    (REAL[None], ValueError, r"attn_mask must be \(5, 5\) or .* not \(1, 3, 5\)"),
    (torch.ones(B, N, N).bool(), ValueError, r"not \(3, 5, 5\); three axes would be ambiguous"),
    (torch.ones(N, N + 1).bool(), ValueError, r"attn_mask must be \(5, 5\) .* not \(5, 6\)"),
    (torch.ones(2, 1, N, N).bool(), ValueError, r"\(1 or 3, .* not \(2, 1, 5, 5\)"),
    (torch.ones(B, 3, N, N).bool(), ValueError, r"attn_mask is for 3 heads, but the blocks have \[2\]; give 1"),
    (torch.zeros(N, N), TypeError, r"attn_mask must be a boolean tensor \(True = may attend\), not torch.float32"),
    (torch.full((N, N), 2), ValueError, "attn_mask must be boolean or 0/1 integers, but it goes from 2 to 2"),
    (REAL.tolist(), TypeError, "attn_mask must be a boolean tensor .* not list"),
)
def test_attn_masks(call, error, match):
    for net, tokens in ((stack(), X), (model(), IDS)):
        refuses(lambda net=net, tokens=tokens: net(tokens, attn_mask=call), error, match)


@table(
    (REAL, TypeError, r"doc_ids must be an integer tensor of shape \(3, 5\), not torch.bool"),
    (X[..., 0], TypeError, "doc_ids must be an integer tensor .* not torch.float32"),
    ([0] * N, TypeError, "doc_ids must be an integer tensor .* not list"),
    (IDS[:, 1:], ValueError, r"doc_ids has shape \(3, 4\), but the tokens have \(3, 5\)"),
)
def test_doc_ids(call, error, match):
    for net, tokens in ((stack(), X), (model(), IDS)):
        refuses(lambda net=net, tokens=tokens: net(tokens, doc_ids=call), error, match)


@table(
    (
        lambda: stack()(IDS),
        TypeError,
        r"x must be a floating-point .*\(batch, tokens, 22\), not torch.int64; token ids go",
    ),
    (lambda: stack()(X[..., 1:]), ValueError, r"x must be \(batch, tokens, 22\), not \(3, 5, 21\)"),
    (lambda: stack()(X[0]), ValueError, r"not \(5, 22\)"),
    (lambda: stack()(X[:, :0]), ValueError, "x has no tokens; give at least one"),
    (lambda: stack()(X.tolist()), TypeError, "not list"),
    (
        lambda: stack(num_memory_tokens=2)(X, doc_ids=IDS * 0),
        ValueError,
        "doc_ids and num_memory_tokens exclude each other",
    ),
    (lambda: model()(IDS, prepend_embeds=X[..., 1:]), ValueError, r"must be \(3, any number, 22\), not \(3, 5, 21\)"),
    (lambda: model()(IDS, prepend_embeds=X[:1]), ValueError, r"prepend_embeds must be \(3, .* not \(1, 5, 22\)"),
    (
        lambda: model()(IDS, prepend_embeds=X.long()),
        TypeError,
        "prepend_embeds must be a floating-point .* not torch.int64",
    ),
    (lambda: model()(IDS, prepend_embeds=[X]), TypeError, "prepend_embeds must be a floating-point .* not list"),
    (lambda: model()(IDS, prepend_mask=REAL), ValueError, "prepend_mask is given without prepend_embeds"),
    (lambda: model()(IDS, prepend_embeds=X, prepend_mask=REAL[:, 1:]), ValueError, r"prepend_mask has shape \(3, 4\)"),
    (lambda: model()(IDS, prepend_embeds=X, doc_ids=IDS), ValueError, "doc_ids and prepend_embeds exclude each other"),
    (
        lambda: model(flags={"layers": "ff"})(IDS, return_attn=True),
        ValueError,
        "no block of the layout .* has an attention",
    ),
)
def test_other_inputs(call, error, match):
    refuses(call, error, match)


@table(
    (
        lambda: stack(Encoder).step(X),
        ValueError,
        r"bidirectional stack \(Encoder\) has no state and no step: call it on whole",
    ),
    (lambda: stack(Encoder).step(X, stepped(stack())), ValueError, "bidirectional stack .* has no state"),
    (lambda: model(Encoder).step(IDS), ValueError, "bidirectional stack .* has no state"),
    (lambda: stack().step(X[:1], stepped(stack())), ValueError, "the state has 3 rows, but x has 1"),
    (lambda: model().step(IDS[:2, :1], stepped(model())), ValueError, "the state has 3 rows, but x has 2"),
    (
        lambda: stack(depth=2).step(X, stepped(stack())),
        ValueError,
        "made by another stack: .*depth=1.*; this one is .*depth=2",
    ),
    (
        lambda: stack(attn_kv_heads=1).step(X, stepped(stack())),
        ValueError,
        "by another stack: .*this one.*attn_kv_heads=1",
    ),
    (
        lambda: stack(pos="rotary").step(X, stepped(stack())),
        ValueError,
        "made by another stack: .*this one is .*rotary",
    ),
    (
        lambda: stack(dim=26).step(X[..., :1].expand(B, N, 26), stepped(stack())),
        ValueError,
        "dim=22.*this one is .*dim=26",
    ),
    (
        lambda: model(num_memory_tokens=2).step(IDS[:, :1], stepped(model())),
        ValueError,
        "this one is .*num_memory_tokens=2",
    ),
    (lambda: stack().step(X, (X,)), TypeError, r"state must be what step\(\) gave, a StackState, not tuple"),
    (lambda: model().step(IDS, stepped(stack())), TypeError, r"what step\(\) gave, a ModelState, not StackState"),
    (lambda: model().step(IDS, stepped(model())), ValueError, "10 tokens are more than max_seq_len=7"),
    (
        lambda: stack().step(X, stepped(stack()), reset=ROWS[:1]),
        ValueError,
        r"reset must be of shape \(3,\), .* not \(1,\)",
    ),
    (
        lambda: stack().step(X, None, reset=ROWS[:1]),
        ValueError,
        r"reset must be of shape \(3,\), one entry a row, not \(1,\)",
    ),
    (
        lambda: stack().step(X, stepped(stack()), reset=ROWS.float()),
        TypeError,
        "reset must be a boolean .* not torch.float32",
    ),
    (
        lambda: model().step(IDS[:, :1], stepped(model()), reset=[True] * B),
        TypeError,
        "reset must be a boolean .* not list",
    ),
    (lambda: model().step(IDS[:, :1], stepped(model()), reset=ROWS[:2]), ValueError, r"reset must be of .*not \(2,\)"),
)
def test_states(call, error, match):
    refuses(call, error, match)


CONTEXT = torch.randn(B, 4, DIM, generator=torch.Generator().manual_seed(1))
CROSS = {"layers": "attn(dim_head=6) cross_attn(dim_head=6) ff"}


@table(
    (
        lambda: stack()(X.double()),
        TypeError,
        r"x is torch.float64, but the model is torch.float32; give x.to\(torch.fl",
    ),
    (lambda: stack().bfloat16()(X), TypeError, "x is torch.float32, but the model is torch.bfloat16; give x.to"),
    (lambda: stack(Encoder).attention_maps(X.half()), TypeError, "x is torch.float16, but the model is torch.float32"),
    (lambda: stack().step(X.double()), TypeError, "x is torch.float64, but the model is torch.float32"),
    (lambda: stack(layers="gau").step(X.double()), TypeError, "x is torch.float64, but the model is torch.float32"),
    (
        lambda: stack(**CROSS)(X, context=CONTEXT.double()),
        TypeError,
        r"the context is torch.float64, but the model is torch.float32; give context.to\(torch.float32\)",
    ),
    (
        lambda: stack().step(X, stepped(stack()).to(torch.float64)),
        TypeError,
        r"the state holds torch.float64, but the model is torch.float32; give state.to\(torch.float32\)",
    ),
    (
        lambda: model().step(IDS[:, :1], stepped(model()).to(torch.bfloat16)),
        TypeError,
        r"the state holds torch.bfloat16, but the model is torch.float32; give state.to\(torch.float32\)",
    ),
)
def test_dtypes(call, error, match):
    refuses(call, error, match)


def test_any_dtype_will_do_under_autocast():
    net = stack(**CROSS)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            y, state = net.step(X.to(dtype), context=CONTEXT.to(dtype))
            assert net.step(X.to(dtype)[:, :1], state)[0].isfinite().all() and y.isfinite().all()


def test_an_error_that_is_not_of_dtypes_stays_what_it_is():
    """Weights of several dtypes, which no sentence about one would fit, fail as they did."""
    net = stack()
    net.blocks()[1].double()
    with pytest.raises(RuntimeError, match="dtype"):
        net(X)


@table(
    ({"num_tokens": 0}, ValueError, "num_tokens must be at least 1, not 0"),
    ({"num_tokens": 2.5}, TypeError, "num_tokens must be a whole number, not 2.5"),
    ({"num_tokens": None}, TypeError, "num_tokens must be a whole number, not None"),
    (
        {"max_seq_len": None},
        ValueError,
        "learned absolute positions need max_seq_len; give it, or use_abs_pos_emb=False",
    ),
    ({"max_seq_len": 0}, ValueError, "learned absolute positions need max_seq_len"),
    ({"max_seq_len": -3}, ValueError, "max_seq_len must be at least 0, not -3"),
    ({"max_seq_len": -3, "use_abs_pos_emb": False}, ValueError, "max_seq_len must be at least 0, not -3"),
    ({"emb_dim": 0}, ValueError, "emb_dim must be at least 1, not 0"),
    ({"logits_dim": -1}, ValueError, "logits_dim must be at least 1, not -1"),
    ({"num_memory_tokens": -2}, ValueError, "num_memory_tokens must be at least 0, not -2"),
    ({"num_memory_tokens": 1.5}, TypeError, "num_memory_tokens must be a whole number or None, not 1.5"),
    ({"emb_dropout": 1.0}, ValueError, "emb_dropout must be below 1, not 1.0"),
    ({"emb_dropout": "a"}, TypeError, "emb_dropout must be a number, not 'a'"),
    ({"use_abs_pos_emb": "yes"}, TypeError, "use_abs_pos_emb must be True or False or None, not 'yes'"),
    ({"tie_embedding": 1}, TypeError, "tie_embedding must be True or False, not 1"),
    ({"emb_proj_bias": False}, ValueError, "emb_proj_bias=False is set, but the embeddings are as wide as the stack"),
    ({"pos_emb_at_dim": True, "emb_dim": 22}, ValueError, "pos_emb_at_dim=True is set, but the embeddings are as wide"),
    (
        {"pos_emb_at_dim": True, "emb_dim": 4, "use_abs_pos_emb": False},
        ValueError,
        "pos_emb_at_dim=True is set, but there are no absolute positions",
    ),
    ({"tie_embedding": True, "logits_dim": 4}, ValueError, "tie_embedding=True uses the .*so logits_dim cannot be set"),
    ({"return_only_embed": True, "head_transform": "gelu"}, ValueError, "no head, so head_transform cannot be set"),
    ({"return_only_embed": True, "logits_softclamp": 2.0}, ValueError, "no head, so logits_softclamp cannot be set"),
    ({"head_transform": "gleu"}, ValueError, "'gleu'.*did you mean 'gelu'"),
    ({"head_transform_eps": 0.1}, ValueError, "head_transform_eps=0.1 is set, but head_transform is None"),
    ({"head_transform_bias": False}, ValueError, "head_transform_bias=False is set, but head_transform is None"),
    ({"post_emb_norm_eps": 0.1}, ValueError, "post_emb_norm_eps=0.1 is set, but post_emb_norm is False"),
    ({"post_emb_norm_bias": True}, ValueError, "post_emb_norm_bias=True is set, but post_emb_norm is False"),
    (
        {"pos_emb_offset": 2, "use_abs_pos_emb": False},
        ValueError,
        "pos_emb_offset=2 is set, but no positions are learned",
    ),
    ({"tie_embedding_scale": 2.0}, ValueError, "tie_embedding_scale=2.0 is set, but tie_embedding is False"),
    ({"scaled_sinu_pos_emb": True, "use_abs_pos_emb": False}, ValueError, "contradicts use_abs_pos_emb=False"),
    ({"attn_layers": torch.nn.Linear(2, 2)}, TypeError, "attn_layers must be a stack such as .* not Linear"),
    ({"attn_layers": "Decoder"}, TypeError, "attn_layers must be a stack such as .* not 'Decoder'"),
    ({"max_seq_le": 3}, TypeError, "TransformerWrapper has no argument 'max_seq_le'; did you mean 'max_seq_len'"),
)
def test_arguments_of_the_wrapper(call, error, match):
    refuses(lambda: model(**call), error, match)


def test_arguments_that_are_missing_or_too_many():
    refuses(
        lambda: TransformerWrapper(num_tokens=3), TypeError, "TransformerWrapper: missing a required .* 'attn_layers'"
    )
    refuses(lambda: Decoder(16, 2), TypeError, "Decoder: too many positional arguments; name them: dim=16, depth=2$")
    said = "TransformerWrapper: too many positional arguments; name them: num_tokens=3, max_seq_len=4$"
    refuses(lambda: TransformerWrapper(3, 4), TypeError, said)
    twice = {"flags": {"num_memory_tokens": 3}, "num_memory_tokens": 2}
    refuses(lambda: model(**twice), ValueError, "num_memory_tokens=2, but the stack has 3 already")


@pytest.mark.parametrize("layers", ["attn ff", "gau", "flash", "flash attn gau ff"])
@pytest.mark.parametrize("cls", [Encoder, Decoder])
def test_an_empty_row_is_fine(cls, layers):
    """It gives finite numbers and gradients, and leaves its neighbours alone."""
    net = TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=LIMIT, attn_layers=cls(dim=DIM, depth=1, layers=layers, heads=2)
    )
    mask = REAL.clone()
    mask[1] = False
    logits = net(IDS, mask=mask)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[[0, 2]], net(IDS[[0, 2]]))
    logits.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    assert net(IDS, mask=torch.zeros_like(mask)).isfinite().all()
    if net.causal:
        first, state = net.step(IDS, None, mask)
        assert torch.cat((first, net.step(IDS[:, :1], state)[0]), 1).isfinite().all()


@pytest.mark.parametrize("path", sorted(Path(xflash.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_no_check_vanishes_under_python_O(path):
    tree = ast.parse(path.read_text())
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert not lines, f"assert in {path.name} at {lines}: raise TypeError or ValueError"


def test_a_batch_of_nothing_is_a_batch():
    assert stack()(X[:0]).shape == (0, N, DIM)
    assert model()(IDS[:0]).shape == (0, N, VOCABULARY)


def test_attention_layers_takes_both_directions():
    assert stack(AttentionLayers, causal=True).causal
    refuses(
        lambda: Encoder(dim=DIM, depth=1, causal=True), ValueError, r"causal=True contradicts Encoder; use Attention"
    )
    refuses(lambda: Decoder(dim=DIM, depth=1, causal=False), ValueError, r"causal=False contradicts Decoder")


def test_the_head_says_what_it_reads():
    with pytest.raises(TypeCheckError, match="parameter 'y'"):
        model().logits(IDS)
