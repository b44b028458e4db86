"""The one-shot trainer: a Stable Diffusion 1.5 LoRA from a few pictures."""
