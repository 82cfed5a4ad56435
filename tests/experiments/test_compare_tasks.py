"""Each kind of data against its definition: batches, losses, scores; and a comparison of it from end to end."""

import math

import pytest
import torch
import torch.nn.functional as F

import xflash
from xflash.datasets.images import Images
from xflash.datasets.sequences import Text
from xflash.experiments.settings import Settings
from xflash.experiments.tasks.choose import choose

N, ROWS = 11, 3
TEXT = bytes(torch.randint(97, 123, (700,), generator=torch.Generator().manual_seed(0)).tolist())
SMALL = {"layers": "attn ff", "depth": 1, "dim": 8, "heads": 2, "attn_dim_head": 5}
SIDES = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in SMALL.items() if name != "dim"}
SIDES["dec_layers"] = "attn cross_attn ff"


def built(data, flags=None, **settings):
    task = choose(data, Settings(**{"seq_len": N, "batch": ROWS, **settings}))
    torch.manual_seed(0)
    return task, task.build(SMALL if flags is None else flags).eval()


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("data", "scale"), [(TEXT, math.log(2)), (torch.tensor(list(TEXT)), 1.0)])
@torch.no_grad()
def test_a_language_model_has_the_bits_of_each_next_byte(data, scale):
    task, model = built(data)
    valid = torch.tensor(list(TEXT[630:]))
    windows = [valid[at : at + N + 1] for at in range(0, len(valid) - N, N)]
    assert len(windows) == 6
    losses = [F.cross_entropy(model.net(ids[None, :-1])[0], ids[1:]).item() for ids in windows]
    assert task.score(model, look=False) == pytest.approx(sum(losses) / len(losses) / scale, rel=1e-5)
    assert task.score(model, look=True) != task.score(model, look=False)
    assert task.score_name == ("bits a byte" if isinstance(data, bytes) else "loss")
    (ids,) = task.batch(generator())
    assert ids.shape == (ROWS, N + 1) and all(bytes(row.tolist()) in TEXT[:630] for row in ids)
    expected = F.cross_entropy(model.net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(task.loss(model, (ids,)), expected)


@torch.no_grad()
def test_a_masked_model_has_the_bits_of_what_is_hidden():
    task, model = built(TEXT, kind="masked")
    total = count = 0
    for ids, seed in task.held(look=False):
        loss, logits, targets = model(ids, generator=generator(seed), return_outputs=True)
        hidden = targets != -100
        assert hidden.sum(1).tolist() == [math.ceil(0.15 * N)] * len(ids)
        assert loss.item() == pytest.approx(F.cross_entropy(logits[hidden], ids[hidden]).item(), rel=1e-5)
        total, count = (
            total + F.cross_entropy(logits[hidden], ids[hidden], reduction="sum").item(),
            count + hidden.sum(),
        )
    assert task.score(model, look=False) == pytest.approx(total / count.item() / math.log(2), rel=1e-5)
    assert task.score(model, look=False) == task.score(model, look=False)
    assert model.net.num_tokens == 257 and not model.net.attn_layers.causal


@torch.no_grad()
def test_an_encoder_decoder_tells_the_second_half_from_the_first():
    task, model = built(TEXT, {"dim": 8, **SIDES}, kind="encoder-decoder", seq_len=10)
    losses = []
    for (ids,) in task.held(look=False):
        context = model.encoder(ids[:, :5])
        logits = model.decoder.net(ids[:, 5:-1], context=context)
        losses += F.cross_entropy(logits.mT, ids[:, 6:], reduction="none").flatten().tolist()
    assert len(losses) == 7 * 4
    assert task.score(model, look=False) == pytest.approx(sum(losses) / len(losses) / math.log(2), rel=1e-5)


@torch.no_grad()
def test_pairs_are_told_without_their_padding():
    source, target = torch.randint(7, (31, 6), generator=generator()), torch.randint(5, (31, 4), generator=generator())
    source[::2, 4:] = -100
    target[::3, 3:] = -100
    task, model = built((source, target), {"dim": 8, **SIDES})
    losses = []
    for src, tgt in zip(source[27:], target[27:], strict=True):
        src, tgt = src[src >= 0][None], tgt[tgt >= 0][None]
        logits = model.decoder.net(tgt[:, :-1], context=model.encoder(src))
        losses += F.cross_entropy(logits[0], tgt[0, 1:], reduction="none").tolist()
    assert len(losses) == 4 * 3 - 2  # rows 27 and 30 have three tokens
    assert task.score(model, look=False) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert task.units == ROWS * 10
    for src, _ in (task.batch(generator(seed)) for seed in range(5)):
        assert all((row == source[:27]).all(1).any() for row in src)


def images():
    pixels = torch.randint(16, (40, 6, 6), generator=generator(), dtype=torch.uint8)
    return Images("noise", "", "", 15, pixels, torch.arange(40) % 4)


@torch.no_grad()
def test_a_vision_transformer_has_the_share_of_right_classes():
    task, model = built(images(), patch_size=2)
    test = images().split()[1]
    right = (model(test.scaled()).argmax(1) == test.labels).float().mean().item()
    assert len(test) == 8 and task.score(model, look=False) == pytest.approx(right)
    img, labels = task.batch(generator())
    assert img.shape == (ROWS, 1, 6, 6)
    torch.testing.assert_close(task.loss(model, (img, labels)), F.cross_entropy(model(img), labels))


class Before:
    """What stood one token before is asked, of a third of the tokens."""

    name, num_tokens, seq_len, causal, chance = "before", 7, N, True, 1 / 7

    def draw(self, rows, generator):
        ids = torch.randint(7, (rows, N), generator=generator)
        labels = ids.roll(1, 1)
        labels[:, [0, *range(2, N, 3)]] = -100
        return ids, labels

    def score(self, logits, labels):
        asked = labels != -100
        return (logits.argmax(-1) == labels)[asked].double().mean().item()

    def describe(self):
        return {"name": "before", "seq_len": N}


@torch.no_grad()
def test_a_probe_is_scored_by_itself():
    task, model = built(Before(), held_out=5 * N)
    ids, labels = task.batch(generator())
    asked = labels != -100
    torch.testing.assert_close(task.loss(model, (ids, labels)), F.cross_entropy(model(ids)[asked], labels[asked]))
    chance, drawn = torch.Generator().manual_seed(2**31 - 1), []
    drawn += [Before().draw(3, chance), Before().draw(2, chance)]
    ids, labels = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    assert task.score(model, look=False) == Before().score(model(ids), labels)
    both = Before()
    both.causal = False
    task, model = built(both)
    assert not model.attn_layers.causal and task.net(model) is None


CASES = {
    "bytes": (TEXT, {}, "bits a byte"),
    "text": (Text("a text", "", "", TEXT), {"match": "flops", "dim": 24}, "bits a byte"),
    "ids": (torch.tensor(list(TEXT)) - 97, {"kind": "masked"}, "loss a hidden token"),
    "halves": (TEXT, {"kind": "encoder-decoder"}, "bits a byte"),
    "images": (images(), {"patch_size": 3}, "accuracy"),
    "probe": (Before(), {}, "right"),
}


@pytest.mark.parametrize("case", CASES)
def test_variants_are_compared_on_it(case, tmp_path):
    data, settings, score = CASES[case]
    shared = {"dim": 8, "num_layers": 2, "seq_len": 10, "batch": 2, "held_out": 40, "looks": 1}
    name = "enc_layers" if case == "halves" else "layers"
    variants = {"softmax": {name: "attn ff"}, "GAU": {name: "gau"}}
    if case in ("images", "probe"):
        del shared["seq_len"]
    options = {"folder": tmp_path, "progress": False, "seeds": 1, "lr": 0.01}
    found = xflash.compare(variants, data, "4 steps", **{**options, **shared, **settings})
    assert found.task.score_name == score
    for row in found.rows:
        assert math.isfinite(row.score) and row.steps == 4 and row.speed > 0
        assert (
            row.parameters > 100
            and row.training_flops > 2 * row.flops > 100
            and row.peak_bytes > 4 * 4 * row.parameters
        )
        assert (row.decode_ms is not None) is (case in ("bytes", "text", "probe"))
    assert found["softmax"].layers.startswith("enc_attn ff" if case == "halves" else "attn ff")
    assert "GAU" in str(found) and score in str(found)


def test_a_path_is_a_text(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    task = choose(tmp_path / "text.txt", Settings(seq_len=N))
    assert task.name == "text.txt" and bytes(task.parts[0].tolist()) == TEXT[:630]
    assert task.describe() == choose(TEXT, Settings(seq_len=N)).describe()
    assert task.describe() != choose(TEXT[1:], Settings(seq_len=N)).describe()
