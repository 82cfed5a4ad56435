"""`ViTransformerWrapper`: shapes, grids, registers and class token, saved = built, compiled = eager, refusals.

The outputs are compared with x-transformers' in test_convert_x_transformers.py.
"""

import copy
import math

import laws
import pytest
import torch
import torch.nn.functional as F

import xflash
from xflash import Decoder, Encoder, ViTransformerWrapper
from xflash.wrappers.patches import patchify, resize_grid, sincos_grid

SMALL = {
    "attn": {"attn_dim_head": 6},
    "gau": {"gau_query_key_dim": 14},
    "flash": {"flash_query_key_dim": 14, "flash_group_size": 5},
}
LAYOUTS = ["attn ff", "gau", "flash", "flash attn gau ff"]
SIZE, PATCH, CHANNELS, CLASSES, DIM = (35, 22), (5, 2), 2, 13, 28
GRID = (7, 11)


def build(layers="attn ff", flags=None, **arguments):
    torch.manual_seed(0)
    small = {k: v for name, given in SMALL.items() if name in layers.split() for k, v in given.items()}
    stack = Encoder(dim=DIM, depth=1, heads=2, layers=layers, **small, **(flags or {}))
    given = {"image_size": SIZE, "patch_size": PATCH, "channels": CHANNELS, "num_classes": CLASSES, **arguments}
    return ViTransformerWrapper(attn_layers=stack, **given)


def images(model, size=SIZE, batch=3):
    dtype = next(model.parameters()).dtype
    draw = torch.Generator().manual_seed(1)
    return torch.randn(batch, model.embedding.channels, *size, generator=draw, dtype=torch.float64).to(dtype)


def test_what_others_write_works():
    """The calls of x-transformers' README, at a smaller width."""
    model = ViTransformerWrapper(
        image_size=256, patch_size=32, num_classes=1000, attn_layers=Encoder(dim=32, depth=1, heads=2)
    )
    img = torch.randn(1, 3, 256, 256)
    assert model(img).shape == (1, 1000)
    assert model(img, return_embeddings=True).shape == (1, 64, 32)
    logits, embeddings = model(img, return_logits_and_embeddings=True)
    assert torch.equal(logits, model(img))
    assert torch.equal(embeddings, model(img, return_embeddings=True))
    rows = [line.split()[0] for line in model.flag_table().splitlines()]
    assert {"patch_size", "num_classes", "pool", "attn_dim_head"} <= set(rows) and len(rows) == len(set(rows))


@pytest.mark.parametrize("pool", ["mean", "cls", "attn"])
@pytest.mark.parametrize("pos_emb", ["learned", "sincos2d", None])
@pytest.mark.parametrize("layers", LAYOUTS)
def test_any_stack_any_pool(layers, pos_emb, pool):
    model = laws.live(
        build(layers, {"num_memory_tokens": 3}, pos_emb=pos_emb, pool=pool, num_register_tokens=2, post_emb_norm=True)
    )
    img = images(model)
    logits, embeddings = model(img, return_logits_and_embeddings=True)
    assert logits.shape == (3, CLASSES) and embeddings.shape == (3, math.prod(GRID), DIM)
    laws.close(model(img[1:2]), logits[1:2], "alone and in a batch")
    headless = build(
        layers, {"num_memory_tokens": 3}, pos_emb=pos_emb, pool=pool, num_register_tokens=2, post_emb_norm=True,
        num_classes=None,
    ).double()  # fmt: skip
    headless.load_state_dict({k: v for k, v in model.state_dict().items() if "to_logits" not in k})
    laws.close(model.to_logits(headless.eval()(img)), logits, "the pooled embedding without classes")
    grads = torch.autograd.grad(sum(t.logsumexp(-1).sum() for t in (logits, embeddings)), list(model.parameters()))
    assert all(g.abs().max() > 0 for g in grads)


def test_patches_are_cut_row_by_row():
    img = torch.arange(2 * CHANNELS * 35 * 22).view(2, CHANNELS, *SIZE).double()
    patches = patchify(img, PATCH)
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            patch = img[:, :, 5 * row : 5 * row + 5, 2 * column : 2 * column + 2]
            assert torch.equal(patches[:, row * GRID[1] + column], patch.permute(0, 2, 3, 1).flatten(1))


