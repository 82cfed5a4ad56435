"""Teaches an encoder-decoder to write dates as ISO 8601 has them, whatever way they were written.

    python examples/train_seq2seq.py                                       (about 90 seconds on two CPU cores)
    python examples/train_seq2seq.py --dec_layers 'attn cross_gau ff'      (any enc_ or dec_ flag can be added)

"Tuesday, the 3rd of May 1988" -> "1988-05-03", character by character; the script makes all pairs itself. It prints
how many of 500 dates it has never seen come out whole, greedily and by beam search, and leaves the model in runs/NAME/.
"""

import calendar
import datetime
import itertools
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# As in train_lm.py: torch reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor
from tqdm.auto import tqdm

from training import free_name, half_precision, make_optimizer, read_command_line, take_step
from xflash import XTransformer

START, END, PAD = 0, 1, 2
LETTERS = " ,-./0123456789abcdefghijklmnopqrstuvwxyz"
IDS = {letter: i for i, letter in enumerate(LETTERS, start=3)}
VOCABULARY = len(LETTERS) + 3
LONGEST = 40  # characters of a written date, at most
ISO = 10
DAYS = range(datetime.date(1900, 1, 1).toordinal(), datetime.date(2100, 1, 1).toordinal())

# Flags of the two sides unless the command line says otherwise.
RECIPE: dict[str, Any] = {
    "enc_layers": "flash",
    "enc_depth": 3,
    "enc_rotary_pos_emb": True,
    "dec_layers": "attn cross_attn ff",
    "dec_depth": 2,
    "dec_rotary_pos_emb": True,
}


@dataclass(frozen=True)
class Options:
    """Trains an encoder-decoder on dates; any enc_ or dec_ flag can be added: --dec_layers 'attn cross_gau ff'."""

    name: str | None = None
    """The run's folder in --runs. Without: a new one."""
    seconds: float = 75.0
    """Training time."""
    steps: int | None = None
    """That many steps instead."""
    dim: int = 64
    heads: int = 4
    batch: int = 32
    lr: float = 5e-3
    warmup: int = 30
    """Steps to the full learning rate; from there a cosine takes it down to a hundredth."""
    weight_decay: float = 0.05
    clip: float = 1.0
    tests: int = 500
    """Dates to try at the end, which training never showed."""
    beams: int = 4
    seed: int = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    runs: str = "runs"


def ordinal(day: int) -> str:
    """1st, 2nd, 3rd, 4th ..."""
    ending = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


# The day comes before the month where both are numbers, so that every text has one meaning.
WAYS: tuple[Callable[[datetime.date, str, str], str], ...] = (
    lambda d, month, week: f"{d.day} {month} {d.year}",
    lambda d, month, week: f"{month} {d.day}, {d.year}",
    lambda d, month, week: f"{week}, the {ordinal(d.day)} of {month} {d.year}",
    lambda d, month, week: f"{week}, {month} {ordinal(d.day)}, {d.year}",
    lambda d, month, week: f"the {ordinal(d.day)} of {month}, {d.year}",
    lambda d, month, week: f"{d.year}, {month} the {ordinal(d.day)}",
    lambda d, month, week: f"{d.day:02}/{d.month:02}/{d.year}",
    lambda d, month, week: f"{d.day}.{d.month}.{d.year}",
    lambda d, month, week: f"{week} {d.day}-{d.month}-{d.year}",
)


def written(day: datetime.date, chance: random.Random) -> str:
    """A date as somebody might write it."""
    month, week = calendar.month_name[day.month], calendar.day_name[day.weekday()]
    if chance.random() < 0.3:
        month, week = month[:3], week[:3]
    return chance.choice(WAYS)(day, month, week).lower()


def split(seed: int, tests: int) -> tuple[list[int], list[int]]:
    """All days, shuffled: those to train on, and those that training never shows."""
    days = list(DAYS)
    random.Random(seed).shuffle(days)
    return days[tests:], days[:tests]


