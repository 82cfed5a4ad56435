"""`Wanted`: what a call of a model is to give beside its logits, or in their place."""

from typing import Any, NamedTuple

from ..base.checks import check_switches

__all__ = ["Wanted"]


# What a call that goes on from a memory can give as well.
OF_SEGMENTS = ("return_mems", "return_hiddens", "return_auxiliary_loss")


class Wanted(NamedTuple):
    """The switches of a call, by the names of its arguments without `return_`."""

    embeddings: bool = False
    logits_and_embeddings: bool = False
    attn: bool = False
    mems: bool = False
    hiddens: bool = False
    auxiliary_loss: bool = False

    def of_layers(self) -> dict[str, bool]:
        """What the stack is to note of its layers, beside attention's matrices."""
        return {"return_hiddens": self.hiddens, "return_auxiliary_loss": self.auxiliary_loss}

    def check(self, mems: Any, **whole: Any) -> None:
        """TypeError for what is no switch, ValueError for what excludes each other.

        mems: the memory that the call goes on from.  whole: arguments that only a call on whole sequences can have.
        """
        named = {f"return_{name}": value for name, value in self._asdict().items()}
        check_switches(**named)
        if mems is not None or self.mems:
            for name, value in {**whole, **named}.items():
                if name not in OF_SEGMENTS and value is not None and value is not False:
                    raise ValueError(f"{name} cannot be given together with mems and return_mems")
        if self.embeddings and self.logits_and_embeddings:
            raise ValueError("return_embeddings and return_logits_and_embeddings exclude each other; give one of them")
