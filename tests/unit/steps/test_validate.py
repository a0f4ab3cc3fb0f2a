"""validate: each rule refuses the smallest file that breaks it, and names itself."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.artifacts.digests import folder_digest
from pipeline.contracts.base import FolderRef
from pipeline.contracts.recipe import Format
from pipeline.contracts.specs import ValidateResult
from pipeline.errors import DataError, SpecError
from pipeline.steps.validate import run
from tests.chat_files import chat, good_pairs, good_rows, preference, validate_job, validate_spec, write_jsonl


class Case:
    """Two files to validate in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home_path = folder / "home"
        self.train: list[Any] = good_rows(40)
        self.eval: list[Any] = good_rows(10, "eval")
        self.suite: Any = None
        self.row_format: Format = "chat"

    def run(self, **rules: Any) -> ValidateResult:
        shutil.rmtree(self.home_path, ignore_errors=True)
        suite_path = None
        if self.suite is not None:
            suite_path = self.folder / "suite.json"
            suite_path.write_text(self.suite if isinstance(self.suite, str) else json.dumps(self.suite))
        train_path = write_jsonl(self.folder / "train.jsonl", self.train)
        eval_path = write_jsonl(self.folder / "eval.jsonl", self.eval)
        spec = validate_spec(train_path, eval_path, suite_path=suite_path, row_format=self.row_format, **rules)
        self.job = validate_job(spec, self.home_path)
        return run(spec, self.job)

    def refusal(self, **rules: Any) -> str:
        with pytest.raises(DataError) as caught:
            self.run(**rules)
        return str(caught.value)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_good_data_is_staged_in_normal_form(case: Case) -> None:
    """Chat rows without other fields, one a line, beside the two reports."""
    case.train[0] = {"id": 7, **case.train[0]}
    result = case.run()
    assert result.model_dump() == {
        "train_rows": 40,
        "eval_rows": 10,
        "labels": ("answer 0", "answer 1", "answer 2"),
        "rules": 20,
    }
    staged = case.job.staging_path
    assert sorted(path.name for path in staged.iterdir()) == ["eval.jsonl", "report.html", "report.json", "train.jsonl"]
    rows = [json.loads(line) for line in (staged / "train.jsonl").read_text().splitlines()]
    assert rows == good_rows(40)
    assert json.loads((staged / "report.json").read_text())["passed"] is True
    assert case.job.figures["rows_per_s"] > 0


def test_the_same_data_gives_the_same_bytes(case: Case) -> None:
    """The artifact's digest covers the reports too."""
    case.run()
    first = folder_digest(case.job.staging_path)
    case.run()
    assert folder_digest(case.job.staging_path) == first


BROKEN_TRAIN = {
    "structure": (b"[]\n", "line 41: the row is a list"),
    "roles": ({"messages": [{"role": "user", "content": "a"}]}, "line 41: the last message has the role 'user'"),
    "content": (chat(" ", "answer 1"), "line 41: message 1 (user) is empty"),
    "encoding": (b'{"messages": [{"role": "user", "content": "\xff"}]}\n', "line 41: invalid UTF-8: byte 0xff"),
    "longest message": (chat("a" * 60, "answer 1"), "line 41: a message of 60 characters"),
    "tokens": (chat("ä" * 40, "answer 1"), "line 41: 88 tokens"),
    "labels": (chat("a", "answer 9"), 'line 41: answer is "answer 9"'),
    "duplicates": (chat("Train QUESTION number 3", "answer 0"), "line 41: the same as line 4"),
    "conflicting answers": (
        chat("train question number 3", "answer 1"),
        'line 41: the prompt of line 4, with another answer: "answer 1"',
    ),
}
STRICT = {
    "max_chars": 50,
    "max_tokens": 80,
    "max_duplicate_fraction": 0.0,
    "max_conflict_fraction": 0.0,
    "labels": ["answer 0", "answer 1", "answer 2"],
}


@pytest.mark.parametrize("rule", BROKEN_TRAIN)
def test_one_bad_row_is_refused_with_rule_count_and_line(case: Case, rule: str) -> None:
    """Among forty good ones; no other rule is blamed."""
    row, expected = BROKEN_TRAIN[rule]
    case.train.append(row)
    message = case.refusal(**STRICT)
    assert message.startswith("the data breaks 1 of 24 rules:")
    assert re.search(rf"train {rule} \(train\.jsonl\): 1 of \d+ rows, expected: ", message)
    assert expected in message


