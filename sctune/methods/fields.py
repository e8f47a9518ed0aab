"""Fields that methods with a trained backbone share: what their entries list in `uses`, and when these matter."""

from __future__ import annotations

from sctune.config import Conditions

TRUNK = (
    "model.backbone",
    "model.weights",
    "model.tap",
    "model.freeze",
    "model.batch_norm",
    "model.batch_norm_momentum",
)
CHANGES = (
    "augment.rotation",
    "augment.rotation_degrees",
    "augment.rotation_fill",
    "augment.flip",
    "augment.shift",
    "augment.brightness",
    "augment.contrast",
)
ADAM = (
    "optim.lr",
    "optim.weight_decay",
    "optim.step_fraction",
    "optim.step_when",
    "optim.gamma",
    "optim.clip_norm",
)
"""Adam, and the steps in which its rate falls."""

# methods that share a field agree on what it needs
CONDITIONS: dict[str, Conditions] = {
    "model.batch_norm_momentum": (("model.batch_norm", ("train",)),),
    "augment.rotation_degrees": (("augment.rotation", ("free",)),),
    "augment.rotation_fill": (("augment.rotation", ("free",)),),
}

LABELLED: Conditions = (("data.setting", ("general", "hard")),)
"""Of what means something where labelled anomalies are trained on."""
