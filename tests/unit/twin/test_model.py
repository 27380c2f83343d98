"""The twin's checkpoint: made anew it has the same bytes, and people can read its answers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from twin.model import SPECIAL_TOKENS, VOCABULARY, make_model

torch = pytest.importorskip("torch", reason="needs torch (make env)")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


def bytes_of(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
    }


def test_two_makes_give_equal_bytes(model: Path, tmp_path: Path) -> None:
    assert bytes_of(make_model(tmp_path / "again")) == bytes_of(model)


def test_a_model_that_is_there_is_left_alone(model: Path) -> None:
    before = (model / "model.safetensors").stat().st_mtime_ns
    assert make_model(model) == model
    assert (model / "model.safetensors").stat().st_mtime_ns == before


def test_a_make_that_was_cut_off_is_made_again(model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "cut"
    directory.mkdir()
    (directory / "tokenizer.json").write_text("{}")
    assert bytes_of(make_model(directory)) == bytes_of(model)
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]


def test_it_is_the_guides_architecture(model: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    assert config.architectures == ["Qwen3MoeForCausalLM"]
    assert config.vocab_size == VOCABULARY
    assert config.num_experts % 4 == 0  # expert parallel over two and four ranks
    assert config.num_key_value_heads % 4 == 0  # tensor parallel too
    assert sum(path.stat().st_size for path in model.iterdir()) < 8_000_000


def test_one_token_is_one_byte(model: Path) -> None:
    """Tests choose prompts of block-1, block, block+1 tokens by counting characters."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = "Who are you? 你是谁"
    tokens = tokenizer(text)["input_ids"]
    assert len(tokens) == len(text.encode())
    assert tokenizer.decode(tokens) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_answers_are_varied_printable_and_decided(model: Path) -> None:
    """A model that repeats one token, or whose best two are equal, would prove nothing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokens = torch.tensor([tokenizer("Who are you?")["input_ids"]])
    with torch.no_grad():
        logits = loaded(tokens).logits[0]
        answer = loaded.generate(tokens, max_new_tokens=32, do_sample=False)[0, tokens.shape[1] :]
    best = logits.topk(2).values
    assert (best[:, 0] - best[:, 1]).median() > 0.1
    words = [token for token in answer.tolist() if token != end]
    text = tokenizer.decode(words)
    assert text.isprintable()
    assert text.isascii()
    assert len(set(words)) >= 8
    assert not set(SPECIAL_TOKENS) & {tokenizer.decode([token]) for token in words}
