"""Teaches a vision transformer and a decoder that attends to it to read rows of handwritten digits aloud.

    python examples/caption_digits.py                                          (about 3 minutes on one CPU core)
    python examples/caption_digits.py --enc_layers 'attn ff' --dec_layers 'attn cross_gau ff'  (any enc_ or dec_ flag)

A picture of 3, 1 and 7 side by side -> "three one seven", letter by letter. Rows are composed of real digits: those of
training anew each time, those of the test from digits that training never shows. It prints how many captions of the
test are right to the letter, and leaves both models, result.json and captions.png in runs/NAME/.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

# As in train_lm.py: torch reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm.auto import tqdm

from training import (
    free_name,
    half_precision,
    learning_rate,
    make_optimizer,
    moved,
    patch_side,
    read_command_line,
    split_flags,
    take_step,
)
from xflash import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper, ViTransformerWrapper
from xflash.base.registry import nearest
from xflash.datasets.images import Images, digits
from xflash.experiments.clock import flushed

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
START, END, PAD = 0, 1, 2
LETTERS = "".join(sorted({" ", *"".join(WORDS)}))
IDS = {letter: i for i, letter in enumerate(LETTERS, start=3)}
VOCABULARY = len(LETTERS) + 3
SHOWN = 10  # rows in each column of the picture

# What each side is unless the command line says otherwise.
DEFAULTS: dict[str, dict[str, Any]] = {
    "enc_": {"layers": "flash*2", "depth": 2},
    "dec_": {"layers": "attn cross_attn ff", "depth": 1},
}
# What these layouts are trained with; every other one starts from the defaults of its blocks, which are made for wider
# models. A group of 12 is a row of patches across three digits.
RECIPES: dict[str, dict[str, Any]] = {
    "flash*2": {"flash_query_key_dim": 32, "flash_group_size": 12},
    "gau*2": {"gau_query_key_dim": 32},
    "attn cross_attn ff": {"attn_dim_head": 16, "cross_attn_dim_head": 16},
}
SIDES = {"enc_": "encoder", "dec_": "decoder"}
# What follows from the pictures and captions, or is no part of captioning.
DECIDED = {
    "enc_": ("attn_layers", "dim", "image_size", "patch_size", "channels", "num_classes", "pool"),
    "dec_": ("attn_layers", "dim", "num_tokens", "max_seq_len", "logits_dim", "return_only_embed", "embed_num_tokens"),
}


@dataclass(frozen=True)
class Options:
    """Captions rows of real digits; any enc_ or dec_ flag can be added: --enc_layers 'gau*2' --dec_depth 2."""

    name: str | None = None
    """The run's folder in --runs. Without: a new one."""
    most: int = 3
    """Digits in a row, at most; there is at least one."""
    dim: int = 64
    heads: int = 4
    patch: int | None = None
    """Side of a patch in pixels. Without: a quarter of a digit's side."""
    steps: int = 1600
    batch: int = 32
    lr: float = 3e-3
    warmup: int = 100
    """Steps to the full learning rate; from there a cosine takes it down to a tenth."""
    weight_decay: float = 0.05
    clip: float = 1.0
    augment: float = 1.0
    """How much training digits are moved: 1 is up to 2 pixels of 28, 10 degrees and 10 % in size; 0 leaves them."""
    tests: int = 1000
    """Rows to try at the end, of digits that training never showed."""
    seed: int = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    runs: str = "runs"


POSITIVE = ("most", "dim", "heads", "patch", "steps", "batch", "lr", "clip", "tests")


class Captioner(NamedTuple):
    """What looks at a picture, and what writes the caption."""

    encoder: ViTransformerWrapper
    decoder: AutoregressiveWrapper

    def parts(self) -> nn.ModuleList:
        return nn.ModuleList(self)


class Rows(NamedTuple):
    """Pictures (b, 1, y, most * x) and what they show."""

    img: Tensor
    captions: list[str]


def caption(numbers: Sequence[int]) -> str:
    """3, 1, 7 -> 'three one seven'."""
    return " ".join(WORDS[number] for number in numbers)


def longest(most: int) -> int:
    """Tokens of the longest caption, start and end counted."""
    return most * max(map(len, WORDS)) + most - 1 + 2


