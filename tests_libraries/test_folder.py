"""Folders that transformers writes: read a weight at a time, the same model; what is wrong with one is said."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peers import causal, same, tokens
from safetensors.torch import load_file, save_file
from transformers import GPT2Model, LlamaForCausalLM, LlamaModel, OPTModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from xflash.convert import from_pretrained, from_transformers

GPT2 = {"n_embd": 42, "n_head": 6, "n_layer": 3, "n_positions": 41}
KINDS = {
    "llama": {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}},
    "qwen3": {"tie_word_embeddings": True},
    "phi3": {"hidden_size": 48},
    "mixtral": {"num_local_experts": 5},
    "qwen3_moe": {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 19, "head_dim": 10},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 5},
    "gpt2": GPT2,
    "opt": {"ffn_dim": 59, "max_position_embeddings": 41, "hidden_size": 42, "word_embed_proj_dim": 42},
    "gpt_oss": {"num_local_experts": 5, "num_experts_per_tok": 3},
    "gpt_neox": {"hidden_size": 48},
    "falcon": {"hidden_size": 48},
}


@pytest.mark.parametrize("size", ["20KB", "1GB"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_read(kind, size, tmp_path):
    theirs = causal(kind, **KINDS[kind])
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == "20KB")
    ours = from_pretrained(tmp_path)
    same(ours, from_transformers(theirs))
    assert not ours.training and ours.to_config() == from_transformers(theirs).to_config()
    assert not any(t.is_meta for t in (*ours.parameters(), *ours.buffers()))


def test_device_and_dtype(tmp_path):
    causal("llama", torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in from_pretrained(tmp_path).parameters()} == {torch.bfloat16}
    ours = from_pretrained(tmp_path, "cpu", torch.float64)
    assert {p.dtype for p in ours.parameters()} == {torch.float64}
    assert ours(tokens(2, 7)).dtype == torch.float64


@pytest.mark.parametrize("cls", [LlamaModel, GPT2Model, OPTModel])
def test_models_without_a_head(cls, tmp_path):
    """Names have no prefix there."""
    kind = cls.__name__.removesuffix("Model").lower()
    theirs = cls(causal(kind, **KINDS.get(kind, {})).config).eval()
    theirs.save_pretrained(tmp_path)
    x = tokens(2, 11)
    with torch.no_grad():
        assert (from_pretrained(tmp_path)(x) - theirs(x).last_hidden_state).abs().max() < 1e-4
        assert (from_transformers(theirs)(x) - theirs(x).last_hidden_state).abs().max() < 1e-4


def test_names_without_prefix_and_old_buffers(tmp_path):
    """As the first published weights of GPT-2 are: names of the model without a head, and masks."""
    theirs = causal("gpt2", **GPT2)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {name.removeprefix("transformer."): t for name, t in load_file(file).items()}
    weights |= {"h.0.attn.bias": torch.ones(1, 1, 41, 41), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(weights, file)
    config = json.loads((tmp_path / "config.json").read_text())
    config = {name: value for name, value in config.items() if name not in ("tie_word_embeddings", "n_inner")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    same(from_pretrained(tmp_path), from_transformers(theirs))


@pytest.fixture
def folder(tmp_path):
    causal("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


def edit(file, **settings):
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, **settings}))


def first(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def without(folder, name):
    """Takes a weight out of the file that has it and out of the index."""
    index = folder / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    file = folder / where.pop(name)
    save_file({n: t for n, t in load_file(file).items() if n != name}, file)
    edit(index, weight_map=where)


def changed(folder, name, make):
    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    file = folder / where[name]
    weights = load_file(file)
    save_file({**weights, name: make(weights[name])}, file)


def with_unknown(folder):
    index = folder / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    file = first(folder)
    save_file({**load_file(file), "model.norm.wieght": torch.ones(3)}, file)
    edit(index, weight_map={**where, "model.norm.wieght": file.name})


def cut(file, keep):
    file.write_bytes(file.read_bytes()[:keep])


Q = "model.layers.1.self_attn.q_proj.weight"
BAD = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no json": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), r"holds \[1\], not the settings"),
    "unknown model": (lambda f: edit(f / "config.json", model_type="llamma"), "'llamma'.*did you mean 'llama'"),
    "unknown setting": (lambda f: edit(f / "config.json", new_trick=2), "new_trick=2 of a 'llama' config is not known"),
    "other head": (
        lambda f: edit(f / "config.json", architectures=["LlamaForSequenceClassification"]),
        "LlamaForSequenceClassification has a head without a counterpart",
    ),
    "missing shard": (lambda f: first(f).unlink(), r"has no file 'model-00001-of-.*', where model.safetensors.index"),
    "missing weight": (lambda f: without(f, Q), "there is no weight 'layers.1.self_attn.q_proj.weight'"),
    "unknown weight": (with_unknown, "no place for the weight 'norm.wieght'; did you mean 'norm.weight'"),
    "wrong shape": (
        lambda f: changed(f, Q, lambda t: t[:-1]),
        r"is of shape \(59, 42\), not \(60, 42\)",
    ),
    "integers": (lambda f: changed(f, Q, lambda t: t.to(torch.int8)), "is torch.int8: quantised"),
    "cut weights": (lambda f: cut(first(f), -3), "is cut short: it has .* bytes, of"),
    "cut header": (lambda f: cut(first(f), 50), "is cut short: it ends within its header"),
    "empty file": (lambda f: cut(first(f), 0), "is cut short: it ends within its header"),
    "no safetensors": (lambda f: first(f).write_bytes(b"\x02" + bytes(7) + b"xx"), "is no safetensors file"),
    "no index": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "is no index of weights"),
    "outside": (
        lambda f: edit(f / "model.safetensors.index.json", weight_map={Q: "../x.safetensors"}),
        "has no file '../x.safetensors'",
    ),
    "no weights": (lambda f: (f / "model.safetensors.index.json").unlink(), "has neither model.safetensors nor"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders(case, folder):
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        from_pretrained(folder)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_nothing_is_unpickled(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "model.safetensors.index.json").unlink()
    torch.save({"model.norm.weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has its weights in pytorch_model\.bin only, and nothing is unpickled"):
        from_pretrained(folder)
    assert not (folder / "exploded").exists()


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="there is no folder 'nobody/nothing', and the hub did not give it: "):
        from_pretrained("nobody/nothing")
    with pytest.raises(ValueError, match=r"there is no folder .*not-here"):
        from_pretrained(tmp_path / "not-here")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; from_pretrained"):
        from_pretrained(tmp_path / "file")
    with pytest.raises(TypeError, match="folder must be the path of a folder or a name on the hub, not 3"):
        from_pretrained(3)
    with pytest.raises(TypeError, match="dtype must be one of torch's floating-point dtypes, not"):
        from_pretrained(tmp_path, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"from_pretrained\(\) cannot put weights on the device 'meta'"):
        from_pretrained(tmp_path, "meta")


# What getrusage says a child inherits from its parent.
PEAK = """
import sys, torch
from pathlib import Path
from xflash.convert import from_pretrained

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

