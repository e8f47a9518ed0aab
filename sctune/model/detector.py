"""Public names of the detector."""

from sctune.methods.deviation.detector import Detector, build_detector, load_detector
from sctune.methods.pixels import normalise, to_pixels

__all__ = ["Detector", "build_detector", "load_detector", "normalise", "to_pixels"]
