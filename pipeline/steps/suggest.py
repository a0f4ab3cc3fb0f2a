"""suggest: draws the values of one trial of a hyperparameter search, from what earlier trials scored.

Reads nothing but its spec. Writes suggestion.json: the values, and where they come from.

Raises:
    SpecError: the search's space holds no further values that the recipe allows.
"""

from pipeline.contracts.study import SuggestResult, SuggestSpec
from pipeline.job import Job
from pipeline.search.sampling import suggest


def run(spec: SuggestSpec, job: Job) -> SuggestResult:
    result = suggest(spec)
    job.seeds["search"] = spec.search.seed
    (job.staging_path / "suggestion.json").write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    values = ", ".join(f"{key}={value}" for key, value in result.values.items())
    job.say(f"trial {spec.number}: {values} ({result.source})")
    return result
