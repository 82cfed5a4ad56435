"""Exported models run at every length: compiled ahead of time by inductor, and as ONNX."""

import onnxruntime
import pytest
import torch

from xflash import Decoder, TransformerWrapper

V, B = 31, 3
LENGTHS = (2, 7, 8, 29, 96)
# Both come from inside torch 2.13: an export is copied with its tree specs, inductor imports scripted modules.
TORCHS_OWN = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
pytestmark = TORCHS_OWN


def model(layers: str, **flags) -> TransformerWrapper:
    torch.manual_seed(5)
    small = {"attn_dim_head": 6, "flash_group_size": 8, "flash_query_key_dim": 10}
    stack = Decoder(dim=22, depth=1, heads=3, layers=layers, **small, **flags)
    return TransformerWrapper(num_tokens=V, max_seq_len=128, attn_layers=stack).eval()


def ids(n: int) -> torch.Tensor:
    return torch.randint(0, V, (B, n), generator=torch.Generator().manual_seed(n))


ANY_LENGTH = {"x": {1: torch.export.Dim("n", min=2, max=96)}}


@pytest.mark.slow
def test_compiled_ahead_of_time(tmp_path):
    net = model("flash attn ff")
    program = torch.export.export(net, (ids(13),), dynamic_shapes=ANY_LENGTH)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    compiled = torch._inductor.aoti_load_package(path)
    with torch.no_grad():
        for n in LENGTHS:
            torch.testing.assert_close(compiled(ids(n)), net(ids(n)), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_onnx(tmp_path):
    net = model("flash attn gau ff", pos="rotary", gau_query_key_dim=14)
    program = torch.onnx.export(net, (ids(13),), dynamo=True, dynamic_shapes=ANY_LENGTH, verbose=False)
    program.save(str(tmp_path / "net.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for n in LENGTHS:
        (logits,) = session.run(None, {given.name: ids(n).numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), net(ids(n)), rtol=0, atol=1e-5)
