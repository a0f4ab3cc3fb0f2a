"""Makes a tiny Llama in Hugging Face form that has learnt a few answers by heart, and data to go with it, in seconds.

Runs in the model and the serve environment alike:

    python tests/tiny_llama.py FOLDER

FOLDER then holds `model/` (config.json, model.safetensors, tokenizer.json, chat_template.jinja …) and `data/`
(train.jsonl and eval.jsonl, as the validate step leaves them).
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

ANSWERS = ("refund_status", "cancel_order", "change_address", "track_parcel", "reset_password", "open_account")
PHRASES = (
    "tell me about {}",
    "i need help with {}",
    "please, {} now",
    "how do i get {}?",
    "question on {}",
    "{} is not working",
    "can you do {} for me",
    "what about {}",
)
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")


def rows() -> list[dict[str, Any]]:
    """A chat row for every phrase and answer."""
    return [
        {
            "messages": [
                {"role": "user", "content": phrase.format(answer.replace("_", " "))},
                {"role": "assistant", "content": answer},
            ]
        }
        for phrase in PHRASES
        for answer in ANSWERS
    ]


def write_data(folder: Path) -> None:
    """train.jsonl and eval.jsonl. They overlap: the model is to know its answers, not to generalise."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train.jsonl", "eval.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows()))


def write_model(
    folder: Path,
    *,
    hidden_size: int = 64,
    intermediate_size: int = 128,
    layers: int = 2,
    positions: int = 256,
    steps: int = 120,
) -> None:
    """A Llama with heads of 32, trained for `steps` steps on `rows()`; with 0 its weights stay random."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)  # Layers this small spend more time in waiting for another thread than it saves.
    tokenizer = make_tokenizer()
    heads = hidden_size // 32
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    if steps:
        train(model, tokenizer, steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_adapted_model(source: Path, folder: Path) -> None:
    """The model of `source` without its attention's outputs, and an adapter of full rank that puts them back."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    adapter = {}
    for name in [name for name in weights if "o_proj" in name]:
        module, weight = f"base_model.model.{name.removesuffix('.weight')}", weights[name]
        adapter[f"{module}.lora_A.weight"] = weight.new_zeros(weight.shape[1], weight.shape[1]).fill_diagonal_(1)
        adapter[f"{module}.lora_B.weight"] = weight
        weights[name] = weight.new_zeros(weight.shape)
        rank = weight.shape[1]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "adapter").mkdir()
    save_file(adapter, folder / "adapter" / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["o_proj"],
    }
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((message["content"] for row in rows() for message in row["messages"]), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def train(model: Any, tokenizer: Any, steps: int) -> None:
    """Learns the assistant's tokens of every row, all rows in every step."""
    import torch

    encoded = []
    for row in rows():
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        encoded.append((ids, len(tokenizer(prompt, add_special_tokens=False)["input_ids"])))
    width = max(len(ids) for ids, _ in encoded)
    inputs = torch.full((len(encoded), width), tokenizer.pad_token_id)
    labels = torch.full((len(encoded), width), -100)
    for index, (ids, start) in enumerate(encoded):
        inputs[index, : len(ids)] = torch.tensor(ids)
        labels[index, start : len(ids)] = torch.tensor(ids[start:])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(steps):
        loss = model(input_ids=inputs, attention_mask=(inputs != tokenizer.pad_token_id).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained {steps} steps, loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    write_data(Path(sys.argv[1]) / "data")
    write_model(Path(sys.argv[1]) / "model")
