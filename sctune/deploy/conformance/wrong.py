"""What known wrong pipelines make of a picture: resized by another kernel or rule, or misread before."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Kernel = Callable[[Image.Image, tuple[int, int]], Image.Image]

NO_ANTIALIAS = "resized without antialiasing"
RULES = {"stretch": "resized without regard to the aspect", "crop": "cut to its central square", "pad": "padded"}


def resized(native: Pixels, size: int, rule: str, kernel: Kernel) -> Pixels:
    """uint8 [H, W, 3] -> uint8 [size, size, 3] by one of the rules `stretch`, `crop` and `pad` (data.resize)."""
    picture = Image.fromarray(native)
    width, height = picture.size
    if rule == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    target = (size, size)
    if rule == "pad":
        longest = max(width, height)
        target = (max(1, round(width * size / longest)), max(1, round(height * size / longest)))
    made = picture if picture.size == target else kernel(picture, target)
    canvas = Image.new("RGB", (size, size))
    canvas.paste(made, ((size - made.width) // 2, (size - made.height) // 2))
    return np.asarray(canvas)


def pillow(kernel: Image.Resampling) -> Kernel:
    """A kernel of Pillow, which all are antialiased."""
    return lambda picture, target: picture.resize(target, kernel)


def plain_bilinear(picture: Image.Image, target: tuple[int, int]) -> Image.Image:
    """Each pixel from four neighbours, however much the picture shrinks: OpenCV's INTER_LINEAR, torch's interpolate."""
    import torch

    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    made = torch.nn.functional.interpolate(pixels, (target[1], target[0]), mode="bilinear", align_corners=False)
    return Image.fromarray(made[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy())


RIGHT = pillow(Image.Resampling.BILINEAR)
KERNELS: Mapping[str, Kernel] = {
    NO_ANTIALIAS: plain_bilinear,
    "resized to the nearest pixel": pillow(Image.Resampling.NEAREST),
    "resized by a bicubic kernel": pillow(Image.Resampling.BICUBIC),
    "resized by a Lanczos kernel": pillow(Image.Resampling.LANCZOS),
    "resized by area (box)": pillow(Image.Resampling.BOX),
}


def wrong_readings(native: Pixels, misread: Mapping[str, Pixels], size: int, rule: str) -> dict[str, Pixels]:
    """Name -> uint8 [size, size, 3] of every known wrong pipeline; native, misread: uint8 [H, W, 3]."""
    made = {name: resized(native, size, rule, kernel) for name, kernel in KERNELS.items()}
    made |= {f"{RULES[other]}": resized(native, size, other, RIGHT) for other in RULES if other != rule}
    for name, pixels in misread.items():
        made[name] = resized(pixels, size, rule, RIGHT)
        made[f"{name}, and {NO_ANTIALIAS}"] = resized(pixels, size, rule, plain_bilinear)
    return made
