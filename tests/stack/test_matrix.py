"""The laws over a pairwise covering set of all flags; the counts are printed at the end of the test run."""

import itertools
from dataclasses import dataclass

import code_blocks
import covering
import laws
import matrix
import matrix_values
import model_laws
import pytest
from quick import quick

import xflash
from xflash import blocks, flag, scores
from xflash.flags.flag import check_value, flags_of

SETS = matrix.stored()
# One combination of so many is in the quick run, and in the usual one; together they cover all pairs of choices.
EVERY, USUAL = 27, 3


def cases(what: str, outcome: str) -> list:
    """The combinations of a kind as test parameters: (causal, indices of choices)."""
    return [
        pytest.param(kind.endswith(" causal"), row, id=f"{kind.split()[1]}-{i}")
        for kind, rows in SETS.items()
        if kind.startswith(what)
        for i, row in enumerate(rows[outcome])
    ]


def some(what: str) -> list:
    """The combinations that are accepted, most of them thorough."""
    quickly, usual = (lambda _, number, every=every: number % every == 0 for every in (EVERY, USUAL))
    return quick(cases(what, "accepted"), quickly, usual)


def one_of_two(row: list[int]) -> tuple[bool]:
    """One way or the other, as the combination has it: every block and flag meets both in some of them."""
    return (sum(row) % 2 == 0,)


