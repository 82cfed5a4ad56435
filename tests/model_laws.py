"""The laws of whole models, as functions of a built one: on token ids, on images, from a source to a target."""

import copy

import pytest
import torch
from laws import BATCH, close, go, live, masks, run, steps

import xflash


def tokens_for(model, n: int) -> torch.Tensor:
    """Token ids for a model, or frames for one that takes these."""
    chance = torch.Generator().manual_seed(5)
    if hasattr(model, "dim_in"):
        return torch.randn(BATCH, n, model.dim_in, generator=chance, dtype=torch.float64)
    if isinstance(model.num_tokens, dict):
        columns = [torch.randint(0, count, (BATCH, n), generator=chance) for count in model.num_tokens.values()]
        return torch.stack(columns, -1)
    return torch.randint(0, model.num_tokens, (BATCH, n), generator=chance)


def model_laws(model, folder, n: int = 19) -> None:
    """The laws of a model of tokens, ids or frames: chunk, padding, saved as built, finite start."""
    live(model)
    ids = tokens_for(model, n)
    y = run(model, ids)
    pooled, steps_on = model.pooled is not None, model.causal and model.passes is None
    if model.causal and not steps_on:
        with pytest.raises(ValueError, match="has no step: a state holds what one pass has seen"):
            go(model, ids)
    assert y.shape[: 1 if pooled else 2] == ids.shape[: 1 if pooled else 2] and y.isfinite().all()
    for name, mask in masks(n).items():
        out = run(model, ids, mask)
        assert out.isfinite().all()
        for row in range(BATCH):
            if mask[row].any():
                ours = out[row] if pooled else out[row, mask[row]]
                close(ours, run(model, ids[row : row + 1, mask[row]])[0], f"padding: {name}, row {row}")
        if steps_on:
            close(steps(model, ids, [5, 1, 1, n - 7], mask)[0][mask], out[mask], f"ragged: {name}")
    if steps_on:
        prefix = torch.randn(BATCH, 2, model.dim, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        whole = run(model, ids, prepend_embeds=prefix)
        head, state = go(model, ids[:, :4], prepend_embeds=prefix)
        close(
            torch.cat((head, steps(model, ids[:, 4:], [1, n - 5], None, state)[0]), 1),
            whole,
            "chunk: embeddings in front",
        )
        close(steps(model, ids, [1] * n)[0], y, "chunk: token by token")
        # A memory that moves down is another layer's, by definition.
        if model.max_mem_len is not None and model.max_mem_len >= n and not model.shift_mem_down:
            laid, mems = [], None
            for piece in ids.split(5, 1):
                logits, mems = run(model, piece, mems=mems, return_mems=True)
                laid.append(logits)
            close(torch.cat(laid, 1), y, "memory that covers the text")
        _, state = go(model, ids)
        rows = torch.tensor([False, True, False])
        close(go(model, ids, state, reset=rows)[0][1], y[1], "state: a reset row equals a fresh one")
        order = torch.tensor([1, 1, 0])
        close(go(model, ids, state)[0][order], go(model, ids[order], state.reorder(order))[0], "state: permuted")
    saved = xflash.from_config(model.to_config())
    assert saved.to_config() == model.to_config()
    model.save(folder)
    assert torch.equal(run(xflash.load(folder).eval(), ids), y), "saved: load differs"
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert torch.equal(run(twin, ids), y), "saved: a copy shares with the original"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ids = ids.float() if ids.is_floating_point() else ids
        assert run(twin.float(), ids).isfinite().all()


def vit_laws(model, folder) -> None:
    """The laws of a model on images: rows are independent, other sizes work, saved as built, finite start."""
    live(model)
    height, width = model.image_size
    images = torch.randn(BATCH, model.channels, height, width, generator=torch.Generator().manual_seed(8)).double()
    y = model(images)
    assert y.shape[0] == BATCH and y.isfinite().all()
    order = torch.tensor([2, 0, 1])
    close(model(images[1:2]), y[1:2], "padding: a row depends on its neighbours")
    close(model(images[order]), y[order], "rows permuted")
    (ph, pw), n = model.patch_size, (height // model.patch_size[0]) * (width // model.patch_size[1])
    assert model(images, return_embeddings=True).shape == (BATCH, n, model.dim)
    larger = torch.cat((images, images[:, :, :ph]), 2)
    assert model(larger, return_embeddings=True).shape[1] == n + width // pw and model(larger).isfinite().all()
    same_when_saved(model, folder, images)


def seq2seq_laws(model, folder, c: int = 7, n: int = 11) -> None:
    """The laws of an encoder-decoder: a padded source is an unpadded one, a step is the whole, saved as built."""
    live(model)
    chance = torch.Generator().manual_seed(9)
    src = torch.randint(1, 31, (BATCH, c), generator=chance)
    tgt = torch.randint(1, 31, (BATCH, n), generator=chance)
    decoder = model.decoder.net
    mask = torch.tensor([[1] * c, [1] * 3 + [0] * (c - 3), [0, 1] * (c // 2) + [1]]).bool()
    found = model.encode(src, mask)
    whole = decoder(tgt, context=found.context, context_mask=found.mask)
    for row in range(BATCH):
        alone = model.encode(src[row : row + 1, mask[row]])
        close(decoder(tgt[row : row + 1], context=alone.context)[0], whole[row], f"padding: source of row {row}")
    head, state = decoder.step(tgt[:, :4], context=found.context, context_mask=found.mask)
    close(torch.cat((head, steps(decoder, tgt[:, 4:], [1] * (n - 4), None, state)[0]), 1), whole, "chunk: decoding")
    order = torch.tensor([1, 2, 0])
    again = decoder.step(tgt[order, 4:], state.reorder(order))[0]
    close(again, decoder.step(tgt[:, 4:], state)[0][order], "state: permuted with its context")
    greedy = model.generate(src, tgt[:, :2], 3, mask=mask, temperature=0.0)
    assert greedy.shape == (BATCH, 3)
    first = decoder(tgt[:, :2], context=found.context, context_mask=found.mask)[:, -1].argmax(-1)
    assert torch.equal(greedy[:, 0], first), "generation: not the likeliest token"
    same_when_saved(model, folder, src, tgt, mask)


def same_when_saved(model, folder, *inputs) -> None:
    """8 and 9: configs round-trip, a loaded model and a copy give the same bits, autocast is finite."""
    y = model(*inputs)
    again = xflash.from_config(model.to_config())
    assert again.to_config() == model.to_config()
    model.save(folder)
    assert torch.equal(xflash.load(folder).eval()(*inputs), y), "saved: load differs"
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert torch.equal(twin(*inputs), y), "saved: a copy shares with the original"
    inputs = [t.float() if t.is_floating_point() else t for t in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert twin.float()(*inputs).isfinite().all()
