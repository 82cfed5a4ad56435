"""Transforms of torch.func: gradients of each row, along directions and of gradients, of all kinds of stacks."""

import laws
import pytest
import torch
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

import xflash
from xflash import AutoregressiveWrapper, Decoder, Encoder, MaskedLMWrapper, TransformerWrapper

V, D, B, N = 13, 8, 3, 11
STACKS = {
    "attn": {"layers": "attn ff", "num_memory_tokens": 2, "attn_num_mem_kv": 1},
    "window": {"layers": "attn", "attn_window": 4, "pos": "alibi"},
    "gau": {"layers": "gau", "gau_query_key_dim": 6, "gau_attn_fn": "laplace"},
    "flash": {"layers": "flash", "flash_group_size": 4, "flash_query_key_dim": 6, "shift_tokens": 1},
    "retrieve": {"layers": "block_attn(block_width=4)", "block_attn_retrieve": 2, "block_attn_compress": None},
    "recurrent": {"layers": "recurrent(block_width=4)"},
    "state_read": {"layers": "state_read recurrent(block_width=4)"},
    "cross_attn": {"layers": "attn cross_attn ff"},
    "moe": {"layers": "attn+moe", "moe_experts": 5, "moe_shared_dim": 3},
}
# PyTorch 2.13 has no rules of its own for these under vmap, and its rules for jvp are scripts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]


def stack(name, cls=Decoder, dim=D):
    torch.manual_seed(3)
    return laws.live(cls(dim=dim, depth=1, heads=2, **STACKS[name]))


def model(name, cls=Decoder):
    return laws.live(TransformerWrapper(num_tokens=V, max_seq_len=16, attn_layers=stack(name, cls)))


def each_row_alone(net, rows, **chance):
    """The gradients of all parameters for each row, by a transform and one after the other."""
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def loss(weights, row):
        return functional_call(net, weights, (), {name: value[None] for name, value in row.items()})

    found = vmap(grad(loss), in_dims=(None, 0), **chance)(weights, rows)
    for i in range(B):
        alone = net(**{name: value[i : i + 1] for name, value in rows.items()})
        wanted = torch.autograd.grad(alone, list(net.parameters()), allow_unused=True, materialize_grads=True)
        for (name, ours), expected in zip(found.items(), wanted, strict=True):
            laws.close(ours[i], expected, f"{name}, row {i}")


