"""Trains vision transformers of different blocks on real digits and compares them.

    python examples/train_vit.py                                  (softmax, GAU and FLASH, one after the other)
    python examples/train_vit.py --layouts 'attn ff' 'gau ff'     (any layout)
    python examples/train_vit.py --layouts flash --depth 8 --flash_group_size 16   (any flag of the model can be added)

A run leaves runs/NAME/ with a saved model for each layout, result.json and digits.png.
"""

import itertools
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

# Threads that wait without spinning: on a machine with anything else to do, steps are several times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor
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
    with_options,
)
from xflash import Encoder, ViTransformerWrapper
from xflash.datasets.images import Images, digits
from xflash.experiments.clock import flushed

# What the default layouts are trained with; every other one starts from the defaults of its blocks. Queries and keys of
# 128 channels are made for wider models, and a group of 4 is a row of patches.
RECIPES = {
    "attn ff": {},
    "gau*2": {"gau_query_key_dim": 32},
    "flash*2": {"flash_query_key_dim": 32, "flash_group_size": 4},
}
SHOWN = 24  # misread digits in the picture, for each model


@dataclass(frozen=True)
class Options:
    """Compares vision transformers on real digits; any flag of the model can be added: --num_register_tokens 4."""

    layouts: tuple[str, ...] = tuple(RECIPES)
    """The stacks to compare, each repeated --depth times."""
    dim: int = 64
    depth: int = 3
    heads: int = 4
    patch: int | None = None
    """Side of a patch in pixels. Without: a quarter of the image's side."""
    pos_emb: Literal["learned", "sincos2d"] | None = "learned"
    pool: Literal["mean", "cls", "attn"] = "mean"
    epochs: int = 25
    """Passes through the training images."""
    steps: int | None = None
    """That many steps instead."""
    batch: int = 64
    lr: float = 3e-3
    warmup: int = 100
    """Steps to the full learning rate; from there a cosine takes it down to a tenth."""
    weight_decay: float = 0.05
    clip: float = 1.0
    smoothing: float = 0.1
    """Share of each label that is spread over all classes."""
    augment: float = 1.0
    """How much training images are moved: 1 is up to 2 pixels of 28, 10 degrees and 10 % in size; 0 leaves them."""
    images: int | None = None
    """Only that many images, training and test together."""
    seed: int = 0
    name: str | None = None
    """The run's folder in --runs. Without: a new one."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    runs: str = "runs"


POSITIVE = ("dim", "depth", "heads", "patch", "epochs", "steps", "batch", "lr", "clip", "images")


class Result(NamedTuple):
    """What became of one model."""

    layout: str
    parameters: int
    accuracy: float
    seconds: float
    steps: int
    read: Tensor  # the class that it sees in each test image


def build(layout: str, options: Options, flags: dict[str, Any], data: Images) -> ViTransformerWrapper:
    """The model; a flag of the wrapper goes to the wrapper, every other one to the stack."""
    flags = {**RECIPES.get(layout, {}), **flags}
    outer, inner = split_flags(flags, ViTransformerWrapper)
    torch.manual_seed(options.seed)
    try:
        stack = Encoder(dim=options.dim, depth=options.depth, heads=options.heads, layers=layout, **inner)
    except TypeError as error:
        raise with_options(error, inner, Options) from None
    height, width = data.pixels.shape[1:]
    given = {
        "image_size": (height, width), "patch_size": patch_side(options.patch, height), "channels": 1,
        "num_classes": data.classes, "pos_emb": options.pos_emb, "pool": options.pool,
    }  # fmt: skip
    return ViTransformerWrapper(attn_layers=stack, **{**given, **outer})


def batches(n: int, options: Options, chance: torch.Generator):
    """Indices, every image once in a pass, in a new order each time; the last ones of a pass may be left out."""
    while True:
        order = torch.randperm(n, generator=chance)
        yield from (order[at : at + options.batch] for at in range(0, max(1, n - options.batch + 1), options.batch))


@flushed()
def train(model: ViTransformerWrapper, data: Images, options: Options, name: str) -> tuple[int, float]:
    """Trains the model; how many steps it was, and how many seconds."""
    total = options.steps or options.epochs * max(1, len(data) // options.batch)
    optimizer = make_optimizer(model, options)
    img, labels = data.scaled(), data.labels
    chance = torch.Generator().manual_seed(options.seed)
    begun = time.monotonic()
    with tqdm(total=total, desc=name, unit="step", dynamic_ncols=True) as bar:
        for step, chosen in enumerate(itertools.islice(batches(len(data), options, chance), total)):
            batch = moved(img[chosen], options.augment, chance).to(options.device)
            with half_precision(options.device):
                logits = model(batch)
            wanted = labels[chosen].to(options.device)
            loss = F.cross_entropy(logits.float(), wanted, label_smoothing=options.smoothing)
            take_step(optimizer, loss, learning_rate(step, total, options), options.clip)
            bar.update()
            if step % 10 == 0:
                bar.set_postfix_str(f"loss {loss.item():.3f}")
    return total, time.monotonic() - begun


@torch.no_grad()
def read(model: ViTransformerWrapper, data: Images, options: Options) -> Tensor:
    """The class that the model sees in each image."""
    model.eval()
    found = []
    for img in data.scaled().split(250):
        with half_precision(options.device):
            found.append(model(img.to(options.device)).argmax(-1).cpu())
    return torch.cat(found)


def run(layout: str, options: Options, flags: dict[str, Any], parts: tuple[Images, Images], folder: Path) -> Result:
    """One model from its start to its test; it is kept in the folder."""
    training, test = parts
    model = build(layout, options, flags, training).to(options.device)
    steps, seconds = train(model, training, options, layout)
    found = read(model, test, options)
    model.save(folder / re.sub(r"\W+", "_", layout).strip("_"))
    size = sum(p.numel() for p in model.parameters())
    return Result(layout, size, (found == test.labels).double().mean().item(), seconds, steps, found)


def show(results: Sequence[Result], test: Images) -> None:
    """The table, and how much of a difference in it is luck."""
    width = max(len("layout"), *(len(r.layout) for r in results))
    print(f"\n{'layout':{width}}  parameters  test accuracy  training seconds")
    for r in results:
        print(f"{r.layout:{width}}  {r.parameters:10,}  {r.accuracy:13.2%}  {r.seconds:16.1f}")
    share = max(r.accuracy for r in results)
    error = (share * (1 - share) / len(test)) ** 0.5
    print(f"{len(test):,} test images: one standard error is {error:.2%}")


def picture(results: Sequence[Result], test: Images, file: Path) -> None:
    """For each model its confusion matrix, and digits that it misread (true > read)."""
    from matplotlib.figure import Figure  # slow to import, and only needed now

    figure = Figure(figsize=(13, 4.2 * len(results)), layout="constrained")
    for part, r in zip(figure.subfigures(len(results), 1, squeeze=False)[:, 0], results, strict=True):
        left, right = part.subfigures(1, 2, width_ratios=(1, 2))
        confusion(left.add_subplot(), r, test)
        wrong = (r.read != test.labels).nonzero().flatten()
        right.suptitle(f"{len(wrong)} of {len(test):,} misread" + (f", {SHOWN} of them" if len(wrong) > SHOWN else ""))
        axes = right.subplots(3, SHOWN // 3).flatten()
        for axis in axes:
            axis.set_axis_off()
        for axis, i in zip(axes, wrong[:SHOWN].tolist(), strict=False):
            axis.imshow(test.pixels[i].numpy(), cmap="gray_r")
            axis.set_title(f"{test.labels[i]} > {r.read[i]}", fontsize=9)
    figure.savefig(file, dpi=100)


def confusion(axis: Any, r: Result, test: Images) -> None:
    """How often each class (row) was read as each (column)."""
    count = torch.zeros(test.classes, test.classes, dtype=torch.long)
    count.index_put_((test.labels, r.read), torch.tensor(1), accumulate=True)
    # The diagonal would drown what matters.
    axis.imshow(count.float().fill_diagonal_(0).numpy(), cmap="Reds", alpha=0.6)
    for i, j in itertools.product(range(test.classes), repeat=2):
        if count[i, j]:
            axis.text(j, i, str(count[i, j].item()), ha="center", va="center", fontsize=7)
    ticks = range(test.classes)
    axis.set(xticks=ticks, yticks=ticks, xlabel="read", ylabel="true", title=f"{r.layout}: {r.accuracy:.1%}")


def start(options: Options, data: Images) -> tuple[Options, tuple[Images, Images]]:
    """The options with the run's name in them, and the training and test images."""
    if not options.layouts:
        raise ValueError("--layouts is empty; give at least one, such as 'attn ff'")
    if options.images is not None:
        if options.images < 2 * data.classes:
            raise ValueError(f"--images must be at least {2 * data.classes}, two for each class, not {options.images}")
        chance = torch.Generator().manual_seed(options.seed)
        data = data.only(torch.randperm(len(data), generator=chance)[: options.images])
    if options.name is None:
        options = replace(options, name=free_name("vit", options.runs))
    # Always the same split, whatever --seed is: figures of several seeds are of the same test images.
    return options, data.split()


def main(arguments: Sequence[str]) -> list[Result]:
    try:
        options, flags = read_command_line(Options, arguments, POSITIVE)
        options, parts = start(options, digits())
        for layout in options.layouts:
            build(layout, options, flags, parts[0])  # the third layout should not fail after two have been trained
        folder = Path(options.runs) / str(options.name)
        if (folder / "result.json").exists():
            raise ValueError(f"{folder} holds models: give another --name")
        folder.mkdir(parents=True, exist_ok=True)
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(parts[0]):,} training and {len(parts[1]):,} test images, on {options.device}")
    results = [run(layout, options, flags, parts, folder) for layout in options.layouts]
    show(results, parts[1])
    rows = [{k: v for k, v in r._asdict().items() if k != "read"} for r in results]
    content = {"results": rows, "options": asdict(options), "flags": flags, "data": str(parts[0].name)}
    (folder / "result.json").write_text(json.dumps(content, indent=2) + "\n")
    picture(results, parts[1], folder / "digits.png")
    print(f"\n{folder} has digits.png, result.json and the models")
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
