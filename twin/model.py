"""Make the twin's model: a tiny random Qwen3-MoE checkpoint with a byte-level tokenizer.

The architecture and its code in vLLM are the guide's (Qwen3-30B-A3B is
`Qwen3MoeForCausalLM` too); only the sizes are small. The weights are drawn far
wider than a fresh initialisation, so that greedy continuations are varied and the
gap between the best two tokens is wide: with the default initialisation the
logits are nearly equal and the text repeats one token, which proves nothing.

    python -m twin.model DIRECTORY
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

SEED = 20251122
_BYTES = 256
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LAST_FILE = "generation_config.json"  # the last to be written
VOCABULARY = _BYTES + len(SPECIAL_TOKENS)
# One entry of the vocabulary is one byte of text, so a prompt of n ASCII characters has n tokens.

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_model(directory: Path) -> Path:
    """Write the checkpoint unless it is there already; returns `directory`.

    Deterministic: the same versions of torch and transformers write the same bytes. All of it
    appears at once, so that a make that was cut off, or two at a time, leave no half of one.
    """
    if (directory / _LAST_FILE).exists():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".making-") as temporary:
        made = Path(temporary) / directory.name
        made.mkdir()
        _write_tokenizer(made)
        _write_weights(made)
        _add_older_names(made)
        if not (directory / _LAST_FILE).exists():
            shutil.rmtree(directory, ignore_errors=True)  # what was left unfinished
        try:
            made.rename(directory)
        except OSError:  # another process was faster, and its checkpoint has the same bytes
            if not (directory / _LAST_FILE).exists():
                raise
    return directory


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 32768,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def _write_weights(directory: Path) -> None:
    import torch
    import transformers

    library: Any = transformers  # its classes take more than their annotations say
    config = library.Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        eos_token_id=_BYTES + SPECIAL_TOKENS.index("<|im_end|>"),
        pad_token_id=_BYTES + SPECIAL_TOKENS.index("<|endoftext|>"),
        bos_token_id=None,
    )
    torch.manual_seed(SEED)
    model = library.Qwen3MoeForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                continue
            fan_in = parameter.shape[-1]
            parameter.normal_(0.0, _width(name) / fan_in**0.5)
        # Bytes outside printable ASCII never win, so that people can read the twin's answers.
        printable = set(range(33, 127)) | {32}
        symbols = _byte_of_symbol()
        for index, byte in enumerate(symbols):
            if byte not in printable:
                model.lm_head.weight[index].zero_()
        for token in SPECIAL_TOKENS:  # the end of an answer may come, other marks may not
            if token != "<|im_end|>":
                model.lm_head.weight[_BYTES + SPECIAL_TOKENS.index(token)].zero_()
    model.save_pretrained(directory, safe_serialization=True)
    library.GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(directory)


def _add_older_names(directory: Path) -> None:
    """What transformers 4, that vLLM 0.10 runs with, calls otherwise than transformers 5."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta")}
    older = {
        "num_experts": config.get("num_local_experts", config.get("num_experts")),
        "rope_theta": rope["rope_theta"],
        "torch_dtype": config.get("dtype", config.get("torch_dtype")),
    }
    file.write_text(json.dumps(config | older, indent=2, sort_keys=True) + "\n")


def _byte_of_symbol() -> list[int]:
    """The byte that each entry of the byte-level alphabet stands for, in vocabulary order."""
    from tokenizers import decoders, pre_tokenizers

    decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [
        text.encode()[0]
        if (text := decoder.decode([symbol])) != "\N{REPLACEMENT CHARACTER}"
        else 255
        for symbol in alphabet
    ]


def _width(name: str) -> float:
    """Standard deviation of a weight, in units of 1/sqrt(fan-in): see the module's docstring."""
    if "lm_head" in name:
        return 6.0
    if "embed_tokens" in name:
        return 12.0
    return 2.0


if __name__ == "__main__":
    print(make_model(Path(sys.argv[1])))
