"""`frozen` gives what a dataclass of Python's own does."""

import dataclasses

import pytest

from xflash.base.frozen import frozen


class Values:
    near: int = 3
    far: tuple[int, ...] = ()
    hidden: float = dataclasses.field(default=0.5, repr=False, compare=False)
    made: int = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "made", 2 * self.near)


def classes():
    """The same values as a class of ours and of Python's."""
    for decorate in (frozen, dataclasses.dataclass(frozen=True, kw_only=True)):
        yield decorate(type("Values", (), {**vars(Values)}))


OURS, PYTHONS = classes()


@pytest.mark.parametrize("given", [{}, {"near": 5}, {"far": (2, 7), "hidden": 1.5}], ids=str)
def test_it_is_written_compared_and_replaced_as_a_dataclass(given):
    ours, theirs = OURS(**given), PYTHONS(**given)
    assert repr(ours) == repr(theirs) and dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert hash(ours) == hash(theirs)
    assert (ours == OURS(near=5)) == (theirs == PYTHONS(near=5))
    assert ours == dataclasses.replace(ours, hidden=7.0) != dataclasses.replace(ours, near=11)
    assert ours != theirs and ours != 3


def test_values_stay_and_are_given_by_name():
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'near'"):
        OURS().near = 2
    with pytest.raises(TypeError, match="takes 1 positional argument"):
        OURS(3)
    assert OURS.__doc__ == "Values by name: near, far, hidden, made."


def test_a_dataclass_of_ones_own_goes_on_from_it():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class More(OURS):
        wide: int = 1

    @frozen
    class Most(More):
        """Its own words."""

        def __repr__(self):
            return "most"

    assert repr(More(near=5)).endswith("More(near=5, far=(), made=10, wide=1)")
    assert repr(Most()) == "most" and Most.__doc__ == "Its own words." and Most(wide=3) != Most(wide=2)
