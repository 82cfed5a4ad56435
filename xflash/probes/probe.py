"""`Probe`: a task of tokens whose right answers are known, which knows nothing of models."""

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch

from ..base.checks import check_generator, given, integer
from ..base.shapes import Bool, Float, Int, Tensor
from ..flags.as_json import to_json
from ..flags.flag import build, flag

__all__ = ["UNASKED", "Probe", "distinct", "maker", "what_followed"]

# The label where nothing is asked: what PyTorch's cross entropy leaves out.
UNASKED = -100
P = TypeVar("P", bound="Probe")


@dataclass(frozen=True, kw_only=True, repr=False)
class Probe(ABC):
    """A task of tokens whose right answers are known.

    `ids, labels = probe.draw(rows, generator)`: both (rows, seq_len); the logits at a token are to give the label at
    the same token, and where it is -100 nothing is asked. `probe.score(logits, labels)` is the share of right ones.
    """

    name: ClassVar[str]
    # Whether what stands up to a token is enough for the answer there.
    causal: ClassVar[bool] = True

    seq_len: int = flag(64, "tokens of a row", at_least=2)

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """How many different tokens there are, answers included."""

    @property
    @abstractmethod
    def answers(self) -> range:
        """The tokens that can be an answer, each as often as any other."""

    @abstractmethod
    def rows_and_labels(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What `draw` gives, of arguments that have been checked."""

    @abstractmethod
    def oracle(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        """The right answers, found in the ids alone; -100 where nothing is asked, or where they do not tell."""

    @property
    def chance(self) -> float:
        """The share that is right by guessing among the possible answers."""
        return 1 / len(self.answers)

    def draw(self, rows: int, generator: torch.Generator) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
        """Ids and labels (rows, seq_len), on the generator's device; the same ones from a generator in the same state.

        TypeError or ValueError for rows that are no count and a generator that is none.
        """
        integer("rows", rows, 1)
        if check_generator(generator) is None:
            raise TypeError("generator must be a torch.Generator such as torch.Generator().manual_seed(0), not None")
        return self.rows_and_labels(rows, generator)

    def score(self, logits: Float[Tensor, "b n v"], labels: Int[Tensor, "b n"]) -> float:
        """The share of all that is asked whose right answer has the largest of the logits (rows, seq_len, num_tokens).

        ValueError for shapes that do not fit each other or the probe, and where nothing is asked.
        """
        for name, tensor in (("logits", logits), ("labels", labels)):
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name} must be a tensor, not {given(tensor)}")
        if logits.shape != (*labels.shape, self.num_tokens):
            wanted = (*labels.shape, self.num_tokens)
            raise ValueError(f"logits for labels {tuple(labels.shape)} must be {wanted}, not {tuple(logits.shape)}")
        asked = labels != UNASKED
        if not asked.any():
            raise ValueError("labels ask nothing: all of them are -100")
        return (logits.argmax(-1) == labels)[asked].double().mean().item()

    def longer(self: P, seq_len: int) -> P:
        """The same probe in rows of more tokens: what a model has learnt in short ones, tried beyond them.

        ValueError for fewer tokens than the probe has.
        """
        integer("seq_len", seq_len, self.seq_len)
        return dataclasses.replace(self, seq_len=seq_len)

    def describe(self) -> dict[str, Any]:
        """Everything that decides what is drawn, as JSON has it."""
        return {"probe": self.name, **to_json(self.settings())}

    def settings(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __repr__(self) -> str:
        return f"probes.{self.name}({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"


def maker(probe: type[P]) -> Callable[..., P]:
    """The function that users make a probe with: signature and words of the class, wrong settings answered."""

    def make(**settings: Any) -> P:
        return build(probe, settings, where=f" of probes.{probe.name}")

    make.__name__ = make.__qualname__ = probe.name
    make.__module__, make.__doc__ = probe.__module__, probe.__doc__
    make.__signature__ = inspect.signature(probe).replace(return_annotation=probe)  # ty: ignore[missing-attribute]
    return make


def distinct(rows: int, of: int, count: int, generator: torch.Generator) -> Int[Tensor, "b c"]:
    """`count` different numbers below `of` for each row, in random order."""
    return torch.rand(rows, of, generator=generator, device=generator.device).argsort(1)[:, :count]


def what_followed(ids: Int[Tensor, "b n"], like: Bool[Tensor, "b n n"]) -> Int[Tensor, "b n"]:
    """At each token what stands behind the first that it is `like` (b, token, other); -100 where there is none."""
    following = ids.roll(-1, 1).gather(1, like.int().argmax(-1))
    return following.masked_fill(~like.any(-1), UNASKED)
