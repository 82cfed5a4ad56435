"""The reconstruction loss of compressed memory: its definition, its sum over any cut, and that it teaches."""

import laws
import pytest
import torch
from test_recurrent import LENGTH, W, build, heads, softmax_by_hand

from xflash import TransformerWrapper
from xflash.layers.projection import key_and_value

CONV = {"compress": "conv", "compress_factor": W, "compress_loss": True}


def stack_with(layers="block_attn", loss=CONV, **flags):
    own = {f"{block}_{k}": v for block in ("block_attn", "recurrent") if block in layers for k, v in loss.items()}
    return build(layers, **own, **flags)


def lost(state, place=0):
    block = state.branches[place].block
    return getattr(block, "window", block).lost


def lost_by_hand(block, x):
    """Of one row: each token's queries read the block before its own, and what the compressor makes of that."""
    h, kv = block.heads, block.kv_heads
    q, (k, v) = heads(block.to_q(x), h), key_and_value(block.key_value(x), kv)
    total = 0.0
    for i in range(W, len(x)):
        past = slice((i // W - 1) * W, i // W * W)
        short = (t[0, 0] for t in block.compressor(k[None, None, past], v[None, None, past]))
        whole, less = (
            softmax_by_hand(
                q[:, i : i + 1],
                *(heads(t, kv).repeat_interleave(h // kv, 0) for t in pair),
                block.scale,
                block.cosine,
            )
            for pair in ((k[past], v[past]), tuple(short))
        )
        total += (whole - less).square().mean().item()
    return total


@pytest.mark.parametrize("flags", [{}, {"block_attn_kv_heads": 1}, {"block_attn_cosine": True}])
def test_definition(flags):
    stack = stack_with(pos="rotary", **flags)
    x = laws.sample(stack, LENGTH)
    (branch,) = stack.branches
    with torch.no_grad():
        normed = branch.before(x)
        expected = torch.tensor([lost_by_hand(branch.block, row) for row in normed], dtype=x.dtype)
    _, state = stack.step(x)
    assert (expected > 1e-4).all()
    laws.close(lost(state), expected, "reconstruction")
    laws.close(stack.auxiliary_loss(state), expected.mean() / LENGTH, "auxiliary loss")


@pytest.mark.parametrize("grad", [False, True])
def test_the_sum_is_that_of_every_cut(grad):
    """3 and 4: cuts, rows of different lengths and what stands behind them don't show; a reset row begins at zero."""
    stack = stack_with("recurrent ff", depth=2, num_memory_tokens=3)
    x = laws.sample(stack, LENGTH)
    with torch.set_grad_enabled(grad):
        _, whole = stack.step(x)
        for sizes in ([1] * LENGTH, [4, 9, 1, 1, LENGTH - 15], [LENGTH - 1, 1]):
            laws.close(lost(laws.steps(stack, x, sizes)[1], 2), lost(whole, 2), f"in pieces of {sizes}")
        mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [7], [0]])
        _, ragged = laws.steps(stack, x.masked_fill(~mask[..., None], 100.0), [3, 1, 8, 1, LENGTH - 13], mask)
        for row, n in enumerate((LENGTH, 7)):
            laws.close(lost(ragged, 2)[row], lost(stack.step(x[row : row + 1, :n])[1], 2)[0], f"row {row}")
        assert lost(ragged, 2)[2] == 0
        rows = torch.tensor([True, False, False])
        _, again = stack.step(x[:, :9], ragged, reset=rows)
        laws.close(lost(again, 2)[0], lost(stack.step(x[:1, :9])[1], 2)[0], "a reset row")
        longer, _ = torch.cat((x[1:2, :7], x[1:2, :9]), 1), None
        laws.close(lost(again, 2)[1], lost(stack.step(longer)[1], 2)[0], "its neighbour")


def test_only_the_compressor_learns():
    stack = stack_with("block_attn flash recurrent ff", recurrent_cosine=True)
    x = laws.sample(stack, LENGTH).requires_grad_()
    _, state = stack.step(x)
    stack.auxiliary_loss(state).backward()
    reached = {name for name, p in stack.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == {f"branches.{i}.block.compressor.conv.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert x.grad is None


def test_training_reduces_it():
    """Segments of a long text, the state detached between them: the loss of each is what its own tokens lose."""
    torch.manual_seed(0)
    model = TransformerWrapper(num_tokens=11, attn_layers=stack_with(pos="rotary").float(), use_abs_pos_emb=False)
    learned = [p for name, p in model.named_parameters() if "compressor" in name]
    optimizer = torch.optim.Adam(learned, lr=0.01)
    ids = torch.randint(11, (3, 40 * 17), generator=torch.Generator().manual_seed(0))
    state, losses = None, []
    for segment in ids.split(17, 1):
        _, after = model.step(segment, state)
        loss = model.auxiliary_loss(after, state)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        state = after.detach()
    assert sum(losses[-5:]) < 0.5 * sum(losses[1:6])


def test_between_two_states():
    """What is lost between two states is the difference of their sums, for each of the tokens between them."""
    stack = stack_with("block_attn", depth=2)
    x = laws.sample(stack, 2 * LENGTH)
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [4], [11]])
    _, state = stack.step(x[:, :LENGTH], mask=mask)
    _, after = stack.step(x[:, LENGTH:], state)
    between = sum((lost(after, i) - lost(state, i)).sum() for i in (0, 1)) / 2
    laws.close(stack.auxiliary_loss(after, state), between / (3 * LENGTH), "between")
    whole = sum(lost(after, i).sum() for i in (0, 1)) / 2
    laws.close(stack.auxiliary_loss(after), whole / (3 * LENGTH + LENGTH + 4 + 11), "from the beginning")
    laws.close(stack.auxiliary_loss(after, after), torch.zeros((), dtype=x.dtype), "nothing read")


def test_half_precision_sums_in_single():
    stack = stack_with("recurrent flash").float()
    x = laws.sample(stack, LENGTH).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = stack.step(x)
        _, state = stack.step(x, state)
    assert lost(state).dtype == torch.float32 and lost(state).isfinite().all()
    _, exact = stack.step(torch.cat((x, x), 1))
    assert ((lost(state) - lost(exact)).abs() < 0.1 * lost(exact)).all()
    stack.auxiliary_loss(state).backward()


def test_it_changes_nothing_else():
    plain = stack_with("recurrent ff", {**CONV, "compress_loss": False})
    stack = stack_with("recurrent ff")
    x = laws.sample(stack, LENGTH)
    assert torch.equal(stack(x), plain(x))
    _, state = plain.step(x)
    assert lost(state) is None


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"compress_loss": True}, "block_attn_compress_loss=True is set, but block_attn_compress is None"),
        ({"compress_loss": True, "compress": "mean"}, "block_attn_compress='mean' has no weights that could learn"),
        ({"compress_loss": True, "compress": "max"}, "block_attn_compress='max' has no weights that could learn"),
    ],
)
def test_wrong_flags(flags, match):
    with pytest.raises(ValueError, match=match):
        build("block_attn", **{f"block_attn_{k}": v for k, v in flags.items()})