@pytest.mark.parametrize("rule", BROKEN_TRAIN)
def test_the_same_rules_hold_for_the_held_out_file(case: Case, rule: str) -> None:
    """A model scored on broken rows has a meaningless score."""
    row, _ = BROKEN_TRAIN[rule]
    if rule in ("duplicates", "conflicting answers"):
        row = json.loads(json.dumps(row).replace("rain", "val").replace("Tval", "eval").replace("tval", "eval"))
    case.eval.append(row)
    assert f"eval {rule} (eval.jsonl): 1 of " in case.refusal(**STRICT)


@pytest.fixture
def pairs(case: Case) -> Case:
    """Two files of preference rows."""
    case.row_format = "preference"
    case.train, case.eval = good_pairs(40), good_pairs(10, "eval")
    return case


def test_preference_rows_are_staged_as_chats_with_a_rejected_answer(pairs: Case) -> None:
    """So that evaluation scores the chosen answer as the reference, and two pairs may share a prompt."""
    result = pairs.run()
    assert result.labels == ("answer 0", "answer 1", "answer 2")
    for name, given in (("train", pairs.train), ("eval", pairs.eval)):
        staged = (pairs.job.staging_path / f"{name}.jsonl").read_text().splitlines()
        expected = [{**chat(row["prompt"], row["chosen"]), "rejected": row["rejected"]} for row in given]
        assert [json.loads(line) for line in staged] == expected


def test_rows_in_normal_form_are_validated_again_to_the_same_bytes(pairs: Case) -> None:
    """What one release validated, another may start from."""
    pairs.run()
    staged = (pairs.job.staging_path / "train.jsonl").read_bytes()
    pairs.train = [staged]
    pairs.run()
    assert (pairs.job.staging_path / "train.jsonl").read_bytes() == staged


BROKEN_PAIRS = {
    "structure": (chat("a", "b"), "line 41: the row has no `rejected`; it has 'messages'"),
    "roles": (
        {"prompt": [{"role": "assistant", "content": "a"}], "chosen": "answer 1", "rejected": "b"},
        "line 41: message 1 has the role 'assistant', expected 'user'",
    ),
    "content": (preference("a", "answer 1", " "), "line 41: the rejected answer is empty"),
    "encoding": (preference("a", "answer 1", "b\x00"), "line 41: the control character U+0000 in the rejected answer"),
    "pairs": (preference("a", "answer 1", "answer 1 "), "line 41: the rejected answer is the chosen one"),
    "longest message": (preference("a", "answer 1", "b" * 60), "line 41: a message of 60 characters"),
    "tokens": (preference("ä" * 40, "answer 1", "b" * 8), "line 41: 88 tokens"),
    "labels": (preference("a", "answer 9", "b"), 'line 41: answer is "answer 9"'),
    "duplicates": (preference("Train QUESTION number 1", "answer 0", "no answer 1"), "line 41: the same as line 4"),
    "conflicting choices": (
        preference("train question number 1", "answer 2", "answer 1"),
        "line 42: the two answers of line 41, the other way round",
    ),
}


@pytest.mark.parametrize("rule", BROKEN_PAIRS)
def test_one_bad_pair_is_refused_with_rule_count_and_line(pairs: Case, rule: str) -> None:
    """Among forty good ones; no other rule is blamed."""
    row, expected = BROKEN_PAIRS[rule]
    pairs.train.append(row)
    if rule == "conflicting choices":
        pairs.train.append(preference("train question number 1", "answer 1", "answer 2"))
    message = pairs.refusal(**STRICT)
    assert message.startswith("the data breaks 1 of 26 rules:"), message
    assert re.search(rf"train {rule} \(train\.jsonl\): 1 of \d+ rows, expected: ", message)
    assert expected in message


def test_a_suite_may_look_at_the_rejected_answers(pairs: Case) -> None:
    """The column is there, and kept."""
    regex = expectation("expect_column_values_to_match_regex", column="rejected", regex="^no answer [0]$")
    pairs.suite = {"expectations": [regex]}
    assert 'line 2: rejected is "no answer 1"' in pairs.refusal()


