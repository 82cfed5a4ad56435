"""Images as grids: rotary positions down and across, interpolation by its definition, plain patches, features."""

import math

import laws
import pytest
import torch
import torch.nn.functional as F
from graphs import Graphs
from test_vit import CHANNELS, CLASSES, DIM, GRID, LAYOUTS, PATCH, build, images

from xflash.wrappers.patches import PatchEmbedding, resize_grid

EXTRA = {"pool": "cls", "num_register_tokens": 2}


def hand_grid(down, across, behind):
    """The row and the column of each patch; a class token in front and registers behind stand nowhere."""
    places = [(0, 0), *((row, column) for row in range(down) for column in range(across)), *[(0, 0)] * behind]
    return torch.tensor(places)[None]


@pytest.mark.parametrize("size", [(35, 22), (20, 26)], ids=str)
@pytest.mark.parametrize("layers", LAYOUTS)
def test_patches_turn_by_row_and_column(layers, size):
    model = laws.live(build(layers, {"pos": "rotary2d", "num_memory_tokens": 3}, pos_emb=None, **EXTRA))
    img, (down, across) = images(model, size), (size[0] // 5, size[1] // 2)
    tokens = model.pooled.cls_tokens(model.embedding.with_registers(model.embedding(img)))
    y = model.attn_layers(tokens, grid=hand_grid(down, across, 2))
    laws.close(model(img, return_embeddings=True), y[:, 1 : 1 + down * across], "embeddings")
    laws.close(model(img), model.to_logits(y[:, 0]), "logits")
    other = model.attn_layers(tokens, grid=hand_grid(across, down, 2))
    assert (other - y).abs().max() > 1e-3
    assert model(img).shape == (3, CLASSES)


def test_only_distances_on_the_image_count():
    """A patch that looks at the same patches from elsewhere on the grid sees them alike."""
    model = laws.live(build("attn ff", {"pos": "rotary2d"}, pos_emb=None))
    img = images(model)
    x = model.embedding(img)
    y = model.attn_layers(x, grid=hand_grid(*GRID, 0)[:, 1:])
    laws.close(model.attn_layers(x, grid=hand_grid(*GRID, 0)[:, 1:] + torch.tensor([3, 5])), y, "moved")
    laws.close(model(img, return_embeddings=True), y, "embeddings")


def cubic(distance, a=-0.75):
    """Keys' kernel (https://doi.org/10.1109/TASSP.1981.1163711) as torch has it."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resized(weight, count):
    """The first axis at another size: each new point a sum of four old ones, those beyond the border the last."""
    old, rows = len(weight), []
    for i in range(count):
        at = (i + 0.5) * old / count - 0.5
        near = math.floor(at)
        rows.append(sum(cubic(at - j) * weight[min(max(j, 0), old - 1)] for j in range(near - 1, near + 3)))
    return torch.stack(rows)


@pytest.mark.parametrize("size", [(3, 5), (7, 4), (2, 11), (1, 1)])
def test_a_resized_grid_by_its_definition(size):
    weight = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = resized(resized(weight, size[0]).transpose(0, 1), size[1]).transpose(0, 1)
    laws.close(resize_grid(weight, *size), expected, "bicubic")
    if size == (3, 5):
        laws.close(expected, weight, "the same size")


def test_patches_without_norms_are_a_convolution():
    torch.manual_seed(0)
    plain = PatchEmbedding(CHANNELS, PATCH, DIM, norms=False).double()
    img = torch.randn(3, CHANNELS, 35, 22, dtype=torch.float64)
    kernel = plain.project.weight.unflatten(1, (*PATCH, CHANNELS)).permute(0, 3, 1, 2)
    expected = F.conv2d(img, kernel, plain.project.bias, stride=PATCH).flatten(2).mT
    laws.close(plain(img), expected, "a convolution")
    assert {name for name, _ in plain.named_parameters()} == {"project.weight", "project.bias"}


def test_a_model_without_norms_of_patches(tmp_path):
    model = laws.live(build(patch_norm=False, **EXTRA))
    img = images(model)
    x = model.embedding.patch_emb(img)
    laws.close(model.embedding(img) - model.embedding.pos_emb.weight.flatten(0, 1), x, "tokens")
    grads = torch.autograd.grad(model(img).logsumexp(-1).sum(), list(model.parameters()))
    assert all(g.abs().max() > 0 for g in grads)
    assert not any("patch_emb.before" in name for name in model.state_dict())


@pytest.mark.parametrize("layers", ["attn ff", "flash gau"])
def test_features_of_every_layer(layers):
    """Of the patches only, in the order of the image; as maps they stand where the patches stand."""
    flags = {"join": "hyper", "num_memory_tokens": 3, "pos": "rotary2d"}
    model = laws.live(build(layers, flags, **EXTRA))
    img = images(model)
    logits, hiddens = model(img, return_hiddens=True)
    assert torch.equal(logits, model(img)) and len(hiddens) == len(model.attn_layers.order) + 2
    laws.close(hiddens[0], model.embedding(img), "what the first layer gets")
    laws.close(hiddens[-1], model(img, return_embeddings=True), "what the stack gives")
    tokens = model.pooled.cls_tokens(model.embedding.with_registers(model.embedding(img)))
    streams = model.attn_layers(tokens, grid=hand_grid(*GRID, 2), return_hiddens=True)[1]
    for ours, whole in zip(hiddens, streams, strict=True):
        laws.close(ours, whole[:, 1 : 1 + math.prod(GRID)], "each layer")
    maps = model.features(img)
    for stream, laid in zip(hiddens, maps, strict=True):
        assert laid.shape == (3, DIM, *GRID)
        for row, column in ((0, 0), (2, 3), (6, 10)):
            laws.close(laid[:, :, row, column], stream[:, row * GRID[1] + column], "a map")
    chosen = model.features(img, (1, -1))
    laws.close(chosen[0], maps[1], "one layer")
    laws.close(chosen[1], maps[-1], "the last")
    assert model.features(images(model, (10, 26)), [0])[0].shape == (3, DIM, 2, 13)
    embeddings, both = model(img, return_embeddings=True, return_hiddens=True)
    assert torch.equal(embeddings, both[-1])


@pytest.mark.slow
def test_compiled_is_eager():
    """Of any size, with three graphs at most."""
    model = laws.live(build("attn ff", {"pos": "rotary2d"}, pos_emb=None, **EXTRA))
    graphs = Graphs("eager")
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    with torch.no_grad():
        for size in ((35, 22), (40, 26), (10, 22), (15, 4), (20, 30)):
            img = images(model, size)
            (logits, hiddens), (right, streams) = (f(img, return_hiddens=True) for f in (compiled, model))
            laws.close(logits, right, f"compiled: {size}")
            laws.close(torch.stack(hiddens), torch.stack(streams), f"compiled hiddens: {size}")
    assert len(graphs.ran) <= 3


@pytest.mark.parametrize(
    ("layers", "error", "sentence"),
    [
        ((0, 4), ValueError, "layers must be at most 3, not 4"),
        ((-5,), ValueError, "layers must be at least -4, not -5"),
        ((0.5,), TypeError, "layers must be a whole number, not 0.5"),
        (2, TypeError, r"layers must be a tuple or list of numbers, such as \(1, -1\), not 2"),
    ],
)
def test_layers_that_there_are_not(layers, error, sentence):
    model = build()
    with pytest.raises(error, match=sentence):
        model.features(images(model), layers)


def test_what_is_no_switch_is_refused():
    model = build()
    with pytest.raises(TypeError, match="return_hiddens must be True or False, not 1"):
        model(images(model), return_hiddens=1)
    with pytest.raises(TypeError, match="patch_norm must be True or False, not 1"):
        build(patch_norm=1)
