"""`AutoregressiveWrapper`: the next-token loss of a causal model, and text from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..base.checks import check_switch
from ..base.shapes import Bool, Float, Int, Tensor
from ..flags.flag import flag
from ..generation.nets import check_causal, check_gives_logits, check_token, only_logits
from ..saving.configurable import Configurable
from .forgetting import Forgetful, check_can_forget, forgetful
from .generates import Generates
from .losses import Chunks, Criterion, Labels, Terms, adds_own, answer, asked, reduced, with_own
from .options import (
    check_gives_hiddens,
    check_handed_on,
    check_loss_chunk,
    without_last,
)
from .targets import labelled, next_tokens, unseen_targets, which_are_real

__all__ = ["AutoregressiveWrapper"]


class AutoregressiveWrapper(Generates, Configurable):
    """Trains and samples a causal `net` with `net(ids, mask=) -> logits` and `net.step(ids, state, mask=)`.

    Raises TypeError when `net` is no module and ValueError when it is not causal; one of your own that says nothing of
    `causal` is believed, unless all stacks in it are bidirectional.
    """

    @dataclass(frozen=True)
    class Config(Forgetful, Chunks, Terms, Labels):
        net: nn.Module = flag(doc="a causal model from token ids to logits")

    gives = "a loss of token ids"

    def assemble(self, config: Any) -> None:
        net = config.net
        check_gives_logits(net)
        pooled: Any = getattr(net, "pooled", None)
        if pooled is not None:
            raise ValueError(f"{type(net).__name__} pools its outputs ({pooled.kind}=True): it predicts no next token")
        check_causal(net)
        check_token(net, "pad_value", config.pad_value)
        check_loss_chunk(net, config.loss_chunk)
        check_can_forget(net, config.mask_prob)
        self.net, self.ignore_index, self.pad_value = net, config.ignore_index, config.pad_value
        self.loss_chunk, self.mask_prob = config.loss_chunk, config.mask_prob
        self.label_smoothing, self.z_loss = config.label_smoothing, config.z_loss

    def extra_repr(self) -> str:
        forgets = f", mask_prob={self.mask_prob}" if self.mask_prob else ""
        return f"ignore_index={self.ignore_index}, pad_value={self.pad_value}{Criterion.of(self).shown()}{forgets}"

    def forward(
        self,
        x: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,
        *,
        lens: Int[Tensor, " b"] | Sequence[int] | None = None,
        labels: Int[Tensor, "b n"] | None = None,
        doc_ids: Int[Tensor, "b n"] | None = None,
        reduction: str = "mean",
        loss_weights: Float[Tensor, "b n"] | None = None,
        return_count: bool = False,
        return_outputs: bool = False,
        return_hiddens: bool = False,
        **kwargs,
    ) -> Any:
        """The mean loss of predicting each row's next real token, and with `return_outputs` all their logits too.

        `net` is given the first n - 1 tokens. A token is a target when it and the token before it are real (`mask`,
        or the first `lens` of each row), its label (`labels`, x itself unless given) is not `ignore_index`, both are
        of one document (a run of equal `doc_ids`), and no prefix shows it (`prefix_attn_len`). Without any target the
        loss is 0. `return_hiddens` gives the net's streams too, as last. Everything else goes to `net`, `embed_ids` and
        `attn_mask`, which are of all n tokens, without the last.

        reduction: 'mean', 'sum', or 'none' for the losses (b, n - 1), that of a token's next one at its place and 0
        where there is no target. loss_weights (b, n): what each token of x counts for as a target. return_count: also
        what the mean divides by, the number of targets or the sum of their weights, behind the loss.
        """
        check_switch("return_outputs", return_outputs)
        check_gives_hiddens(self.net, return_hiddens)
        x, labels, doc_ids = labelled(x, labels, doc_ids)
        ask, mask = asked(reduction, loss_weights, return_count, x), which_are_real(x, mask, lens)
        inputs, kwargs = self.inputs(x, mask, doc_ids, kwargs)
        targets = next_tokens(labels, mask, doc_ids, self.ignore_index)
        targets = unseen_targets(targets, kwargs.get("mask"), kwargs, self.ignore_index)
        weights = None if ask.weights is None else next_tokens(ask.weights, mask, doc_ids, 0)
        criterion, chunked = Criterion.of(self), self.loss_chunk is not None and not return_outputs
        own = adds_own(self, self.net)
        wanted = {"return_embeddings": chunked, "return_hiddens": return_hiddens, "return_auxiliary_loss": own}
        y = self.net(inputs, **kwargs, **{name: True for name, on in wanted.items() if on})
        y, *noted = y if return_hiddens or own else (y,)
        lost = noted.pop() if own else None
        # Embeddings in front of the tokens (prepend_embeds) have logits, but no targets.
        if chunked:
            losses = criterion.of_embeddings(self.net, y[:, -inputs.shape[1] :], targets)
        else:
            logits = only_logits(self.net, y, inputs)[:, -inputs.shape[1] :]
            losses = criterion.of_logits(logits, targets)
            noted = [logits, *noted] if return_outputs else noted
        counted = targets != self.ignore_index
        return answer(reduced(with_own(losses, counted, lost), counted, ask, weights), noted)

    def inputs(
        self, x: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None, doc_ids: Tensor | None, beside: Mapping[str, Any]
    ) -> tuple[Int[Tensor, "b n-1"], dict[str, Any]]:
        """What the net is given of n tokens: all but the last, and so of what is beside them."""
        check_handed_on("the loss", beside, AutoregressiveWrapper.forward, self.net.forward)
        if self.mask_prob and self.training:
            beside = {**beside, "attn_mask": forgetful(x, mask, doc_ids, beside, self.mask_prob)}
        beside = without_last(beside, x)
        inputs = x[:, :-1].masked_fill(x[:, :-1] == self.ignore_index, self.pad_value)
        if mask is not None:
            inputs, beside["mask"] = inputs.masked_fill(~mask[:, :-1], 0), mask[:, :-1]
        if doc_ids is not None:
            beside["doc_ids"] = doc_ids[:, :-1]
        return inputs, beside
