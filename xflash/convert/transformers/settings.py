"""The settings of a config of transformers, none of which may be overlooked."""

from collections.abc import Mapping
from typing import Any

from ...base.checks import shown

__all__ = ["Settings"]

# What says nothing about the outputs: how a model was trained, is stored, generates or is called.
WORDS = """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _num_labels
    architectures attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token bos_token_id
    cache_implementation chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping encoder_no_repeat_ngram_size eos_token eos_token_id experts_implementation
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label initializer_factor initializer_range is_encoder_decoder
    is_llama_config label2id length_penalty max_length min_length model_type no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_past
    output_scores pad_token pad_token_id prefix pretraining_tp problem_type pruned_heads remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
    transformers.js_config transformers_version typical_p unk_token_id unsloth_fixed unsloth_version
    use_bfloat16 use_cache vocab_file
"""
SILENT = frozenset(WORDS.split())


class Settings:
    """The settings of one config, taken by name; `finish` refuses those that nobody has taken.

    has_head: whether there is a head of its own among the weights, for configs that do not say.
    Unless it is off (None, False, 0, empty), a setting that is not known here could change the outputs.
    """

    def __init__(self, config: Mapping[str, Any], long: bool = False, has_head: bool = False):
        self.config, self.has_head = dict(config), has_head
        self.long, self.has_long = long, False
        self.kind: str = self.config.get("model_type", "")
        self.taken: set[str] = set()

    def __call__(self, name: str, default: Any = None) -> Any:
        """The value of a setting, the default where it is not there or None."""
        self.taken.add(name)
        value = self.config.get(name)
        return default if value is None else value

    def said(self, name: str, default: Any) -> Any:
        """The value of a setting, None too; the default where it is not there."""
        return self(name) if name in self.config else self(name, default)

    def need(self, *names: str) -> Any:
        """The value of a setting, which may have several names; ValueError where it is not there."""
        values = [value for name in names if (value := self(name)) is not None]
        if not values:
            raise ValueError(f"the {self.kind!r} config has no {' or '.join(names)}")
        return values[0]

    def only(self, name: str, *possible: Any) -> None:
        """ValueError for a setting, where it is there, that has none of these values."""
        value = self(name, possible[0])
        if value not in possible:
            raise self.error(name, value, f"only {' or '.join(map(repr, possible))} has")

    def among(self, name: str, known: Mapping[str, Any], default: Any = None) -> Any:
        """What a setting is called here; ValueError for one that is not known."""
        value = self(name, default)
        if value not in known:
            raise self.error(name, value, f"known are {', '.join(map(str, known))}")
        return known[value]

    def without_effect(self, *names: str) -> None:
        """Settings that change no output of these models, whatever they are."""
        self.taken.update(names)

    def error(self, name: str, value: Any, known: str = "") -> ValueError:
        said = f"{name}={shown(value)} of a {self.kind!r} config has no counterpart in xflash"
        return ValueError(f"{said}; {known}" if known else said)

    def long_context(self) -> bool:
        """Whether the model is to be that of texts longer than trained on; for models that have both."""
        self.has_long = True
        return self.long

    def finish(self) -> None:
        """ValueError for a setting that is on and was not taken."""
        if self.long and not self.has_long:
            raise ValueError(
                f"long_context=True takes the second list of factors of rope_type='longrope', but this {self.kind!r} "
                "config has none"
            )
        for name, value in self.config.items():
            if value and name not in self.taken and name not in SILENT:
                raise ValueError(
                    f"{name}={shown(value)} of a {self.kind!r} config is not known here and could change the outputs; "
                    "take it out of the config if it does not"
                )
