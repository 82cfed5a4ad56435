import subprocess
import sys

import pytest
from code_blocks import ROOT, registries_kept

import xflash
from xflash import __main__ as command
from xflash.base.registry import Registry, blocks, joins, norms, positions, reads, scales
from xflash.flags.aliases import ALIASES
from xflash.flags.flag import flags_of
from xflash.stack.config import known_flags
from xflash.stack.held import parts_of


def printed(capsys, *words):
    command.main(words)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["Decoder", "Encoder", "AttentionLayers"])
def test_without_settings_every_flag_of_every_part_is_listed(name, capsys):
    lines = [line.split() for line in printed(capsys, "flags", name).splitlines() if line]
    first = {words[0].split("=")[0] for words in lines}
    # Those of steps on the scores stand there once, without the blocks that have them.
    steps = {f"{b}_{part}_{f}": f"{part}_{f}" for b in blocks for _, part, c in parts_of(b) for f in flags_of(c)}
    assert {steps.get(flag, flag) for flag in known_flags()} <= first
    assert set(ALIASES) <= first
    causal = next(words for words in lines if words[0] == "causal")
    assert (
        causal[1:3]
        == {"Decoder": ["True", "*"], "Encoder": ["False", "False"], "AttentionLayers": ["False", "False"]}[name]
    )


def test_parts_are_headings(capsys):
    text = printed(capsys, "flags", "Decoder")
    for registry in (blocks, positions, reads, scales, joins):
        for name in registry:
            if known := [flag for flag in known_flags() if flag.startswith(f"{name}_")]:
                assert f"{registry.kind} {name!r}: " in text, known
    for name in norms:
        assert name in text
    assert "(layernorm)" in next(line for line in text.splitlines() if line.startswith("norm_bias"))


def test_settings_are_shown_in_the_table_of_the_stack(capsys):
    text = printed(
        capsys, "flags", "Decoder", "layers=flash ff", "pos=rotary", "flash_group_size=64", "flash_offset=False"
    )
    assert text.startswith("Decoder 'flash ff', ")
    assert "(assumed: dim=512, depth=1)" in text
    row = {line.split()[0]: line for line in text.splitlines() if line}
    assert row["flash_group_size"].split()[1:4] == ["64", "*", "256"]
    assert row["flash_offset"].split()[1:4] == ["False", "*", "True"]
    assert "rotary_base" in row and "attn_dim_head" not in row


def test_what_is_given_is_not_assumed(capsys):
    assert "assumed" not in printed(capsys, "flags", "Encoder", "dim=64", "depth=2")
    assert "(assumed: dim=512)" in printed(capsys, "flags", "Encoder", "custom_layers=('a', 'f')")


def test_a_wrapper_shows_its_arguments(capsys):
    text = printed(capsys, "flags", "TransformerWrapper")
    assert "num_tokens" in text and "max_seq_len" in text and "(required)" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flags", "Decodr"], "unknown class 'Decodr'; did you mean 'Decoder'?"),
        (["flags", "attn"], "unknown class 'attn'; 'attn' is a block, ask for flags Decoder layers=attn (stacks: "),
        (["list", "--import", "no_such"], "cannot import 'no_such': No module named 'no_such'"),
        (["flags", "Decoder", "flash_group=3"], "unknown flag 'flash_group'; did you mean 'flash_group_size'?"),
        (["flags", "Decoder", "layers=flsh"], "unknown block 'flsh'; did you mean 'flash'?"),
        (["flags", "Decoder", "gau_heads=2"], "gau_heads is set but the layout 'attn ff' has no 'gau'"),
        (["flags", "Decoder", "rotary"], "cannot read 'rotary': settings are written flag=value, such as pos=rotary"),
        (["flags", "Decoder", "heads=0"], "heads must be at least 1, not 0"),
        (["flags", "TransformerWrapper", "pos=rotary"], "TransformerWrapper is no stack"),
        (
            ["list", "norm"],
            "unknown kind 'norm'; did you mean 'norms'? (kinds: stacks, wrappers, recipes, blocks,",
        ),
    ],
)
def test_errors_name_the_nearest_match_and_exit_with_2(words, message, capsys):
    with pytest.raises(SystemExit) as exit:
        command.main(words)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_the_list_has_a_line_for_everything(capsys):
    text = printed(capsys, "list")
    parts = {name: value for name, value in vars(xflash).items() if isinstance(value, Registry)}
    assert parts.keys() - {"residuals"} == command.CHOSEN.keys()
    for kind, (how, found) in command.kinds().items():
        lines = printed(capsys, "list", kind).splitlines()
        assert lines[0] == f"{kind}: {how}" and "\n".join(lines) in text
        assert [line.split()[0] for line in lines[1:]] == list(found)
        assert all(len(line.split()) > 1 for line in lines[1:]), f"a part of {kind} without a word of what it is"
    assert "leaky_relu  PyTorch's leaky_relu" in text
    assert {"Decoder", "TransformerWrapper"} <= {line.split()[0] for line in text.splitlines() if line}


def test_what_is_registered_later_is_listed(capsys):
    with registries_kept():

        @xflash.joins.register("averaged")
        class Averaged(xflash.Join):
            """(x + f(x)) / 2."""

            def forward(self, x, update, ctx):
                return (x + update) / 2

        assert "averaged    (x + f(x)) / 2.\n" in printed(capsys, "list", "joins")
    assert "averaged" not in printed(capsys, "list", "joins")


def test_modules_with_parts_of_ones_own_are_imported(capsys, tmp_path, monkeypatch):
    code = "import xflash\n\n@xflash.norms.register('squarish')\nclass Own(xflash.norms['rmsnorm']):\n    'Own.'\n"
    (tmp_path / "own_parts_here.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with registries_kept():
        assert "squarish" in printed(capsys, "list", "norms", "--import", "own_parts_here")
        assert "squarish" in printed(capsys, "flags", "Decoder", "norm=squarish", "--import", "own_parts_here")


def test_as_a_command():
    done = subprocess.run([sys.executable, "-m", "xflash", "flag"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "flags" in done.stderr


def test_a_part_of_ones_own_is_listed(capsys):
    @xflash.blocks.register("doubled")
    class Doubled(xflash.Block):
        """Twice x."""

        def forward(self, x, ctx, state=None):
            return 2 * x, None

    try:
        assert "layers" in printed(capsys, "flags", "Decoder", "layers=doubled ff")
    finally:
        del blocks._parts["doubled"]
