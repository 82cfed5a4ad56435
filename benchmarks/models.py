"""Prints the table of docs/models.md: known models as flags, their parameters, and how far their logits are.

PYTHONPATH=. python benchmarks/models.py, where the extra `test-libraries` is installed. The models are small and
random, those of tests_libraries/; the differences are the largest of all logits of 3 texts of 31 tokens,
or of 3 images.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests_libraries"))

import conftest  # noqa: F401  what lets transformers be imported
import torch
from peers import causal, of_class, tokens
from test_both_sides import CASES as BOTH
from test_both_sides import logits, model
from test_decoders import CASES as DECODERS
from test_encoders import CASES as ENCODERS
from test_encoders import SIZES, beside, output
from test_images import CASES as IMAGES
from test_images import images, outputs, peer
from test_timm import CASES as TIMM
from test_timm import images as timm_images
from test_timm import peer as timm_peer

from xflash.convert import from_timm, from_transformers
from xflash.convert.timm import KINDS, read_model
from xflash.convert.transformers.convert import plan_of

# What says how large a model is, not what it is.
SIZED = {"dim", "depth", "heads", "attn_dim_head", "attn_kv_heads", "ff_dim", "moe_dim", "num_tokens", "max_seq_len"}
SIZED |= {"image_size", "patch_size", "channels", "num_classes"}

# Flags that are on where nothing is said.
ON = {"final_norm", "patch_norm", "rotary_scaling_truncate", "head_transform_bias", "moe_normalize", "use_abs_pos_emb"}
ON |= {"emb_proj_bias", "patch_bias"}


def is_timm(theirs):
    return type(theirs).__name__ in KINDS


def flags_of(theirs):
    """The flags of a model that are not sizes, as text."""
    flags = read_model(theirs)[0] if is_timm(theirs) else plan_of(theirs).flags
    said = {**flags.stack, **flags.model}
    kept = {name: value for name, value in said.items() if name not in SIZED and (value or name in ON)}
    return " ".join(f"{name}={value!r}" for name, value in kept.items() if "dropout" not in name)


def converted(theirs):
    return (from_timm if is_timm(theirs) else from_transformers)(theirs)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def difference(theirs, x, call, expected):
    with torch.no_grad():
        ours = converted(theirs)
        return (call(ours, theirs, x) - expected(theirs, x)).abs().max().item()


def row(case, make, call, expected, given=lambda theirs: tokens(3, 31)):
    theirs = [make(torch.float32), make(torch.float64)]
    found = [difference(model, given(model), call, expected) for model in theirs]
    count = parameters(converted(theirs[0])), parameters(theirs[0])
    counts = f"{count[0]:,}" if count[0] == count[1] else f"{count[0]:,} ({count[1]:,} there)"
    print(f"| {case} | {counts} | {found[0]:.0e} | {found[1]:.0e} | `{flags_of(theirs[0])}` |", flush=True)


def main():
    print("| model | parameters | float32 | double | flags, sizes left out |")
    print("|---|---|---|---|---|")
    for case, (kind, settings) in DECODERS.items():
        row(
            case,
            lambda dtype: causal(kind, dtype, **settings),  # noqa: B023
            lambda ours, _, x: ours(x),
            lambda theirs, x: theirs(x).logits,
        )
    for case, (cls, settings) in ENCODERS.items():
        row(
            case,
            lambda dtype: of_class(cls, dtype, **SIZES, **settings),  # noqa: B023
            lambda ours, theirs, x: ours(x, **beside(theirs, x)[0]),
            lambda theirs, x: output(theirs, x, **beside(theirs, x)[1]),
        )
    for case in BOTH:
        row(
            case,
            lambda dtype: model(case, dtype),  # noqa: B023
            lambda ours, _, x: logits(ours, x, x[:, :23]),
            lambda theirs, x: theirs(input_ids=x, decoder_input_ids=x[:, :23]).logits,
        )
    for case in IMAGES:
        row(
            case,
            lambda dtype: peer(case, dtype),  # noqa: B023
            lambda ours, _, img: ours(img),
            outputs,
            lambda theirs: images(theirs, dtype=theirs.dtype),
        )
    for case in TIMM:
        row(
            f"timm: {case}",
            lambda dtype: timm_peer(case, dtype),  # noqa: B023
            lambda ours, _, img: ours(img),
            lambda theirs, img: theirs(img),
            lambda theirs: timm_images(theirs.patch_embed.img_size, next(theirs.parameters()).dtype),
        )


if __name__ == "__main__":
    main()
