"""Fine-tuning on two nodes through the step's own entry point: results, agreement, repetition, refusals."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from training_jobs import TrainingJob, make_spec, publish_dataset, rows

from pipeline.contracts.base import ArtifactRef, FolderRef

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArtifactRef:
    return publish_dataset(tmp_path_factory.mktemp("data") / "store", rows())


@pytest.fixture(scope="module")
def two_nodes(dataset: ArtifactRef, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A finished training with ZeRO-1 on two nodes."""
    job = TrainingJob(make_spec(dataset), tmp_path_factory.mktemp("two") / "home", nodes=2)
    job.run()
    return job


def test_the_result_is_a_folder_that_transformers_loads(two_nodes: TrainingJob) -> None:
    """Weights, tokenizer and chat template, and a loss that went down."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = two_nodes.folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        rows()[0]["messages"][:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generate(**prompt, max_new_tokens=2).shape[1] > prompt["input_ids"].shape[1]
    losses = two_nodes.losses()
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert (folder / "training" / "loss.png").stat().st_size > 1000


def test_the_same_spec_twice_gives_the_same_artifact(two_nodes: TrainingJob, tmp_path: Path) -> None:
    """Byte for byte, in another state folder and at another time."""
    again = TrainingJob(two_nodes.spec, tmp_path / "home", nodes=2).run()
    first = json.loads((two_nodes.folder().parent / "manifest.json").read_bytes())
    assert {f.path: f.sha256 for f in again.files} == {f["path"]: f["sha256"] for f in first["files"]}
    assert again.digest == first["digest"]


def test_two_processes_of_one_node_learn_what_two_nodes_learn(
    two_nodes: TrainingJob, dataset: ArtifactRef, tmp_path: Path
) -> None:
    """The losses agree to 1e-5 in fp32 with accumulation, although the ranks hold different numbers of tokens."""
    spec = make_spec(dataset, nodes=1, procs_per_node=2, gradient_accumulation=2)
    job = TrainingJob(spec, tmp_path / "home", nodes=1)
    job.run()
    assert job.losses() == pytest.approx(two_nodes.losses(), abs=1e-5)


def test_training_goes_on_from_a_folder(two_nodes: TrainingJob, dataset: ArtifactRef, tmp_path: Path) -> None:
    """Its loss begins where the folder's training ended, and its tokenizer is kept as it is."""
    from pipeline.artifacts.digests import folder_digest

    base = two_nodes.folder()
    source = make_spec(dataset, {"uri": str(base)}, nodes=1)
    folder = FolderRef(uri=f"file://{base}", digest=folder_digest(base))
    job = TrainingJob(source.model_copy(update={"base_model_folder": folder}), tmp_path / "home", nodes=1)
    job.run()
    assert job.losses()[0] < two_nodes.losses()[0] - 0.3
    assert (job.folder() / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_one_node_tokenizes_and_a_later_training_reuses_its_tokens(
    two_nodes: TrainingJob, dataset: ArtifactRef
) -> None:
    """Neither the other node nor a training with other settings in the same store does it again."""
    later = TrainingJob(make_spec(dataset, nodes=1, learning_rate=5e-4, epochs=0.2), two_nodes.home, nodes=1)
    later.run()
    assert two_nodes.log.count("tokenized 96 rows") == 1
    assert two_nodes.log.count("reused the tokens in ") == 2
    assert len(list((two_nodes.home / "store" / "tokens").iterdir())) == 1


@pytest.mark.drill
def test_pairs_of_answers_train_on_two_nodes(tmp_path: Path) -> None:
    """From preference rows as validate leaves them: the chosen answers become likelier than the rejected ones."""
    pairs = [{**row, "rejected": "no idea at all"} for row in rows()]
    spec = make_spec(
        publish_dataset(tmp_path / "data" / "store", pairs),
        method="dpo", dpo={"beta": 0.5}, prompt_loss_weight=0.0, epochs=2, learning_rate=3e-3,
    )  # fmt: skip
    job = TrainingJob(spec, tmp_path / "home", nodes=2)
    assert job.run().result["steps"] == 24
    losses = job.losses()
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < 0.2


REFUSALS: dict[str, tuple[dict[str, Any], int, int, str]] = {
    "other nodes than the recipe says": (
        {"nodes": 2},
        1,
        64,
        r"finetune.nodes is 2, but the job runs on 1 \(SLIPWAY_NODES\)",
    ),
    "an overlap that needs an accelerator": (
        {"nodes": 1, "communication": {"overlap": True}},
        1,
        64,
        r"finetune.communication.overlap is true, which needs an accelerator, and this machine has none",
    ),
    "rows longer than the model": (
        {"nodes": 1, "max_seq_len": 512},
        1,
        64,
        r"finetune.max_seq_len \(512\) exceeds the base model's max_position_embeddings \(256\)",
    ),
    "a learning rate that destroys the model": (
        {"nodes": 1, "learning_rate": 0.99, "gradient_clipping": 1e30, "epochs": 40, "warmup_fraction": 0.0,
         "weight_decay": 1e30},
        1,
        65,
        r"the loss became (nan|inf) at step \d+ on rank 0, which had lines [\d, ]+ of train.jsonl; the learning rate"
        r" was 0\.\d+, the gradient norm [\d.e+]+ at step \d+",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_trained_is_refused_in_one_line(case: str, dataset: ArtifactRef, tmp_path: Path) -> None:
    """With the right exit code, the values and what to do."""
    settings, nodes, code, said = REFUSALS[case]
    job = TrainingJob(make_spec(dataset, **settings), tmp_path / "home", nodes=nodes)
    job.start()
    assert job.wait() == [code] * nodes, job.log
    errors = [line for line in job.log.splitlines() if line.startswith("error ")]
    assert len(errors) == 1, job.log
    assert re.search(said, errors[0]), errors[0]


def test_a_base_model_that_changed_since_the_plan_is_refused(
    two_nodes: TrainingJob, dataset: ArtifactRef, tmp_path: Path
) -> None:
    """Exit code 65, naming the folder."""
    spec = make_spec(dataset, {"uri": str(two_nodes.folder())}, nodes=1)
    folder = FolderRef(uri=f"file://{two_nodes.folder()}", digest="0" * 64)
    job = TrainingJob(spec.model_copy(update={"base_model_folder": folder}), tmp_path / "home", nodes=1)
    job.start()
    assert job.wait() == [65]
    assert str(two_nodes.folder()) in job.log
