"""What a comparison holds the same for all its variants."""

from typing import Literal

from ..base.frozen import frozen
from ..flags.flag import flag

__all__ = ["SHOWN_ONLY", "Settings"]

# Of these no result depends: they are no part of what a run is known by.
SHOWN_ONLY = ("device", "save_every", "train")


@frozen
class Settings:
    """The settings of a comparison; every one of them is the same for all variants."""

    kind: Literal["causal", "masked", "encoder-decoder"] = flag(
        "causal",
        "what is trained on text or ids: the next token, hidden ones, or the second half of a row from the first",
    )
    seq_len: int = flag(256, "tokens of a row", at_least=2)
    batch: int = flag(8, "rows of a step", at_least=1)
    num_layers: int = flag(
        4, "about how many layers a variant has that says no depth: its layout is repeated so often", at_least=1
    )
    num_tokens: int | None = flag(None, "of ids: how many tokens there are (None: the largest and one)", at_least=1)
    patch_size: int | None = flag(None, "of images: the side of a patch (None: a quarter of theirs)", at_least=1)
    warmup: int = flag(20, "steps to the full rate; from there a cosine takes it down to a tenth", at_least=0)
    weight_decay: float = flag(0.1, "AdamW's, of matrices and embeddings", at_least=0)
    beta2: float = flag(0.98, "AdamW's second beta", at_least=0, below=1)
    clip: float = flag(1.0, "the norm that gradients are cut to", above=0)
    held_out: int = flag(65_536, "tokens (of images: images) that a score is measured on, at most", at_least=1)
    looks: int = flag(8, "scores on an eighth of the held-out data on the way, for the plots", at_least=0)
    device: str | None = flag(None, "where is trained (None: on a GPU if there is one)")
    save_every: float = flag(60.0, "seconds between two checkpoints of a run", at_least=0)
    train: bool = flag(True, "False: nothing is trained, only what is known already is shown")
