"""Every block on every probe: what it learns in a few hundred small steps, and how it does in longer rows.

    python benchmarks/probes.py                  (all of it; ten minutes of one core)
    python benchmarks/probes.py --probes recall --variants FLASH hybrid --steps 2000

Each run leaves a file in `runs/probes/`; a run that is there is not made again, so that the script can be stopped at
any time. The tables are written into docs/probes.md, between its two marks.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import machine
from torch import nn

from xflash import Decoder, TransformerWrapper, probes
from xflash.base.files import write_whole
from xflash.experiments.clock import flushed
from xflash.probes import Probe

PAGE = Path(__file__).parents[1] / "docs" / "probes.md"
BEGIN, END = "<!-- written by benchmarks/probes.py -->", "<!-- until here -->"
# What counts as learnt, after which a run is not gone on with; how often that is looked at, on how many rows.
LEARNT, EVERY, HELD_OUT = 0.99, 25, 256
WARM_UP = 20
# Flags of all variants: as wide as `--dim`, about as many layers each.
COMMON = {"norm": "rmsnorm", "pos": "rotary", "heads": 2, "shift_tokens": 1}
BLOCKS = {"block_attn_block_width": 8}
STATES = {"recurrent_block_width": 8, "recurrent_num_state_vectors": 8, "recurrent_gate": "lstm"}
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {"layers": "attn ff", "depth": 2},
    "softmax, no token shift": {"layers": "attn ff", "depth": 2, "shift_tokens": 0},
    "softmax, window of 8": {"layers": "attn(window=8) ff", "depth": 2},
    "softmax, experts": {"layers": "attn moe", "depth": 2},
    "GAU": {"layers": "gau", "depth": 4},
    "FLASH": {"layers": "flash", "depth": 4, "flash_group_size": 8},
    "FLASH*3 attn ff": {"layers": "flash*3 attn ff", "depth": 1, "flash_group_size": 8},
    "blocks of 8": {"layers": "block_attn ff", "depth": 2, **BLOCKS},
    "blocks and state vectors": {"layers": "block_attn ff recurrent ff", "depth": 1, **BLOCKS, **STATES},
    "state vectors, read by all": {"layers": "state_read ff recurrent ff", "depth": 1, **STATES},
    "feed-forward": {"layers": "ff", "depth": 4, "pos": None},
}
PROBES: dict[str, Probe] = {
    "recall": probes.recall(seq_len=24),
    "induction": probes.induction(seq_len=32, period=(6, 12), symbols=16),
    "copy": probes.copy(seq_len=16, count=3, symbols=8),
    "needle": probes.needle(seq_len=48, segment=8, length=2, symbols=8, noise=6),
    "parity": probes.parity(seq_len=8),
    "permutations": probes.permutations(seq_len=8),
}


class Run(NamedTuple):
    """What decides how one run ends."""

    variant: str
    probe: str
    seed: int
    options: argparse.Namespace

    def key(self) -> str:
        """A name of its own for everything that this is."""
        sizes = {name: getattr(self.options, name) for name in ("dim", "steps", "batch", "lr", "longer")}
        flags = {**COMMON, **VARIANTS[self.variant]}
        said = [flags, PROBES[self.probe].describe(), self.seed, sizes, machine()["torch"], machine()["xflash"]]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        stack = Decoder(dim=self.options.dim, **{**COMMON, **VARIANTS[self.variant]})
        return TransformerWrapper(num_tokens=PROBES[self.probe].num_tokens, attn_layers=stack, use_abs_pos_emb=False)


def train(run: Run) -> dict[str, Any]:
    """One run, ended once the probe is learnt: its score, how many steps that took, and its scores in longer rows."""
    probe, options, model = PROBES[run.probe], run.options, run.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    chance, begun, step, score = torch.Generator().manual_seed(run.seed), time.process_time(), 0, 0.0
    while step < options.steps and score < LEARNT:
        step += 1
        optimizer.param_groups[0]["lr"] = options.lr * min(1, step / WARM_UP)
        ids, labels = probe.draw(options.batch, chance)
        loss = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % EVERY == 0 or step == options.steps:
            score = held_out(model, probe)
    seconds = time.process_time() - begun
    factors = options.longer if score >= LEARNT else ()
    longer = {factor: held_out(model, probe.longer(factor * probe.seq_len)) for factor in factors}
    parameters = sum(p.numel() for p in model.attn_layers.parameters())
    return {"score": score, "steps": step, "longer": longer, "parameters": parameters, "seconds": seconds}


@torch.no_grad()
def held_out(model: nn.Module, probe: Probe) -> float:
    """The score on rows that training has not seen."""
    ids, labels = probe.draw(HELD_OUT, torch.Generator().manual_seed(12345))
    model.eval()
    score = probe.score(model(ids), labels)
    model.train()
    return score


def result(run: Run, folder: Path) -> dict[str, Any]:
    """What a run gave, from its file if there is one."""
    path = folder / f"{run.key()}.json"
    if not path.exists():
        found = {"variant": run.variant, "probe": run.probe, "seed": run.seed, **train(run), "machine": machine()}
        write_whole(path, (json.dumps(found, indent=2) + "\n").encode())
        said = f"{found['score']:.3f} in {found['steps']} steps, {found['seconds']:.0f} s"
        print(f"{run.probe}, {run.variant}, seed {run.seed}: {said}", flush=True)
    return json.loads(path.read_text())


class Seeds(NamedTuple):
    """The runs of one variant on one probe."""

    runs: list[dict[str, Any]]

    @property
    def score(self) -> float:
        return mean(run["score"] for run in self.runs)

    @property
    def learnt(self) -> bool:
        return min(run["score"] for run in self.runs) >= LEARNT

    @property
    def steps(self) -> int:
        """Those of the slowest."""
        return max(run["steps"] for run in self.runs)

    def cell(self) -> str:
        """The mean score: in bold with the steps where it is learnt, else with how far the seeds lie apart."""
        if self.learnt:
            return f"**{self.score:.2f}** ({self.steps})"
        low, high = (pick(run["score"] for run in self.runs) for pick in (min, max))
        return f"{self.score:.2f}" + (f", {low:.2f} to {high:.2f}" if high - low >= 0.02 else "")

    def longer(self) -> str:
        """The mean scores in longer rows, of what is learnt in short ones."""
        if not self.learnt:
            return ""
        return ", ".join(f"{mean(run['longer'][factor] for run in self.runs):.2f}" for factor in self.runs[0]["longer"])


def table(found: dict[str, dict[str, Seeds]], cell: Callable[[Seeds], str]) -> list[str]:
    """A row for each variant, a column for each probe."""
    lines = [["variant", "layers", "parameters", *PROBES], ["---"] * (len(PROBES) + 3)]
    for variant, columns in found.items():
        flags, parameters = VARIANTS[variant], next(iter(columns.values())).runs[0]["parameters"]
        lead = [variant, f"`{flags['layers']}` x {flags['depth']}", f"{parameters:,}"]
        lines.append([*lead, *(cell(columns[probe]) if probe in columns else "" for probe in PROBES)])
    return [f"| {' | '.join(line)} |" for line in lines]


def sentence(probe: str, by_variant: dict[str, Seeds]) -> str:
    """Who has learnt a probe, soonest first, and how far the others have come."""
    learnt = sorted((seeds.steps, variant) for variant, seeds in by_variant.items() if seeds.learnt)
    others = sorted(((seeds.score, variant) for variant, seeds in by_variant.items() if not seeds.learnt), reverse=True)
    first = ", ".join(f"{variant} ({steps})" for steps, variant in learnt) or "none"
    rest = ", ".join(f"{variant} ({score:.2f})" for score, variant in others) or "none"
    return f"- **{probe}**, `{PROBES[probe]!r}`, chance {PROBES[probe].chance:.3f}. Learnt by {first}. Not by {rest}."


def written(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The part of the page that is the script's."""
    found: dict[str, dict[str, Seeds]] = {}
    for row in rows:
        found.setdefault(row["variant"], {}).setdefault(row["probe"], Seeds([])).runs.append(row)
    asked = dict.fromkeys(row["probe"] for row in rows)
    where, minutes = rows[0]["machine"], sum(row["seconds"] for row in rows) / 60
    seeds, factors = (" and ".join(map(str, values)) for values in (options.seeds, options.longer))
    return "\n".join(
        [
            f"Width {options.dim}, at most {options.steps} steps of {options.batch} rows, AdamW at a rate of "
            f"{options.lr}, seeds {seeds}: {minutes:.0f} minutes of one core in all",
            f"({where['date']}, {where['device']}, PyTorch {where['torch']}).",
            "",
            *table(found, Seeds.cell),
            "",
            *(sentence(probe, {name: by[probe] for name, by in found.items() if probe in by}) for probe in asked),
            "",
            f"What is learnt, in rows {factors} times as long:",
            "",
            *table(found, Seeds.longer),
        ]
    )


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--probes", nargs="+", default=list(PROBES), choices=PROBES)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    for name, value in {"dim": 32, "steps": 400, "batch": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--longer", type=int, nargs="+", default=[2, 4], help="how many times as long other rows are")
    parser.add_argument("--folder", type=Path, default=Path("runs") / "probes", help="where the runs are kept")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that the tables are written into")
    parser.add_argument("--quick", action="store_true", help="two steps of two rows: whether it runs at all")
    options = parser.parse_args(words)
    if options.quick:
        options.dim, options.steps, options.batch, options.seeds, options.longer = 16, 2, 2, options.seeds[:1], [2]
    return options


@flushed()
def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    options = read_options(words)
    runs = [Run(v, p, seed, options) for seed in options.seeds for p in options.probes for v in options.variants]
    rows = [result(run, options.folder) for run in runs]
    before, _, rest = options.page.read_text().partition(BEGIN)
    whole = f"{before}{BEGIN}\n\n{written(rows, options)}\n\n{END}{rest.partition(END)[2]}"
    write_whole(options.page, whole.encode())
    return rows


if __name__ == "__main__":
    main()
