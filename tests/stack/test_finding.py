"""A user finds every flag: by completion, by `help`, by what `print` shows of a model."""

import inspect
import pydoc
from dataclasses import dataclass

import code_blocks
import jedi
import pytest
import torch
from code_blocks import registries_kept
from IPython.core.completer import IPCompleter, provisionalcompleter

import xflash
from xflash import (
    GAU,
    AttentionLayers,
    AutoregressiveWrapper,
    BlockRecurrentTransformer,
    CrossAttender,
    Decoder,
    Encoder,
    FLASHTransformer,
    PrefixDecoder,
    TransformerWrapper,
    XTransformer,
    blocks,
    flag,
    joins,
    norms,
    positions,
    reads,
    scales,
    scores,
    weight_fns,
)
from xflash import __main__ as command
from xflash.flags.flag import flags_of
from xflash.stack.catalogue import groups
from xflash.stack.config import every_flag
from xflash.stack.held import parts_of
from xflash.wrappers.examples import EXAMPLES

STACKS = (AttentionLayers, CrossAttender, Decoder, Encoder, PrefixDecoder)
SPACE = {"Decoder": Decoder, "xflash": xflash}


@pytest.fixture
def damped():
    """A block of one's own, as long as a test runs."""
    with registries_kept():

        @xflash.blocks.register("damped")
        class Damped(xflash.Block):
            """A share of x."""

            @dataclass(frozen=True, kw_only=True)
            class Config:
                share: float = flag(0.5, "what is left of x", above=0)

            def forward(self, x, ctx, state=None):
                return self.config.share * x, None

        yield Damped


@pytest.mark.parametrize("cls", STACKS)
def test_the_signature_has_every_flag_with_its_default(cls):
    *flags, spellings = inspect.signature(cls).parameters.values()
    assert [p.name for p in flags] == list(every_flag())
    assert all(p.kind is p.KEYWORD_ONLY for p in flags) and spellings.kind is spellings.VAR_KEYWORD
    given = {p.name: p.default for p in flags}
    assert given["dim"] is inspect.Parameter.empty
    assert (given["norm"], given["attn_dim_head"], given["rotary_base"]) == ("layernorm", 64, 10000.0)
    assert {name: given[name] for name in cls.fixed} == dict(cls.fixed)
    # What it says can be given can be given.
    stack = cls(**{"dim": 12, "depth": 1, **{n: v for n, v in given.items() if n in ("norm", "heads", "causal")}})
    assert stack.to_config() == cls(dim=12, depth=1).to_config()
    assert len(str(inspect.signature(cls))) < 100


def test_arguments_of_a_subclass_come_first():
    class Longer(Decoder):
        """A stack with an argument of its own."""

        def __init__(self, more: int, **flags):
            super().__init__(**flags)
            self.more = more

    first, second = list(inspect.signature(Longer).parameters)[:2]
    assert (first, second) == ("more", "dim")
    model = TransformerWrapper(num_tokens=5, attn_layers=Longer(3, dim=12, depth=1, pos="rotary"), num_memory_tokens=2)
    again = xflash.from_config(model.to_config())
    assert again.attn_layers.more == 3 and again.to_config() == model.to_config()


def test_the_signature_of_a_stack_as_a_function_is_that_of_forward():
    assert list(inspect.signature(Decoder(dim=12, depth=1).forward).parameters)[:2] == ["x", "mask"]
    assert not hasattr(Decoder(dim=12, depth=1), "__signature__")


def completed(code: str) -> set[str]:
    """What jedi offers behind a line, as notebooks ask it."""
    return {found.name.rstrip("=") for found in jedi.Interpreter(code, [SPACE]).complete()}


def completed_by_ipython(code: str, use_jedi: bool) -> set[str]:
    completer = IPCompleter(namespace=SPACE, use_jedi=use_jedi)
    with provisionalcompleter():
        return {found.text.rstrip("=") for found in completer.completions(code, len(code))}


def by_shell(code: str) -> set[str]:
    return completed_by_ipython(code, use_jedi=False)


def by_notebook(code: str) -> set[str]:
    return completed_by_ipython(code, use_jedi=True)


@pytest.mark.parametrize("complete", [completed, by_shell, by_notebook])
def test_completion_offers_every_flag(complete, damped):
    assert set(every_flag()) - {"dim"} <= complete("model = Decoder(dim=64, ")
    assert {name for name in every_flag() if name.startswith("rot")} == complete("xflash.Decoder(dim=64, rot")
    assert complete("Decoder(damped_") == {"damped_share"}
    assert {"attn_topk_k", "attn_topk_straight_through"} == complete("Decoder(dim=64, layers='attn ff', attn_topk")


def test_help_shows_the_table(damped):
    text = pydoc.plain(pydoc.render_doc(Decoder))
    assert "A causal stack: no token sees a later one" in text
    # Those of steps on the scores stand there once, without the blocks that have them.
    steps = {f"{b}_{part}_{f}": f"{part}_{f}" for b in blocks for _, part, c in parts_of(b) for f in flags_of(c)}
    for name, spec in every_flag().items():
        assert f" {steps.get(name, name)} " in text and spec.doc in text, name
    assert "damped_share" in text and "A share of x." in text
    assert inspect.getdoc(Decoder).splitlines()[0] == "A causal stack: no token sees a later one, and `step` decodes."


