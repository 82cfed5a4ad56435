"""What `generate`, `stream` and `beam_search` share: reading prompts, and the next logits with a state or without."""

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from ..base.checks import LARGEST, as_mask, describe, given, integer, is_integral, widened
from ..base.looks import within
from ..base.shapes import Bool, Float, Int, Tensor
from ..stack.face import AttentionLayers

__all__ = [
    "Prompts",
    "Recomputed",
    "Rows",
    "advance",
    "begin",
    "check_causal",
    "check_eos",
    "check_every",
    "check_gives_logits",
    "check_seq_len",
    "check_token",
    "evaluating",
    "lengths_to_mask",
    "only_logits",
    "read_prompts",
    "row_lengths",
    "token_ids",
    "window",
]


# Token ids in one tensor, or row by row.
Rows = Int[Tensor, "*b n"] | Sequence[Int[Tensor, " _"]]


class Prompts(NamedTuple):
    """Prompts that all end in the last column; `mask` is None when they are equally long, `lead` the batch shape."""

    ids: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"] | None
    lead: tuple[int, ...]


def token_ids(name: str, ids: Any, what: str = "integer token ids") -> Int[Tensor, "..."]:
    """`ids` as int64; TypeError unless it is a tensor of integers."""
    if not isinstance(ids, torch.Tensor):
        raise TypeError(f"{name} must be a tensor of {what}, not {describe(ids)}")
    if not is_integral(ids):
        raise TypeError(f"{name} must hold {what}, not {ids.dtype}")
    return ids.long()


def row_lengths(name: str, lens: Any, ids: Int[Tensor, "b n"]) -> Int[Tensor, " b"]:
    """One length a row of `ids`, each within [0, n] (looked at on the CPU only); TypeError or ValueError otherwise."""
    b, n = ids.shape
    if not isinstance(lens, (torch.Tensor, list, tuple)):
        raise TypeError(f"{name} must be a tensor or a list of {b} lengths, not {describe(lens)}")
    if not isinstance(lens, torch.Tensor):
        # A boolean among numbers would count as one of them.
        lens = torch.tensor([integer(f"{name}[{i}]", length, -LARGEST) for i, length in enumerate(lens)]).long()
    lens = token_ids(name, lens, "integers")
    if lens.shape != (b,):
        raise ValueError(f"{name} has shape {tuple(lens.shape)}, but there are {b} rows")
    sentence = "{name} must be from 0 to {high}, the width of the tensor, not {wrong}"
    return within(lens, 0, n, sentence, name).to(ids.device)


def lengths_to_mask(lens: Int[Tensor, " b"], n: int) -> Bool[Tensor, "b n"]:
    """True at the first `lens` places of each row."""
    return torch.arange(n, device=lens.device) < lens[:, None]


def read_prompts(prompts: Any, prompt_lens: Any = None, mask: Any = None) -> Prompts:
    """Prompts as one tensor (..., n), alone or with lengths or a mask, or as a list of (n,) tensors of any lengths.

    Rows may be padded anywhere: real tokens keep their order. TypeError for what is no prompt, ValueError for an
    empty one and for lengths or masks that don't fit.
    """
    if prompt_lens is not None and mask is not None:
        raise ValueError("prompt_lens and mask both say which tokens of the prompts are real: give one of them")
    if isinstance(prompts, (list, tuple)):
        if prompt_lens is not None or mask is not None:
            raise ValueError("prompt_lens and mask belong to prompts in one tensor: in a list each has its own length")
        ids, prompt_lens = stack_prompts(prompts)
    else:
        ids = token_ids("prompts", prompts)
        if ids.ndim == 0:
            raise ValueError("prompts has no dimension: give (n,) for one prompt or (b, n) for several")
    if ids.numel() == 0:
        missing = "give at least one prompt" if ids.shape[-1] else "a prompt needs at least one token"
        raise ValueError(f"prompts of shape {tuple(ids.shape)} are empty: {missing}")
    lead, rows = tuple(ids.shape[:-1]), ids.reshape(-1, ids.shape[-1])
    if mask is not None:
        mask = mask.reshape(rows.shape) if getattr(mask, "shape", None) == ids.shape else mask
        mask = as_mask(mask, (rows.shape[0], rows.shape[1]))
    elif prompt_lens is not None:
        mask = lengths_to_mask(row_lengths("prompt_lens", prompt_lens, rows), rows.shape[1])
    return Prompts(*align_right(rows, mask), lead)


def stack_prompts(prompts: Sequence[Any]) -> tuple[Int[Tensor, "b n"], list[int]]:
    """Prompts of any lengths in one tensor, padded behind, and their lengths."""
    if not prompts:
        raise ValueError("prompts is an empty list: give at least one prompt")
    rows = [token_ids(f"prompts[{i}]", row) for i, row in enumerate(prompts)]
    for i, row in enumerate(rows):
        if row.ndim != 1:
            raise ValueError(f"prompts[{i}] has shape {tuple(row.shape)}: in a list each prompt is 1-D")
    return pad_sequence(rows, batch_first=True), [len(row) for row in rows]