def source(texts: Sequence[str]) -> Tensor:
    """Texts as rows of ids, padded behind."""
    rows = [[IDS[letter] for letter in text] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def target(days: Sequence[datetime.date]) -> Tensor:
    """The ISO form between a start and an end."""
    return torch.tensor([[START, *(IDS[letter] for letter in day.isoformat()), END] for day in days])


def text_of(ids: Tensor) -> str:
    """The letters before the end."""
    found = itertools.takewhile(lambda i: i >= 3, ids.tolist())
    return "".join(LETTERS[i - 3] for i in found)


def examples(days: Sequence[int], chance: random.Random) -> tuple[list[str], list[datetime.date]]:
    """The days as somebody might write them, and as they are."""
    dates = [datetime.date.fromordinal(day) for day in days]
    return [written(date, chance) for date in dates], dates


POSITIVE = ("seconds", "steps", "batch", "lr", "clip", "tests", "beams")


def build(options: Options, flags: dict[str, Any]) -> XTransformer:
    """The model; every flag goes to the side that its prefix names."""
    sizes: dict[str, Any] = {"enc_max_seq_len": LONGEST, "dec_max_seq_len": ISO + 2}
    for side in ("enc", "dec"):
        sizes |= {f"{side}_num_tokens": VOCABULARY, f"{side}_heads": options.heads}
    torch.manual_seed(options.seed)
    return XTransformer(dim=options.dim, pad_value=PAD, **{**sizes, **RECIPE, **flags})


def train(model: XTransformer, options: Options, days: Sequence[int]) -> tuple[int, float]:
    """Steps until the time is over or their number reached; how many there were, and the last losses' mean."""
    optimizer = make_optimizer(model, options)
    chance, losses = random.Random(options.seed + 1), []
    begun = time.monotonic()
    bar = tqdm(total=options.steps, unit="step", dynamic_ncols=True)
    for step in itertools.count():
        spent = (time.monotonic() - begun) / options.seconds
        done = spent if options.steps is None else step / options.steps
        if done >= 1:
            break
        rate = options.lr * min(1, (step + 1) / options.warmup) * (0.01 + 0.495 * (1 + math.cos(math.pi * done)))
        texts, dates = examples(chance.choices(days, k=options.batch), chance)
        src, tgt = source(texts).to(options.device), target(dates).to(options.device)
        with half_precision(options.device):
            loss = model(src, tgt, mask=src != PAD)
        take_step(optimizer, loss, rate, options.clip)
        losses.append(loss.item())
        bar.update()
        bar.set_postfix_str(f"loss {losses[-1]:.4f}")
    bar.close()
    return len(losses), sum(losses[-50:]) / max(1, len(losses[-50:]))


def answers(model: XTransformer, texts: Sequence[str], options: Options, beams: int | None) -> list[str]:
    """What the model writes, greedily or by beam search."""
    found = []
    for start in range(0, len(texts), 100):
        src = source(texts[start : start + 100]).to(options.device)
        begin = torch.full((len(src), 1), START, device=options.device)
        beside: dict[str, Any] = {"mask": src != PAD, "eos_token": END}
        if beams is None:
            made = model.generate(src, begin, ISO + 1, temperature=0.0, **beside)
        else:
            made = model.beam_search(src, begin, ISO + 1, beams, **beside)
        found += [text_of(row) for row in made]
    return found


def report(model: XTransformer, options: Options, days: Sequence[int]) -> dict[str, float]:
    """The share of unseen dates that come out whole, and some of them."""
    texts, dates = examples(days, random.Random(options.seed + 2))
    wanted = [date.isoformat() for date in dates]
    result, shown = {}, []
    for name, beams in (("greedy", None), (f"beam of {options.beams}", options.beams)):
        begun = time.monotonic()
        shown = answers(model, texts, options, beams)
        right = sum(a == b for a, b in zip(shown, wanted, strict=True))
        result["greedy" if beams is None else "beam"] = right / len(wanted)
        print(f"{name}: {right} of {len(wanted)} unseen dates are right ({time.monotonic() - begun:.1f} s)")
    for text, made, right in list(zip(texts, shown, wanted, strict=True))[:5]:
        print(f"  {text:40} {made}{'' if made == right else f'  (should be {right})'}")
    return result


def main(arguments: Sequence[str]) -> None:
    try:
        options, flags = read_command_line(Options, arguments, POSITIVE)
        folder = Path(options.runs) / (options.name or free_name("dates", options.runs))
        if (folder / "model.safetensors").exists():
            raise ValueError(f"{folder} holds a model: give another --name")
        model = build(options, flags).to(options.device)
        folder.mkdir(parents=True, exist_ok=True)
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    days, unseen = split(options.seed, options.tests)
    size = sum(p.numel() for p in model.parameters())
    layouts = [side.attn_layers.layout for side in (model.encoder, model.decoder.net)]
    print(f"encoder {layouts[0]!r}, decoder {layouts[1]!r}, {size:,} parameters, on {options.device}")
    steps, loss = train(model, options, days)
    print(f"{steps} steps, loss {loss:.4f}")
    result = report(model, options, unseen)
    model.save(folder)
    said = {"options": asdict(options), "flags": flags, "steps": steps, "loss": loss, **result}
    (folder / "result.json").write_text(json.dumps(said, indent=2) + "\n")
    print(f"\n{folder} has the model (xflash.load) and result.json")


if __name__ == "__main__":
    main(sys.argv[1:])
