"""How a picture becomes the pixels that a model takes, in words for other programs."""

from __future__ import annotations

from typing import Any

from sctune.config import TrialConfig

RULES = {
    "stretch": "the whole picture to S x S, whatever its aspect",
    "crop": "the central square to S x S",
    "pad": "the longer side to S, the rest black on both sides",
}


def preprocessing(config: TrialConfig) -> dict[str, Any]:
    """How a picture becomes the pixels that an exported file takes, for whoever does it outside of sctune."""
    data = config.data.model_dump()
    # settings of decoding that a model may have been made with
    decoding = {f"data_{name}": data[name] for name in ("range", "page", "alpha") if data.get(name) is not None}
    return {
        "image_size": config.data.image_size,
        "resize": config.data.resize,
        "resize_rule": RULES[config.data.resize],
        "resize_kernel": "bilinear: a triangle filter, Pillow's Image.Resampling.BILINEAR",
        "resize_antialias": (
            "true: where an image shrinks, the filter's support grows with the factor; OpenCV's INTER_LINEAR and "
            "torch's interpolate without antialias=True give other pixels"
        ),
        "resize_rounding": "on uint8, first along the rows and then along the columns, each rounded to uint8",
        "colours": "RGB; a grey image three times",
        "pixel_range": "uint8, 0 to 255; the normalisation is inside the file",
        **decoding,
    }
