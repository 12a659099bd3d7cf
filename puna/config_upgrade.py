"""A config.json that version 0.1 wrote, in today's layout."""

from typing import Any

# Where the fields of version 0.1's section `train` are now.
_TRAIN_FIELDS = {
    **{name: ("schedule", name) for name in ("steps", "batch_tokens", "micro_batch")},
    **{
        name: ("compute", name)
        for name in ("precision", "activations", "compile", "threads", "deterministic", "allocator")
    },
    **{name: ("watch", name) for name in ("validate_every", "validation_windows", "sample_every")},
    "save_every": ("save", "every"),
    "keep": ("save", "keep"),
    "track": ("watch", "trackers"),
    "profile": ("watch", "profile_steps"),
    "skip_outliers": ("optim", "skip_outliers"),
}


def upgrade(values: Any) -> Any:
    """The values of a config.json in today's layout; those that are in it already are returned unchanged.

    Version 0.1 had one section `train`, and five fields `model.rope_*` for RoPE scaling.
    """
    if not isinstance(values, dict):
        return values
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    if isinstance(values.get("train"), dict):
        for name, value in values.pop("train").items():
            if name == "seed":
                values["seed"] = value
            else:
                section, field = _TRAIN_FIELDS.get(name, ("train", name))
                values.setdefault(section, {})[field] = value
    model = values.get("model")
    if isinstance(model, dict) and "rope_factor" in model:
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_context")
        scaling = {name: model.pop(f"rope_{name}") for name in names if f"rope_{name}" in model}
        model["rope_scaling"] = scaling if scaling["factor"] is not None else None
    return values
