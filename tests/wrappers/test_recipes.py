"""Recipes are known models: as large as published, and small ones decode exactly."""

import re
from pathlib import Path

import laws
import model_laws
import pytest
import torch
from quick import quick

import xflash
import xflash.__main__ as command
from xflash import create, recipes

# Parameters as they were published with the weights; FLASH's paper says about 110 million.
PUBLISHED = {
    "gpt2": 124439808, "gpt2-medium": 354823168, "gpt2-large": 774030080, "gpt2-xl": 1557611200,
    "gpt-j-6b": 6050882784, "pythia-160m": 162322944, "gpt-neox-20b": 20554567680, "opt-125m": 125239296,
    "phi-2": 2779683840, "phi-3-mini": 3821079552, "llama2-7b": 6738415616, "llama2-13b": 13015864320,
    "llama3-8b": 8030261248, "llama3-70b": 70553706496, "llama3.2-1b": 1235814400, "llama3.2-3b": 3212749824,
    "mistral-7b": 7241732096, "mixtral-8x7b": 46702792704, "qwen2.5-0.5b": 494032768, "qwen2.5-7b": 7615616512,
    "qwen3-0.6b": 596049920, "qwen3-8b": 8190735360, "qwen3-30b-a3b": 30532122624, "gemma2-2b": 2614341888,
    "gemma2-9b": 9241705984, "gemma3-270m": 268098176, "gemma3-1b": 999885952, "olmo2-7b": 7298617344,
    "smollm3-3b": 3075098624, "bert-base": 109514298, "bert-large": 335174458, "roberta-base": 124697433,
    "t5-small": 60506624, "t5-base": 222903552, "flan-t5-base": 247577856, "opt-350m": 331196416,
    "falcon-rw-1b": 1311625216, "falcon-7b": 6921720704, "olmo2-1b": 1484916736, "gemma3-4b": 3880263168,
    "gpt-oss-20b": 20914757184, "gpt-oss-120b": 116829156672, "modernbert-base": 149655232, "bart-base": 139420416,
    "bart-large": 406291456, "vit-base-16": 86567656, "vit-large-16": 304326632, "deit-tiny-distilled": 5910800,
    "deit-base-distilled": 87338192, "dinov2-small": 22056576, "dinov2-base": 86580480, "dinov2-large": 304368640,
    "dinov2-giant": 1136480768, "dinov2-base-registers": 86583552, "dinov2-giant-registers": 1136486912,
}  # fmt: skip
# Vectors that are published beside others to which they are added, or that training alone has: the positions of tokens
# in front of images, and DINOv2's mask token.
LEFT_OUT = {name: 1 if name.startswith("vit") else 2 for name in PUBLISHED if name.startswith(("vit", "deit", "dino"))}
SMALL = {"dim": 48, "heads": 4, "num_tokens": 53, "max_seq_len": 37}
INSIDE = {
    "attn_dim_head": 12,
    "attn_kv_heads": 2,
    "ff_dim": 59,
    "moe_dim": 29,
    "moe_experts": 5,
    "moe_top_k": 2,
    "attn_window": 7,
}
INSIDE |= {"rotary_emb_dim": 6, "flash_group_size": 5, "flash_query_key_dim": 10}


def count(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create(name).parameters())


@pytest.mark.parametrize("name", quick(PUBLISHED, lambda _, number: number % 4 == 0))
def test_they_are_as_large_as_published(name: str):
    assert count(name) == PUBLISHED[name] - LEFT_OUT.get(name, 0) * recipes[name]["dim"]


def test_flash_is_as_large_as_its_paper_says():
    assert set(recipes) - set(PUBLISHED) == {"flash-base"}
    assert 1.05e8 < count("flash-base") < 1.15e8


def small(name: str):
    """A recipe with other sizes, its layout and its choices as they are."""
    flags = dict(recipes[name])
    if "enc_depth" in flags:
        sizes = {"num_tokens": 53, "depth": 1, "heads": 2, "attn_dim_head": 12, "ff_dim": 59}
        return create(name, dim=24, **{f"{side}_{flag}": v for side in ("enc", "dec") for flag, v in sizes.items()})
    sizes = SMALL | {flag: value for flag, value in INSIDE.items() if flag in flags}
    layers = re.sub(r"window=\d+", "window=5", flags["layers"]).replace(")*5", ")*2").replace("ff)*4 (", "ff) (")
    depth = 1 if flags["depth"] == 1 else 2
    return create(name, **sizes, layers=layers, depth=depth)


