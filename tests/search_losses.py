"""What the search checks of losses and generation, of an encoder-decoder's and of images."""

from typing import Any

import torch
from laws import of_tokens
from search_case import noise
from search_measure import (
    Call,
    by_length,
    close,
    law,
    measure,
    pooled,
    real_tokens,
    same,
    same_document,
    stack_of,
)
from search_states import steppable

import xflash


def tells_tokens(model) -> bool:
    """Whether a model of token ids makes a logit for each of them."""
    if model is stack_of(model) or pooled(model) or model.return_only_embed or model.gives:
        return False
    return model.tie_embedding or model.to_logits.out_features == model.num_tokens


def trains(model, call: Call) -> bool:
    """Whether a causal model is trained by the call."""
    return tells_tokens(model) and model.causal and "prefix_attn_len" not in call and not by_length(model)


def loss_of(trainer, x, call: Call, **more: Any) -> torch.Tensor:
    return trainer(x, **call, **more, **of_tokens(trainer.net, x))


def losses(trainer, parts, call: Call):
    """The mean over all targets of the losses of parts, each called alone."""

    def run(net, x, given: Call) -> torch.Tensor:
        total, count = torch.zeros((), dtype=torch.float64), 0
        for row, keep in parts:
            alone = {k: v[row : row + 1] for k, v in given.items() if k in ("condition", "context", "context_mask")}
            alone |= {k: v for k, v in given.items() if k == "context_pos"}
            if keep.sum() > 1:
                total = total + loss_of(trainer, x[row : row + 1, keep], alone) * (keep.sum() - 1)
                count += int(keep.sum()) - 1
        return total / max(count, 1)

    return run


@law(lambda model, call: trains(model, call) and "attn_mask" not in call and "prepend_embeds" not in call)
def next_token_losses(model, x, call: Call, plan) -> None:
    """The loss is the mean over what each document predicts alone; computed in chunks it is the same."""
    if x.shape[1] < 2:
        return
    trainer = xflash.AutoregressiveWrapper(model)
    whole = measure(model, x, call, lambda net, ids, given: loss_of(trainer, ids, given))
    right = measure(model, x, call, losses(trainer, documents_of(x, call), call))
    same(whole, right, "loss")
    chunked = xflash.AutoregressiveWrapper(model, loss_chunk=plan["cuts"][0])
    same(measure(model, x, call, lambda net, ids, given: loss_of(chunked, ids, given)), whole, "loss in chunks")
    weights = noise(12, *x.shape).abs()

    def by_hand(net, ids, given: Call) -> torch.Tensor:
        asked = {"loss_weights": weights, "reduction": "none", "return_count": True}
        each, count = loss_of(trainer, ids, given, **asked)
        return each.sum() / (count + (count == 0))

    weighed = measure(model, x, call, lambda net, ids, given: loss_of(chunked, ids, given, loss_weights=weights))
    same(weighed, measure(model, x, call, by_hand), "weighed loss")


def documents_of(x, call: Call) -> list[tuple[int, torch.Tensor]]:
    """The real tokens of each document of each row."""
    real = real_tokens(x, call)
    if "doc_ids" not in call:
        return [(row, real[row]) for row in range(len(x))]
    among = same_document(real, call["doc_ids"])
    firsts = among.long().argmax(2)
    return [
        (row, real[row] & (firsts[row] == i)) for row in range(len(x)) for i in set(firsts[row][real[row]].tolist())
    ]


@law(
    lambda model, call: (
        trains(model, call) and steppable(model, call) and not set(call) - {"mask"} and model.max_mem_len is None
    )
)
def segments(model, x, call: Call, plan) -> None:
    """A text read segment by segment has the loss of the text read whole."""
    if x.shape[1] < 2 or model.embedding.embed_num_tokens:
        return
    whole, reader = xflash.AutoregressiveWrapper(model), xflash.SegmentWrapper(model, segment_len=plan["cuts"][0])
    mine = measure(model, x, call, lambda net, ids, given: loss_of(reader, ids, given))
    same(mine, measure(model, x, call, lambda net, ids, given: loss_of(whole, ids, given)), "segments")


@law(
    lambda model, call: (
        trains(model, call)
        and steppable(model, call)
        and not set(call) - {"mask", "context", "context_mask", "context_pos"}
    )
)
def generation(model, x, call: Call, plan) -> None:
    """The likeliest tokens behind prompts of any lengths: with a state, without one, and each row alone."""
    if model.embedding.embed_num_tokens or not real_tokens(x, call).any(1).all():
        return
    # Tokens that are made have no places on a grid.
    if "grid" in stack_of(model).heeded:
        return
    sampler = xflash.AutoregressiveWrapper(model)
    options = {"temperature": 0.0, "filter_logits_fn": "none"}
    right = sampler.generate(x, 4, **call, **options)
    assert torch.equal(sampler.generate(x, 4, **call, **options, cache_kv=False), right), "generation: without a state"
    for row in range(len(x)):
        alone = {k: v[row : row + 1] if k != "context_pos" else v for k, v in call.items() if k != "mask"}
        mine = sampler.generate(x[row : row + 1, real_tokens(x, call)[row]], 4, **alone, **options)
        assert torch.equal(mine[0], right[row]), f"generation: row {row} alone"


