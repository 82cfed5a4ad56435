"""Causal FLASH in Triton: the kernels of the forward, and the functions that both directions are made of.

queries -> weights -> carry -> gated. Letters as in mixed_chunk, tensors in capitals: H is the projection's output, FOUR
has q, far_q, k and far_k of all tokens, F a matrix of weights a group, SUMS what each group reads of those before it.
Most kernels work on one group (axis 0 of the grid) and one tile of it: `first` is the group's first token of all rows',
`count` how many tokens it has, `real` how many of them `new` lets exist. Products are summed in float32, and nothing is
added by atomics: two calls give the same bits.
"""

import os

import triton
import triton.language as tl

__all__ = ["carry", "gated", "queries", "weights"]

# Numbers that change from call to call, and need no code of their own where they happen to be multiples of 16.
kernel = triton.jit(do_not_specialize=["total", "n", "start"])
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def load(P, rows, cols, stride, count, width):
    """A tile of a matrix whose rows are `stride` apart; zeros from row `count` and column `width` on."""
    inside = (rows < count)[:, None] & (cols < width)[None]
    return tl.load(P + rows[:, None] * stride + cols[None], inside, other=0.0)


@triton.jit
def save(P, rows, cols, stride, count, width, what):
    inside = (rows < count)[:, None] & (cols < width)[None]
    tl.store(P + rows[:, None] * stride + cols[None], what.to(P.dtype.element_ty), inside)


@triton.jit
def numbers(P, at, count):
    """Entries of a vector in float32, zeros from `count` on."""
    return tl.load(P + at, at < count, other=0.0).to(tl.float32)


@triton.jit
def product(a, b, total, dtype: tl.constexpr):
    a, b = a.to(dtype), b.to(dtype)
    if INTERPRETED:  # whose products in bfloat16 are wrong
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def silu(x):
    x = x.to(tl.float32)
    return x * tl.sigmoid(x)


@triton.jit
def erfc(x):
    """1 - erf, which would lose small weights: exp(-x^2) times a polynomial in t, fitted to 1.2e-8 relative."""
    t = 1 / (1 + 0.5 * tl.abs(x))
    p = 0.4933857417 + t * (-0.2346054906 + t * 0.0431730659)
    p = -0.0590509100 + t * (0.1318500401 + t * (-0.4545637180 + t * p))
    p = 0.2468838798 + t * (0.1753240754 + t * (0.0934147485 + t * p))
    half = t * (0.2820947951 + t * (0.2820937768 + t * p)) * tl.exp(-x * x)
    return tl.where(x < 0, 2 - half, half)


@triton.jit
def group(n, w, NEW):
    """A program's group: its number among all, its first token, how many tokens it has, how many of them exist."""
    at, groups = tl.program_id(0).to(tl.int64), tl.cdiv(n, w)
    row, number = at // groups, at % groups
    count = tl.minimum(w, n - number * w)
    real = count
    if NEW is not None:
        real = tl.minimum(count, tl.load(NEW + row) - number * w)
    return at, row * n + number * w, count, real


@triton.jit
def scores(FOUR, VECTOR, first, total, rows, cols, count, k, w, scale, T: tl.constexpr, STEP: tl.constexpr):
    """A tile of a group's scores, with the bias of key minus query position."""
    raw = tl.zeros((T, T), tl.float32)
    for s in range(0, k, STEP):
        c = s + tl.arange(0, STEP)
        q = load(FOUR + first * k, rows, c, k, count, k)
        keys = load(FOUR + (2 * total + first) * k, cols, c, k, count, k)
        raw = product(q, tl.trans(keys), raw, q.dtype)
    raw *= scale
    if VECTOR is not None:
        inside = (rows < w)[:, None] & (cols < w)[None]
        raw += tl.load(VECTOR + (cols[None] - rows[:, None] + w - 1), inside, other=0.0).to(tl.float32)
    return raw


@triton.jit
def weights_and_slope(raw, rows, cols, RELU2: tl.constexpr):
    """What values are multiplied by for scores, and its derivative; zeros ahead."""
    if RELU2:
        positive = tl.maximum(raw, 0.0)
        f, slope = positive * positive, 2 * positive
    else:
        x = (0.70710678118654752 - raw) * 2.5066282746310002
        f, slope = 0.5 * erfc(x), 1.4142135623730951 * tl.exp(-x * x)
    seen = cols[None] <= rows[:, None]
    return tl.where(seen, f, 0.0), tl.where(seen, slope, 0.0)


@triton.jit
def source(c, paired):
    """Where in z a channel of the queries lies: first members of neighbouring pairs stand before the second ones."""
    half = paired // 2
    return tl.where(c < half, 2 * c, tl.where(c < paired, 2 * (c - half) + 1, c))


@triton.jit
def partner(c, turned):
    """The channel that a channel is turned with."""
    half = turned // 2
    return tl.where(c < half, c + half, tl.where(c < turned, c - half, c))