def test_duplicates_up_to_the_limit_are_let_through(case: Case) -> None:
    """Two of forty are 5 %, three of forty-one are not."""
    case.train[-2:] = case.train[:2]
    case.run(max_duplicate_fraction=0.05)
    case.train.append(case.train[0])
    assert "train duplicates (train.jsonl): 3 of 41 rows" in case.refusal(max_duplicate_fraction=0.05)


def test_a_held_out_prompt_that_was_trained_on_is_refused(case: Case) -> None:
    """Whatever its answer."""
    case.eval.append(chat("TRAIN question number  7", "answer 0"))
    message = case.refusal()
    assert "eval overlap (eval.jsonl): 1 of 11 rows" in message
    assert "line 11: the prompt of line 8 of the training rows" in message
    case.run(max_overlap_fraction=0.1)


def test_too_few_and_too_many_rows_are_refused(case: Case) -> None:
    """The held-out file needs a tenth of the training file's minimum."""
    assert "train row count (train.jsonl): found 40, expected: 41 rows at least" in case.refusal(min_rows=41)
    assert "eval row count (eval.jsonl): found 10, expected: 11 rows at least" in case.refusal(min_rows=101)
    assert "found 40, expected: 10 to 39 rows" in case.refusal(max_rows=39)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_an_empty_file_is_refused(case: Case, split: str) -> None:
    """It breaks the row count, and must not crash on the way."""
    setattr(case, split, [])
    assert f"{split} row count ({split}.jsonl): found 0" in case.refusal()


def test_one_label_only_is_refused(case: Case) -> None:
    """A model that always says the same would score 1.0."""
    case.train = [chat(f"question {number}", "yes") for number in range(40)]
    message = case.refusal()
    assert "train distinct answers (train.jsonl): found 1, expected: at least 2 different answers" in message


def test_a_truncated_last_line_is_refused(case: Case) -> None:
    """A copy that broke off."""
    case.train.append(b'{"messages": [{"role": "user", "con')
    message = case.refusal()
    assert "line 41: not valid JSON" in message
    assert "the file ends in the middle of the line" in message


def test_a_message_shorter_than_the_limit_is_refused(case: Case) -> None:
    """With a lower limit of more than one character."""
    assert "train shortest message (train.jsonl): 40 of 40 rows" in case.refusal(min_chars=9)


def test_parquet_with_other_columns_is_refused(case: Case) -> None:
    """The message says which columns there are."""
    path = case.folder / "rows.parquet"
    pq.write_table(pa.table({"text": ["a"] * 20, "label": ["b"] * 20}), path)
    spec = validate_spec(path, write_jsonl(case.folder / "eval.jsonl", case.eval))
    with pytest.raises(DataError, match="the file has the columns 'text', 'label'; expected `messages`"):
        run(spec, validate_job(spec, case.home_path))


def test_every_broken_rule_is_named_at_once(case: Case) -> None:
    """So that a user needs one round, not five; long lists of rows are cut."""
    case.train += [b"{\n"] * 30 + [chat("a", "")]
    case.eval = case.eval[:5] + case.train[:1]
    message = case.refusal(min_rows=100)
    assert message.startswith("the data breaks 6 of 20 rules:")
    assert message.count("not valid JSON") == 3


def test_the_report_of_a_refusal_is_kept_and_named(case: Case) -> None:
    """With the beginning of each row, escaped; nothing in it is fetched from elsewhere."""
    case.train.append(b"<script>alert(1)</script>\n")
    message = case.refusal()
    uri = re.search(r"the whole report: file://(\S+)$", message)
    assert uri is not None
    page = Path(uri[1]).read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert not re.search(r"https?://|@import|url\(", page)
    report = json.loads(Path(uri[1]).with_name("report.json").read_text())
    broken = [entry for entry in report["rules"] if not entry["passed"]]
    assert [(entry["file"], entry["rule"], entry["broken_rows"]) for entry in broken] == [("train", "structure", 1)]
    assert broken[0]["first"][0]["line"] == 41


