"""Whether a device gives what the CPU gives: the parts of `on_gpu.py` that compare numbers.

Each case is built on the CPU, in float64, with every parameter moved a little, and copied to the device. There its
outputs and gradients must be the CPU's within 1e-9 in float64, and in float32 (without TF32) within 1e-4 or three
times what float32 costs the CPU, relative to the largest value.
"""

import copy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import xflash
from xflash import AutoregressiveWrapper, Encoder, TransformerWrapper
from xflash.base.state import tensors

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import cases as small
import laws

__all__ = ["cases"]

EXACT, SINGLE, LENGTH, LONG = 1e-9, 1e-4, 17, 1100
PIECES = (4, 1, 1, LENGTH - 6)
Given = dict[str, Any]
Call = Callable[[Any, Given], Tensor]
Row = dict[str, Any]


def there(given: Any, device: str, dtype: torch.dtype) -> Any:
    """The tensors of `given` on the device, those with a fraction in `dtype`."""
    return tree_map_only(Tensor, lambda t: t.to(device, dtype if t.is_floating_point() else None), given)


def measured(module: nn.Module, call: Call, given: Given) -> dict[str, Tensor]:
    """What a call gives, and the gradients of the sum of its squares (of itself, if it is a loss)."""
    module.zero_grad()
    given = {**given, "x": given["x"].clone()}
    if given["x"].is_floating_point():
        given["x"].requires_grad_()
    y = call(module, given)
    (y.square().sum() if y.ndim else y).backward()
    named = [*module.named_parameters(), *([("x", given["x"])] if given["x"].requires_grad else [])]
    return {"y": y.detach(), **{name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named}}


def gap(found: dict[str, Tensor], right: dict[str, Tensor], device: str) -> float:
    """The largest difference relative to the largest value; ValueError for another shape or device, or NaN.

    What is nearly nothing beside the other gradients (that of a bias in front of a softmax) is compared with those.
    """
    least = max(1e-3 * max(float(right[name].abs().amax()) for name in right if right[name].numel()), 1e-30)
    worst = 0.0
    for name, value in found.items():
        if value.device.type != torch.device(device).type or value.shape != right[name].shape:
            raise ValueError(f"{name} is {tuple(value.shape)} on {value.device}")
        if not value.numel():
            continue
        off = (value.double().cpu() - right[name].double()).abs().amax() / max(float(right[name].abs().amax()), least)
        if not off <= worst:
            worst = float(off)
        if worst != worst:
            raise ValueError(f"{name} is not finite")
    return worst


class Case:
    """One module, on the CPU and on the device, and what is to be the same."""

    def __init__(self, build: Callable[[], nn.Module], call: Call, given: Callable[[Any], Given], device: str):
        self.module = laws.live(build())
        self.call, self.given, self.device = call, given(self.module), device
        self.right = measured(self.module, call, self.given)
        self.exact = copy.deepcopy(self.module).to(device)
        self.row: Row = {"failed": {}, "waits": {}, "refused": []}

    def check(self, name: str, run: Callable[[], Any]) -> None:
        """Notes the first line of what goes wrong, and goes on unless nothing can be run on the device any more."""
        try:
            run()
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            if "CUDA error" in str(error):
                raise RuntimeError(f"{name}: {error}") from error
            self.row["failed"][name] = first_line(error)

    def within(self, found: dict[str, Tensor], right: dict[str, Tensor], allowed: float = EXACT) -> None:
        off = gap(found, right, self.device)
        if off > allowed:
            raise ValueError(f"off by {off:.1e}, not {allowed:.0e}")

    def in_float64(self) -> None:
        self.within(measured(self.exact, self.call, there(self.given, self.device, torch.float64)), self.right)

    def in_float32(self) -> None:
        single = copy.deepcopy(self.module).float()
        usual = gap(measured(single, self.call, there(self.given, "cpu", torch.float32)), self.right, "cpu")
        found = measured(single.to(self.device), self.call, there(self.given, self.device, torch.float32))
        self.within(found, self.right, max(SINGLE, 3 * usual))

    def in_half(self) -> None:
        """Finite outputs and gradients under autocast, and of a module in bfloat16."""
        single = copy.deepcopy(self.module).float().to(self.device)
        given = there(self.given, self.device, torch.float32)
        kind = torch.device(self.device).type

        def lowered(module: Any, given: Given) -> Tensor:
            with torch.autocast(kind, torch.bfloat16):
                return self.call(module, given).float()

        for name, value in measured(single, lowered, given).items():
            if not value.isfinite().all():
                raise ValueError(f"autocast: {name} is not finite")
        half, given = single.bfloat16(), there(given, self.device, torch.bfloat16)
        with torch.no_grad():
            if not self.call(half, given).isfinite().all():
                raise ValueError("bfloat16: not finite")

    def waits(self, name: str, run: Callable[[], Any]) -> None:
        """Where the host waits for the device in a call that has been made before."""
        if places := waiting(run, self.device):
            self.row["waits"][name] = places

    def trained(self) -> Callable[[], Any]:
        """A training step in float32, without a look at its results."""
        single = copy.deepcopy(self.module).float().to(self.device).train()
        given = there(self.given, self.device, torch.float32)
        return lambda: (lambda y: (y.square().sum() if y.ndim else y).backward())(self.call(single, given))

    def checked(self) -> Row:
        self.check("float64", self.in_float64)
        self.check("float32", self.in_float32)
        self.check("bf16", self.in_half)
        self.check("waits: train", lambda: self.waits("train", self.trained()))
        return self.row


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"[:160]