before = peak()
model = from_pretrained(sys.argv[1])
print(sum(p.nbytes for p in model.parameters()), peak() - before)
"""


def test_there_is_no_second_copy_in_memory(tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16, "vocab_size": 1009}
    causal("llama", **sizes, num_attention_heads=8, head_dim=64).save_pretrained(tmp_path)
    out = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], check=True, capture_output=True, text=True).stdout
    size, peak = map(int, out.split())
    print(f"{size / 2**20:.0f} MiB of weights, {peak / 2**20:.0f} MiB more at the peak")
    assert size > 150 * 2**20 and 0.9 * size < peak < 1.15 * size


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_a_head_that_is_tied_by_the_config_alone_is_refused(kind, tmp_path):
    """transformers ties two stored weights only where they are of the same numbers."""
    theirs = causal(kind, **{**KINDS[kind], "tie_word_embeddings": False})
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    said = "the weight 'lm_head.weight' is not '.*' again, as the config says"
    with pytest.raises(ValueError, match=said):
        from_pretrained(tmp_path)
    theirs.config.tie_word_embeddings = True
    with pytest.raises(ValueError, match=said):
        from_transformers(theirs)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith(("embed_tokens.weight", "wte.weight")))
    save_file({**weights, "lm_head.weight": weights[name].clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    assert from_pretrained(tmp_path).to_logits is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rms_norm_eps": None}, "the 'qwen3' config has no rms_norm_eps"),
        (
            {"layer_types": ["full_attention"]},
            r"layer_types=\['full_attention'\] of a 'qwen3' .* there are 3 layers",
        ),
        ({"layer_types": ["full_attention", "other", "full_attention"]}, "layer_types='other' of a 'qwen3' config"),
    ],
)
def test_settings_that_would_be_guessed_are_refused(changed, message, tmp_path):
    causal("qwen3", num_hidden_layers=3).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changed
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


def test_an_adapters_weights_are_refused_in_a_sentence():
    theirs = causal("llama")
    theirs.state_dict = lambda: {"lora_A.weight": torch.zeros(3, 3)}
    with pytest.raises(ValueError, match=r"there is no place for the weight 'lora_A\.weight'"):
        from_transformers(theirs)


def test_of_two_sayings_of_rotary_positions_the_older_one_counts(tmp_path):
    """As transformers has it: `rope_scaling` before `rope_parameters`."""
    theirs = causal("llama", rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0})
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    other = {"rope_type": "linear", "factor": 5.0, "rope_theta": 500.0}
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_scaling": other}))
    x = tokens(2, 11)
    with torch.no_grad():
        expected = LlamaForCausalLM.from_pretrained(tmp_path)(x).logits
        assert (from_pretrained(tmp_path)(x) - expected).abs().max() < 1e-4
        assert (theirs(x).logits - expected).abs().max() > 1e-3


def test_four_bits_are_read_as_published(tmp_path):
    """gpt-oss as its makers store it: experts in blocks with scales, the rest in bfloat16."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_local_experts": 3, "num_experts_per_tok": 2}
    theirs = causal("gpt_oss", torch.bfloat16, **sizes)
    theirs.save_pretrained(tmp_path)
    weights, generator = load_file(tmp_path / "model.safetensors"), torch.Generator().manual_seed(2)
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = weights.pop(name).shape
        blocks = torch.randint(256, (experts, rows, columns // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(120, 124, blocks.shape[:3], generator=generator, dtype=torch.uint8)
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        with torch.no_grad():
            theirs.get_parameter(name).copy_(convert_moe_packed_tensors(blocks, scales))
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    edit(tmp_path / "config.json", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    same(from_pretrained(tmp_path), from_transformers(theirs))
    x, exact = tokens(2, 11), causal("gpt_oss", **sizes)
    exact.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        expected = exact(x).logits
        assert (from_pretrained(tmp_path, dtype=torch.float32)(x) - expected).abs().max() < 1e-4
