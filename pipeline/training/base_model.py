"""What fine-tuning starts from, as a local folder: a folder, an s3:// folder, a hub id, or a new small model."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts import fetch_folder
from pipeline.contracts.base import FolderRef, ModelRef
from pipeline.contracts.finetune import Finetune
from pipeline.contracts.recipe import InitModel
from pipeline.contracts.specs import FinetuneSpec, PinnedModel
from pipeline.errors import SpecError, TransientError
from pipeline.job import Job
from pipeline.planning.spread import misfit

PAD, END = "<|pad|>", "<|end|>"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
"""No pickles."""
SPECIAL_TOKENS = [PAD, "<|system|>", "<|user|>", "<|assistant|>", END]


def chat_template(init: InitModel) -> str:
    """<|role|> text <|end|> for each message. The blank gives a first word the token that it has elsewhere."""
    content = "message['content'] | lower" if init.lowercase_prompts else "message['content']"
    return (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'assistant' -%}"
        "{{ '<|assistant|>' + message['content'] + '<|end|>' }}"
        "{%- else -%}"
        f"{{{{ '<|' + message['role'] + '|> ' + ({content}) + '<|end|>' }}}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
    )


def write_new_model(init: InitModel, rows_path: Path, folder: Path) -> None:
    """config.json, generation_config.json and a tokenizer trained on `rows_path`; the weights are the trainer's."""
    from transformers import GenerationConfig, LlamaConfig

    tokenizer = train_tokenizer(init, rows_path)
    end, pad = tokenizer.convert_tokens_to_ids([END, PAD])
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=init.vocab_size,
        hidden_size=init.hidden_size,
        intermediate_size=init.intermediate_size,
        num_hidden_layers=init.num_layers,
        num_attention_heads=init.num_heads,
        num_key_value_heads=init.num_kv_heads,
        max_position_embeddings=init.max_position_embeddings,
        tie_word_embeddings=init.tie_word_embeddings,
        attention_dropout=init.attention_dropout,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    config.save_pretrained(folder)
    GenerationConfig(bos_token_id=None, eos_token_id=end, pad_token_id=pad).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_tokenizer(init: InitModel, rows_path: Path) -> Any:
    """A byte-level BPE over the training rows, as the chat template shows them: it knows every text there is."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=init.vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(init, rows_path), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=SPECIAL_TOKENS[1:-1],
        chat_template=chat_template(init),
        model_max_length=init.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )


def _texts(init: InitModel, rows_path: Path) -> Iterator[str]:
    with rows_path.open(encoding="utf-8") as lines:
        for message in (message for line in lines for message in json.loads(line)["messages"]):
            if message["role"] == "assistant":
                yield message["content"]
            else:
                yield " " + (message["content"].lower() if init.lowercase_prompts else message["content"])


def local_folder(spec: FinetuneSpec, cache_path: Path) -> Path:
    """The base model's folder on this machine, its bytes checked against the spec's digest.

    Raises:
        SpecError: there is no such hub model.
        IntegrityError: the folder is gone or changed since the plan was made.
        TransientError: the hub or the store does not answer.
    """
    if spec.base_model_folder is None:
        return _from_hub(str(spec.base_model.uri), spec.base_model.revision)
    return fetch_folder(spec.base_model_folder, cache_path)


def teacher_folder(teacher: PinnedModel, job: Job) -> Path:
    """The teacher's folder on this machine. It raises what `local_folder` does."""
    if isinstance(teacher, ModelRef):
        return job.fetch_model(teacher)
    if isinstance(teacher, FolderRef):
        return job.fetch_folder(teacher)
    return _from_hub(teacher.name, teacher.revision)


def check_teacher(folder: Path, student: Path) -> None:
    """Refuses a teacher that does not speak in the student's tokens.

    Raises:
        SpecError: another vocabulary; names the first token that differs.
    """
    theirs, ours = (load_tokenizer(path).get_vocab() for path in (folder, student))
    if theirs == ours:
        return
    token = min(set(theirs.items()) ^ set(ours.items()), key=lambda item: (item[1], item[0]))[0]
    raise SpecError(
        f"the teacher ({folder}) and the base model do not share a vocabulary: {token!r} is token {theirs.get(token)}"
        f" to the teacher and {ours.get(token)} to the base model; distillation needs two models of one tokenizer"
    )


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise SpecError(f"base_model.uri is {name!r} (revision {revision}): the hub has no such model") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise TransientError(f"the model hub does not give {name!r} (revision {revision}): {error}") from error


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`, a fast one.

    Raises:
        SpecError: there is none, or none that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # for a broken tokenizer.json the library raises nothing narrower
        raise SpecError(f"base model {folder} has no tokenizer that can be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise SpecError(f"base model {folder} has only a slow tokenizer; add tokenizer.json to its folder")
    return tokenizer


def check_model(folder: Path, settings: Finetune) -> None:
    """Refuses a base model that cannot be trained as asked.

    Raises:
        SpecError: no config or weights, sequences beyond the model's positions, or a model that cannot be spread so.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise SpecError(f"base model {folder} has no config.json that can be loaded: {error}") from error
    positions, longest = getattr(config, "max_position_embeddings", None), settings.max_seq_len
    if positions is not None and longest > positions:
        raise SpecError(
            f"finetune.max_seq_len ({longest}) exceeds the base model's max_position_embeddings ({positions})"
        )
    check_shape(config, settings)


def check_shape(config: Any, settings: Finetune) -> None:
    """Refuses a model that cannot be spread as asked.

    Args:
        config: the model's, of transformers.

    Raises:
        SpecError: heads or layers do not divide, or a kind of model that has no stages.
    """
    why = misfit(
        settings.parallelism,
        kind=config.model_type,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        num_layers=config.num_hidden_layers,
        has_windows="sliding_attention" in (getattr(config, "layer_types", None) or ()),
    )
    if why:
        raise SpecError(f"finetune.parallelism: {why}")


def check_weights(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        raise SpecError(f"base model {folder} has no .safetensors weights; convert it, pickled ones are not read")


def copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's files as they are, so that nothing about the text changes on the way."""
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "chat_template.jinja",
        "generation_config.json",
    ):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