def test_an_embedding_belongs_to_its_patch():
    """Without layers that mix (and without positions) a patch's embedding depends on nothing but the patch."""
    model = laws.live(build("ff", pos_emb=None, num_register_tokens=3, pool="cls"))
    img = images(model)
    changed = img.clone()
    changed[:, :, 10:15, 6:8] += 1  # row 2, column 3
    gap = (model(img, True) - model(changed, True)).abs().amax((0, 2))
    assert gap.nonzero().flatten().tolist() == [2 * GRID[1] + 3]


@pytest.mark.parametrize("size", [SIZE, (40, 26), (10, 22), (55, 14), (35, 2)], ids=str)
def test_learned_positions_follow_the_grid(size):
    """Bicubic from the grid they were learned on; on that grid they are the weights themselves."""
    model = laws.live(build())
    rows, columns = size[0] // 5, size[1] // 2
    weight = model.embedding.pos_emb.weight
    moved = F.interpolate(
        weight.permute(2, 0, 1)[None], (rows, columns), mode="bicubic", align_corners=False, antialias=False
    )
    expected = moved[0].flatten(1).T if size != SIZE else weight.flatten(0, 1)
    img = images(model, size)
    got = model.embedding(img) - model.embedding.patch_emb(img)
    laws.close(got, expected.expand(3, -1, -1), "positions")
    tokens = model.embedding.patch_emb(img) + expected
    laws.close(model(img, return_embeddings=True), model.attn_layers(tokens), "embeddings")
    assert model(img).shape == (3, CLASSES)


def test_the_same_number_of_patches_in_another_shape_is_another_grid():
    model = laws.live(build())
    img = images(model, (5 * 11, 2 * 7))
    weights = model.embedding.pos_emb.weight.flatten(0, 1)
    assert (model.embedding(img) - model.embedding.patch_emb(img) - weights).abs().max() > 0.01


def test_a_resized_grid_keeps_constants_and_dtype():
    grid = torch.full((3, 5, 7), 0.25, dtype=torch.bfloat16)
    moved = resize_grid(grid, 11, 2)
    assert moved.shape == (11, 2, 7) and moved.dtype == torch.bfloat16
    assert moved.eq(0.25).all()


