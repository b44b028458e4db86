"""README.md beside the weights: what was trained, how, and how to use it."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Final

from trainer.export import TrainingFacts
from trainer.plan import TrainingPlan
from trainer.style_folder import MADE_BY

_OPENRAIL: Final = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5")
"""The hub's SD 1.5, whose licence holds for what is made of it. That of another base is not known here."""

_TEMPLATE: Final = """\
---
{origin}library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, stable-diffusion-diffusers, text-to-image, lora]
---

# Style {style_id}

{made_by}: a LoRA for Stable Diffusion 1.5, trained on {images} pictures. {trigger}

{samples}## Use

**diffusers**

```python
from diffusers import StableDiffusionPipeline

base = {base!r}  # the folder or hub id of the base that it was trained on
pipeline = StableDiffusionPipeline.from_pretrained({base_arguments}).to("cuda")
pipeline.load_lora_weights("lora_weights.safetensors")
picture = pipeline({prompt!r}).images[0]
```

**ComfyUI**: put `lora_weights.safetensors` into `models/loras` and add the node *Load LoRA* with
`strength_model` 1.0.

**AUTOMATIC1111**: put it into `models/Lora` as `style_{style_id}.safetensors` and write
{prompt_with_lora}.

Strength 1 is the strength that was trained: the file says alpha {lora_alpha:g} at rank {lora_rank}, and every
program above multiplies by their quotient, {scale:g}.

## Training

Loss {loss}. `loss.png` shows all epochs, `metrics.jsonl` has the figures.

| setting | value |
|---|---|
{settings}
"""


def model_card(
    plan: TrainingPlan,
    facts: TrainingFacts,
    *,
    mean_loss: float | None,
    base_is_folder: bool,
    samples: str | None,
) -> str:
    """Return the card in Markdown.

    Args:
        plan: see TrainingPlan.
        facts: see TrainingFacts.
        mean_loss: the running mean of the loss at the end, if the figures of the epochs are known.
        base_is_folder: the base is no hub's. Its path says nothing to others and is left out, but the name.
        samples: the file name of the sample pictures, if there are any.
    """
    word = facts.trigger_word
    prompt = f"{word}, a house by a lake" if word else "a house by a lake"
    base = Path(plan.base_model).name if base_is_folder else plan.base_model
    revision = plan.base_model_revision
    # An epoch of ten pictures has ten random timesteps.
    alone = f"{facts.loss:.4f} in the last epoch alone, which is mostly noise"
    return _TEMPLATE.format(
        origin="" if base_is_folder else _origin(base),
        style_id=facts.style_id,
        made_by=MADE_BY,
        images=facts.images,
        trigger=(
            f"Put its trigger word, {_code(word)}, into the prompt." if word else "It needs no trigger word."
        ),
        prompt=prompt,
        prompt_with_lora=_code(f"{prompt} <lora:style_{facts.style_id}:1>"),
        samples=f"![Before and after]({samples})\n\n" if samples else "",
        loss=alone if mean_loss is None else f"{mean_loss:.4f} as a running mean at the end, {alone}",
        scale=plan.lora_alpha / plan.lora_rank,
        base=base,
        base_arguments=f"base, revision={revision!r}" if revision and not base_is_folder else "base",
        lora_alpha=plan.lora_alpha,
        lora_rank=plan.lora_rank,
        settings="\n".join(
            f"| {name.replace('_', ' ')} | {value} |"
            for name, value in {**asdict(plan), "base_model": base, "steps": facts.steps}.items()
            if value is not None
        ),
    )


def _origin(hub_id: str) -> str:
    """Return the lines of the front matter that only a hub's base has."""
    licence = "license: creativeml-openrail-m\n" if hub_id in _OPENRAIL else ""
    return f"base_model: {hub_id}\n{licence}"


def _code(text: str) -> str:
    """Return text as a code span: on one line, its fence longer than any backticks in it (CommonMark 6.1)."""
    text = " ".join(text.split())
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"
