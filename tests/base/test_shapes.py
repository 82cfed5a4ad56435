"""`typed`: what has been found right once is not looked at again, and what is new always is."""

from typing import Any, Literal, NamedTuple

import pytest
import torch
from jaxtyping import TypeCheckError

from xflash import shapes
from xflash.base.shapes import Float, Tensor, kind, typed

if not shapes.CHECKING:
    pytest.skip("XFLASH_TYPECHECK=0", allow_module_level=True)


class Answer:
    """What the function under test is to give, whatever its arguments, and how often it was called."""

    def __init__(self, value):
        self.value, self.calls = value, 0


class Pair(NamedTuple):
    a: Tensor
    b: Tensor | None


@pytest.fixture
def checks(monkeypatch):
    """How many calls were looked at."""
    count = []
    real = shapes.jaxtyping.jaxtyped

    def counting(fn, **options):
        checked = real(fn, **options)

        def counted(*args, **kwargs):
            count.append(fn.__name__)
            return checked(*args, **kwargs)

        return counted

    monkeypatch.setattr(shapes.jaxtyping, "jaxtyped", counting)
    return count


def make():
    @typed
    def fn(
        x: Float[Tensor, "b n d"],
        y: Float[Tensor, "b d"] | None = None,
        *,
        answer: Answer | None = None,
        how: Literal["sum", "mean"] = "sum",
        rest: tuple[Tensor, ...] = (),
    ) -> Float[Tensor, "b n d"]:
        if answer is None:
            return x
        answer.calls += 1
        return answer.value

    return fn


def test_a_kind_of_call_is_looked_at_once(checks):
    fn, x = make(), torch.ones(2, 3, 5)
    for _ in range(4):
        assert fn(x) is x
    assert len(checks) == 1
    fn(x, torch.ones(2, 5))
    fn(torch.ones(2, 7, 5))
    fn(x.double())
    fn(x, how="mean")
    assert len(checks) == 5
    fn(torch.zeros(2, 7, 5)), fn(x=x), fn(x, y=torch.ones(2, 5))
    # Keywords are told apart from places.
    assert len(checks) == 7


WRONG: dict[str, dict[str, Any]] = {
    "axes": {"x": torch.ones(2, 3)},
    "dtype": {"x": torch.ones(2, 3, 5, dtype=torch.long)},
    "two shapes that do not fit": {"y": torch.ones(2, 7)},
    "type": {"x": 3},
    "name": {"how": "max"},
    "deep in a tuple": {"rest": (3,)},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_refused_after_right_ones_and_never_reach_the_function(wrong):
    fn, answer = make(), Answer(torch.ones(2, 3, 5))
    right = {"x": torch.ones(2, 3, 5), "y": torch.ones(2, 5), "how": "sum", "rest": (torch.ones(1),), "answer": answer}
    for _ in range(3):
        fn(**right)
    for _ in range(2):
        with pytest.raises(TypeCheckError, match="parameters"):
            fn(**{**right, **WRONG[wrong]})
    assert answer.calls == 3
    fn(**right)


def test_wrong_results_are_refused_after_right_ones():
    fn, x = make(), torch.ones(2, 3, 5)
    answer = Answer(x)
    for _ in range(2):
        fn(x, answer=answer)
    for value in (torch.ones(2, 3, 7), x.long(), None, [x]):
        answer.value = value
        calls = answer.calls
        with pytest.raises(TypeCheckError, match="return value"):
            fn(x, answer=answer)
        assert answer.calls == calls + 1, "checking called the function again"
    answer.value = x + 1
    assert fn(x, answer=answer) is answer.value


def test_a_result_of_several_parts():
    answer = Answer((torch.ones(2, 3), Pair(torch.ones(1), None)))

    @typed
    def fn(x: Float[Tensor, "b n"]) -> tuple[Float[Tensor, "b n"], Pair | None]:
        return answer.value

    for _ in range(3):
        assert fn(torch.ones(2, 3)) is answer.value
    answer.value = (torch.ones(2, 3), None)
    assert fn(torch.ones(2, 3)) is answer.value
    for value in ((torch.ones(2, 4), None), (torch.ones(2, 3), 3), (torch.ones(2, 3),)):
        answer.value = value
        with pytest.raises(TypeCheckError, match="return value"):
            fn(torch.ones(2, 3))


def test_the_memory_is_bounded(checks, monkeypatch):
    monkeypatch.setattr(shapes, "MOST_KINDS", 3)
    fn = make()
    for n in (1, 2, 3, 4, 1, 4):
        fn(torch.ones(2, n, 5))
    assert len(checks) == 5
    for n in (4, 1):
        fn(torch.ones(2, n, 5))
    assert len(checks) == 5


def test_kinds():
    x = torch.ones(2, 3)
    assert kind(x) == kind(x + 1) != kind(x.double())
    assert kind(torch.nn.Parameter(x)) != kind(x)
    assert kind(True) != kind(1) != kind(2) and kind("a") != kind("b")
    assert kind(Pair(x, None)) is Pair and kind(None) is type(None)
    assert kind({"x": x, "n": 1}) == kind({"x": x + 1, "n": 1}) != kind({"x": x, "n": 2})
    assert kind({"x": x}) != kind({"y": x}) != kind({"y": x.double()})
    for value in ([x], {"x": [x]}, {x}):
        with pytest.raises(shapes.Unknown):
            kind(value)


def test_numbers_that_count_make_no_new_kind(checks):
    """As the tokens of a state do, from call to call; small ones are told apart, as Literal annotations ask for."""

    @typed
    def fn(x: Float[Tensor, "b n"], past: int, role: Literal[0, 1] = 0) -> Float[Tensor, "b n"]:
        return x

    for past in range(100, 140):
        fn(torch.ones(2, 3), past)
    assert len(checks) == 1
    fn(torch.ones(2, 3), 140, 1)
    with pytest.raises(TypeCheckError):
        fn(torch.ones(2, 3), 140, 2)