def align_right(ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None) -> tuple[Tensor, Tensor | None]:
    """Each row's real tokens moved to its end, in order, columns without any cut off; ValueError for an empty row."""
    if mask is None:
        return ids, None
    lens = mask.sum(1).tolist()
    if min(lens) == 0:
        raise ValueError(f"the prompt in row {lens.index(0)} is empty: a prompt needs at least one token")
    order = mask.byte().argsort(dim=1, stable=True)[:, -max(lens) :]
    mask = mask.gather(1, order)
    # What stands at a masked place need not be an id of the vocabulary.
    ids = ids.gather(1, order).masked_fill(~mask, 0)
    return ids, None if min(lens) == max(lens) else mask


def window(net: Any, prompts: Prompts, seq_len: int, restrict: bool) -> int | None:
    """How many of the last tokens the model can be given, None if all; ValueError if too few unless `restrict`."""
    # A model with relative positions may have a max_seq_len that limits nothing: its length_limit says so.
    n, limit = prompts.ids.shape[1], getattr(net, "length_limit", getattr(net, "max_seq_len", None))
    need = n + seq_len - 1  # the last token is not read
    if limit is None or need <= limit:
        return None
    if not restrict:
        fits = f"at most seq_len={limit - n + 1} fits" if n <= limit else f"the prompt must be cut to {limit} first"
        raise ValueError(
            f"a prompt of {n} tokens and seq_len={seq_len} need {need} positions, but the model has "
            f"max_seq_len={limit}: {fits}. restrict_to_max_seq_len=True "
            f"shows it the last {limit} tokens only, read anew for every token (slow)"
        )
    return limit


def prefix_of(beside: Mapping[str, Any], b: int) -> int | Int[Tensor, " b"] | None:
    """The prefix that a call of b rows is given; None where it has none that a model would take."""
    prefix: Any = beside.get("prefix_attn_len")
    if is_integral(prefix) and prefix.shape == (b,):
        return widened(prefix)
    return prefix if isinstance(prefix, int) and 0 <= prefix <= LARGEST else None


class Recomputed(NamedTuple):
    """Stands for a state where there is none: all tokens so far, read anew for every next one (the slow definition)."""

    ids: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"] | None
    window: int | None
    kwargs: Mapping[str, Any]

    def logits(self, net: Any) -> Float[Tensor, "b v"]:
        """The logits after the last token, which is the last column of every row."""
        last = slice(None) if self.window is None else slice(-self.window, None)
        masked = {} if self.mask is None else {"mask": self.mask[:, last]}
        ids = self.ids[:, last]
        return only_logits(net, net(ids, **masked, **{**self.kwargs, **self.prefix(ids.shape[1])}), ids)[:, -1]

    def prefix(self, n: int) -> dict[str, Any]:
        """What is left of a prefix among the last n tokens."""
        b, read = self.ids.shape
        prefix = prefix_of(self.kwargs, b)
        if prefix is None or n == read:
            return {}
        gone: Any = read - n if self.mask is None else self.mask[:, : read - n].sum(1)
        left = prefix - gone
        return {"prefix_attn_len": left.clamp(min=0) if isinstance(left, torch.Tensor) else max(left, 0)}

    def append(self, tokens: Int[Tensor, " b"]) -> "Recomputed":
        """One more token a row."""
        mask = None if self.mask is None else torch.cat((self.mask, torch.ones_like(self.mask[:, :1])), 1)
        return self._replace(ids=torch.cat((self.ids, tokens[:, None]), 1), mask=mask)

    def reorder(self, index: Int[Tensor, " b2"]) -> "Recomputed":
        """The rows that `index` names, with their rows of every tensor in kwargs (context and the like)."""
        mask = None if self.mask is None else self.mask[index]
        kwargs = {k: v if shared(k, v) else v[index] for k, v in self.kwargs.items()}
        return self._replace(ids=self.ids[index], mask=mask, kwargs=kwargs)


def shared(name: str, value: Any) -> bool:
    """Whether an argument of the model is one for all rows."""
    if not isinstance(value, torch.Tensor):
        return True
    return name == "context_pos" and (value.dim() == 1 or value.shape[0] == 1)


def check_gives_logits(net: Any) -> None:
    """TypeError or ValueError unless `net` may be a model from token ids to logits; a net of one's own may be any."""
    wanted = "net must be a model from token ids to logits such as TransformerWrapper"
    if not isinstance(net, nn.Module):
        raise TypeError(f"{wanted}, not {describe(net)}")
    name, gives = type(net).__name__, getattr(net, "gives", "")
    if isinstance(gives, str) and gives:
        raise TypeError(f"{wanted}; {name} gives {gives}")
    kind = type(net).__module__.removeprefix("torch.nn.modules.")
    # Of torch's own layers, containers and tables of embeddings can be such a model.
    if kind != type(net).__module__ and kind not in ("container", "sparse"):
        raise TypeError(f"{wanted}, not a single layer, {name}")
    if getattr(net, "return_only_embed", False) is True:
        raise ValueError(f"{name} has return_only_embed=True: it gives embeddings, and a loss needs logits")


