"""What blocks learn at equal parameters in equal time: bytes of real text, from 256 to 4,096 tokens a row.

    python benchmarks/learning.py                            (hours; stop it at any time, the same line goes on)
    python benchmarks/learning.py --lengths 256 --table      (the table of what is known so far)

Each variant is tried with one seed at each rate, then trained with all seeds at the rate that was best; seconds are a
run's own compute time. Runs are kept in --folder.
"""

import argparse
from typing import Any

from common import keep, machine

import xflash

# A row is as many tokens a step at each length.
TOKENS = 2048
LENGTHS, RATES = [256, 1024, 4096], [1e-3, 3e-3, 1e-2]
SOFTMAX: dict[str, Any] = {"norm": "rmsnorm", "ff_glu": True, "attn_dim_head": 32}
SHIFT = {"shift_tokens": 1}

# The first is what all are as large as; without a depth its layers are repeated to about four.
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {"layers": "attn ff", **SOFTMAX},
    "softmax, shift": {"layers": "attn ff", **SOFTMAX, **SHIFT},
    "FLASH": {"layers": "flash"},
    "FLASH, shift": {"layers": "flash", **SHIFT},
    "FLASH, shift, groups of 64": {"layers": "flash", "flash_group_size": 64, **SHIFT},
    "FLASH, shift, queries of 64": {"layers": "flash", "flash_query_key_dim": 64, **SHIFT},
    "GAU": {"layers": "gau"},
    "GAU, shift": {"layers": "gau", **SHIFT},
    "GAU, shift, softmax": {"layers": "gau", "gau_attn_fn": "softmax", **SHIFT},
    "flash*3 attn ff, shift": {"layers": "flash*3 attn ff", **SOFTMAX, **SHIFT},
    "gau*3 attn ff, shift": {"layers": "gau*3 attn ff", **SOFTMAX, **SHIFT},
    "attn ff recurrent ff": {
        "layers": "attn ff recurrent ff",
        **SOFTMAX,
        "recurrent_dim_head": 32,
        "recurrent_num_state_vectors": 64,
        "recurrent_block_width": 256,
    },
}


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", help="a file to train on (default: what xflash.datasets finds)")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a row")
    parser.add_argument("--seconds", type=float, default=300.0, help="of each run at the best rate")
    parser.add_argument("--tries", type=float, default=60.0, help="seconds of each run that tries a rate")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, default=3, help="how many at the best rate")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="only these (the first one beside them)")
    parser.add_argument("--dim", type=int, default=128, help="of the first variant")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a step")
    parser.add_argument("--held-out", type=int, default=131_072, help="bytes that a score is measured on")
    parser.add_argument("--folder", default="runs/learning", help="where runs are kept")
    parser.add_argument("--table", action="store_true", help="train nothing, show what is known")
    return parser.parse_args(words)


def variants_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Those that were asked for, behind the first, whose size they have."""
    first = next(iter(VARIANTS))
    wanted = options.variants or list(VARIANTS)
    return {name: flags for name, flags in VARIANTS.items() if name == first or name in wanted}


def settings_of(options: argparse.Namespace, length: int) -> dict[str, Any]:
    """What is the same for all runs of a length."""
    sizes = {"seq_len": length, "batch": max(1, options.tokens // length), "held_out": options.held_out}
    shared = {"dim": options.dim, "heads": 4, "pos": "rotary", "match": "params"}
    return {**sizes, **shared, "folder": options.folder, "train": not options.table}


def at_a_length(options: argparse.Namespace, length: int) -> Any:
    """Rates first, then all seeds at the best of each; variants without a known rate are left for later."""
    settings, variants = settings_of(options, length), variants_of(options)
    tries = xflash.compare(variants, options.text, f"{options.tries} s", seeds=1, lr=tuple(options.rates), **settings)
    best = {name: {**flags, "lr": tries[name].lr or options.rates[0]} for name, flags in variants.items()}
    return xflash.compare(best, options.text, f"{options.seconds} s", seeds=options.seeds, **settings)


def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    options = read_options(words)
    results = []
    try:
        for length in options.lengths:
            found = at_a_length(options, length)
            print(f"\n{found}\n", flush=True)
            results.append({"length": length, "about": found.about, "rows": [row.as_json() for row in found.rows]})
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; the same command goes on from here") from None
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(keep("learning", {"options": vars(options), "lengths": results}))
    return results


if __name__ == "__main__":
    main()
