"""`Peer`: what a model of transformers says of itself, each setting and each tensor asked for or refused."""

from collections.abc import Iterable, Sequence
from typing import Any

from ...base.shapes import Tensor

__all__ = ["ACTIVATIONS", "Peer"]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
    "tanh": "tanh",
    "mish": "mish",
}
# Settings that change no logits: names, tokens with a meaning, how weights are drawn, what calls give and keep.
WITHOUT_EFFECT = """architectures model_type _name_or_path name_or_path transformers_version dtype torch_dtype
    _attn_implementation attn_implementation bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    id2label label2id num_labels problem_type task_specific_params tokenizer_class prefix finetuning_task
    initializer_range use_cache output_attentions output_hidden_states return_dict return_dict_in_generate
    gradient_checkpointing pretraining_tp resid_pdrop hidden_dropout classifier_dropout is_decoder summary_type
    summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout reorder_and_upcast_attn
    max_window_layers original_max_position_embeddings"""


class Peer:
    """Hands out a model's settings by name and copies of its tensors, and knows which nobody asked for.

    long_texts: whether texts are longer than those of training, where that makes a difference.
    """

    def __init__(self, model: Any, long_texts: bool = False):
        self.config, self.name, self.long_texts = model.config, type(model).__name__, long_texts
        # What is shared by two parts has its first name only.
        self.left: dict[str, Tensor] = dict(model.named_parameters())
        self.asked: set[str] = set()

    def said(self, name: str, default: Any = None) -> Any:
        """A setting of the config."""
        self.asked.add(name)
        return getattr(self.config, name, default)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name that nobody has taken."""
        return name in self.left

    def take(self, name: str) -> Tensor:
        """A copy of a tensor, without a graph; ValueError where there is none."""
        if name not in self.left:
            raise ValueError(f"this {self.name} has no tensor {name!r}")
        return self.left.pop(name).detach().clone()

    def taken(self, names: Iterable[str]) -> list[Tensor]:
        return [self.take(name) for name in names]

    def split(self, name: str, parts: Sequence[str], sizes: Sequence[int]) -> None:
        """Names each so many rows of a tensor, where there is one."""
        if name in self.left:
            self.left |= zip(parts, self.left.pop(name).split_with_sizes(tuple(sizes)), strict=True)

    def activation(self, setting: str) -> str:
        """What an activation is called here."""
        name = self.said(setting)
        if name not in ACTIVATIONS:
            raise self.refused(setting, name)
        return ACTIVATIONS[name]

    def refused(self, setting: str, value: Any) -> ValueError:
        """The error for what xflash has no counterpart of."""
        return ValueError(f"xflash has no counterpart of {setting}={value!r} of {self.name}")

    def finish(self) -> None:
        """ValueError when tensors are left, or settings that are not at their default."""
        if self.left:
            raise ValueError(f"xflash has no counterpart of the tensors {', '.join(self.left)} of {self.name}")
        known = {*self.asked, *WITHOUT_EFFECT.split()}
        for setting, value in self.config.to_diff_dict().items():
            if setting not in known:
                raise self.refused(setting, value)
