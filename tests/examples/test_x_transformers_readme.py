"""Every snippet of x-transformers' README runs as it is, with the import changed and its sizes shrunk."""

import re
from importlib.metadata import metadata

import pytest
import torch
from x_transformers_cases import peers

import xflash

# What stands in the snippets, and what they are run with here; each at word borders, whatever it is a size of.
SIZES = {
    "512": "32",
    "1024": "48",
    "2048": "64",
    "4096": "80",
    "20000": "257",
    "777": "13",
    "depth = 12": "depth = 2",
}
# One that nobody has the memory for.
HUGE = "dim = 12288"


def snippets() -> list[str]:
    """The README's python blocks; one without an import goes on where the one before it ends."""
    about = metadata(peers.__name__)
    text = about.get("description") or str(about.get_payload())
    found: list[str] = []
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        found.append(code if "import" in code else f"{found[-1]}\n{code}")
    return found


def shrunk(code: str) -> str:
    for large, small in SIZES.items():
        code = re.sub(rf"\b{large}\b", small, code)
    return code


def named(code: str) -> str:
    """A snippet's own flags, or else the classes it imports."""
    flags = re.findall(r"^        (\w+) = ", code, re.MULTILINE)
    own = [name for name in flags if name not in ("dim", "depth", "heads")]
    return " ".join(own[:2] or sorted(set(re.findall(r"\b\w+Wrapper|XTransformer|CrossAttender", code))))


def cases() -> list:
    return [pytest.param(code, id=f"{number} {named(code)}") for number, code in enumerate(snippets(), 1)]


@pytest.mark.parametrize("code", cases())
def test_a_snippet_runs(code):
    huge = HUGE in code
    code = code.replace(".cuda()", "") if huge else shrunk(code.replace(".cuda()", ""))
    # The one that trains the XL model does not import what it wraps it in.
    space: dict = {"XLAutoregressiveWrapper": xflash.XLAutoregressiveWrapper}
    torch.manual_seed(0)
    with torch.device("meta" if huge else "cpu"):
        exec(compile(code.replace("x_transformers", "xflash"), "README of x-transformers", "exec"), space)
    if huge:
        assert sum(p.numel() for p in space["gpt3"].parameters()) > 174e9
    else:
        check_models(space)


def check_models(space: dict) -> None:
    """What the snippet has built gives what such a thing gives: most are built in the README and never called."""
    built = [value for value in space.values() if isinstance(value, torch.nn.Module)]
    assert built
    for net in (value for value in built if type(value) is xflash.TransformerWrapper):
        context = {"context": torch.randn(2, 5, net.dim)} if "cross_attn" in net.attn_layers.layout else {}
        logits = net(torch.randint(0, net.num_tokens, (2, 7)), **context)
        assert logits.shape == (2, 7, net.num_tokens) and logits.isfinite().all()
    if "num_out" in space:
        assert space["num_out"].isnan().equal(~space["is_number_mask"])
        space["num_out"] = space["num_out"].nan_to_num()
    for value in space.values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert value.isfinite().all()


def test_every_snippet_is_read():
    code = snippets()
    assert len(code) == 58 and sum(HUGE in one for one in code) == 1
    assert not [large for large in SIZES if not any(re.search(rf"\b{large}\b", one) for one in code)]
