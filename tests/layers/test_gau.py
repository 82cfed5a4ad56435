import itertools
import math

import laws
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xflash import Decoder, Encoder
from xflash.base.state import Ctx
from xflash.layers.blocks.gau import GatedAttention
from xflash.layers.kernels import gated
from xflash.layers.site import Site

DIM, WIDTH, BATCH, LENGTH = 13, 22, 3, 19
E = 2 * DIM

# Every setting that keeps the laws; those that reproduce a peer only stand further down.
SETTINGS = {
    "default": {},
    "no bias": {"gau_rel_pos_bias": None},
    "fixed": {"gau_normaliser": "fixed", "gau_fixed_length": 41},
    "row_sum": {"gau_normaliser": "row_sum"},
    "none": {"gau_normaliser": "none"},
    "inside": {"gau_normaliser_place": "inside", "gau_rel_pos_bias": "t5"},
    "content": {"gau_normaliser_place": "content", "gau_rel_pos_bias": "toeplitz", "gau_toeplitz_length": 7},
    "laplace": {"gau_attn_fn": "laplace"},
    "laplace inside": {"gau_attn_fn": "laplace", "gau_normaliser_place": "inside"},
    "softmax": {"gau_attn_fn": "softmax"},
    "softmax_plus": {"gau_attn_fn": "softmax_plus", "gau_rel_pos_bias": "t5"},
    "two heads": {"gau_heads": 2, "gau_rel_pos_bias": "t5", "pos": ("rotary", "alibi")},
    "softmax, two heads, as wide as the keys": {
        "gau_heads": 2,
        "gau_attn_fn": "softmax_plus",
        "gau_query_key_dim": 26,
        "pos": "rotary",
    },
    "T5 of the stack": {"pos": "rel_pos", "gau_rel_pos_bias": "toeplitz", "gau_bias": True, "gau_offset": False},
    "no score scale": {"gau_score_scale": "none", "pos": "rotary"},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Six query rows a block, so that short sequences take several."""
    monkeypatch.setitem(gated.ROWS, "cpu", 6)


def build(causal=True, depth=2, **flags):
    torch.manual_seed(0)
    flags = {"dim": DIM, "depth": depth, "layers": "gau", "gau_query_key_dim": WIDTH, **flags}
    return laws.live((Decoder if causal else Encoder)(**flags))


def block(causal=True, dim=DIM, **flags):
    torch.manual_seed(0)
    config = GatedAttention.Config(**{"query_key_dim": WIDTH, **flags})
    return laws.live(GatedAttention(config, Site(dim, 1, causal)))


def context(n, **fields):
    return Ctx(0, None, None, torch.arange(n)[None], **fields)


def tokens(n=LENGTH, dim=DIM, seed=1):
    return torch.randn(BATCH, n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_laws(setting, causal, tmp_path):
    laws.all_laws(build(causal, **SETTINGS[setting]), tmp_path, cuts=(1, 2, 7, 16))


@pytest.mark.parametrize("setting", SETTINGS)
def test_cutting_changes_nothing_to_the_last_digits(setting):
    stack, x = build(**SETTINGS[setting]), tokens()
    with torch.no_grad():
        whole = stack(x)
        for i in range(1, LENGTH):
            head, state = stack.step(x[:, :i])
            gap = (torch.cat((head, stack.step(x[:, i:], state)[0]), 1) - whole).abs().max()
            assert gap <= 1e-12, f"cut at {i}"
        assert (laws.steps(stack, x, [1] * LENGTH)[0] - whole).abs().max() <= 1e-12


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_documents_stay_apart(setting, causal):
    stack, lengths = build(causal, shift_tokens=1, **SETTINGS[setting]), [7, 1, 9, 2]
    x = tokens()
    ids = torch.repeat_interleave(torch.tensor([4, 0, 7, 1]), torch.tensor(lengths)).expand(BATCH, -1)
    for mask in (None, torch.arange(LENGTH) < torch.tensor([LENGTH, 12, 5])[:, None]):
        packed = stack(x, mask, doc_ids=ids)
        for row, (start, size) in itertools.product(range(BATCH), zip([0, 7, 8, 17], lengths, strict=True)):
            end = start + size if mask is None else min(start + size, int(mask[row].sum()))
            if end > start:
                laws.close(packed[row, start:end], stack(x[row : row + 1, start:end])[0], f"{row}, {start}")


@pytest.mark.parametrize("setting", ["default", "softmax", "row_sum", "two heads"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_what_attn_mask_hides_does_not_count(setting, causal):
    stack, x = build(causal, depth=1, **SETTINGS[setting]), tokens().requires_grad_()
    allowed = torch.rand(LENGTH, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.5
    allowed[4] = False
    y = stack(x, attn_mask=allowed)
    assert y.isfinite().all()
    for i in (4, 11):
        (grad,) = torch.autograd.grad(y[:, i].square().sum(), x, retain_graph=True)
        seen = grad.abs().amax((0, 2)) > 0
        expected = allowed[i] & ((torch.arange(LENGTH) <= i) | (not causal))
        expected[i] = True
        assert not (seen & ~expected).any()
        # relu^2 gives no weight to a negative score, softmax gives some to all.
        assert setting != "softmax" or seen.tolist() == expected.tolist()
    laws.close(stack(x, attn_mask=torch.ones_like(allowed)), stack(x), "a mask of ones")


def test_documents_and_masks_have_no_state():
    stack = block()
    x = tokens()
    _, state = stack(x, context(LENGTH, keep_state=True))
    for field in (
        {"doc_ids": torch.zeros(BATCH, LENGTH).long()},
        {"attn_mask": torch.ones(1, 1, LENGTH, LENGTH).bool()},
    ):
        with pytest.raises(
            ValueError, match=f"{next(iter(field))} cannot be given to GatedAttention together with a state"
        ):
            stack(x, context(LENGTH, beside=field), state)


@pytest.mark.parametrize("setting", ["default", "softmax_plus", "row_sum", "two heads"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_the_map_is_what_sums_the_values(setting, causal):
    stack, x = build(causal, depth=1, **SETTINGS[setting]), tokens()
    y, (weights,) = stack.attention_maps(x)
    gau = stack.branches[0].block
    normed = stack.branches[0].before(x)
    u, v, _ = F.silu(gau.to_hidden(normed)).split(gau.widths, -1)
    v = v.unflatten(-1, (gau.config.heads, -1)).transpose(1, 2)
    summed = (weights @ v).transpose(1, 2).flatten(2)
    laws.close(stack.final_norm(x + gau.to_out(u * summed)), y, "the map")
    mask = torch.arange(LENGTH) < torch.tensor([LENGTH, 11, 0])[:, None]
    _, (padded,) = stack.attention_maps(x, mask)
    laws.close(padded[1, :, :11, :11], stack.attention_maps(x[1:2, :11])[1][0][0], "the map of a padded row")
    assert (padded[1, :, :, 11:] == 0).all()


@pytest.mark.parametrize("field", ["dropout", "out_dropout"])
def test_dropout(field):
    stack, x = block(**{field: 0.5}), tokens()
    plain = block()
    plain.load_state_dict(stack.state_dict())
    torch.testing.assert_close(stack(x, context(LENGTH))[0], plain(x, context(LENGTH))[0])
    stack.train()
    y = stack(x, context(LENGTH))[0]
    assert not torch.equal(y, stack(x, context(LENGTH))[0])
    if field == "out_dropout":
        assert ((y == 0).double().mean() - 0.5).abs() < 0.1


# What the flags compute, against the formulas they stand for: a few lines each, from the sources named.


def rope(t, interleaved=False):
    """Rotary embedding by its definition: pairs turned by position * 10000^(-2i / width), as complex numbers."""
    half = t.shape[-1] // 2
    turn = torch.polar(
        torch.ones(t.shape[1], half).double(),
        torch.arange(t.shape[1]).double()[:, None] * (1e4 ** (-2 * torch.arange(half).float() / t.shape[-1])).double(),
    )
    if interleaved:
        return torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (half, 2)).contiguous()) * turn).flatten(-2)
    turned = torch.complex(t[..., :half], t[..., half:]) * turn
    return torch.cat((turned.real, turned.imag), -1)


def toeplitz_by_hand(bias, n):
    middle = bias.weight.shape[1] // 2
    return torch.stack([torch.stack([bias.weight[0, middle + j - i] for j in range(n)]) for i in range(n)])


def gau_by_hand(gau, x, weigh, turn=lambda t: t):
    """Figure 2 and code 6 of the paper: dense to u, v, z; scale and offset; the weights; the gate; dense."""
    hidden = gau.to_hidden(x)
    hidden = hidden * hidden.sigmoid()
    u, v, z = hidden[..., :E], hidden[..., E : 2 * E], hidden[..., 2 * E :]
    offsets = (0, 0) if gau.beta is None else gau.beta
    q, k = (turn(z * gain + offset) for gain, offset in zip(gau.gamma, offsets, strict=True))
    return gau.to_out(u * (weigh(q @ k.transpose(1, 2)) @ v))


APPENDIX = {
    "gau_bias": True,
    "gau_score_scale": "none",
    "gau_normaliser": "padded_length",
    "gau_normaliser_place": "content",
    "gau_rel_pos_bias": "toeplitz",
    "gau_gamma_init": "normal",
    "norm": "scalenorm",
    "pos": "rotary",
}


def scalenorm(x, g):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * g


def through(stack, x, each):
    """x + f(norm(x)) for each layer, by hand."""
    for branch in stack.branches:
        x = x + each(branch.block, scalenorm(x, branch.before.gain))
    return scalenorm(x, stack.final_norm.gain)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_the_papers_appendix(causal):
    """`square(relu(qk / n + bias))`, then the lower triangle, rotary embedding of the whole width."""
    stack, x = build(causal, **APPENDIX), tokens()

    def by_hand(gau, x):
        def weigh(qk):
            kernel = (qk / LENGTH + toeplitz_by_hand(gau.rel_pos_bias, LENGTH)).relu() ** 2
            return kernel.tril() if causal else kernel

        return gau_by_hand(gau, x, weigh, rope)

    laws.close(through(stack, x, by_hand), stack(x), "appendix")


def test_what_it_starts_with():
    """The paper's formula with each query's own n, and T5's bias in the units of qk / s."""
    gau, x = block(), tokens()
    # Below 16 every distance has a bucket of its own, 16 to 18 share one.
    bucket = torch.tensor([[min(max(i - j, 0), 16) for j in range(LENGTH)] for i in range(LENGTH)])
    bias = math.sqrt(WIDTH) * gau.rel_pos_bias.weight[0, bucket]
    rows = torch.arange(1, LENGTH + 1)[:, None]
    by_hand = gau_by_hand(gau, x, lambda qk: ((qk / math.sqrt(WIDTH) + bias).relu() ** 2 / rows).tril())
    laws.close(gau(x, context(LENGTH))[0], by_hand, "default")


def test_the_papers_formula():
    """A = relu^2(Q K^T / sqrt(s)) / n (also Su Jianlin, kexue.fm/archives/8934), n by query if causal."""
    x = tokens()
    gau = block(causal=False, rel_pos_bias=None)
    by_hand = gau_by_hand(gau, x, lambda qk: (qk / math.sqrt(WIDTH)).relu() ** 2 / LENGTH)
    laws.close(gau(x, context(LENGTH))[0], by_hand, "formula")
    gau = block(rel_pos_bias=None)
    rows = torch.arange(1, LENGTH + 1)[:, None]
    by_hand = gau_by_hand(gau, x, lambda qk: ((qk / math.sqrt(WIDTH)).relu() ** 2 / rows).tril())
    laws.close(gau(x, context(LENGTH))[0], by_hand, "formula, causal")


class Tutorial(nn.Module):
    """The tutorial's GAU: relu(qk / n)^2, two separate projections, biases."""

    def __init__(self):
        super().__init__()
        self.to_hidden, self.to_qk, self.to_out = nn.Linear(DIM, 2 * E), nn.Linear(DIM, WIDTH), nn.Linear(E, DIM)
        self.gamma, self.beta = nn.Parameter(torch.randn(2, WIDTH)), nn.Parameter(torch.randn(2, WIDTH))

    def forward(self, x):
        v, gate = F.silu(self.to_hidden(x)).chunk(2, -1)
        q, k = (F.silu(self.to_qk(x))[..., None, :] * self.gamma + self.beta).unbind(-2)
        return self.to_out(((q @ k.mT / x.shape[1]).relu() ** 2 @ v) * gate)


def test_the_tutorials_code():
    torch.manual_seed(0)
    peer = Tutorial().double()
    flags = {"bias": True, "score_scale": "none", "normaliser": "padded_length", "normaliser_place": "inside"}
    gau = block(causal=False, gamma_init="normal", rel_pos_bias=None, **flags)
    with torch.no_grad():
        # Its first half is v and its second the gate, ours the other way round.
        for name in ("weight", "bias"):
            v, gate = getattr(peer.to_hidden, name).chunk(2)
            getattr(gau.to_hidden, name).copy_(torch.cat((gate, v, getattr(peer.to_qk, name))))
            getattr(gau.to_out, name).copy_(getattr(peer.to_out, name))
        gau.gamma.copy_(peer.gamma)
        gau.beta.copy_(peer.beta)
    x = tokens()
    laws.close(gau(x, context(LENGTH))[0], peer(x), "tutorial")


def test_flash_quad_with_the_length_it_was_trained_for():
    """FLASH-Quad is a stack of GAUs; with n fixed (JunnYu/FLASHQuad_pytorch) no input's length matters."""
    fixed = {"gau_normaliser": "fixed", "gau_fixed_length": 64, "gau_toeplitz_length": 64}
    stack, x = build(causal=False, depth=3, **{**APPENDIX, **fixed}), tokens()

    def by_hand(gau, x):
        bias = toeplitz_by_hand(gau.rel_pos_bias, LENGTH)
        return gau_by_hand(gau, x, lambda qk: (qk / 64 + bias).relu() ** 2, rope)

    laws.close(through(stack, x, by_hand), stack(x), "FLASH-Quad")


def test_gau_alpha():
    """GAU-alpha: no biases, no offsets, softmax_plus, rotary pairs side by side, a bare norm after the sum."""
    stack = build(
        causal=False,
        norm_place="post",
        norm="simple_rmsnorm",
        norm_eps=1e-12,
        pos="rotary",
        rotary_interleaved=True,
        gau_attn_fn="softmax_plus",
        gau_bias=False,
        gau_offset=False,
        gau_rel_pos_bias=None,
    )
    assert {n.rsplit(".", 1)[1] for n, _ in stack.named_parameters()} == {"weight", "gamma"}
    x = tokens()
    mask = torch.arange(LENGTH) < torch.tensor([LENGTH, 17, 5])[:, None]
    y = stack(x, mask)
    for row, length in ((0, LENGTH), (1, 17), (2, 5)):
        t = x[row : row + 1, :length]

        keys = max(16, length)

        def weigh(qk, seen=keys):
            return (qk / math.sqrt(WIDTH) * math.log(seen) / math.log(512)).softmax(-1)

        for branch in stack.branches:
            t = t + gau_by_hand(branch.block, t, weigh, lambda z: rope(z, interleaved=True))
            t = t / (t.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt()
        laws.close(t[0], y[row, :length], f"GAU-alpha, row {row}")


def test_a_number_by_hand():
    gau = block(dim=1, query_key_dim=1, expansion_factor=1, offset=False, rel_pos_bias=None)
    with torch.no_grad():
        for p in gau.parameters():
            p.fill_(1.0)
    y, _ = gau(torch.tensor([[[1.0], [2.0]]]).double(), context(2))
    # silu(1) = .73106 and silu(2) = 1.76159 are u, v, z, q and k of the two tokens:
    # .73106^2 = .53445, squared .28563, over 1 key, times v .20881, times u .15265;
    # (1.76159 * .73106)^2 = 1.65850 and (1.76159^2)^2 = 9.62992, (1.65850 * .73106 + 9.62992 * 1.76159) / 2 = 9.08822.
    assert y.flatten().tolist() == pytest.approx([0.15265, 9.08822 * 1.76159], abs=2e-4)


def test_dividing_by_the_tensors_length_is_refused_by_step():
    stack = build(gau_normaliser="padded_length")
    with pytest.raises(ValueError, match="gau_normaliser='padded_length' divides by the length of each call"):
        stack.step(tokens())


WRONG = [
    ({"attn_fn": "softmax", "normaliser": "row_index"}, r"gau_attn_fn='softmax' .* gau_normaliser='row_index'"),
    ({"attn_fn": "softmax_plus", "normaliser": "fixed"}, r"gau_attn_fn='softmax_plus' .* gau_normaliser='fixed'"),
    ({"attn_fn": "softmax", "normaliser_place": "inside"}, r"gau_normaliser_place='inside' .* gau_attn_fn='softmax'"),
    ({"normaliser": "row_sum", "normaliser_place": "inside"}, r"gau_normaliser='row_sum' has no place 'inside'"),
    ({"normaliser": "none", "normaliser_place": "outside"}, r"gau_normaliser='none' has no place 'outside'"),
    ({"fixed_length": 64}, r"gau_fixed_length=64 is set, but gau_normaliser"),
    ({"toeplitz_length": 64, "rel_pos_bias": "t5"}, r"gau_toeplitz_length=64 is set, but gau_rel_pos_bias is 't5'"),
    ({"heads": 4}, r"gau_heads=4 does not divide the 22 channels that gau_query_key_dim"),
    ({"heads": 11}, r"gau_heads=11 does not divide the 26 channels that gau_expansion_factor"),
    ({"attn_fn": "relu"}, r"gau_attn_fn='relu' is not one of .*; did you mean 'relu2'"),
    ({"normaliser": "rowindex"}, r"gau_normaliser='rowindex' is not one of .*; did you mean 'row_index'"),
    ({"query_key_dim": 0}, r"gau_query_key_dim must be at least 1, not 0"),
    ({"expansion_factor": 0.0}, r"gau_expansion_factor must be above 0"),
    ({"expansion_factor": 0.01}, r"gau_expansion_factor=0.01 with dim=13 makes 0.13 channels, no whole number"),
    ({"dropout": 1.0}, r"gau_dropout must be below 1"),
]


@pytest.mark.parametrize(("flags", "message"), WRONG, ids=[" ".join(map(str, f.values())) for f, _ in WRONG])
def test_contradictions(flags, message):
    with pytest.raises(ValueError, match=message):
        Decoder(
            **{
                "dim": DIM,
                "depth": 1,
                "layers": "gau",
                "gau_query_key_dim": WIDTH,
                **{f"gau_{k}": v for k, v in flags.items()},
            }
        )


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_sane_start(setting, causal):
    torch.manual_seed(0)
    stack = (Decoder if causal else Encoder)(
        dim=64, depth=12, layers="gau", **{"gau_query_key_dim": 64, **SETTINGS[setting]}
    )
    laws.sane_start(stack, n=61)
