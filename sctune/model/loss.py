"""Public names of `sctune.methods.deviation.loss`."""

from sctune.methods.deviation.loss import deviation, deviation_loss, deviation_losses

__all__ = ["deviation", "deviation_loss", "deviation_losses"]