def place() -> str:
    """The innermost line of xflash that is being run."""
    ours = [f for f in traceback.extract_stack() if "/xflash/" in f.filename.replace("\\", "/")]
    # Checks of annotations stand between.
    ours = [f for f in ours if not f.filename.endswith("base/shapes.py")] or ours
    return f"{ours[-1].filename.rpartition('/xflash/')[2]}:{ours[-1].lineno}" if ours else "backward, or outside xflash"


def waiting(run: Callable[[], Any], device: str) -> list[str]:
    """The lines at which the host waits for a GPU, the second time; none on a CPU."""
    run()
    seen: list[str] = []
    gpu = device.startswith("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: (
            seen.append(place()) if "synchronizing" in str(message) else None  # type: ignore[func-returns-value]
        )
        try:
            if gpu:
                torch.cuda.synchronize(device)
                torch.cuda.set_sync_debug_mode("warn")
            run()
        finally:
            if gpu:
                torch.cuda.set_sync_debug_mode("default")
    return sorted(set(seen))


class Stack(Case):
    """A stack: beside the whole call also padding, documents, and what it gives token by token."""

    def __init__(self, name: str, flags: dict[str, Any], causal: bool, device: str):
        super().__init__(
            lambda: small.build(causal=causal, **{"depth": 1, **flags}),
            lambda stack, given: stack(**given),
            lambda stack: {"x": (x := laws.sample(stack, LENGTH)), **laws.beside(stack, x)},
            device,
        )
        self.causal = causal
        self.moved = there(self.given, device, torch.float64)

    def with_(self, **given: Any) -> None:
        """A call with something more is what the CPU makes of it; what the CPU refuses is noted."""
        given = {**self.given, **given}
        try:
            right = measured(self.module, self.call, given)
        except ValueError as error:
            self.row["refused"].append(first_line(error)[:60])
            return
        self.within(measured(self.exact, self.call, there(given, self.device, torch.float64)), right)

    def decoded(self, sizes: tuple[int, ...], mask: Tensor | None, grad: bool) -> None:
        """In pieces it is the CPU's whole call, and the state is on the device."""
        with torch.set_grad_enabled(grad):
            right = self.module(**self.given, mask=mask) if mask is not None else self.right["y"]
            found, state = self.stepped(self.exact, self.moved, sizes, mask)
        self.within({"y": found.detach()}, {"y": right.detach()})
        wrong = {str(t.device) for t in tensors(state) if t.device.type != torch.device(self.device).type}
        if wrong:
            raise ValueError(f"the state has tensors on {sorted(wrong)}")

    def stepped(self, stack: Any, given: Given, sizes: tuple[int, ...], mask: Tensor | None = None) -> tuple[Any, Any]:
        x, beside = given["x"], {name: value for name, value in given.items() if name != "x"}
        outputs, state, at = [], None, 0
        for size in sizes:
            piece = None if mask is None else mask[:, at : at + size].to(x.device)
            first = beside if state is None else {}
            y, state = stack.step(x[:, at : at + size], state, piece, **first)
            outputs.append(y)
            at += size
        return torch.cat(outputs, 1), state

    def handled(self) -> None:
        """A state in another order, and with a row that begins anew, is the CPU's."""
        found = []
        for stack, given in ((self.exact, self.moved), (self.module, self.given)):
            with torch.no_grad():
                x, (_, state) = given["x"][:, :3], self.stepped(stack, given, (LENGTH,))
                order = torch.tensor([2, 0, 0], device=x.device)
                again = stack.step(x, state.reorder(order))[0]
                found.append({"y": again, "reset": stack.step(x, state, reset=order == 2)[0]})
        self.within(found[0], found[1])

    def single(self) -> tuple[Any, Given, Tensor]:
        """The stack and what it is given in float32 on the device, and a mask."""
        single, given = copy.deepcopy(self.module).float(), there(self.given, self.device, torch.float32)
        return single.to(self.device), given, laws.masks(LENGTH)["right"].to(self.device)

    def tokens(self, ragged: bool) -> Callable[[], Any]:
        """Decodes a few tokens behind prompts."""
        single, given, mask = self.single()
        prompt = LENGTH - 4
        beside = {name: value for name, value in given.items() if name != "x"}

        def run() -> None:
            with torch.no_grad():
                _, state = single.step(given["x"][:, :prompt], None, mask[:, :prompt] if ragged else None, **beside)
                for i in range(prompt, LENGTH):
                    _, state = single.step(given["x"][:, i : i + 1], state)

        return run

    def masked(self) -> Callable[[], Any]:
        single, given, mask = self.single()
        return lambda: single(**given, mask=mask).square().sum().backward()

    def checked(self) -> Row:
        super().checked()
        kinds = laws.masks(LENGTH)
        self.check("padded", lambda: self.with_(mask=kinds["right"]))
        self.check("holes", lambda: self.with_(mask=kinds["holes"]))
        documents = torch.tensor([0] * 6 + [1] + [2] * (LENGTH - 7)).expand(laws.BATCH, -1)
        self.check("doc_ids", lambda: self.with_(doc_ids=documents))
        self.check("waits: mask", lambda: self.waits("mask", self.masked()))
        if self.causal:
            self.check("token by token", lambda: self.decoded((1,) * LENGTH, None, grad=False))
            self.check("in pieces, with grad", lambda: self.decoded(PIECES, None, grad=True))
            self.check("rows of other lengths", lambda: self.decoded(PIECES, kinds["holes"], grad=False))
            self.check("state", self.handled)
            self.check("waits: step", lambda: self.waits("step", self.tokens(ragged=False)))
            self.check("waits: ragged step", lambda: self.waits("ragged step", self.tokens(ragged=True)))
        return self.row


