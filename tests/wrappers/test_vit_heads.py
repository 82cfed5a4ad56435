"""What `ViTransformerWrapper` has for models that are known elsewhere: poolings, a norm behind them, other resizing."""

import math

import laws
import pytest
import torch
import torch.nn.functional as F
from test_vit import CLASSES, DIM, GRID, SIZE, build, images
from test_vit_grid import cubic

import xflash
from xflash.wrappers.patches import resize_grid


def test_class_token_and_mean():
    model = laws.live(build("attn ff", {"num_memory_tokens": 3}, pool="cls_mean", num_register_tokens=2))
    img = images(model)
    logits, embeddings = model(img, return_logits_and_embeddings=True)
    tokens = model.pooled.cls_tokens(model.embedding.with_registers(model.embedding(img)))
    first = model.attn_layers(tokens)[:, 0]
    both = torch.cat((first, embeddings.mean(1)), 1)
    laws.close(logits, F.linear(both, model.to_logits.weight, model.to_logits.bias), "logits of both")
    headless = build(
        "attn ff", {"num_memory_tokens": 3}, pool="cls_mean", num_register_tokens=2, num_classes=None
    ).double()
    headless.load_state_dict({k: v for k, v in model.state_dict().items() if "to_logits" not in k})
    laws.close(headless.eval()(img), both, "both")


@pytest.mark.parametrize("pool", ["mean", "cls", "cls_mean"])
def test_a_norm_of_what_the_head_reads(pool):
    model = laws.live(
        build("attn ff", {"final_norm": False}, pool=pool, pool_norm=True, pool_norm_eps=0.1, pool_norm_bias=True)
    )
    img, seen = images(model), []
    model.pool_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits, norm = model(img), model.pool_norm
    (read,) = seen
    assert norm.gain.shape == norm.bias.shape == read.shape[1:] == (DIM * (2 if pool == "cls_mean" else 1),)
    expected = (read - read.mean(1, keepdim=True)) / (read.var(1, unbiased=False, keepdim=True) + 0.1).sqrt()
    laws.close(logits, model.to_logits(expected * norm.gain + norm.bias), "logits")
    grads = torch.autograd.grad(logits.logsumexp(-1).sum(), list(model.parameters()))
    assert all(g.abs().max() > 0 for g in grads)


def test_two_class_tokens_with_a_head_each():
    model = laws.live(build("attn ff", pool="cls_pair", num_register_tokens=2, pool_norm=True))
    img, heads = images(model), model.to_logits
    tokens = model.pooled.cls_tokens(model.embedding.with_registers(model.embedding(img)))
    read = model.pool_norm(model.attn_layers(tokens)[:, :2])
    laws.close(model(img), (heads.first(read[:, 0]) + heads.second(read[:, 1])) / 2, "logits")
    assert model(img, return_embeddings=True).shape == (3, math.prod(GRID), DIM)
    assert {id(heads.first.weight), id(heads.second.weight)} == ids_of(model, 0.5) - ids_of(model, 0.5, head=False)
    headless = build("attn ff", pool="cls_pair", num_register_tokens=2, pool_norm=True, num_classes=None).double()
    headless.load_state_dict({k: v for k, v in model.state_dict().items() if "to_logits" not in k})
    laws.close(headless.eval()(img), read.mean(1), "the mean of both")


def test_a_token_that_attends_to_the_patches():
    layers = xflash.CrossAttender(dim=DIM, depth=1, heads=2, layers="cross_attn ff", final_norm=False)
    model = laws.live(build("attn ff", pool="map", pool_layers=layers, num_register_tokens=2))
    logits, embeddings = model(images(model), return_logits_and_embeddings=True)
    pool = model.patch_pool
    read = torch.stack(
        [pool.attn_layers(pool.token[None, None], context=patches[None])[0, 0] for patches in embeddings]
    )
    laws.close(logits, model.to_logits(read), "logits")
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(logits.logsumexp(-1).sum(), list(model.parameters())))
    again = xflash.from_config(model.to_config()).double().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images(model)), logits)
    assert build("attn ff", pool="map").patch_pool.attn_layers.layout == "cross_attn ff"


