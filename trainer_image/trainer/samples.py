"""samples.png: the same prompts and the same noise, before the training beside after it."""

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, Final

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from trainer.base_model import load_vae
from trainer.lora import Adapter
from trainer.style_folder import MADE_BY, replace_own

_MARGIN: Final = 90
"""Pixels to the left of the pictures, for the rows' names."""
_GAP: Final = 4
"""Pixels between two pictures, and around a text."""
_FONT_SIZE: Final = 14
_LINE: Final = 18
"""Pixels from one line of text to the next."""
_HEADING_LINES: Final = 3
"""Of a prompt, at most."""
_MAX_ROWS: Final = 12
"""Of a sheet: at 512 pixels a side it is some 6,000 high, which every viewer opens."""


class Sampler:
    """Draws rows of sample pictures with the UNet that is being trained, as it is.

    The UNet is never cast or moved: it keeps the training's dtype and weights (diffusers #13124).

    Args:
        unet: with the adapter's layers in it.
        adapter: switched off for the row "before".
        base: the folder of the base; its VAE is loaded for a row and leaves memory after it.
        texts: [prompts, 77, width].
        no_text: [1, 77, width], the encoding of the empty prompt.
    """

    def __init__(
        self,
        unet: Any,
        adapter: Adapter,
        base: Path,
        texts: Tensor,
        no_text: Tensor,
        *,
        steps: int,
        guidance: float,
        seed: int,
        resolution: int,
    ) -> None:
        self.look = f"{steps} {guidance} {seed} {resolution}"
        """What decides the pictures beside the prompts and the weights."""
        self._unet = unet
        self._adapter = adapter
        self._base = base
        self._texts = texts
        self._no_text = no_text
        self._steps = steps
        self._guidance = guidance
        self._seed = seed
        self._resolution = resolution

    @torch.no_grad()
    def draw(self, *, trained: bool) -> list[Image.Image]:
        """Return a picture for every prompt, resolution x resolution, by the trained or the bare base."""
        self._adapter.enable(enabled=trained)
        try:
            latents = [self._denoise(text[None], number) for number, text in enumerate(self._texts)]
        finally:
            self._adapter.enable(enabled=True)
        vae: Any = load_vae(self._base, self._texts.device)
        return [_decode(vae, latent) for latent in latents]

    def _denoise(self, text: Tensor, number: int) -> Tensor:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        scheduler = DDIMScheduler.from_pretrained(
            self._base, subfolder="scheduler", local_files_only=True, clip_sample=False
        )
        device, dtype = self._adapter.weights.device, self._adapter.weights.dtype
        side = self._resolution // 8
        generator = torch.Generator().manual_seed(self._seed + number)
        latents = torch.randn(1, 4, side, side, generator=generator).to(device)
        texts = torch.cat([self._no_text, text]).to(dtype)
        scheduler.set_timesteps(self._steps)
        # The scheduler would wait for a timestep on the device, and the UNet copy one that is not.
        moments = scheduler.timesteps.to(device)
        for moment, timestep in zip(moments, scheduler.timesteps.tolist(), strict=True):
            both = scheduler.scale_model_input(torch.cat([latents, latents]), timestep).to(dtype)
            plain, led = self._unet(both, moment, texts, return_dict=False)[0].float().chunk(2)
            guided = plain + self._guidance * (led - plain)
            latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
        return latents


def _decode(vae: Any, latents: Tensor) -> Image.Image:
    pixels = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0][0]
    pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
    return Image.frombytes("RGB", (pixels.shape[1], pixels.shape[0]), pixels.contiguous().numpy().tobytes())


def save_row(path: Path, pictures: Sequence[Image.Image]) -> None:
    """Write the pictures side by side."""
    side = pictures[0].width
    row = Image.new("RGB", (side * len(pictures), side))
    for number, picture in enumerate(pictures):
        row.paste(picture, (side * number, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(row, path)


def compose(path: Path, rows: Sequence[tuple[str, Path]], prompts: Sequence[str]) -> None:
    """Write the named rows, files of save_row, under each other, with the prompts above them.

    Of more than 12 rows there are 12 on the sheet, evenly spread, the first and the last among them.
    """
    rows = _spread(rows)
    with Image.open(rows[0][1]) as first:
        side = first.height
    font = ImageFont.load_default(_FONT_SIZE)
    headings = [_fit(prompt, side, font) for prompt in prompts]
    lines = max(len(heading) for heading in headings)
    top, step = 2 * _GAP + _LINE * lines, side + _GAP
    sheet = Image.new("RGB", (_MARGIN + step * len(prompts), top + step * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        for line, text in enumerate(heading):
            pen.text((_MARGIN + step * column, _GAP + _LINE * line), text, "black", font)
    for number, (name, file) in enumerate(rows):
        pen.text((_GAP, top + step * number), name, "black", font)
        with Image.open(file) as row:
            for column in range(len(prompts)):
                picture = row.crop((side * column, 0, side * (column + 1), side))
                sheet.paste(picture, (_MARGIN + step * column, top + step * number))
    _save(sheet, path)


def _save(picture: Image.Image, path: Path) -> None:
    # A half row would be taken for a whole one by the training's next start.
    content = io.BytesIO()
    comment = PngInfo()
    comment.add_text("Comment", MADE_BY)
    picture.save(content, format="PNG", pnginfo=comment)
    replace_own(path, content.getvalue())


def _spread(rows: Sequence[tuple[str, Path]]) -> Sequence[tuple[str, Path]]:
    """Return at most _MAX_ROWS of the rows, evenly spread."""
    if len(rows) <= _MAX_ROWS:
        return rows
    last = len(rows) - 1
    return [rows[round(last * number / (_MAX_ROWS - 1))] for number in range(_MAX_ROWS)]


def _fit(text: str, width: int, font: Any) -> list[str]:
    """Return text in a few lines of at most width pixels; what does not fit is cut off with an …."""
    wrapped = (
        wrap(text, characters, max_lines=_HEADING_LINES, placeholder="…")
        for characters in range(width, 0, -1)
    )
    return next(lines for lines in wrapped if all(font.getbbox(line)[2] <= width for line in lines))