def text_model(causal: bool = True, layers: str = "flash attn ff", **flags: Any) -> TransformerWrapper:
    """A small model of 31 tokens."""
    stack = small.build(layers, 1, causal=causal, pos="rotary")
    return TransformerWrapper(num_tokens=31, max_seq_len=67, attn_layers=stack, use_abs_pos_emb=False, **flags)


def ids(n: int = 29) -> Tensor:
    return torch.randint(1, 31, (laws.BATCH, n), generator=torch.Generator().manual_seed(5))


def losses() -> dict[str, tuple[Callable[[], nn.Module], Call, Given]]:
    """Every wrapper by name: how it is built, how and with what it is called.

    What is drawn by chance differs from device to device: of such losses only that they are finite can be the same.
    """
    xl = {"max_mem_len": 7}
    text: Given = {"x": ids()}
    real = {**text, "mask": torch.arange(29) < torch.tensor([[29], [11], [2]])}
    brt = {"num_tokens": 31, "dim": 34, "depth": 2, "dim_head": 6, "heads": 4, "max_seq_len": 20, "block_width": 5}
    sides = {f"{side}_{k}": v for side in ("enc", "dec") for k, v in (("num_tokens", 31), ("depth", 1), ("heads", 4))}
    sides |= {"enc_max_seq_len": 31, "dec_max_seq_len": 31}

    def loss(module: Any, given: Given) -> Tensor:
        return module(given["x"], **{name: value for name, value in given.items() if name != "x"})

    def brt_loss(module: Any, given: Given) -> Tensor:
        return module(given["x"], return_loss=True)[0]

    def images(module: Any, given: Given) -> Tensor:
        return module(given["x"])

    def pair(module: Any, given: Given) -> Tensor:
        return module(given["x"], given["x"].flip(1), mask=given["mask"])

    def vit() -> nn.Module:
        stack = Encoder(dim=34, depth=1, heads=4, layers="attn ff", attn_dim_head=6)
        return xflash.ViTransformerWrapper(image_size=12, patch_size=4, num_classes=7, attn_layers=stack)

    picture = {"x": torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(8)).double()}
    stream = {"x": torch.randn(3, 29, 34, generator=torch.Generator().manual_seed(9)).double()}
    return {
        "AutoregressiveWrapper": (lambda: AutoregressiveWrapper(text_model()), loss, real),
        "AutoregressiveWrapper, loss_chunk": (lambda: AutoregressiveWrapper(text_model(), loss_chunk=5), loss, text),
        "SegmentWrapper": (lambda: xflash.SegmentWrapper(text_model(), segment_len=8), loss, real),
        "RecurrentMemoryWrapper": (
            lambda: AutoregressiveWrapper(xflash.RecurrentMemoryWrapper(text_model(), 3, 8)),
            loss,
            real,
        ),
        "XLAutoregressiveWrapper": (
            lambda: xflash.XLAutoregressiveWrapper(text_model(layers="attn ff", **xl)),
            loss,
            text,
        ),
        # Every token is hidden, each by the same id.
        "MaskedLMWrapper": (
            lambda: xflash.MaskedLMWrapper(text_model(False), mask_token_id=0, mask_prob=1.0, replace_prob=1.0),
            loss,
            real,
        ),
        "MaskedLMWrapper, by chance": (
            lambda: xflash.MaskedLMWrapper(text_model(False), mask_token_id=0),
            lambda module, given: 0 * loss(module, given),
            real,
        ),
        "NonAutoregressiveWrapper, by chance": (
            lambda: xflash.NonAutoregressiveWrapper(text_model(False), mask_id=0),
            lambda module, given: 0 * module(given["x"]).loss,
            {"x": ids(67)},
        ),
        "BlockRecurrentTransformer": (lambda: xflash.BlockRecurrentTransformer(**brt), brt_loss, text),
        "RecurrentTrainerWrapper": (
            lambda: xflash.RecurrentTrainerWrapper(xflash.BlockRecurrentTransformer(**brt)),
            loss,
            text,
        ),
        "XTransformer": (lambda: xflash.XTransformer(dim=34, **sides), pair, real),
        "ViTransformerWrapper": (vit, images, picture),
        "FLASHTransformer": (
            lambda: xflash.FLASHTransformer(num_tokens=31, dim=34, depth=2, group_size=5, causal=True),
            loss,
            real,
        ),
        "GAU": (lambda: xflash.GAU(34, causal=True, rel_pos_bias=True), loss, stream),
        "FLASH": (lambda: xflash.FLASH(34, group_size=5, causal=True, rotary_pos_emb=True), loss, stream),
    }


