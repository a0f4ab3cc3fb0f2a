"""A hyperparameter search: tries values for the fields that a recipe's `search` section varies, releases the best.

The trials are the instances of one mapped task. They run in rounds of `search.parallel`; the trials of later rounds
wait in the triggerer, and learn from those before. A trial that is not among the best at a rung ends there, as skipped;
one that fails leaves the others alone. The release of the best finds its training in the store.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, TriggerRule

from slipway_airflow.operators.list_trials import ListTrialsOperator
from slipway_airflow.operators.release_best import ReleaseBestOperator
from slipway_airflow.operators.step import RETRIES, StepOperator
from slipway_airflow.operators.trial import TrialOperator
from slipway_airflow.params import search_params
from slipway_airflow.release_dag import plan_work, validate_work
from slipway_airflow.search_steps import TRIAL, study_work

with DAG(
    dag_id="search",
    schedule=None,
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=4,
    params=search_params(),
    default_args={"owner": "slipway"},
    tags=["slipway"],
    doc_md=__doc__,
    dagrun_timeout=timedelta(days=14),
) as dag:
    plan = StepOperator(step="plan", work=plan_work)
    trials = ListTrialsOperator(task_id="trials")
    validate = StepOperator(step="validate", work=validate_work)
    trial = TrialOperator.partial(task_id=TRIAL, map_index_template="{{ title }}", **RETRIES).expand(
        number=trials.output
    )
    # Pruned trials are skipped and some may fail; what there is to conclude, the step itself decides.
    study = StepOperator(step="study", work=study_work, trigger_rule=TriggerRule.ALL_DONE)
    release = ReleaseBestOperator(task_id="release")
    plan >> trials >> validate >> trial >> study >> release
