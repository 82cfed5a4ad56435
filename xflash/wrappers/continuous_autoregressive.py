"""`ContinuousAutoregressiveWrapper`: the next-frame loss of a causal model of vectors, and frames from it."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import torch

from ..base.checks import as_doc_ids, check_switch, check_switches, given, integer
from ..base.shapes import Bool, Float, Int, Tensor
from ..flags.flag import flag
from ..generation.decoding import advance, begin, evaluating
from ..generation.prompts import Prompts, check_seq_len, read_prompts, window
from ..saving.configurable import Configurable
from ..stack.door import pack, plan_rows
from .continuous import ContinuousTransformerWrapper
from .hiding import uniform
from .losses import answer, asked, reduced
from .options import check_adds_none, check_for_new_tokens, check_handed_on, per_token, without_last
from .targets import next_tokens, unseen_targets, which_are_real

__all__ = ["ContinuousAutoregressiveWrapper"]

NO_TARGET = -1


class ContinuousAutoregressiveWrapper(Configurable):
    """Trains a causal `ContinuousTransformerWrapper` to give the next frame, and lets it go on by itself.

    A frame is a target when it and the frame before it are real; what stands behind a row's last real one is none.
    """

    @dataclass(frozen=True)
    class Config:
        net: ContinuousTransformerWrapper = flag(doc="a causal model of vectors, as wide where they come out as in")
        _: KW_ONLY
        use_l1_loss: bool = flag(False, "the loss is the mean distance of numbers, in place of its square")
        equal_loss_weight_batch: bool = flag(False, "each row with a target weighs the same, whatever its length")

    gives = "a loss of vectors"

    def assemble(self, config: Any) -> None:
        net = config.net
        if not net.causal:
            raise ValueError(
                "the net sees the frames that it is to predict, or pools them: give a ContinuousTransformerWrapper "
                "around a Decoder, without pooling"
            )
        if net.dim_in != net.dim_out:
            raise ValueError(
                f"the net takes frames with dim_in={net.dim_in} and gives them with dim_out={net.dim_out}: what it "
                "gives must be what it can go on from"
            )
        check_adds_none(net)
        self.net, self.use_l1_loss = net, config.use_l1_loss
        self.equal_loss_weight_batch = config.equal_loss_weight_batch

    def extra_repr(self) -> str:
        return f"use_l1_loss={self.use_l1_loss}, equal_loss_weight_batch={self.equal_loss_weight_batch}"

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Tensor | None = None,
        *,
        lens: Int[Tensor, " b"] | Sequence[int] | None = None,
        doc_ids: Int[Tensor, "b n"] | None = None,
        rollout_steps: int = 1,
        reduction: str = "mean",
        loss_weights: Float[Tensor, "b n"] | None = None,
        return_count: bool = False,
        return_outputs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The mean loss of predicting each row's next real frame, and with `return_outputs` all predictions too.

        The net is given the first n - 1 frames; which are real is said by `mask` (b, n) or the first `lens` of each
        row. With `rollout_steps` the net reads the frames of each row up to one that is drawn, and then as many of its
        own, the loss being of these; rows without so many real frames behind a first one have no target. Without
        any target the loss is 0. `reduction`, `loss_weights` (b, n) and `return_count` are as in AutoregressiveWrapper.
        Everything else goes to `net`.
        """
        check_switch("return_outputs", return_outputs)
        steps = integer("rollout_steps", rollout_steps, 1)
        x, mask = self.net.embedding.check(x, mask)
        if x.shape[1] <= steps:
            raise ValueError(
                f"x has {x.shape[1]} frames, but a loss with rollout_steps={steps} needs {steps + 1} at least"
            )
        mask = which_are_real(x[..., 0], mask, lens)
        check_handed_on("the loss", kwargs, ContinuousAutoregressiveWrapper.forward, self.net.forward)
        ask = asked(reduction, loss_weights, return_count, x[..., 0])
        if steps > 1:
            y, place, wanted = self.rolled(x, mask, steps, doc_ids, kwargs)
        else:
            y, place, wanted = self.following(x, mask, doc_ids, kwargs)
        losses = self.distance(y, frames_at(x, place), wanted)
        weights = None if ask.weights is None else ask.weights.gather(1, place)
        if self.equal_loss_weight_batch:
            each = (wanted if weights is None else weights).to(losses.dtype).masked_fill(~wanted, 0)
            total = each.sum(1, keepdim=True)
            weights = each / (total + (total == 0))
        return answer(reduced(losses, wanted, ask, weights), [y] if return_outputs else [])

    def following(
        self, x: Float[Tensor, "b n d"], mask: Tensor | None, doc_ids: Any, kwargs: Mapping[str, Any]
    ) -> tuple[Float[Tensor, "b m d"], Int[Tensor, "b m"], Bool[Tensor, "b m"]]:
        """What the net gives for all frames but the last, where those that follow stand, and which are targets."""
        b, n, _ = x.shape
        kwargs = without_last(kwargs, x)
        if doc_ids is not None:
            doc_ids = as_doc_ids(doc_ids, (b, n))
            kwargs["doc_ids"] = doc_ids[:, :-1]
        place = torch.arange(n, device=x.device).expand(b, n)
        place = next_tokens(place, mask, doc_ids, NO_TARGET)
        real = None if mask is None else mask[:, :-1]
        place = unseen_targets(place, real, kwargs, NO_TARGET)
        # Embeddings in front of the frames (prepend_embeds) have outputs, but no targets.
        y = self.net(x[:, :-1], real, **kwargs)[:, 1 - n :]
        return y, place.clamp(min=0), place != NO_TARGET

    def rolled(
        self, x: Float[Tensor, "b n d"], mask: Tensor | None, steps: int, doc_ids: Any, kwargs: Mapping[str, Any]
    ) -> tuple[Float[Tensor, "b m d"], Int[Tensor, "b m"], Bool[Tensor, "b m"]]:
        """As `following`, of the frames that the net gives when it goes on from a place of each row by itself."""
        check_rolls(steps, doc_ids, kwargs)
        b, n, _ = x.shape
        lens, plan = torch.full((b,), n, device=x.device), None if mask is None else plan_rows(mask)
        if plan is not None:
            x, lens = pack(x, plan), plan.new
        room = lens - steps
        start = 1 + torch.minimum((uniform(lens, None) * room).long(), room - 1).clamp(min=0)
        seen = torch.arange(n - steps, device=x.device) < torch.minimum(start, lens)[:, None]
        y, state = self.net.step(x[:, : n - steps], None, seen, **kwargs)
        made = [frames_at(y[:, steps - n :], start[:, None] - 1)]
        for _ in range(steps - 1):
            y, state = self.net.step(made[-1], state)
            made.append(y)
        place = (start[:, None] + torch.arange(steps, device=x.device)).clamp(max=n - 1)
        place = place if plan is None else plan.order.gather(1, place)
        return torch.cat(made, 1), place, (room > 0)[:, None].expand(b, steps)

    def distance(
        self, y: Float[Tensor, "b m d"], targets: Float[Tensor, "b m d"], wanted: Bool[Tensor, "b m"]
    ) -> Float[Tensor, "b m"]:
        """How far each frame is from its target, a mean in float32 at least; 0 where that is not wanted."""
        gap = (y - targets).to(torch.promote_types(y.dtype, torch.float32)).masked_fill(~wanted[..., None], 0)
        return (gap.abs() if self.use_l1_loss else gap.square()).mean(-1)

    def generate(
        self,
        prompts: Float[Tensor, "*b n d"],
        seq_len: int,
        *,
        prompt_lens: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        restrict_to_max_seq_len: bool = False,
        cache_kv: bool = True,
        **kwargs: Any,
    ) -> Float[Tensor, "*b m d"]:
        """The `seq_len` frames after the prompts (n, d) or (b, n, d), without the prompts.

        prompt_lens: how many frames of each row count, or `mask` which. restrict_to_max_seq_len: go on beyond the
        learned positions by reading only the last frames, anew for each one. cache_kv: False reads everything anew
        for each frame. kwargs: for the first `net.step` (`context=`, ...).
        """
        check_handed_on("generate", kwargs, ContinuousAutoregressiveWrapper.generate, self.net.step)
        check_for_new_tokens("generate", kwargs)
        check_switches(restrict_to_max_seq_len=restrict_to_max_seq_len, cache_kv=cache_kv)
        aligned = self.read(prompts, prompt_lens, mask)
        last = window(self.net, aligned, check_seq_len(seq_len), restrict_to_max_seq_len)
        with evaluating(self):
            frame, state = begin(self.net, aligned, kwargs, last=last, cache_kv=cache_kv)
            made = [frame]
            while len(made) < seq_len:
                frame, state = advance(self.net, cast(Any, frame), state)
                made.append(frame)
        return torch.stack(made, 1).reshape(*aligned.lead, seq_len, -1)

    def read(self, prompts: Any, prompt_lens: Any, mask: Any) -> Prompts:
        """Prompts that all end in the last column; TypeError or ValueError for what is none."""
        wanted = f"(frames, {self.net.dim_in}) or (batch, frames, {self.net.dim_in})"
        if not isinstance(prompts, torch.Tensor) or not prompts.is_floating_point():
            raise TypeError(f"prompts must be a floating-point tensor {wanted}, not {given(prompts)}")
        if prompts.dim() not in (2, 3) or prompts.shape[-1] != self.net.dim_in:
            raise ValueError(f"prompts must be {wanted}, not {tuple(prompts.shape)}")
        place = torch.arange(prompts.shape[-2], device=prompts.device).expand(prompts.shape[:-1])
        aligned = read_prompts(place, prompt_lens, mask)
        rows = prompts.reshape(-1, *prompts.shape[-2:])
        return aligned._replace(ids=cast(Any, frames_at(rows, aligned.ids)))


def frames_at(x: Float[Tensor, "b n d"], place: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
    """The frames at places of each row."""
    return x.gather(1, place[..., None].expand(-1, -1, x.shape[2]))


def check_rolls(steps: int, doc_ids: Any, kwargs: Mapping[str, Any]) -> None:
    """ValueError for what a net that goes on by itself cannot be given."""
    for name in ("doc_ids", "attn_mask"):
        if (doc_ids if name == "doc_ids" else kwargs.get(name)) is not None:
            raise ValueError(
                f"rollout_steps={steps} goes on from a state, which has no {name}: they exclude each other"
            )
    for name in per_token(kwargs):
        raise ValueError(f"rollout_steps={steps} makes frames that would have no {name}: give one for each row")
