"""`rotary2d`: its definition, what scores depend on, what has no place, what it refuses; its laws are with all."""

import laws
import pytest
import torch
from cases import build

from xflash import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper, XTransformer
from xflash.base.registry import positions

N = 11
# Rows and columns of three rows of tokens, in no order.
GRID = torch.randint(-4, 9, (3, N, 2), generator=torch.Generator().manual_seed(5))
BLOCKS = ["attn", "gau", "flash"]


def stack_of(layers, causal=False, **flags):
    return laws.live(build(layers, depth=1, causal=causal, pos="rotary2d", **flags))


def by_hand(t, grid, *, width, base=100.0, factor=1.0, interleaved=False):
    """The definition, as complex numbers: pair j of the first half turns by row, of the second by column."""
    quarter = width // 4
    frequency = torch.tensor([base ** (-i / quarter) for i in range(quarter)], dtype=torch.float64)
    angle = torch.cat([grid[..., axis, None].double() / factor * frequency for axis in (0, 1)], -1)
    turned = t.clone()
    for j in range(width // 2):
        first, second = (2 * j, 2 * j + 1) if interleaved else (j, j + width // 2)
        pair = torch.complex(t[..., first], t[..., second]) * torch.polar(torch.ones_like(angle[..., j]), angle[..., j])
        turned[..., first], turned[..., second] = pair.real, pair.imag
    return turned


@pytest.mark.parametrize(
    ("key_width", "flags", "hand"),
    [
        (12, {}, {"width": 12}),
        (14, {"base": 500.0, "interleaved": True}, {"width": 12, "base": 500.0, "interleaved": True}),
        (20, {"emb_dim": 8, "interpolation_factor": 3.0}, {"width": 8, "factor": 3.0}),
    ],
)
def test_it_turns_by_rows_and_columns(key_width, flags, hand):
    turn = positions["rotary2d"](positions["rotary2d"].Config(**flags), False)
    t = torch.randn(3, N, key_width, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    got = turn.turn(t[:, None], turn.table(GRID, key_width, t.dtype))[:, 0]
    # Frequencies are float32, as published models have them.
    torch.testing.assert_close(got, by_hand(t, GRID, **hand), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", BLOCKS)
def test_scores_depend_on_differences_of_rows_and_of_columns(layers):
    stack = stack_of(layers)
    x = laws.sample(stack, N)
    y = stack(x, grid=GRID)
    laws.close(stack(x, grid=GRID + torch.tensor([7, -3])), y, "moved")
    for other in (GRID.flip(-1), GRID * 2, torch.zeros_like(GRID)):
        assert (stack(x, grid=other) - y).abs().max() > 1e-3


@pytest.mark.parametrize("layers", ["attn ff", "gau"])
def test_tokens_have_no_order_beside_it(layers):
    stack = stack_of(layers, **({"gau_rel_pos_bias": None} if layers == "gau" else {}))
    x, order = laws.sample(stack, N), torch.randperm(N, generator=torch.Generator().manual_seed(2))
    laws.close(stack(x[:, order], grid=GRID[:, order]), stack(x, grid=GRID)[:, order], "in another order")


@pytest.mark.parametrize("layers", BLOCKS)
def test_a_grid_for_all_rows(layers):
    stack = stack_of(layers)
    x, mask = laws.sample(stack, N), laws.masks(N)["holes"]
    for given in ({}, {"mask": mask}):
        alike = stack(x, grid=GRID[:1], **given)
        laws.close(alike, stack(x, grid=GRID[:1].expand(3, -1, -1), **given), "one for all")
        laws.close(alike, stack(x, grid=GRID[:1].int(), **given), "of another dtype")


@pytest.mark.parametrize("layers", BLOCKS)
def test_what_has_no_place_is_not_turned(layers):
    """Tokens at (0, 0), such as memory tokens: they score others as if those stood at their own places from there."""
    stack = stack_of(layers, num_memory_tokens=3)
    plain = stack_of(layers)
    plain.load_state_dict({k: v for k, v in stack.state_dict().items() if "memory" not in k})
    x = laws.sample(stack, N)
    front = stack.memory_tokens.tokens.expand(3, -1, -1)
    grid = torch.cat((torch.zeros(3, 3, 2, dtype=torch.long), GRID), 1)
    laws.close(stack(x, grid=GRID), plain(torch.cat((front, x), 1), grid=grid)[:, 3:], "memory tokens")
    assert (stack(x, grid=GRID + 1) - stack(x, grid=GRID)).abs().max() > 1e-3


def test_a_context_is_no_grid():
    """Queries that look at a context are turned by what counts its places only."""
    stack = laws.live(build("attn cross_attn", depth=1, pos=("rotary", "rotary2d"), cross_attn_dim_head=8))
    x = laws.sample(stack, N)
    given = {**laws.beside(stack, x), "context_pos": torch.tensor([3, 1, 4, 1, 5, 9, 2])}
    y = stack(x, grid=GRID, **given)
    laws.close(stack(x, grid=GRID + 5, **given), y, "moved")
    assert (stack(x, grid=GRID, **{**given, "context_pos": given["context_pos"].flip(0)}) - y).abs().max() > 1e-4
    alone = stack_of("attn cross_attn")
    with pytest.raises(ValueError, match="context_pos is for rotary positions, and this stack has none"):
        alone(x, grid=GRID, **given)


def test_models_pass_it_on():
    """Embeddings in front have no place; the loss cuts it as it cuts the tokens."""
    torch.manual_seed(0)
    stack = Decoder(dim=34, depth=1, heads=2, layers="attn ff", attn_dim_head=8, pos="rotary2d")
    model = laws.live(TransformerWrapper(num_tokens=13, attn_layers=stack))
    ids = torch.randint(13, (3, N), generator=torch.Generator().manual_seed(3))
    front = torch.randn(3, 2, 34, dtype=torch.float64)
    embedded = torch.cat((front, model.embedding(ids)[0]), 1)
    grid = torch.cat((torch.zeros(3, 2, 2, dtype=torch.long), GRID), 1)
    logits = model(ids, prepend_embeds=front, grid=GRID)
    laws.close(logits, model.logits(stack(embedded, grid=grid)), "embeddings in front")
    head, state = model.step(ids[:, :4], prepend_embeds=front, grid=GRID[:, :4])
    tail, _ = model.step(ids[:, 4:], state, grid=GRID[:, 4:])
    laws.close(torch.cat((head, tail), 1), logits, "in pieces")
    trainer = AutoregressiveWrapper(model)
    expected = torch.nn.functional.cross_entropy(model(ids, grid=GRID)[:, :-1].mT, ids[:, 1:])
    laws.close(trainer(ids, grid=GRID), expected, "the loss")
    with pytest.raises(ValueError, match="generate makes tokens that would have no grid"):
        trainer.generate(ids[:, :4], 3, grid=GRID[:, :4])


@pytest.mark.parametrize(
    ("grid", "error", "sentence"),
    [
        (None, ValueError, r"need grid, and this call has none: give grid=, \(3, 11, 2\) or \(1, 11, 2\), the row and"),
        (GRID.double(), TypeError, r"grid must be an integer tensor \(3, 11, 2\) or \(1, 11, 2\), not"),
        ([[0, 1]], TypeError, "grid must be an integer tensor"),
        (GRID[:, 1:], ValueError, r"grid must be \(3, 11, 2\) or \(1, 11, 2\), not \(3, 10, 2\)"),
        (GRID[:2], ValueError, r"not \(2, 11, 2\)"),
        (GRID[0], ValueError, r"not \(11, 2\)"),
        (GRID[..., :1], ValueError, r"not \(3, 11, 1\)"),
    ],
)
def test_what_is_no_grid_is_refused(grid, error, sentence):
    stack = stack_of("attn")
    with pytest.raises(error, match=sentence):
        stack(laws.sample(stack, N), grid=grid)


def test_a_model_whose_calls_have_none_is_refused():
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in (("num_tokens", 13), ("depth", 1))}
    for side in ("enc", "dec"):
        with pytest.raises(ValueError, match="parts of the stack need grid, but an encoder and a decoder are given"):
            XTransformer(dim=32, **sides, **{f"{side}_pos": "rotary2d"}, enc_max_seq_len=5, dec_max_seq_len=5)


def test_a_grid_that_nobody_looks_at_is_refused():
    stack = laws.live(Encoder(dim=34, depth=1, heads=2, pos="rotary"))
    with pytest.raises(ValueError, match=r"grid is given, but no part .* takes one \(parts that do: rotary2d"):
        stack(laws.sample(stack, N), grid=GRID)