@triton.jit
def affine(z, GAMMA, BETA, i, c, k):
    """One of the four scaled and offset copies of z."""
    x = z * numbers(GAMMA + i * k, c, k)[None]
    if BETA is not None:
        x += numbers(BETA + i * k, c, k)[None]
    return x


@kernel
def queries(H, GAMMA, BETA, COS, SIN, FOUR, total, n, e, k, turned, paired, T: tl.constexpr, WIDTH: tl.constexpr):
    """q, far_q, k, far_k of T tokens: silu(z) scaled, offset and turned."""
    first, c = tl.program_id(0).to(tl.int64) * T, tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    rows, other, count = tl.arange(0, T), partner(c, turned), tl.minimum(T, total - first)
    Z = H + first * (2 * e + k) + 2 * e + rows[:, None] * (2 * e + k)
    inside = (rows < count)[:, None] & (c < k)[None]
    z = silu(tl.load(Z + source(c, paired)[None], inside, other=0.0))
    if COS is not None:
        z_other = silu(tl.load(Z + source(other, paired)[None], inside, other=0.0))
        at, spun = ((first + rows) % n)[:, None] * turned + c[None], inside & (c < turned)[None]
        cos = tl.load(COS + at, spun, other=1.0).to(tl.float32)
        sin = tl.load(SIN + at, spun, other=0.0).to(tl.float32)
    for i in tl.static_range(4):
        x = affine(z, GAMMA, BETA, i, c, k)
        if COS is not None:
            x = x * cos + affine(z_other, GAMMA, BETA, i, other, k) * sin
        save(FOUR + (i * total + first) * k, rows, c, k, count, k, x)


@kernel
def weights(FOUR, VECTOR, F, total, n, k, w, scale, RELU2: tl.constexpr, T: tl.constexpr, STEP: tl.constexpr):
    """What the values inside a group are multiplied by; tiles that nobody sees are neither written nor read."""
    at, first, count, _real = group(n, w, None)
    i, j = tl.program_id(1), tl.program_id(2)
    if j <= i:
        rows, cols = i * T + tl.arange(0, T), j * T + tl.arange(0, T)
        raw = scores(FOUR, VECTOR, first, total, rows, cols, count, k, w, scale, T, STEP)
        f, _slope = weights_and_slope(raw, rows, cols, RELU2)
        save(F + at * w * w, rows, cols, w, w, w, f)


@kernel
def carry(
    H, FOUR, CLOSED, NEW, SUMS, AFTER, total, n, e, k, w, start,
    MEAN: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A row's running sum of far_k v^T / w: what each group reads of those before it, and what is behind the last."""
    row, groups, full = tl.program_id(0).to(tl.int64), tl.cdiv(n, w), n // w
    c, ch = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    real = n
    if NEW is not None:
        real = tl.load(NEW + row).to(tl.int32)
    running = tl.zeros((WIDTH, CHANNELS), tl.float32)
    if CLOSED is not None:
        running += load(CLOSED + row * k * e, c, ch, e, k, e).to(tl.float32)
    for g in range(groups):
        seen = running
        if MEAN:
            seen = running * (1 / tl.maximum(g + start, 1))
        save(SUMS + (row * groups + g) * k * e, c, ch, e, k, e, seen)
        if g < full:
            first = row * n + g * w
            added = tl.zeros((WIDTH, CHANNELS), tl.float32)
            for s in range(0, w, STEP):
                slots = s + tl.arange(0, STEP)
                far_k = load(FOUR + (3 * total + first) * k, slots, c, k, w, k)
                v = silu(load(H + first * (2 * e + k) + e, slots, ch, 2 * e + k, tl.minimum(w, real - g * w), e))
                added = product(tl.trans(far_k), v, added, far_k.dtype)
            running += added * (1 / w)
    save(AFTER + row * k * e, c, ch, e, k, e, running)


@kernel
def gated(
    H, FOUR, NEW, F, SUMS, OUT, Y, total, n, e, k, w, divide,
    T: tl.constexpr, CHANNELS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """gate * (weights v / divide + far_q sums) of T slots and some channels, and what the gate multiplies."""
    at, first, count, real = group(n, w, NEW)
    i, ch = tl.program_id(1), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    rows, all, H = i * T + tl.arange(0, T), 2 * e + k, H + first * (2 * e + k)
    y = tl.zeros((T, CHANNELS), tl.float32)
    for s in range(0, tl.minimum(i * T + T, w), STEP):
        slots = s + tl.arange(0, STEP)
        f = load(F + at * w * w, rows, slots, w, w, tl.minimum(i * T + T, w))
        y = product(f, silu(load(H + e, slots, ch, all, real, e)), y, f.dtype)
    y *= 1 / divide
    for s in range(0, k, STEP):
        c = s + tl.arange(0, STEP)
        far_q = load(FOUR + (total + first) * k, rows, c, k, count, k)
        y = product(far_q, load(SUMS + at * k * e, c, ch, e, k, e), y, far_q.dtype)
    save(OUT + first * e, rows, ch, e, count, e, y * silu(load(H, rows, ch, all, count, e)))
    if Y is not None:
        save(Y + first * e, rows, ch, e, count, e, y)
