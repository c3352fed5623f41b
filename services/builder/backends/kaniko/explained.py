"""What the failed step of one of our own Dockerfiles means, in the words of other backends."""

from __future__ import annotations

from services.builder.backends.base import Order
from services.builder.backends.environment import go, uv_failures
from services.builder.backends.environment.programs import Finished
from services.builder.backends.kaniko.output import Output
from services.builder.backends.kaniko.recipes import Recipe
from services.builder.failures import BuildFailed


def explained(failure: BuildFailed, order: Order, recipe: Recipe, output: Output) -> BuildFailed:
    """Return the compiler's or the installer's own failure where a step of theirs failed."""
    if failure.reason != "BUILD_STEP_FAILED" or not recipe.entry or not output.step:
        return failure
    code = failure.exit_code or 1
    if order.runtime == "go":
        return go.explain(Finished(code, tuple(output.step)), order.files, recipe.own)
    return uv_failures.classify(code, output.step)