def test_print_shows_the_line_that_constructs_it():
    stack = Decoder(dim=24, depth=50, heads=4, layers="flash attn(window=5) ff", norm="rmsnorm", ff_glu=True)
    text = str(stack)
    assert text.splitlines()[0] == (
        "Decoder(dim=24, depth=50, heads=4, layers='flash attn(window=5) ff', norm='rmsnorm', ff_glu=True)"
    )
    count = sum(p.numel() for p in stack.parameters())
    assert f"# {count:,} parameters, float32 on cpu" in text
    assert "# layout '(flash attn(window=5) ff) x 50'" in text
    assert ".module_tree()" in text and ".flag_table()" in text and len(text.splitlines()) == 4
    assert eval(text, vars(xflash)).to_config() == stack.to_config()
    assert str(Encoder(dim=24, depth=1)).startswith("Encoder(dim=24, depth=1)\n")


def test_print_of_a_long_layout_closes_its_quotes():
    stack = Decoder(dim=8, depth=1, heads=2, layers=" ".join(f"attn(window={i})" for i in range(1, 30)))
    line = next(line for line in str(stack).splitlines() if "layers=" in line)
    assert line.endswith("...',") and len(line) < 300


def test_print_of_a_model_is_one_screen_and_can_be_evaluated():
    flags = {"pos": ("rotary", "alibi"), "attn_scores": "topk softclamp", "attn_topk_k": 3, "attn_softclamp_value": 9.0}
    stack = Decoder(dim=24, depth=3, heads=4, shift_tokens=(1, 0, 2, 0, 1, 0), **flags)
    model = TransformerWrapper(num_tokens=31, max_seq_len=48, attn_layers=stack, tie_embedding=True)
    trainer = AutoregressiveWrapper(model)
    flash = FLASHTransformer(num_tokens=31, dim=24, depth=2, group_size=8, query_key_dim=6)
    recurrent = BlockRecurrentTransformer(num_tokens=31, dim=24, depth=2, heads=2, dim_head=6, block_width=8)
    assert repr(flash).startswith("FLASHTransformer(num_tokens=31, dim=24, depth=2, group_size=8, query_key_dim=6)")
    plain = FLASHTransformer(num_tokens=31, dim=24, depth=2, query_key_dim=6, flash_bias=False)
    saved = xflash.from_config(plain.to_config())
    assert "flash_bias=False" in repr(plain) and "flash_bias=False" in repr(saved)
    for module in (model, trainer, twosided(), flash, recurrent, plain, saved, GAU(dim=24, query_key_dim=6)):
        text = repr(module)
        assert len(text.splitlines()) < 25 and max(map(len, text.splitlines())) <= 100
        assert eval(text, vars(xflash)).to_config() == module.to_config()
    assert "# net.attn_layers: layout '(attn ff) x 3'" in repr(trainer)
    # Whatever is printed around it stays short too, and all of it is there for those who want it.
    assert len(repr(torch.nn.Sequential(model)).splitlines()) < 25
    tree = trainer.module_tree()
    assert tree.startswith("AutoregressiveWrapper(\n") and tree.count("Branch(") == 6 and "LayerNorm(24" in tree


def twosided() -> XTransformer:
    sides = {"num_tokens": 31, "max_seq_len": 17, "depth": 2, "heads": 4}
    return XTransformer(dim=24, **{f"{side}_{name}": v for side in ("enc", "dec") for name, v in sides.items()})


def test_print_is_one_screen_however_long_the_layout():
    stack = Decoder(dim=12, custom_layers=("a", "f") * 200)
    assert len(str(stack).splitlines()) < 25 and max(map(len, str(stack).splitlines())) < 300


def test_what_is_half_built_can_be_printed():
    assert "Decoder object at" in repr(Decoder.__new__(Decoder))


def test_the_table_of_what_is_changed():
    stack = Decoder(dim=24, depth=2, pos="rotary", rotary_base=500, ff_mult=4)
    lines = [line.split()[0] for line in stack.flag_table(changed_only=True).splitlines()]
    assert lines == ["flag", "dim", "depth", "causal", "pos", "ff_mult", "rotary_base"]
    assert set(lines) < {line.split()[0] for line in stack.flag_table().splitlines()}


def printed(code: str, capsys) -> tuple[str, str]:
    """What an example prints, and what it says that it prints."""
    exec(compile(code, "example", "exec"), {})
    return capsys.readouterr().out.strip(), code.splitlines()[-1].partition("  # ")[2]


DOCUMENTED = [code for _, code in code_blocks.blocks(code_blocks.ROOT / "docs" / "flags.md", "python")]


@pytest.mark.parametrize("code", DOCUMENTED, ids=lambda code: code.splitlines()[3][:90])
def test_the_examples_run(code, capsys):
    assert len(code.splitlines()) == 6
    out, said = printed(code, capsys)
    assert out == said and said.startswith("torch.Size(")


def test_every_part_has_an_example():
    registries = (blocks, norms, positions, reads, scales, joins, scores, weight_fns)
    wanted = [f"{r.kind} {name!r}" for r in registries for name in r]
    assert sorted(group.title for group in groups() if group.example) == sorted(wanted)
    for group in groups():
        assert not group.example or group.title.split("'")[1] in group.example
    assert EXAMPLES.keys() == command.kinds()["wrappers"][1].keys()
    assert all(f"{name}(" in code for name, code in EXAMPLES.items())
    assert len(wanted) + len(EXAMPLES) == len(DOCUMENTED)


def test_parts_of_ones_own_have_an_example(damped, capsys):
    example = next(group.example for group in groups() if group.title == "block 'damped'")
    assert 'layers="damped ff", damped_share=0.5' in example
    out, said = printed(example, capsys)
    assert out == said
