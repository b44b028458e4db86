"""README.md beside the weights: what was trained, how, and how to use it."""

import re
from dataclasses import asdict
from typing import Final

from trainer.export import TrainingFacts
from trainer.plan import TrainingPlan
from trainer.style_folder import MADE_BY

_TEMPLATE: Final = """\
---
base_model: {base_model}
library_name: diffusers
license: creativeml-openrail-m
pipeline_tag: text-to-image
tags: [stable-diffusion, stable-diffusion-diffusers, text-to-image, lora]
---

# Style {style_id}

{made_by}: a LoRA for Stable Diffusion 1.5, trained on {images} pictures. {trigger}

{samples}## Use

**diffusers**

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained({base_model!r})
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

Loss {loss:.4f} in the last epoch; `loss.png` shows all of them, `metrics.jsonl` has the figures.

| setting | value |
|---|---|
{settings}
"""


def model_card(plan: TrainingPlan, facts: TrainingFacts, samples: str | None) -> str:
    """Return the card in Markdown; samples is the file name of the sample pictures, if there are any."""
    word = facts.trigger_word
    prompt = f"{word}, a house by a lake" if word else "a house by a lake"
    return _TEMPLATE.format(
        style_id=facts.style_id,
        made_by=MADE_BY,
        images=facts.images,
        trigger=(
            f"Put its trigger word, {_code(word)}, into the prompt." if word else "It needs no trigger word."
        ),
        prompt=prompt,
        prompt_with_lora=_code(f"{prompt} <lora:style_{facts.style_id}:1>"),
        samples=f"![Before and after]({samples})\n\n" if samples else "",
        loss=facts.loss,
        scale=plan.lora_alpha / plan.lora_rank,
        base_model=plan.base_model,
        lora_alpha=plan.lora_alpha,
        lora_rank=plan.lora_rank,
        settings="\n".join(
            f"| {name.replace('_', ' ')} | {value} |"
            for name, value in {**asdict(plan), "steps": facts.steps}.items()
            if value is not None
        ),
    )


def _code(text: str) -> str:
    """Return text as a code span: on one line, its fence longer than any backticks in it (CommonMark 6.1)."""
    text = " ".join(text.split())
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"
