"""Causal FLASH in Triton: the kernels of the backward; words and letters as in triton_forward.

queries again, carry_back -> scores_back, far_back -> values_back, near_back -> base_back. Beside the tensors of the
forward: DY is the gradient of what the gate multiplies, DKV that of each group's far_k v^T, DS that of the scores.
"""

import triton
import triton.language as tl

from .triton_forward import (
    group,
    kernel,
    load,
    numbers,
    partner,
    product,
    save,
    scores,
    silu,
    source,
    weights_and_slope,
)

__all__ = ["base_back", "carry_back", "far_back", "near_back", "scores_back", "values_back"]


@triton.jit
def silu_slope(x):
    x = x.to(tl.float32)
    s = tl.sigmoid(x)
    return s * (1 + x * (1 - s))


@kernel
def carry_back(
    H, FOUR, DOUT, Y, DAFTER, DH, DY, DKV, DCLOSED, total, n, e, k, w, start,
    MEAN: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """From a row's last group to its first: gradients of the gate, of what it multiplies, of each group's far_k v^T."""
    row, groups, full, all = tl.program_id(0).to(tl.int64), tl.cdiv(n, w), n // w, 2 * e + k
    c, ch = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    above = tl.zeros((WIDTH, CHANNELS), tl.float32)
    if DAFTER is not None:
        above += load(DAFTER + row * k * e, c, ch, e, k, e).to(tl.float32)
    for back in range(groups):
        g = groups - 1 - back
        first, count = row * n + g * w, tl.minimum(w, n - g * w)
        save(DKV + (row * groups + g) * k * e, c, ch, e, k, e, tl.where(g < full, above * (1 / w), 0.0))
        added = tl.zeros((WIDTH, CHANNELS), tl.float32)
        for s in range(0, count, STEP):
            slots = s + tl.arange(0, STEP)
            raw = load(H + first * all, slots, ch, all, count, e)
            dout = load(DOUT + first * e, slots, ch, e, count, e).to(tl.float32)
            dy = dout * silu(raw)
            if tl.program_id(1) == 0:
                y = load(Y + first * e, slots, ch, e, count, e).to(tl.float32)
                save(DH + first * all, slots, ch, all, count, e, dout * y * silu_slope(raw))
                save(DY + first * e, slots, ch, e, count, e, dy)
            far_q = load(FOUR + (total + first) * k, slots, c, k, count, k)
            added = product(tl.trans(far_q), dy, added, far_q.dtype)
        if MEAN:
            added *= 1 / tl.maximum(g + start, 1)
        above += added
    save(DCLOSED + row * k * e, c, ch, e, k, e, above)


@kernel
def scores_back(
    H, FOUR, VECTOR, NEW, DY, F, DS, total, n, e, k, w, scale, divide,
    RELU2: tl.constexpr, T: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of the scores, and its weights again."""
    at, first, count, real = group(n, w, NEW)
    i, j = tl.program_id(1), tl.program_id(2)
    if j <= i:
        rows, cols = i * T + tl.arange(0, T), j * T + tl.arange(0, T)
        df = tl.zeros((T, T), tl.float32)
        for s in range(0, e, STEP):
            ch = s + tl.arange(0, STEP)
            dy = load(DY + first * e, rows, ch, e, count, e)
            v = silu(load(H + first * (2 * e + k) + e, cols, ch, 2 * e + k, real, e))
            df = product(dy, tl.trans(v.to(dy.dtype)), df, dy.dtype)
        raw = scores(FOUR, VECTOR, first, total, rows, cols, count, k, w, scale, T, STEP)
        f, slope = weights_and_slope(raw, rows, cols, RELU2)
        save(F + at * w * w, rows, cols, w, w, w, f)
        save(DS + at * w * w, rows, cols, w, w, w, slope * (df * (1 / divide)))


@kernel
def far_back(H, NEW, DY, SUMS, DKV, DFOUR, total, n, e, k, w, T: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr):
    """The gradients of far_q (even programs) and far_k (odd ones) of T slots."""
    at, first, count, real = group(n, w, NEW)
    rows, which = tl.program_id(1) * T + tl.arange(0, T), tl.program_id(2) % 2
    c, d = tl.program_id(2) // 2 * WIDTH + tl.arange(0, WIDTH), tl.zeros((T, WIDTH), tl.float32)
    if which == 0:
        for s in range(0, e, STEP):
            ch = s + tl.arange(0, STEP)
            dy = load(DY + first * e, rows, ch, e, count, e)
            d = product(dy, tl.trans(load(SUMS + at * k * e, c, ch, e, k, e)), d, dy.dtype)
    else:
        for s in range(0, e, STEP):
            ch = s + tl.arange(0, STEP)
            v = silu(load(H + first * (2 * e + k) + e, rows, ch, 2 * e + k, real, e))
            dkv = load(DKV + at * k * e, c, ch, e, k, e)
            d = product(v, tl.trans(dkv), d, dkv.dtype)
    save(DFOUR + ((1 + 2 * which) * total + first) * k, rows, c, k, count, k, d)


@kernel
def values_back(
    H, FOUR, NEW, DY, F, DKV, DH, total, n, e, k, w, divide,
    T: tl.constexpr, CHANNELS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The gradient of the values of T slots and some channels, before their activation."""
    at, first, count, real = group(n, w, NEW)
    j, ch = tl.program_id(1), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    cols, all = j * T + tl.arange(0, T), 2 * e + k
    dv = tl.zeros((T, CHANNELS), tl.float32)
    for s in range(j * T, w, STEP):
        slots = s + tl.arange(0, STEP)
        f = load(F + at * w * w, slots, cols, w, w, w)
        dv = product(tl.trans(f), load(DY + first * e, slots, ch, e, count, e), dv, f.dtype)
    dv *= 1 / divide
    for s in range(0, k, STEP):
        c = s + tl.arange(0, STEP)
        far_k = load(FOUR + (3 * total + first) * k, cols, c, k, count, k)
        dv = product(far_k, load(DKV + at * k * e, c, ch, e, k, e), dv, far_k.dtype)
    dv = tl.where((cols < real)[:, None], dv * silu_slope(load(H + first * all + e, cols, ch, all, count, e)), 0.0)
    save(DH + first * all + e, cols, ch, all, count, e, dv)


@kernel
def near_back(FOUR, DS, DFOUR, total, n, k, w, scale, T: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr):
    """The gradients of q and k of T slots."""
    at, first, count, _real = group(n, w, None)
    i, c = tl.program_id(1), tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    here, Q, K, DS = i * T + tl.arange(0, T), FOUR + first * k, FOUR + (2 * total + first) * k, DS + at * w * w
    dq, dk = tl.zeros((T, WIDTH), tl.float32), tl.zeros((T, WIDTH), tl.float32)
    for s in range(0, tl.minimum(i * T + T, count), STEP):
        slots = s + tl.arange(0, STEP)
        ds = load(DS, here, slots, w, w, tl.minimum(i * T + T, w))
        dq = product(ds, load(K, slots, c, k, count, k), dq, ds.dtype)
    for s in range(i * T, count, STEP):
        slots = s + tl.arange(0, STEP)
        ds = load(DS, slots, here, w, w, w)
        dk = product(tl.trans(ds), load(Q, slots, c, k, count, k), dk, ds.dtype)
    save(DFOUR + first * k, here, c, k, count, k, dq * scale)
    save(DFOUR + (2 * total + first) * k, here, c, k, count, k, dk * scale)


@kernel
def base_back(
    H, GAMMA, COS, SIN, DFOUR, DH, PARTS, total, n, e, k, turned, paired, T: tl.constexpr, WIDTH: tl.constexpr
):
    """The gradient of z before its activation, and T tokens' part of those of gains and offsets."""
    at = tl.program_id(0).to(tl.int64)
    first, c = at * T, tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    rows, other, count = tl.arange(0, T), partner(c, turned), tl.minimum(T, total - first)
    inside = (rows < count)[:, None] & (c < k)[None]
    here = (first + rows[:, None]) * (2 * e + k) + 2 * e + source(c, paired)[None]
    raw = tl.load(H + here, inside, other=0.0)
    z, dz = silu(raw), tl.zeros((T, WIDTH), tl.float32)
    if COS is not None:
        table, spun = ((first + rows) % n)[:, None] * turned, inside & (c < turned)[None]
        cos = tl.load(COS + table + c[None], spun, other=1.0).to(tl.float32)
        sin = tl.load(SIN + table + other[None], spun, other=0.0).to(tl.float32)
    for i in tl.static_range(4):
        d = load(DFOUR + (i * total + first) * k, rows, c, k, count, k).to(tl.float32)
        if COS is not None:
            across = tl.load(DFOUR + (i * total + first + rows[:, None]) * k + other[None], spun, other=0.0)
            d = d * cos + across.to(tl.float32) * sin
        dz += d * numbers(GAMMA + i * k, c, k)[None]
        tl.store(PARTS + (at * 8 + i) * k + c, tl.sum(d * z, 0), c < k)
        tl.store(PARTS + (at * 8 + 4 + i) * k + c, tl.sum(d, 0), c < k)
    tl.store(DH + here, (dz * silu_slope(raw)).to(DH.dtype.element_ty), inside)