def compose(data: Images, rows: int, most: int, augment: float, chance: torch.Generator) -> Rows:
    """Rows of one to `most` digits, each drawn and moved by itself, blank behind the last."""
    chosen = torch.randint(len(data), (rows, most), generator=chance)
    lengths = torch.randint(1, most + 1, (rows,), generator=chance)
    part = data.only(chosen.flatten())
    img = rearrange(moved(part.scaled(), augment, chance), "(b k) c y x -> b k c y x", k=most)
    shown = torch.arange(most) < lengths[:, None]
    img = rearrange(img * shown[:, :, None, None, None], "b k c y x -> b c y (k x)")
    numbers = part.labels.view(rows, most).tolist()
    return Rows(img, [caption(row[:n]) for row, n in zip(numbers, lengths.tolist(), strict=True)])


def target(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Captions between a start and an end, padded behind, and how many tokens each has."""
    ids = [[START, *(IDS[letter] for letter in text), END] for text in captions]
    lens = torch.tensor([len(row) for row in ids])
    return torch.tensor([row + [PAD] * (int(lens.max()) - len(row)) for row in ids]), lens


def text_of(ids: Tensor) -> str:
    """The letters before the end."""
    return "".join(LETTERS[i - 3] for i in itertools.takewhile(lambda i: i >= 3, ids.tolist()))


def sides_of(flags: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The flags of the two sides on top of the recipe, prefixes taken off; TypeError for what neither can take."""
    sides: dict[str, dict[str, Any]] = {prefix: {} for prefix in SIDES}
    for name, value in flags.items():
        prefix = next((prefix for prefix in SIDES if name.startswith(prefix)), None)
        if prefix is None:
            close = nearest(name, [f.name for f in fields(Options)])
            raise TypeError(f"unknown flag {name!r}{close}; flags of the models begin with enc_ or dec_")
        if (own := name[len(prefix) :]) in DECIDED[prefix]:
            raise TypeError(f"{name} cannot be set: it follows from the pictures, the captions and --dim and --patch")
        sides[prefix][own] = value
    for prefix, side in sides.items():
        layout = {} if "custom_layers" in side else {**DEFAULTS[prefix], **side}
        sides[prefix] = {**RECIPES.get(str(layout.get("layers")), {}), **layout, **side}
    return sides


def build(options: Options, flags: dict[str, Any], data: Images) -> Captioner:
    """Both models; an argument of a wrapper goes to the wrapper, every other flag to its stack."""
    sides = sides_of(flags)
    torch.manual_seed(options.seed)
    height, width = data.pixels.shape[1:]
    fixed = {"dim": options.dim, "heads": options.heads}
    prefix = "enc_"
    try:
        outer, inner = split_flags(sides[prefix], ViTransformerWrapper)
        sizes = {"image_size": (height, width * options.most), "patch_size": patch_side(options.patch, height)}
        encoder = ViTransformerWrapper(channels=1, attn_layers=Encoder(**{**fixed, **inner}), **sizes, **outer)
        prefix = "dec_"
        outer, inner = split_flags(sides[prefix], TransformerWrapper)
        stack = Decoder(cross_attend=True, **{**fixed, **inner})
        sizes = {"num_tokens": VOCABULARY, "max_seq_len": longest(options.most)}
        decoder = TransformerWrapper(attn_layers=stack, **sizes, **outer)
        return Captioner(encoder, AutoregressiveWrapper(decoder, pad_value=PAD))
    except (TypeError, ValueError) as error:
        raise type(error)(f"in the {SIDES[prefix]}, whose flags begin with {prefix}: {error}") from None


def loss_of(models: Captioner, rows: Rows, device: str) -> Tensor:
    """The mean loss of each next letter, given the picture and the letters before."""
    ids, lens = target(rows.captions)
    with half_precision(device):
        context = models.encoder(rows.img.to(device), return_embeddings=True)
        return models.decoder(ids.to(device), lens=lens.to(device), context=context)


@flushed()
def train(models: Captioner, data: Images, options: Options) -> tuple[float, float]:
    """Trains both together, on new rows in each step; the mean of the last losses, and the seconds."""
    optimizer = make_optimizer(models.parts().train(), options)
    chance, losses = torch.Generator().manual_seed(options.seed), []
    begun = time.monotonic()
    with tqdm(total=options.steps, unit="step", dynamic_ncols=True) as bar:
        for step in range(options.steps):
            rows = compose(data, options.batch, options.most, options.augment, chance)
            loss = loss_of(models, rows, options.device)
            take_step(optimizer, loss, learning_rate(step, options.steps, options), options.clip)
            losses.append(loss.item())
            bar.update()
            bar.set_postfix_str(f"loss {losses[-1]:.4f}")
    return sum(losses[-50:]) / len(losses[-50:]), time.monotonic() - begun


@torch.no_grad()
def read(models: Captioner, img: Tensor, device: str) -> list[str]:
    """The likeliest letters for each picture, one after the other."""
    models.parts().eval()
    found, room = [], models.decoder.net.max_seq_len - 1
    for part in img.to(device).split(250):
        begin = torch.full((len(part), 1), START, device=device)
        with half_precision(device):
            context = models.encoder(part, return_embeddings=True)
            made = models.decoder.generate(begin, room, temperature=0.0, eos_token=END, context=context)
        found += [text_of(row) for row in made]
    return found


def report(rows: Rows, found: Sequence[str]) -> float:
    """The share of captions that are right to the letter, over all and for each number of digits; some of them."""
    right = [a == b for a, b in zip(found, rows.captions, strict=True)]
    share = sum(right) / len(right)
    error = (share * (1 - share) / len(right)) ** 0.5
    print(f"\n{sum(right)} of {len(right):,} captions are right: {share:.1%}, one standard error is {error:.1%}")
    lengths = [text.count(" ") + 1 for text in rows.captions]
    for n in sorted(set(lengths)):
        of = [r for r, length in zip(right, lengths, strict=True) if length == n]
        print(f"  of {n} digit{'s' if n > 1 else ''}: {sum(of)} of {len(of)} ({sum(of) / len(of):.1%})")
    for made, wanted in list(zip(found, rows.captions, strict=True))[:6]:
        print(f"  {wanted:{longest(max(lengths)) - 2}}  read as  {made}")
    return share


def picture(rows: Rows, found: Sequence[str], file: Path) -> None:
    """The first rows with their captions on the left, misread ones with what they should be on the right."""
    from matplotlib.figure import Figure  # slow to import, and only needed now

    wrong = [i for i, text in enumerate(rows.captions) if found[i] != text]
    figure = Figure(figsize=(10, 13), layout="constrained")
    columns = ("the first rows", range(len(found))), ("misread rows", wrong)
    for part, (title, chosen) in zip(figure.subfigures(1, 2), columns, strict=True):
        part.suptitle(title)
        axes = part.subplots(SHOWN, 1)
        for axis in axes[len(chosen) :]:
            axis.set_axis_off()
        for axis, i in zip(axes, chosen, strict=False):
            axis.set(xticks=(), yticks=())  # the frame stays: it shows where a row is blank
            right = found[i] == rows.captions[i]
            axis.imshow(rows.img[i, 0].numpy(), cmap="gray_r")
            said = found[i] if right else f"{found[i]}\n(should be {rows.captions[i]})"
            axis.set_title(said, fontsize=9, color="black" if right else "firebrick")
    figure.savefig(file, dpi=100)


def main(arguments: Sequence[str]) -> float:
    try:
        options, flags = read_command_line(Options, arguments, POSITIVE)
        folder = Path(options.runs) / (options.name or free_name("captions", options.runs))
        if (folder / "decoder").exists():
            raise ValueError(f"{folder} holds models: give another --name")
        data, test = digits().split()  # always the same split, whatever --seed is
        # The same rows for every seed too, so that figures of several are of the same pictures.
        rows = compose(test, options.tests, options.most, 0.0, torch.Generator().manual_seed(0))
        models = build(options, flags, data)
        models.parts().to(options.device)
        with torch.no_grad():
            loss_of(models, Rows(rows.img[:2], rows.captions[:2]), options.device)  # do the two fit each other?
        folder.mkdir(parents=True, exist_ok=True)
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    size = sum(p.numel() for p in models.parts().parameters())
    layouts = models.encoder.attn_layers.layout, models.decoder.net.attn_layers.layout
    print(f"{len(data):,} training and {len(test):,} test digits, on {options.device}")
    print(f"encoder {layouts[0]!r}, decoder {layouts[1]!r}, {size:,} parameters")
    loss, seconds = train(models, data, options)
    print(f"{options.steps} steps in {seconds:.0f} s, loss {loss:.4f}")
    found = read(models, rows.img, options.device)
    share = report(rows, found)
    for name, model in models._asdict().items():
        model.save(folder / name)
    said = {"exact_match": share, "parameters": size, "seconds": seconds, "loss": loss}
    said |= {"options": asdict(options), "flags": flags, "data": data.name}
    (folder / "result.json").write_text(json.dumps(said, indent=2) + "\n")
    picture(rows, found, folder / "captions.png")
    print(f"\n{folder} has captions.png, result.json and the models encoder and decoder (xflash.load)")
    return share


if __name__ == "__main__":
    main(sys.argv[1:])