def check_causal(net: nn.Module) -> None:
    """ValueError for a net that sees what it is to predict, as it says itself or as all stacks inside it are."""
    name, says = type(net).__name__, getattr(net, "causal", None)
    if says is not None and not says:
        raise ValueError(f"{name} is bidirectional, so it sees what it is to predict: use a Decoder")
    stacks = [m for m in net.modules() if isinstance(m, AttentionLayers)] if says is None else []
    if stacks and not any(stack.causal for stack in stacks):
        raise ValueError(
            f"{name} does not say that it is causal, and all stacks in it are bidirectional, so that it would see what "
            "it is to predict: use a Decoder, or set causal = True on it if it looks back only"
        )


def only_logits(net: Any, out: Any, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n v"]:
    """What a model gave for `ids`; TypeError or ValueError where that is not logits alone, one row of them a token."""
    if isinstance(out, torch.Tensor):
        # Embeddings in front of the tokens have logits too.
        if out.dim() != 3 or out.shape[0] != ids.shape[0] or out.shape[1] < ids.shape[1]:
            b, n = ids.shape
            raise ValueError(
                f"{type(net).__name__} given ids ({b}, {n}) must give logits ({b}, {n}, num_tokens), "
                f"not {tuple(out.shape)}"
            )
        return out
    raise TypeError(
        f"{type(net).__name__} called with ids gives a {type(out).__name__}, not logits alone: use its own loss, and "
        "generate with its step (cache_kv=True)"
    )


def begin(
    net: Any, prompts: Prompts, kwargs: Mapping[str, Any], *, last: int | None = None, cache_kv: bool = True
) -> tuple[Float[Tensor, "b v"], Any]:
    """The logits after the prompts, and the state to go on from; `last` is what `window` gave."""
    if last is not None or not cache_kv:
        state = Recomputed(prompts.ids, prompts.mask, last, kwargs)
        return state.logits(net), state
    if not hasattr(net, "step"):
        raise TypeError(f"{type(net).__name__} has no step(ids, state, mask=): give cache_kv=False to go without one")
    masked = {} if prompts.mask is None else {"mask": prompts.mask}
    return last_logits(net, net.step(prompts.ids, None, **masked, **kwargs), prompts.ids)


def advance(net: Any, tokens: Int[Tensor, " b"], state: Any) -> tuple[Float[Tensor, "b v"], Any]:
    """The logits after one more token a row, and the next state."""
    if isinstance(state, Recomputed):
        state = state.append(tokens)
        return state.logits(net), state
    return last_logits(net, net.step(tokens[:, None], state), tokens[:, None])


def last_logits(net: Any, out: Any, ids: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b v"], Any]:
    """The logits of the last token, and the state, of what a step gave; TypeError where that is no such pair."""
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"{type(net).__name__}.step must give (logits, state), not {given(out)}")
    return only_logits(net, out[0], ids)[:, -1], out[1]


def check_eos(net: Any, eos_token: Any) -> int | None:
    """The end token; TypeError or ValueError if it is no id of the model's vocabulary."""
    return None if eos_token is None else check_token(net, "eos_token", eos_token)


def check_token(net: Any, name: str, token: Any) -> int:
    """`token`; TypeError or ValueError if it is no id of the model's vocabulary, as far as that is known."""
    token, v = integer(name, token, 0), getattr(net, "num_tokens", None)
    if v is not None and token >= v:
        raise ValueError(f"{name}={token} is not in the model's vocabulary of {v} tokens (0 to {v - 1})")
    return token


def check_seq_len(seq_len: Any) -> int:
    """The number of tokens to make; TypeError or ValueError unless it is an integer of at least 1."""
    return integer("seq_len", seq_len, 1)


def check_every(device: torch.device) -> int:
    """After how many tokens to look whether all rows have ended: on a GPU each look waits for the device."""
    return 1 if device.type == "cpu" else 16


# The modules that go back to training mode when nobody evaluates them any more, and how many do; changed under a lock,
# for threads may generate from one model.
EVALUATED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
COUNTING = threading.Lock()


@contextmanager
def evaluating(module: nn.Module) -> Generator[None, None, None]:
    """Eval mode without gradients inside; afterwards every submodule is in the mode it was in, whatever happened.

    Where several are inside, in one thread or in many, modes come back with the last of them.
    """
    with COUNTING:
        held = [m for m in module.modules() if m.training or m in EVALUATED]
        for m in held:
            EVALUATED[m] = EVALUATED.get(m, 0) + 1
            m.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        with COUNTING:
            for m in held:
                EVALUATED[m] -= 1
                if not EVALUATED[m]:
                    del EVALUATED[m]
                    m.training = True