@pytest.mark.parametrize("dim", [4, 12, 28])
def test_sincos_positions(dim):
    got = sincos_grid(3, 5, dim)
    steps = max(dim // 4 - 1, 1)
    for y in range(3):
        for x in range(5):
            waves = [10000 ** (-i / steps) for i in range(dim // 4)]
            expected = [
                f(p * w) for p, f in ((x, math.sin), (x, math.cos), (y, math.sin), (y, math.cos)) for w in waves
            ]
            torch.testing.assert_close(got[y * 5 + x], torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_sincos_positions_are_made_for_each_grid():
    model = laws.live(build(pos_emb="sincos2d"))
    assert not any("pos_emb" in name for name in model.state_dict())
    for size in (SIZE, (45, 6)):
        img = images(model, size)
        got = model.embedding(img) - model.embedding.patch_emb(img)
        laws.close(got, sincos_grid(size[0] // 5, size[1] // 2, DIM).double().expand(3, -1, -1), "positions")


def test_registers_stand_behind_and_the_class_token_in_front():
    model = laws.live(build(num_register_tokens=3, pool="cls"))
    seen = []
    model.attn_layers.register_forward_pre_hook(lambda stack, given: seen.append(given[0]))
    made = []
    model.attn_layers.register_forward_hook(lambda stack, given, y: made.append(y))
    img = images(model)
    logits, embeddings = model(img, return_logits_and_embeddings=True)
    n = math.prod(GRID)
    assert seen[0].shape == (3, 1 + n + 3, DIM)
    assert torch.equal(seen[0][1, :1], model.pooled.cls_tokens.tokens)
    assert torch.equal(seen[0][:, 1 : 1 + n], model.embedding(img))
    assert torch.equal(seen[0][2, 1 + n :], model.embedding.register_tokens)
    assert torch.equal(embeddings, made[0][:, 1 : 1 + n])
    assert torch.equal(logits, model.to_logits(made[0][:, 0]))


@pytest.mark.parametrize("pool", ["mean", "attn"])
def test_registers_are_not_pooled(pool):
    model = laws.live(build(num_register_tokens=3, pool=pool))
    logits, embeddings = model(images(model), return_logits_and_embeddings=True)
    weights = torch.ones(3, math.prod(GRID), dtype=torch.float64)
    if pool == "attn":
        weights = embeddings @ model.pooled.attn_pool.query / DIM**0.5
    pooled = torch.einsum("bn,bnd->bd", weights.softmax(1), embeddings)
    laws.close(model.to_logits(pooled), logits, "pooled")


def test_dropout_and_norm_of_the_embedding():
    model = laws.live(build(emb_dropout=0.3, post_emb_norm=True))
    img = images(model)
    plain = model.embedding.post_emb_norm(model.embedding.pos_emb(model.embedding.patch_emb(img), *GRID))
    laws.close(model.embedding(img), plain, "normed, nothing dropped")
    model.train()
    dropped = model.embedding(img)
    gone = dropped == 0
    assert 0.2 < gone.double().mean() < 0.4
    laws.close(dropped[~gone], plain[~gone] / 0.7, "what stays is scaled")


@pytest.mark.parametrize("layers", LAYOUTS)
def test_a_sane_start(layers):
    """Law 9 for images: the stream keeps its size through 12 layers, and every parameter gets a gradient."""
    torch.manual_seed(0)
    depth = 12 // len(layers.split())
    model = ViTransformerWrapper(
        image_size=24, patch_size=4, num_classes=5, attn_layers=Encoder(dim=32, depth=depth, heads=2, layers=layers),
        num_register_tokens=3, pool="attn",
    )  # fmt: skip
    sizes = []
    for branch in model.attn_layers.branches:
        branch.register_forward_hook(lambda b, given, out: sizes.append(out[0].square().mean().sqrt().item()))
    img = torch.rand(2, 3, 24, 24)
    logits = model(img)
    assert len(sizes) == 12 and max(sizes) < 3
    assert logits.std() < 1
    F.cross_entropy(logits, torch.tensor([1, 4])).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert model(torch.zeros_like(img)).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(img).isfinite().all()


@pytest.mark.parametrize("arguments", [
    {},
    {"image_size": 10, "patch_size": 5, "channels": 1},
    {"pos_emb": "sincos2d", "pool": "cls", "num_register_tokens": 3, "post_emb_norm": True, "emb_dropout": 0.1},
    {"pos_emb": None, "pool": "attn", "num_classes": None},
], ids=str)  # fmt: skip
def test_saved_is_built(arguments, tmp_path):
    model = build("flash ff", **arguments).eval()
    img = images(model, model.embedding.image_size)
    model.save(tmp_path)
    again = xflash.load(tmp_path).eval()
    assert type(again) is ViTransformerWrapper
    assert again.to_config() == model.to_config()
    assert ViTransformerWrapper.from_config(model.to_config()).to_config() == model.to_config()
    for other in (again, copy.deepcopy(model)):
        assert torch.equal(other(img), model(img))
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in model.parameters()}


@pytest.mark.slow
def test_compiled_is_eager():
    torch._dynamo.reset()
    model = laws.live(build("gau", pool="attn", num_register_tokens=2))
    # Interpolation with sizes as symbols works too, but takes long to trace.
    fast = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    for size in (SIZE, (45, 6)):
        img = images(model, size)
        laws.close(fast(img), model(img), f"compiled at {size}")
    grads = [torch.autograd.grad(f(img).square().sum(), list(model.parameters())) for f in (fast, model)]
    for ours, expected in zip(*grads, strict=True):
        laws.close(ours, expected, "compiled gradient")


REFUSED = [
    ({"attn_layers": torch.nn.Linear(2, 2)}, TypeError, r"attn_layers must be a stack such as Encoder.* not Lin"),
    ({"attn_layers": Decoder(dim=8, depth=1, heads=2)}, ValueError, "attn_layers is a causal Decoder, in which a"),
    ({"image_size": 5.0}, TypeError, r"image_size must be a whole number or \(int, int\), not 5\.0"),
    ({"image_size": (35, 0)}, ValueError, "image_size must be at least 1, not 0"),
    ({"patch_size": (5, 2, 2)}, TypeError, r"patch_size must be a whole number or \(int, int\), not \(5, 2, 2\)"),
    ({"image_size": (36, 22)}, ValueError, "image_size has a height of 36, which patches of height 5 .* 35 or 40"),
    ({"image_size": 35}, ValueError, "image_size has a width of 35, which patches of width 2 do not divide; 34 or 36"),
    ({"patch_size": (5, 32)}, ValueError, "image_size has a width of 22, which patches of width 32 .*; 32 would do"),
    ({"channels": 0}, ValueError, "channels must be at least 1, not 0"),
    ({"num_classes": True}, TypeError, "num_classes must be a whole number or None, not True"),
    ({"num_classes": 0}, ValueError, "num_classes must be at least 1, not 0"),
    ({"num_register_tokens": -1}, ValueError, "num_register_tokens must be at least 0, not -1"),
    ({"post_emb_norm": 1}, TypeError, "post_emb_norm must be True or False, not 1"),
    ({"emb_dropout": 1.0}, ValueError, r"emb_dropout must be below 1, not 1\.0"),
    ({"pos_emb": "sincos"}, ValueError, r"pos_emb='sincos' is not one of 'learned' \| 'sincos2d' \| None; .*2d'"),
    ({"pos_emb": True}, TypeError, r"pos_emb must be 'learned' or 'sincos2d' or None, not True"),
    ({"pool": "sum"}, ValueError, r"pool='sum' is not one of 'mean' \| 'cls' \| 'attn'"),
    ({"num_register": 3}, TypeError, "has no argument 'num_register'; did you mean 'num_register_tokens'?"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED, ids=[r[2][:40] for r in REFUSED])
def test_a_model_that_cannot_be_is_refused(arguments, error, message):
    given = {"image_size": SIZE, "patch_size": PATCH, "attn_layers": Encoder(dim=8, depth=1, heads=2), **arguments}
    with pytest.raises(error, match=message):
        ViTransformerWrapper(**given)


def test_sincos_positions_need_four_quarters():
    with pytest.raises(ValueError, match="pos_emb='sincos2d' needs a dim that 4 divides, not 10"):
        ViTransformerWrapper(
            image_size=4, patch_size=2, attn_layers=Encoder(dim=10, depth=1, heads=2), pos_emb="sincos2d"
        )


CALLS = [
    (lambda img: img[0], ValueError, r"img must be images \(batch, 2, height, width\), not \(2, 35, 22\)"),
    (lambda img: img[:, :1], ValueError, "img must have 2 channels on their second axis, not 1"),
    (lambda img: img.permute(0, 2, 3, 1), ValueError, "img must have 2 channels on their second axis, not 35"),
    (lambda img: img[:, :, 1:], ValueError, "img has a height of 34, which patches of height 5 .* 30 or 35"),
    (lambda img: img[..., :21], ValueError, "img has a width of 21, which patches of width 2 .* 20 or 22"),
    (lambda img: img[:, :, :3], ValueError, "img has a height of 3, which patches of height 5 .*; 5 would do"),
    (lambda img: img[:, :, :0], ValueError, "img has a height of 0"),
    (lambda img: (255 * img).byte(), TypeError, "must be a floating-point tensor .* not torch.uint8; bytes are scaled"),
    (lambda img: img.numpy(), TypeError, "must be a floating-point tensor .* not ndarray"),
    (lambda img: img.double(), TypeError, r"img is torch.float64, but the model is torch.float32; give img.to"),
]


@pytest.mark.parametrize(("change", "error", "message"), CALLS, ids=[c[2][:50] for c in CALLS])
def test_images_that_do_not_fit_are_refused(change, error, message):
    model = build()
    with pytest.raises(error, match=message):
        model(change(images(model)))


def test_one_of_two_ways_to_return():
    model = build()
    with pytest.raises(ValueError, match="return_embeddings and return_logits_and_embeddings exclude each other"):
        model(images(model), return_embeddings=True, return_logits_and_embeddings=True)
