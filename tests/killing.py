"""Kills processes while they save a model, and loads what they leave: `python tests/killing.py --kills 200`.

Two models of equal shapes and different flags are saved into one folder. Whenever writers are killed, or the disk is
full, a load must give one of the two, weights and config, or say in a sentence that there is none; and the next save
must leave nothing behind but its own two files. Prints what was found as JSON; a traceback if it is something else.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_model

import xflash

FILES = {"config.json", "model.safetensors"}
FREQUENT = ("one writer", "two writers", "full disk")  # of the other kinds there is a fifth


def build(seed: int, pos: str) -> xflash.TransformerWrapper:
    """Each weight is the seed: a mixture shows."""
    stack = xflash.Decoder(dim=64, depth=1, heads=2, layers="attn", attn_dim_head=32, pos=pos)
    model = xflash.TransformerWrapper(num_tokens=1009, attn_layers=stack).requires_grad_(False)
    for weight in model.parameters():
        weight.fill_(seed)
    return model


MODELS = {"one": build(1, "rotary"), "two": build(2, "alibi")}


def what(folder: Path) -> str:
    """Which of the models a folder holds, or 'none' where load says so."""
    try:
        found = xflash.load(folder)
    except ValueError as error:
        if "\n" in str(error) or not any(said in str(error) for said in (f"{folder} has no ", f"no folder {folder};")):
            raise
        return "none"
    for name, model in MODELS.items():
        weights = found.state_dict()
        if found.to_config() == model.to_config() and all(
            torch.equal(weights[key], weight) for key, weight in model.state_dict().items()
        ):
            return name
    raise AssertionError(f"{folder} holds neither model: {found.to_config()}, {found.state_dict()}")


def process(work: Callable[[], None]) -> int:
    """Runs `work` in a process of its own, a copy of this one; its id."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def once(folder: Path, names: Sequence[str] = tuple(MODELS)) -> None:
    for name in names:
        MODELS[name].save(folder)


def forever(folder: Path, names: Sequence[str]) -> None:
    while True:
        once(folder, names)


def writing(folder: Path) -> float:
    """The seconds a process of its own takes to save both models: its first save is slower than its parent's next."""
    begun = time.monotonic()
    os.waitpid(process(lambda: once(folder)), 0)
    return time.monotonic() - begun


def killed(folder: Path, writers: int, chance: random.Random, span: float) -> None:
    """Starts some writers, which save the models in any order, and kills each of them at a moment of the span."""
    orders = [chance.sample(list(MODELS), 2) for _ in range(writers)]
    moments = sorted((chance.uniform(0, span), process(partial(forever, folder, names))) for names in orders)
    begun = time.monotonic()
    for moment, writer in moments:
        time.sleep(max(0, begun + moment - time.monotonic()))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)


def full(folder: Path, chance: random.Random, size: int) -> None:
    """Saves both models, in any order, where files end at some number of bytes, as on a full disk."""
    limit, names = chance.randrange(2 * size), chance.sample(list(MODELS), 2)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for name in names:
            try:
                MODELS[name].save(folder)
            except OSError as error:
                if "too large" not in str(error):
                    raise

    if os.waitpid(process(work), 0)[1]:
        raise AssertionError(f"files of {limit} bytes at most")


def old(folder: Path, name: str) -> None:
    """The model as version 0.1.0 wrote it: the config beside the weights only."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODELS[name].to_config()))
    save_model(MODELS[name], str(folder / "model.safetensors"))


def main(kills: int, seed: int) -> dict[str, dict[str, int]]:
    chance, found = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "model")
        MODELS["two"].save(folder)  # the first one is slower
        span, size = sorted(writing(folder) for _ in range(3))[1], (folder / "model.safetensors").stat().st_size
        cases: dict[str, Callable[[], None]] = {
            "one writer": lambda: killed(folder, 1, chance, span),
            "two writers": lambda: killed(folder, 2, chance, 2 * span),
            "full disk": lambda: full(folder, chance, size),
            "a new folder": lambda: killed(folder, 1, chance, span),
            "over 0.1.0": lambda: killed(folder, 1, chance, span),
        }
        for case, interrupt in cases.items():
            counts: Counter[str] = Counter()
            for _ in range(kills if case in FREQUENT else -(-kills // 5)):
                if case in ("a new folder", "over 0.1.0"):
                    shutil.rmtree(folder, ignore_errors=True)
                if case == "over 0.1.0":
                    old(folder, "two")
                interrupt()
                counts["left behind"] += folder.is_dir() and bool(set(os.listdir(folder)) - FILES)
                counts[what(folder)] += 1
            if counts["none"] and case != "a new folder":
                raise AssertionError(f"{case}: {counts['none']} folders had lost their model")
            MODELS["one"].save(folder)
            if set(os.listdir(folder)) != FILES:
                raise AssertionError(f"{case}: still there after another save: {os.listdir(folder)}")
            found[case] = dict(counts)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of each of the frequent kinds")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    json.dump(main(given.kills, given.seed), sys.stdout, indent=2)
    print()