def test_wrong_states():
    stack = stack_with()
    _, state = stack.step(laws.sample(stack, 3))
    with pytest.raises(TypeError, match="state must be what step"):
        stack.auxiliary_loss((1, 2))
    plain = build("block_attn")
    _, other = plain.step(laws.sample(plain, 3))
    with pytest.raises(ValueError, match="the state was made by another stack"):
        stack.auxiliary_loss(other)
    with pytest.raises(ValueError, match="no block of the layout 'block_attn' has a loss that its state holds"):
        plain.auxiliary_loss(other)
    with pytest.raises(TypeError, match="state must be what step"):
        stack.auxiliary_loss(state, "none")
    with pytest.raises(TypeError, match=r"state must be what step\(\) gave, a StackState, not NoneType"):
        stack.auxiliary_loss(None)
    with pytest.raises(ValueError, match="the state has 2 rows, but x has 3"):
        stack.auxiliary_loss(state, stack.step(laws.sample(stack, 3)[:2])[1])
    bare = build("ff")
    with pytest.raises(ValueError, match="no block of the layout 'ff' has a loss that its state holds"):
        bare.auxiliary_loss(bare.step(laws.sample(bare, 3))[1])
    model = TransformerWrapper(num_tokens=11, attn_layers=stack, use_abs_pos_emb=False)
    with pytest.raises(TypeError, match="a ModelState, not StackState"):
        model.auxiliary_loss(state)