def one_half(row: list[int]) -> tuple:
    """One of the dtypes of autocast, as the combination has it."""
    return (laws.HALVES[sum(row) // 2 % 2],)


def half_of(row: list[int]) -> dict[str, bool]:
    """Of the laws of states those of rows of unlike lengths, or those of states as values: docs/laws.md."""
    return {"lengths": sum(row) % 4 < 2, "values": sum(row) % 4 >= 2}


@pytest.mark.parametrize(("causal", "row"), some("stack"))
def test_stack(causal, row, tmp_path, record_property):
    record_property("combination", "accepted")
    stack = matrix.build_stack(causal, matrix.as_row("stack", row))
    if causal and any(block.refuses_step() for block in stack.blocks()):
        with pytest.raises(ValueError, match="cannot be stepped"):
            laws.go(stack, laws.sample(laws.live(stack), 3))
        laws.causal(stack)
        return
    if any(block.refuses_step() for block in stack.blocks()):
        laws.shape(laws.live(stack))
        laws.saved_as_built(stack, tmp_path)
        return
    laws.all_laws(stack, tmp_path, cuts=(9,), ways=one_of_two(row), **half_of(row))
    # Of the settings that reproduce a peer this one lets the stream grow: docs/laws.md.
    if stack.arguments.get("hyper_mixing") != "sum":
        laws.sane_start(stack, halves=one_half(row))
    if any(branch.grad_checkpoint for branch in stack.branches):
        laws.recomputed(stack)


@pytest.mark.parametrize(
    ("what", "causal", "row"),
    [
        pytest.param(what, *case.values, id=f"{what}-{case.id}", marks=case.marks)
        for what in ("cross", "recurrent", "experts", "scaled")
        for case in some(what)
    ],
)
def test_other_blocks(what, causal, row, tmp_path, record_property):
    record_property("combination", "accepted")
    _, build = matrix.domain_of(what)
    stack = build(causal, matrix.as_row(what, row))
    laws.all_laws(stack, tmp_path, cuts=(9,), ways=one_of_two(row), **half_of(row))
    # Of YaRN's factor gau's weights are the square: docs/laws.md.
    squared = what == "scaled" and stack.arguments.get("rotary_scaling") == "yarn"
    # Long enough for a second block: what the first one writes must be read.
    laws.sane_start(stack, n=37, most=float("inf") if squared else 3, halves=one_half(row))
    if any(branch.grad_checkpoint for branch in stack.branches):
        laws.recomputed(stack)


@pytest.mark.parametrize(("causal", "row"), some("wrapper"))
def test_wrapper(causal, row, tmp_path, record_property):
    record_property("combination", "accepted")
    model = matrix.build_model(causal, matrix.as_row("wrapper", row))
    model_laws.model_laws(model, tmp_path)


@pytest.mark.parametrize(
    ("what", "causal", "row"),
    [
        pytest.param(what, *case.values, id=f"{what}-{case.id}", marks=case.marks)
        for what in ("frames", "numbers", "several")
        for case in some(what)
    ],
)
def test_models_of_other_tokens(what, causal, row, tmp_path, record_property):
    record_property("combination", "accepted")
    _, build = matrix.domain_of(what)
    model_laws.model_laws(build(causal, matrix.as_row(what, row)), tmp_path, n=13)


@pytest.mark.parametrize(("causal", "row"), cases("vit", "accepted"))
def test_vit(causal, row, tmp_path, record_property):
    record_property("combination", "accepted")
    model_laws.vit_laws(matrix.build_vit(causal, matrix.as_row("vit", row)), tmp_path)


@pytest.mark.parametrize(("causal", "row"), cases("seq2seq", "accepted"))
def test_seq2seq(causal, row, tmp_path, record_property):
    record_property("combination", "accepted")
    model_laws.seq2seq_laws(matrix.build_seq2seq(causal, matrix.as_row("seq2seq", row)), tmp_path)


@pytest.mark.parametrize("what", matrix.DOMAINS)
def test_refusals(what, record_property):
    """Every combination that is counted as refused is refused, by a sentence."""
    refused = [(case.values[0], case.values[1]) for case in cases(what, "refused")]
    record_property("refused", len(refused))
    _, build = matrix.domain_of(what)
    for causal, row in refused:
        assert len(covering.refusal(build, causal, matrix.as_row(what, row))) > 30


@pytest.mark.parametrize("kind", quick(SETS, lambda kind, _: not kind.startswith("stack")))
def test_the_set_covers_every_pair(kind):
    """Each pair of choices is in an accepted combination, or is refused beside defaults: else run tests/matrix.py."""
    what, direction = kind.split()
    domain, build = matrix.domain_of(what)
    names = list(domain)
    defaults = {name: options[0] for name, options in domain.items()}
    covered = matrix.pairs(what, SETS[kind]["accepted"])
    open_pairs = []
    for j, i in itertools.combinations(range(len(names)), 2):
        for x, y in itertools.product(range(len(domain[names[i]])), range(len(domain[names[j]]))):
            if ((names[i], x), (names[j], y)) not in covered:
                row = {**defaults, names[i]: domain[names[i]][x], names[j]: domain[names[j]][y]}
                if not covering.refusal(build, direction == "causal", row):
                    open_pairs.append(row)
    assert not open_pairs, f"{len(open_pairs)} pairs are not covered; run python tests/matrix.py"


@pytest.mark.parametrize(
    "kind", [kind for kind in SETS if kind.split()[0] in ("stack", "recurrent", "cross", "experts")]
)
def test_each_value_meets_both_halves_of_the_laws_of_states(kind):
    rows = SETS[kind]["accepted"]
    for place, options in enumerate(matrix.domain_of(kind.split()[0])[0].values()):
        for value in range(len(options)):
            halves = {half_of(row)["lengths"] for row in rows if row[place] == value}
            assert len(halves) != 1, (kind, place, value)


OWNERS = matrix_values.owners()


@pytest.mark.parametrize(("prefix", "config"), OWNERS, ids=[f"{p}{c.__module__.split('.')[-1]}" for p, c in OWNERS])
def test_every_flag_says_what_it_is_tried_with(prefix, config):
    """Or why it needs nothing; and what it means."""
    for name, spec in flags_of(config).items():
        assert spec.doc, f"{prefix}{name} has no doc"
        assert spec.tried is not None, f"{prefix}{name} says nothing about what it is tried with: flag(..., tried=...)"
        assert not isinstance(spec.tried, str) or len(spec.tried.split()) > 2, (
            f"{prefix}{name}: {spec.tried!r} is no reason"
        )
        for entry in matrix_values.entries(spec):
            assert name in entry
            for other, value in entry.items():
                check_value(prefix + other, value, flags_of(config)[other])


def test_every_value_that_is_tried_is_accepted_in_some_combination():
    met = set()
    for kind, rows in SETS.items():
        what = kind.split()[0]
        flags = [covering.merged(matrix.as_row(what, row)) for row in rows["accepted"]]
        met |= {(name, shown(value)) for combination in flags for name, value in combination.items()}
    missing = [
        (prefix + name, value)
        for prefix, config in OWNERS
        for spec in flags_of(config).values()
        for entry in matrix_values.entries(spec)
        for name, value in entry.items()
        if value != flags_of(config)[name].default and (prefix + name, shown(value)) not in met
    ]
    # Of the company that steps keep, a block has what it can hold.
    missing = [(name, value) for name, value in missing if not name.endswith("_scores")]
    assert not missing
    for name, block in blocks.items():
        able = {part for part in scores if "scores" in block.holds and not block.refuses(scores[part])}
        assert able <= {part for flag, value in met if flag == f"{name}_scores" for part in value.split()}


def shown(value):
    """A value as it is compared: parts are named by a text or a tuple."""
    named = isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    return " ".join(value) if named else str(value)


def test_parts_of_ones_own_enter_the_matrix_by_themselves():
    with code_blocks.registries_kept():

        @xflash.scales.register("halved")
        class Halved(xflash.Scale):
            """Half the update."""

            @dataclass(frozen=True, kw_only=True)
            class Config:
                share: float = flag(0.5, "what is left of it", tried=(0.25,))
                twice: bool = flag(False, "two times", tried=({"twice": True},))

        scale = matrix_values.stack_axes(["scale"])["scale"]
    assert [choice for choice in scale if choice.get("scale") == "halved"] == [
        {"scale": "halved"},
        {"scale": "halved", "halved_share": 0.25},
        {"scale": "halved", "halved_twice": True},
    ]


def test_every_block_is_in_some_combinations():
    chosen = {*matrix.PLAIN, *matrix.CROSS, *matrix.RECURRENT, *matrix.EXPERTS}
    assert chosen == {name for name, block in blocks.items() if block.__module__.startswith("xflash.")}
