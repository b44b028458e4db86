"""A picture's colours, whatever their model and profile, as 8-bit sRGB: what SD 1.5 was trained on."""

import io
import logging
from typing import Any, Final, cast

from PIL import Image, ImageCms

_SPACE_OF_MODE: Final = {"CMYK": "CMYK", "1": "GRAY", "L": "GRAY", "LA": "GRAY"}
"""The colour space that a profile of such a picture describes; of all others it is RGB."""
_PLAIN_MODE: Final = {"CMYK": "CMYK", "GRAY": "L", "RGB": "RGB"}

logger = logging.getLogger(__name__)


def to_srgb(picture: Image.Image, name: str) -> Image.Image:
    """Return picture in mode RGB, its embedded colour profile applied; what is transparent becomes white.

    Args:
        name: what the log calls the picture when its profile cannot be used.
    """
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I"):
        # 16-bit grey: convert() would cut values off at 255 instead of scaling them.
        picture = picture.point(lambda value: value / 256).convert("L")
    space = _SPACE_OF_MODE.get(picture.mode, "RGB")
    alpha = None
    if picture.has_transparency_data:
        picture = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        alpha = picture.getchannel("A")
    colours = _apply(profile, picture, space, name) if profile else picture.convert("RGB")
    if alpha is None:
        return colours
    flat = Image.new("RGB", colours.size, "white")
    flat.paste(colours, mask=alpha)
    return flat


def _apply(content: bytes, picture: Image.Image, space: str, name: str) -> Image.Image:
    """Return picture in mode RGB by the profile; without it, if it is broken or for other pictures."""
    try:
        profile: Any = ImageCms.ImageCmsProfile(io.BytesIO(content))
        if profile.profile.xcolor_space.strip() == space:
            mode = _PLAIN_MODE[space]
            plain = picture if picture.mode == mode else picture.convert(mode)  # which would copy it, too
            srgb = ImageCms.createProfile("sRGB")
            return cast(Image.Image, ImageCms.profileToProfile(plain, profile, srgb, outputMode="RGB"))
        reason = f"it is for {profile.profile.xcolor_space.strip()} pictures"
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (a broken profile raises whatever it happens to meet)
        reason = str(error)
    # As browsers do: such a picture looks as if it had no profile.
    logger.warning("%s has a colour profile that cannot be used (%s); it is ignored.", name, reason)
    return picture.convert("RGB")