def long_ones() -> dict[str, tuple[dict[str, Any], bool]]:
    """Stacks at lengths at which kernels work piece by piece."""
    both = {
        "attn ff, rotary": {"layers": "attn ff", "pos": "rotary"},
        "gau, rel_pos": {"layers": "gau", "pos": "rel_pos"},
        "gau, laplace": {"layers": "gau", "gau_attn_fn": "laplace"},
        "flash": {"layers": "flash", "flash_group_size": 64},
        "attn, window": {"layers": "attn", "attn_window": 100},
        "attn, alibi": {"layers": "attn", "pos": "alibi"},
    }
    back = {"block_attn": {"layers": "block_attn", "block_attn_block_width": 96}}
    back["recurrent"] = {"layers": "recurrent", "recurrent_block_width": 96}
    found = {f"{name}-causal": (flags, True) for name, flags in {**both, **back}.items()}
    return found | {f"{name}-bidirectional": (flags, False) for name, flags in both.items()}


def generated(device: str) -> Row:
    """The likeliest tokens behind prompts of different lengths, alone and by beams, are the CPU's."""
    module = laws.live(AutoregressiveWrapper(text_model()))
    moved = copy.deepcopy(module).to(device)
    prompts, mask = ids(11), torch.arange(11) < torch.tensor([[11], [4], [7]])
    failed = {}
    for name, options in {"generate": {"temperature": 0.0}, "eos": {"temperature": 0.0, "eos_token": 3}}.items():
        right = module.generate(prompts, 9, mask=mask, **options)
        found = moved.generate(prompts.to(device), 9, mask=mask.to(device), **options)
        if not torch.equal(found.cpu(), right):
            failed[name] = "other tokens"
    right, found = (net.beam_search(x, 9, beams=3) for net, x in ((module, prompts), (moved, prompts.to(device))))
    if not torch.equal(found[0].cpu(), right[0]):
        failed["beam_search"] = "other tokens"
    if moved.generate(prompts.to(device), 9, mask=mask.to(device)).shape != (laws.BATCH, 9):
        failed["sampled"] = "another shape"
    return {"failed": failed, "waits": {}, "refused": []}


def plain(stack: Any, given: Given) -> Tensor:
    return stack(**given)


def cases(options: Any) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    """Everything that is registered, every wrapper, and long rows."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    device = options.device
    for name, (build, call, given) in losses().items():
        yield f"loss {name}", lambda b=build, c=call, g=given: iter([Case(b, c, lambda _: g, device).checked()])
    yield "generation", lambda: iter([generated(device)])
    found = list(small.ways(small.CASES))
    for name, flags, causal in sorted(found, key=lambda case: not case[2]):
        yield name, lambda n=name, f=flags, c=causal: iter([Stack(n, f, c, device).checked()])
    for name, (flags, causal) in long_ones().items():
        yield (
            f"long {name}",
            lambda f=flags, c=causal: iter(
                [Case(lambda: small.build(causal=c, **{"depth": 1, **f}), plain, long_given, device).checked()]
            ),
        )


def long_given(stack: Any) -> Given:
    return {"x": laws.sample(stack, LONG)[:2]}
