"""`python -m xflash compare 'attn ff' flash --budget 60s`: layouts side by side, from a shell."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..base.files import write_whole

__all__ = ["add_to", "run", "settings_first"]

FLAG = re.compile(r"\w+=")


def add_to(commands: Any) -> None:
    """Makes the command known to the parser of all commands."""
    words = "trains layouts side by side, and prints what each costs and reaches"
    parser = commands.add_parser("compare", help=words, allow_abbrev=False)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="LAYOUT or FLAG=VALUE",
        help="layouts such as 'flash*3 attn ff'; flags of all of them, and settings, such as pos=rotary seq_len=512",
    )
    parser.add_argument(
        "--data", "--text", metavar="PATH", help="a text, or digits (without: a text that xflash.datasets finds)"
    )
    parser.add_argument("--budget", default="60s", help="of a run: 60s, '2000 steps', 5Mtokens (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="how many (%(default)s)")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 3e-3], help="rates to choose from (1e-3 3e-3)")
    parser.add_argument("--match", choices=("params", "flops"), help="widths at which all are as large as the first")
    parser.add_argument("--folder", help="where runs are kept and found again")
    parser.add_argument("--plot", metavar="FILE", help="a picture of the score against --against")
    parser.add_argument("--against", default="steps", metavar="AXIS", help="steps, seconds or flops (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="the table as JSON")
    parser.add_argument("--html", metavar="FILE", help="the table as HTML")


def settings_first(words: Sequence[str]) -> list[str]:
    """The words of the command with `flag=value` in front of all options, wherever they stand."""
    takes_one = [before.startswith("--") and before != "--lr" for before in ("", *words)]
    flags = [bool(FLAG.match(word)) and not taken for word, taken in zip(words, takes_one, strict=False)]
    moved = [word for word, is_flag in zip(words, flags, strict=True) if is_flag]
    return [*moved, *(word for word, is_flag in zip(words, flags, strict=True) if not is_flag)]


def run(given: argparse.Namespace, read_settings: Callable[[Sequence[str]], dict[str, Any]]) -> str:
    """Trains and gives the table; an interrupt keeps what there is and ends with a line."""
    from .comparing import compare
    from .plot import check_axis

    check_axis(given.against)
    layouts = [word for word in given.words if not FLAG.match(word)]
    settings = read_settings([word for word in given.words if FLAG.match(word)])
    options: dict[str, Any] = {
        "data": given.data,
        "budget": given.budget,
        "seeds": given.seeds,
        "match": given.match,
        "lr": tuple(given.lr),
        "folder": given.folder,
    }
    try:
        # lr=3e-4 says what --lr 3e-4 says.
        found = compare(layouts, **{**options, **settings})
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None
    for name, text in ((given.json, found.to_json), (given.html, found._repr_html_)):
        if name:
            write_whole(Path(name), text().encode())
    if given.plot:
        found.plot(given.against, given.plot)
    return f"{found}\n"