@pytest.mark.parametrize("pool", ["max", "mean_max"])
def test_the_largest_value_of_each_channel(pool):
    model = laws.live(build("attn ff", pool=pool))
    logits, y = model(images(model), return_logits_and_embeddings=True)
    read = y.amax(1) if pool == "max" else (y.amax(1) + y.mean(1)) / 2
    laws.close(logits, model.to_logits(read), "logits")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pool": "mean", "pool_layers": {"dim": DIM}}, "pool_layers is set, but pool='mean' has no layers"),
        ({"pool": "map", "pool_layers": {"dim": 8}}, f"pool_layers has dim=8, but attn_layers has {DIM}"),
    ],
)
def test_layers_that_no_pool_can_read_with(given, message):
    with pytest.raises(ValueError, match=message):
        build("attn ff", **given | {"pool_layers": xflash.CrossAttender(**given["pool_layers"], depth=1)})
    with pytest.raises(ValueError, match="the layout 'attn ff' of pool_layers attends to no context"):
        build("attn ff", pool="map", pool_layers=xflash.Encoder(dim=DIM, depth=1))


def ids_of(model, decay, **options):
    """Which parameters decay."""
    groups = model.param_groups(decay, **options)
    return {id(p) for group in groups if group["weight_decay"] for p in group["params"]}


def test_a_norm_in_front_of_the_layers():
    model = laws.live(build("ff", post_emb_norm=True, post_emb_norm_eps=0.1, post_emb_norm_bias=True, patch_bias=False))
    x = model.embedding.pos_emb(model.embedding.patch_emb(images(model)), *GRID)
    norm, project = model.embedding.post_emb_norm, model.embedding.patch_emb.project
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 0.1).sqrt()
    laws.close(model.embedding(images(model)), expected * norm.gain + norm.bias, "embedded")
    assert project.bias is None
    with pytest.raises(ValueError, match=r"post_emb_norm_eps=0\.1 is set, but post_emb_norm is False"):
        build("ff", post_emb_norm_eps=0.1)


def resized(weight, count):
    """The first axis at another size: a new point is a mean of the old ones around it, of more where it shrinks."""
    step, rows = len(weight) / count, []
    for i in range(count):
        at = (i + 0.5) * step
        parts = torch.tensor(
            [cubic((j + 0.5 - at) / max(step, 1), a=-0.5) for j in range(len(weight))], dtype=weight.dtype
        )
        rows.append(torch.tensordot(parts / parts.sum(), weight, 1))
    return torch.stack(rows)


@pytest.mark.parametrize("size", [(3, 5), (7, 4), (2, 11), (9, 13), (1, 1)])
def test_an_antialiased_grid_by_its_definition(size):
    weight = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = resized(resized(weight, size[0]).transpose(0, 1), size[1]).transpose(0, 1)
    laws.close(resize_grid(weight, *size, antialias=True), expected, "bicubic")


@pytest.mark.parametrize("size", [SIZE, (40, 26), (10, 22), (35, 2)], ids=str)
def test_antialiased_positions(size):
    model = laws.live(build("attn ff", pos_emb_antialias=True))
    img = images(model, size)
    weight = model.embedding.pos_emb.weight
    expected = weight if size == SIZE else resize_grid(weight, size[0] // 5, size[1] // 2, antialias=True)
    got = model.embedding(img) - model.embedding.patch_emb(img)
    laws.close(got, expected.flatten(0, 1).expand(3, -1, -1), "positions")
    assert model(img).shape == (3, CLASSES) and math.prod(GRID) == weight.shape[:2].numel()


def test_saved_and_built(tmp_path):
    model = laws.live(
        build(
            "attn ff",
            {"final_norm": False},
            pool="cls_mean",
            pool_norm=True,
            pool_norm_bias=True,
            pos_emb_antialias=True,
        )
    )
    model.save(tmp_path)
    again = xflash.load(tmp_path).eval()
    img = images(model, (40, 26))
    assert again.to_config() == model.to_config() and torch.equal(again(img), model(img))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pool_norm_eps": 0.1}, "pool_norm_eps=0.1 is set, but pool_norm is False"),
        ({"pool_norm_bias": True}, "pool_norm_bias=True is set, but pool_norm is False"),
        (
            {"pos_emb_antialias": True, "pos_emb": "sincos2d"},
            "pos_emb_antialias=True is of learned positions, but pos_emb='sincos2d' interpolates none",
        ),
        (
            {"pos_emb_antialias": True, "pos_emb": None},
            "pos_emb_antialias=True is of learned positions, but pos_emb=None interpolates none",
        ),
    ],
)
def test_flags_without_effect_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        build("attn ff", **arguments)
