"""Which image a job runs in, for its record."""

from __future__ import annotations

import os

from treadle.hardware.backend import Json

VARIABLE = "TREADLE_IMAGE_DIGEST"


def image_notes(image: str | None) -> Json:
    """`image` as the pool names it, and its `image_digest` where anybody knows it; empty for a job without an image.

    The digest is the name's own, else that of the variable `TREADLE_IMAGE_DIGEST`, which whoever deploys an image by a
    tag can set: a container can't see which image it was made from.
    """
    digest = (image or "").partition("@")[2] or os.environ.get(VARIABLE, "")
    return {name: value for name, value in (("image", image), ("image_digest", digest)) if value}