def ids():
    return torch.randint(V, (B, N), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", STACKS)
def test_gradients_of_each_row(name, masked):
    rows = {"x": ids()}
    if masked:
        rows["mask"] = torch.arange(N) < torch.tensor([[N], [7], [5]])
        rows["mask"][:, 3] = False
    if "cross" in name:
        rows["context"] = torch.randn(B, 5, D, dtype=torch.double, generator=torch.Generator().manual_seed(4))
    each_row_alone(AutoregressiveWrapper(model(name)), rows)


def relative():
    layers = Decoder(dim=D, depth=1, heads=2, attn_dim_head=4, pos="rotary")
    return TransformerWrapper(num_tokens=V, attn_layers=layers)


def translator():
    sizes = {"num_tokens": V, "depth": 1, "heads": 2, "attn_dim_head": 4, "max_seq_len": 16}
    return xflash.XTransformer(dim=D, **{f"{side}_{name}": n for side in ("enc", "dec") for name, n in sizes.items()})


class Told(torch.nn.Module):
    """The loss of a classifier of images."""

    def __init__(self):
        super().__init__()
        layers = Encoder(dim=D, depth=1, heads=2, attn_dim_head=4)
        self.net = xflash.ViTransformerWrapper(image_size=4, patch_size=2, num_classes=3, attn_layers=layers)

    def forward(self, img, label):
        return torch.nn.functional.cross_entropy(self.net(img), label)


def images():
    img = torch.randn(B, 3, 4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(5))
    return {"img": img, "label": torch.tensor([0, 2, 1])}


def recurrent_lm():
    sizes = {"dim": D, "depth": 1, "heads": 2, "dim_head": 4, "block_width": 4, "max_seq_len": 8}
    return xflash.BlockRecurrentTransformer(num_tokens=V, num_state_vectors=3, **sizes)


WRAPPERS = {
    "a loss in chunks": (lambda: AutoregressiveWrapper(model("gau"), loss_chunk=3), lambda: {"x": ids()}),
    "labels": (lambda: AutoregressiveWrapper(model("attn")), lambda: {"x": ids(), "labels": ids() % 5}),
    "XTransformer": (translator, lambda: {"src": ids(), "tgt": ids()[:, :7]}),
    "ViTransformerWrapper": (Told, images),
    "SegmentWrapper": (lambda: xflash.SegmentWrapper(model("attn"), 4), lambda: {"x": ids()}),
    "RecurrentMemoryWrapper": (
        lambda: AutoregressiveWrapper(
            xflash.RecurrentMemoryWrapper(laws.live(relative()), num_memory_tokens=2, segment_len=4)
        ),
        lambda: {"x": ids(), "mask": torch.arange(N) < torch.tensor([[N], [7], [5]])},
    ),
    "FLASHTransformer": (
        lambda: AutoregressiveWrapper(
            xflash.FLASHTransformer(num_tokens=V, dim=D, depth=1, group_size=4, query_key_dim=6, causal=True)
        ),
        lambda: {"x": ids()},
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers(name):
    build, rows = WRAPPERS[name]
    torch.manual_seed(1)
    each_row_alone(laws.live(build()), rows())


def test_chance_comes_from_vmap():
    """What is hidden from a model is drawn for each row, by the rules that vmap was given."""
    net = laws.live(MaskedLMWrapper(model("attn", Encoder), mask_token_id=V - 1, mask_prob=0.5))
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def loss(weights, row):
        return functional_call(net, weights, (row[None],))

    rows = (ids() % (V - 1))[:1].expand(B, -1)
    drawn = vmap(grad(loss), in_dims=(None, 0), randomness="different")(weights, rows)["net.to_logits.weight"]
    alike = vmap(grad(loss), in_dims=(None, 0), randomness="same")(weights, rows)["net.to_logits.weight"]
    assert not torch.equal(drawn[0], drawn[1]) and drawn.isfinite().all()
    laws.close(alike[0], alike[1], "the same chance")


def test_ids_that_are_not_varied_are_looked_at():
    net = AutoregressiveWrapper(model("attn"))
    weights = {name: p.detach() for name, p in net.named_parameters()}
    with pytest.raises(ValueError, match="token ids must be from 0 to 12"):
        grad(lambda w: functional_call(net, w, (ids() + V,)))(weights)


@pytest.mark.parametrize("name", [n for n in STACKS if n != "state_read"])
def test_derivatives_of_derivatives(name):
    net = stack(name, dim=4)
    beside = laws.beside(net, torch.ones(1, 3, 4, dtype=torch.double))
    x, along = (torch.randn(1, 3, 4, dtype=torch.double, generator=torch.Generator().manual_seed(i)) for i in (0, 1))

    def loss(x):
        return net(x, **beside).square().sum()

    step = 1e-5
    found = jvp(lambda x: net(x, **beside), (x,), (along,))[1]
    whole = jacrev(lambda x: net(x, **beside))(x).flatten(3).flatten(0, 2)
    laws.close((whole @ along.flatten()).view_as(x), found, "jvp and jacrev")
    second = hessian(loss)(x).view(12, 12)
    laws.close(second, second.mT, "a hessian is symmetric")
    with torch.enable_grad():
        ends = [(x + sign * step * along).requires_grad_() for sign in (1, -1)]
        up, down = (torch.autograd.grad(loss(end), end)[0] for end in ends)
    torch.testing.assert_close((second @ along.flatten()).view_as(x), (up - down) / (2 * step), rtol=1e-5, atol=1e-5)