@law(lambda model, call: tells_tokens(model) and not model.causal)
def masked_losses(model, x, call: Call, plan) -> None:
    """The loss of hidden tokens: in chunks and whole, whatever stands at masked tokens."""
    real, found = real_tokens(x, call), []
    other = {**call, "doc_ids": torch.where(real, call["doc_ids"], 5)} if "doc_ids" in call else call
    for given, ids, chunk in ((call, x, None), (other, torch.where(real, x, 0), None), (call, x, plan["cuts"][0])):
        trainer = xflash.MaskedLMWrapper(model, mask_token_id=1, loss_chunk=chunk)

        def run(net, ids, given, trainer=trainer):
            return loss_of(trainer, ids, given, generator=torch.Generator().manual_seed(5))

        found.append(measure(model, ids, given, run))
    assert all(value.isfinite().all() for value in found[0].values()), "hidden tokens' loss: not finite"
    same(found[1], found[0], "hidden tokens' loss: what stands at masked tokens shows")
    same(found[2], found[0], "hidden tokens' loss in chunks")


@law(kinds=("vit",))
def images_alone(model, x, call: Call, plan) -> None:
    """4: an image gives alone what it gives among others, in any order."""
    order = torch.tensor(plan["order"]) % len(x)
    close(model(x[order]), model(x)[order], "images in another order")
    weight = noise(11, *model(x).shape)
    parts = [measure(model, x[i : i + 1], call, weight=weight[i : i + 1]) for i in range(len(x))]
    joined = {n: sum(part[n] for part in parts) for n in parts[0] if n not in ("y", "gradient of x")}
    joined |= {n: torch.cat([part[n] for part in parts]) for n in ("y", "gradient of x")}
    same(joined, measure(model, x, call, weight=weight), "images alone")


def conditions(call: Call, row: int | None = None) -> Call:
    """What the sides of an encoder-decoder are conditioned on, for one row (None: for all)."""
    rows = slice(None) if row is None else slice(row, row + 1)
    return {name: value[rows] for name, value in call.items() if name.endswith("condition")}


@law(lambda model, call: not by_length(model), kinds=("seq2seq",))
def pairs_alone(model, x, call: Call, plan) -> None:
    """4: the loss of pairs of a source and a target is the mean over all their targets, each pair alone."""
    real, there = (
        real_tokens(x, call),
        real_tokens(call["src"], {"mask": call["context_mask"]} if "context_mask" in call else {}),
    )

    def run(model, x, call: Call) -> torch.Tensor:
        total, count = torch.zeros((), dtype=torch.float64), 0
        for row in range(len(x)):
            tgt, some = x[row : row + 1, real[row]], there[row] if there[row].any() else slice(None)
            src, mask = call["src"][row : row + 1, some], None if there[row].any() else there[row : row + 1]
            targets = int((tgt[:, 1:] != model.decoder.ignore_index).sum())
            if targets:
                total, count = total + model(src, tgt, mask, **conditions(call, row)) * targets, count + targets
        return total / max(count, 1)

    same(measure(model, x, call, run), measure(model, x, call), "pairs alone")


@law(lambda model, call: tells_tokens(model.decoder.net) and not by_length(model), kinds=("seq2seq",))
def pairs_generated(model, x, call: Call, plan) -> None:
    """The likeliest tokens of each pair: with a state, without one, and alone."""
    real, there = real_tokens(x, call), call.get("context_mask")
    most = model.decoder.net.max_seq_len
    if not real.any(1).all() or (there is not None and not there.any(1).all()):
        return
    if most is not None and x.shape[1] + 3 > most:
        return
    options = {"temperature": 0.0, "filter_logits_fn": "none"}
    all_rows = {**options, **conditions(call)}
    right = model.generate(call["src"], x, 4, there, tgt_mask=real, **all_rows)
    again = model.generate(call["src"], x, 4, there, tgt_mask=real, cache_kv=False, **all_rows)
    assert torch.equal(again, right), "generation: without a state"
    for row in range(len(x)):
        src = call["src"][row : row + 1] if there is None else call["src"][row : row + 1, there[row]]
        mine = model.generate(src, x[row : row + 1, real[row]], 4, **options, **conditions(call, row))
        assert torch.equal(mine[0], right[row]), f"generation: pair {row} alone"