def test_tokens_are_counted_with_the_base_models_tokenizer(case: Case) -> None:
    """Where there is one; the limit is then exact."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(3)
    folder = case.folder / "model"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    case.run()
    spec = validate_spec(case.folder / "train.jsonl", case.folder / "eval.jsonl", max_tokens=5)
    base_model = FolderRef(uri=folder.as_uri(), digest=folder_digest(folder))
    spec = spec.model_copy(update={"base_model": base_model})
    with pytest.raises(DataError, match=r"train tokens .*: 40 of 40 rows, expected: at most 5 tokens; .* 6 tokens"):
        run(spec, validate_job(spec, case.folder / "other-home"))


def test_a_broken_tokenizer_of_the_base_model_is_named(case: Case) -> None:
    """It is the recipe's fault, not a bug."""
    folder = case.folder / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"version": "1.0", ')
    case.run()
    spec = validate_spec(case.folder / "train.jsonl", case.folder / "eval.jsonl", max_tokens=5)
    spec = spec.model_copy(update={"base_model": FolderRef(uri=folder.as_uri(), digest=folder_digest(folder))})
    with pytest.raises(SpecError, match=r"tokenizer\.json is no tokenizer that can be read: EOF while parsing"):
        run(spec, validate_job(spec, case.folder / "other-home"))


def expectation(kind: str, **entry: Any) -> dict[str, Any]:
    meta = {"meta": entry.pop("meta")} if "meta" in entry else {}
    return {"type": kind, "kwargs": entry, **meta}


def test_the_users_suite_is_run_over_both_files(case: Case) -> None:
    """Or over the one that its meta names."""
    regex = expectation("expect_column_values_to_match_regex", column="prompt", regex="question number")
    mean = expectation("expect_column_mean_to_be_between", column="chars_max", min_value=5, meta={"file": "eval"})
    case.suite = {"expectations": [regex, mean]}
    assert case.run().rules == 23


def test_a_suite_that_fails_refuses_the_data_with_lines(case: Case) -> None:
    """Just as the recipe's own rules do."""
    case.suite = {"expectations": [expectation("expect_column_values_to_match_regex", column="answer", regex="[01]$")]}
    message = case.refusal()
    assert "train suite 1: expect_column_values_to_match_regex (train.jsonl): 13 of 40 rows" in message
    assert 'line 3: answer is "answer 2"; line 6: ' in message
    assert "eval suite 1: " in message


def test_a_suite_that_cannot_be_evaluated_refuses_the_data(case: Case) -> None:
    """The mean of text is no reason to let data through."""
    case.suite = {"expectations": [expectation("expect_column_mean_to_be_between", column="answer", min_value=1)]}
    assert "train suite 1: expect_column_mean_to_be_between (train.jsonl): could not be evaluated" in case.refusal()


BAD_SUITES: dict[str, tuple[Any, str]] = {
    "an unknown expectation": (
        {"expectations": [expectation("expect_miracles", column="answer")]},
        "suite 1: expect_miracles: Great Expectations knows no expect_miracles",
    ),
    "an unknown column": (
        {"expectations": [expectation("expect_column_values_to_be_null", column="anser")]},
        "expectation 1 of the suite names the column 'anser'; there are line, ",
    ),
    "unknown arguments": (
        {"expectations": [expectation("expect_column_values_to_be_between", column="tokens", min_value="few")]},
        "Great Expectations does not accept",
    ),
    "a missing argument": ({"expectations": [{"type": "expect_column_values_to_be_null"}]}, "does not accept"),
    "no type": ({"expectations": [{"kwargs": {}}]}, "expectation 1 of the suite has no `type`"),
    "no expectations": ({"expectations": []}, 'must be {"expectations": '),
    "another shape": ([1], 'must be {"expectations": '),
    "no JSON": ("expectations: []", "is no JSON file"),
    "an unknown file": (
        {"expectations": [expectation("expect_column_to_exist", column="line", meta={"file": "test"})]},
        "meta.file is 'test', expected 'train' or 'eval'",
    ),
}


@pytest.mark.parametrize("name", BAD_SUITES)
def test_a_suite_that_is_not_understood_is_a_bad_spec(case: Case, name: str) -> None:
    """The data is not to blame, and nothing is passed over."""
    case.suite, expected = BAD_SUITES[name]
    with pytest.raises(SpecError) as caught:
        case.run()
    assert expected in str(caught.value)


def test_nothing_is_written_to_the_working_folder(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Great Expectations likes to set up a project."""
    folder = case.folder / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    case.run()
    assert list(folder.iterdir()) == []
