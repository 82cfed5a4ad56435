"""Weights that are spread over processes are gathered: all of them save, one writes, all know how it went."""

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import pytest
import torch
from torch import distributed

import xflash
from xflash.saving.weights import blueprint

PROCESSES = 2


def net():
    torch.manual_seed(0)
    stack = xflash.Decoder(dim=14, depth=1, heads=2, attn_dim_head=6)
    return xflash.TransformerWrapper(num_tokens=11, max_seq_len=13, tie_embedding=True, attn_layers=stack)


def sharded(shape):
    """The model with its weights cut over a mesh of processes: sharded, or replicated along a first axis."""
    from torch.distributed.fsdp import fully_shard

    mesh, model = distributed.init_device_mesh("cpu", shape, mesh_dim_names=("a", "b")[: len(shape)]), net().bfloat16()
    for branch in model.attn_layers.branches:
        fully_shard(branch, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def check(place: Path) -> None:
    """In each process."""
    for shape in ((2,), (1, 2), (2, 1)):
        model, whole = sharded(shape), net().bfloat16()
        if shape != (2, 1):
            assert any(weight.to_local().shape != weight.shape for weight in model.parameters())
        folder = place / "x".join(map(str, shape))
        model.save(folder)
        found = xflash.load(folder)  # nobody goes on before it is written
        assert found.to_config() == whole.to_config()
        assert all(torch.equal(found.state_dict()[name], value) for name, value in whole.state_dict().items())
        assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    for folder, change, error, match in (
        (place / "store" / "model", lambda: None, OSError, "store"),  # `store` is a file
        (place / "other", lambda: model.register_buffer("own", torch.ones(2)), ValueError, "no place for 'own'"),
    ):
        change()
        with pytest.raises(error, match=match):
            model.save(folder)
        distributed.barrier()
    assert not (place / "other").exists()


def process(rank: int, place: Path) -> int:
    """A copy of this process that checks as one of several; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        distributed.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=PROCESSES)
        check(place)
        distributed.destroy_process_group()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available() or not hasattr(os, "fork"), reason="no processes to spread over")
def test_shards_are_gathered():
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300)
    assert not run.returncode, run.stderr


if __name__ == "__main__":
    import torch.distributed.fsdp  # once, before there are several processes

    torch.set_num_threads(1)
    blueprint(net().to_config())
    with tempfile.TemporaryDirectory() as place:
        ranks = {process(rank, Path(place)) for rank in range(PROCESSES)}
        while ranks:
            done, failed = os.wait()
            ranks.remove(done)
            if failed:  # the others would wait for it
                for rank in ranks:
                    os.kill(rank, signal.SIGKILL)
                sys.exit(1)