def unlike() -> list[str]:
    """The decoders among the recipes that are no others at another size."""
    found: dict[str, str] = {}
    for name, flags in recipes.items():
        if flags.get("causal"):
            with torch.device("meta"):
                found.setdefault(str(small(name).to_config()), name)
    return list(found.values())


@pytest.mark.parametrize("name", unlike())
def test_small_ones_decode_exactly(name: str):
    model = laws.live(small(name))
    ids = torch.randint(53, (2, 29), generator=torch.Generator().manual_seed(3))
    state, found = None, []
    for piece in ids.split((11, 1, 1, 16), 1):
        logits, state = model.step(piece, state)
        found.append(logits)
    laws.close(torch.cat(found, 1), model(ids), name)


@pytest.mark.parametrize("name", ["roberta-base", "t5-small", "flan-t5-base"])
def test_small_ones_are_saved_as_built(name: str, tmp_path):
    model_laws.model_laws(small(name), tmp_path) if "bert" in name else model_laws.seq2seq_laws(small(name), tmp_path)


def test_flags_of_ones_own_take_the_place_of_those_of_the_recipe():
    with torch.device("meta"):
        model = create("gpt2", depth=3, max_seq_len=77, attn_window=31)
    assert model.attn_layers.arguments["depth"] == 3 and model.max_seq_len == 77
    assert recipes["gpt2"]["depth"] == 12, "the recipe itself is as it was"


@pytest.mark.parametrize(
    ("name", "flags", "error", "message"),
    [
        ("llama3-9b", {}, ValueError, "name='llama3-9b' is no recipe; did you mean 'llama3-8b'"),
        ("zebra", {}, ValueError, "name='zebra' is no recipe; xflash.recipes has them all"),
        (3, {}, TypeError, "name must be the name of a recipe, such as 'gpt2', not 3"),
        ("gpt2", {"attn_windw": 3}, TypeError, "unknown flag 'attn_windw'; did you mean 'attn_window'"),
        ("t5-small", {"enc_heds": 3}, TypeError, "enc_heads"),
        ("gpt2", {"emb_dropot": 0.1}, TypeError, "unknown flag 'emb_dropot'; did you mean 'emb_dropout'\\?"),
        ("gpt2", {"num_clases": 3}, TypeError, "did you mean 'num_classes', an argument of ViTransformerWrapper\\?"),
        ("gpt2", {"pad_value": 3}, TypeError, "unknown flag 'pad_value': it is an argument of AutoregressiveWrapper"),
        ("vit-base-16", {"num_class": 3}, TypeError, "unknown flag 'num_class'; did you mean 'num_classes'\\?"),
        ("llama3-8b", {"heads": 7}, ValueError, r"8 does not divide the 7 heads \(attn_kv_heads=8 is of the recipe"),
        (
            "llama3-8b",
            {"layers": "gau"},
            ValueError,
            r"ff_glu is set but .* \(ff_glu=True is of the recipe",
        ),
    ],
)
def test_what_is_refused(name: str, flags: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        create(name, **flags)


@pytest.mark.slow
def test_they_are_listed_and_on_their_page(capsys):
    command.main(["list", "recipes"])
    listed = capsys.readouterr().out
    assert all(re.search(rf"^  {re.escape(name)} .*dim=", listed, re.M) for name in recipes)
    assert all(len(line) <= 120 for line in listed.splitlines())
    command.main(["flags", "vit-base-16", "depth=2"])
    shown = capsys.readouterr().out
    assert "image_size=224" in shown and re.search(r"^depth +2 \*", shown, re.M) and "emb_dropout" not in shown
    page = Path(xflash.__file__).parents[1] / "docs" / "recipes.md"
    assert page.read_text() == command.recipe_page(), "run python -m xflash docs-recipes > docs/recipes.md"
