"""Tokens as an artifact: the same bytes by any number of processes, made once, shared, and checked."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import artifacts
from pipeline.artifacts.digests import file_digest, folder_digest
from pipeline.contracts.base import FileRef
from pipeline.contracts.finetune import Finetune
from pipeline.contracts.recipe import InitModel
from pipeline.contracts.specs import TokensSpec
from pipeline.errors import IntegrityError, TransientError
from pipeline.job import Job
from pipeline.settings import load
from pipeline.training import tokenized, tokenizing
from pipeline.training.base_model import write_new_model
from pipeline.training.tokenizing import worthwhile_processes, write_tokens
from pipeline.training.tokens import TokenFile, TokenWriter

SETTINGS = Finetune(nodes=1, max_seq_len=48)


@pytest.fixture(scope="module")
def rows_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows of different lengths, every third with an earlier answer, and each with a rejected one."""
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    earlier = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    lines = []
    for number in range(300):
        asked = {"role": "user", "content": "please " * (number % 7) + f"find parcel {number}"}
        answer = {"role": "assistant", "content": f"parcel {number} is on its way"}
        messages = [*(earlier if number % 3 == 0 else []), asked, answer]
        lines.append(json.dumps({"messages": messages, "rejected": "no idea"}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def model_path(rows_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_new_model(InitModel(vocab_size=320), rows_path, folder)
    return folder


def test_any_number_of_processes_writes_the_same_bytes(rows_path: Path, model_path: Path, tmp_path: Path) -> None:
    """In shards of bounded size, and with the same counts; the last report of progress is the file's end."""
    told: list[tuple[int, int]] = []
    reports = [
        write_tokens(
            rows_path, model_path, tmp_path / str(processes), max_seq_len=24, pairs=True, processes=processes,
            chunk_rows=40, shard_tokens=2000, on_progress=lambda done, total: told.append((done, total)),
        )
        for processes in (1, 2)
    ]  # fmt: skip
    assert reports[0] == reports[1]
    assert folder_digest(tmp_path / "1") == folder_digest(tmp_path / "2")
    shards = sorted((tmp_path / "1").glob("*-ids.npy"))
    assert len(shards) > 3
    assert all(len(np.load(shard)) <= 2000 for shard in shards)
    assert told[-1] == (rows_path.stat().st_size,) * 2
    assert told[: len(told) // 2] == told[len(told) // 2 :]


def test_rows_are_found_again_across_shards(tmp_path: Path) -> None:
    """One by one, and several end to end."""
    random = np.random.default_rng(0)
    rows = [random.integers(1, 99, size=length, dtype=np.int32) for length in random.integers(2, 20, size=50)]
    writer = TokenWriter(tmp_path, shard_tokens=64)
    for row in rows:
        writer.add(row, row % 2 == 0, np.array([len(row)]))
    assert writer.close() == (50, sum(map(len, rows)), sum(int((row[1:] % 2 == 0).sum()) for row in rows))
    tokens = TokenFile(tmp_path)
    for index, row in enumerate(rows):
        ids, answer = tokens.row(index)
        assert ids.tolist() == row.tolist()
        assert answer.tolist() == (row % 2 == 0).tolist()
        assert tokens.answers[index] == answer[1:].sum()
    ids, answer = tokens.rows(np.array([49, 0, 20]))
    assert ids.tolist() == [*rows[49], *rows[0], *rows[20]]
    assert (answer == (ids % 2 == 0)).all()


def test_a_process_that_is_killed_is_a_fault_that_may_pass(
    rows_path: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the likely cause."""
    monkeypatch.setattr(tokenizing, "_begin", _dies)
    with pytest.raises(TransientError, match="one of 2 processes that tokenize was killed"):
        write_tokens(rows_path, model_path, tmp_path / "tokens", max_seq_len=24, processes=2, chunk_rows=40)


def _dies(*arguments: Any) -> None:
    """For want of memory, say."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_small_files_are_not_worth_a_process() -> None:
    """Large ones are spread over the cores that there are."""
    assert worthwhile_processes(300_000, cpus=16) == 1
    assert worthwhile_processes(40 << 20, cpus=16) == 5
    assert worthwhile_processes(10 << 30, cpus=16) == 16


def job_in(home: Path, *, rank: int = 0, nodes: int = 1) -> Job:
    """A training's job with its state in `home` and the store beside it."""
    variables = {
        "SLIPWAY_HOME": str(home),
        "SLIPWAY_NODES": str(nodes),
        "SLIPWAY_NODE_RANK": str(rank),
        "SLIPWAY_STORE": f"file://{home.parent}/store",
    }
    return Job(
        step="finetune",
        key="f" * 64,
        out_uri=f"file://{home.parent}/store/finetune/{'f' * 64}",
        settings=load(variables),
    )


def spec_of(rows_path: Path, model_path: Path, **settings: Any) -> TokensSpec:
    rows = FileRef(uri=rows_path.as_uri(), digest=file_digest(rows_path), size_bytes=rows_path.stat().st_size)
    return tokenized.make_spec(rows, model_path, SETTINGS.model_copy(update=settings))


def fetch(job: Job, rows_path: Path, model_path: Path, **settings: Any) -> Path:
    spec = spec_of(rows_path, model_path, **settings)
    return tokenized.fetch_tokens(spec, job, rows_path=rows_path, model_path=model_path)[0]


def test_a_training_with_other_settings_reuses_the_tokens(
    rows_path: Path, model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another length makes others, and so does another chat template."""
    first = fetch(job_in(tmp_path / "home"), rows_path, model_path)
    assert "progress " in (said := capsys.readouterr().out)
    assert "tokenized 300 rows" in said
    again = fetch(job_in(tmp_path / "other"), rows_path, model_path, learning_rate=0.5, seed=3, batch_size=1)
    assert again == first
    assert capsys.readouterr().out.startswith("reused the tokens in file://")
    assert fetch(job_in(tmp_path / "home"), rows_path, model_path, max_seq_len=24) != first
    changed = tmp_path / "model"
    changed.mkdir()
    for file in model_path.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text().replace("'<|end|>' }}", "'.<|end|>' }}"))
    assert spec_of(rows_path, changed).tokenizer != spec_of(rows_path, model_path).tokenizer


def test_one_node_makes_the_tokens_and_the_others_wait_for_them(
    rows_path: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three nodes on machines of their own that share a store alone; the last to come would be the first node."""
    monkeypatch.setattr(tokenized, "POLL_S", 0.01)
    made: list[str] = []
    make = tokenized._make
    monkeypatch.setattr(
        tokenized, "_make", lambda spec, maker, *paths: made.append(maker.key) or make(spec, maker, *paths)
    )
    found: dict[int, Path] = {}

    def node(rank: int) -> None:
        found[rank] = fetch(job_in(tmp_path / f"home-{rank}", rank=rank, nodes=3), rows_path, model_path)

    others = [threading.Thread(target=node, args=(rank,)) for rank in (1, 2)]
    for thread in others:
        thread.start()
    node(0)
    for thread in others:
        thread.join(60)
    assert len(made) == 1
    assert set(found) == {0, 1, 2}
    assert len(set(found.values())) == 1


def test_a_node_whose_first_node_never_comes_makes_the_tokens_itself(
    rows_path: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it has waited long enough."""
    monkeypatch.setattr(tokenized, "PATIENCE_S", 0.0)
    monkeypatch.setattr(tokenized, "PATIENCE_BYTES", 1 << 60)
    folder = fetch(job_in(tmp_path / "home", rank=1, nodes=2), rows_path, model_path)
    assert len(TokenFile(folder).lengths) == 300


def test_an_altered_shard_is_named(rows_path: Path, model_path: Path, tmp_path: Path) -> None:
    """Nothing is trained on it."""
    folder = fetch(job_in(tmp_path / "home"), rows_path, model_path)
    shard = folder / "00000-ids.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"00000-ids\.npy was altered: sha256 is .* delete the artifact"):
        fetch(job_in(tmp_path / "home"), rows_path, model_path)


def test_the_artifact_says_what_it_was_made_of(rows_path: Path, model_path: Path, tmp_path: Path) -> None:
    """The rows are among its inputs, and its scratch is gone."""
    job = job_in(tmp_path / "home")
    folder = fetch(job, rows_path, model_path)
    manifest = artifacts.find_manifest(folder.parent.as_uri())
    assert manifest is not None
    assert manifest.step == "tokens"
    assert file_digest(rows_path) in manifest.inputs
    assert manifest.result["rows"] == 300
    assert not (tmp_path / "home" / "work" / "tokens" / manifest.key).exists()
