"""The classes that a config can name."""

from typing import Any

from torch import nn

__all__ = ["CLASSES", "check_name", "homes", "is_ours", "is_torchs", "kind"]

CLASSES: dict[str, type[Any]] = {}

# What an argument may belong to that is given to something else.
HOMES = {"AttentionLayers": "the stack (Encoder, Decoder)"} | {
    name: name for name in ("TransformerWrapper", "ViTransformerWrapper", "AutoregressiveWrapper")
}


def homes(but: str, ending: str = "") -> list[tuple[str, list[str]]]:
    """Those of `HOMES` whose class is known and not called `but`, as `meant` wants them."""
    return [(text + ending, CLASSES[name].takes()) for name, text in HOMES.items() if name in CLASSES and name != but]


def is_torchs(cls: type) -> bool:
    """Whether a class was made by PyTorch of another one, which it stands before: `fully_shard` does so."""
    return cls.__module__.startswith("torch.distributed.")


def check_name(cls: type) -> None:
    """TypeError for a class that would take the place of one of xflash's in every config that names it."""
    present = CLASSES.get(cls.__name__)
    if present is not None and is_ours(present.__module__) and not is_ours(cls.__module__):
        raise TypeError(
            f"the class {cls.__module__}.{cls.__qualname__} needs a name of its own: in configs, {cls.__name__!r} "
            f"means {present.__module__}.{present.__qualname__}"
        )


def is_ours(module: str) -> bool:
    """Whether a module is one of xflash's."""
    return module.split(".")[0] == __name__.split(".")[0]


def kind(module: nn.Module) -> type:
    """The class that a module was built as."""
    return next(cls for cls in type(module).__mro__ if not is_torchs(cls))
