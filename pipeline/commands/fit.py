"""Whether a recipe's fine-tuning fits, said before a release is started."""

from pipeline.contracts.recipe import Recipe
from pipeline.model_configs import is_near, recipe_shapes
from pipeline.planning import report
from pipeline.planning.plans import plan_training
from pipeline.planning.shapes import UnknownShape


def check_fit(recipe: Recipe) -> str:
    """What `slipway validate` and `slipway release` say of a recipe's fine-tuning.

    Raises:
        SpecError: it does not fit; the same words as in the release's first step.
    """
    distill = recipe.finetune.distill
    if not is_near(recipe.base_model.uri) or (distill and not is_near(distill.teacher)):
        return "what fine-tuning takes is worked out by the release's first step; `slipway plan` does it now"
    try:
        shape, teacher = recipe_shapes(recipe)
    except UnknownShape as error:
        if recipe.finetune.parallelism.auto:
            raise
        return f"no forecast of fine-tuning: {error}"
    plan = plan_training(recipe, shape, teacher=teacher)
    plan.check()
    return report.summary(plan)
