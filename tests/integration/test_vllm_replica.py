"""One rollout with real vLLM replicas on a tiny model with random weights."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_rig import MODEL, Rig

from pipeline import settings
from pipeline.fleet.replicas import Replicas, VllmEngine

pytestmark = pytest.mark.integration

MAKE_MODEL = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers, decoders
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
tokenizer = Tokenizer(models.BPE(vocabulary, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
fast.chat_template = "{% for message in messages %}{{ message['content'] }}\\n{% endfor %}"
fast.save_pretrained(sys.argv[1])
config = LlamaConfig(vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1)
LlamaForCausalLM(config).bfloat16().save_pretrained(sys.argv[1])
"""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A fleet whose replicas are vLLM."""
    rig = Rig(tmp_path)
    bundle = tmp_path / "bundle"
    python = settings.load().python_path("serve")
    subprocess.run([str(python), "-c", MAKE_MODEL, str(bundle)], check=True, capture_output=True)
    rig.fleet.replicas = Replicas(rig.supervisor, VllmEngine(rig.layout, python))
    rig.fleet.fetch_bundle = lambda version: bundle
    rig.up()
    rig.registry.configure(replicas=1, ready_timeout_s=400.0, kv_cache_mib=32)
    yield rig
    rig.supervisor.stop()


def test_a_real_engine_is_rolled_out_and_says_its_version(rig: Rig) -> None:
    """Streams included; the engine's other paths stay closed."""
    results = rig.roll_out("1")
    assert [result.outcome for result in results] == ["done", "done", "healthy", "done", "done"], rig.said
    answer = rig.ask()
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-slipway-version"] == "1"
    assert answer.json()["model"] == MODEL
    assert rig.ask("nobody").status_code == 404
