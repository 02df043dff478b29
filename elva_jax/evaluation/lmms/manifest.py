"""The entry point `lmms_eval.models`, which lmms-eval loads at every start, with any model.

Nothing heavy is imported here. An import that fails would make lmms-eval drop the models of other
packages, too.
"""

from __future__ import annotations

from typing import Any

from elva_jax.evaluation.lmms.names import ALIASES, MODEL

MODULE = "elva_jax.evaluation.lmms.model"


def manifests() -> list[Any]:
    """The models that this package adds to lmms-eval, as its `ModelManifest`s."""
    # lmms-eval loads this module while it is being imported itself, or not at all.
    from lmms_eval.models.registry_v2 import ModelManifest  # noqa: PLC0415

    return [
        ModelManifest(
            model_id=MODEL,
            simple_class_path=f"{MODULE}.ElvaSimple",
            chat_class_path=f"{MODULE}.ElvaChat",
            aliases=ALIASES,
        )
    ]
