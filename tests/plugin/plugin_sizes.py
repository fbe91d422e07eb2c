"""Changes that make a preset tiny, for `--policy.changes`."""

VISION = {"name": "conv", "channels": [8, 8, 8, 8], "reduced": 4, "cls_width": 16, "film": True}
TINY = {
    "gr1": {
        "size": 16, "width": 16, "layers": 1, "heads": 2, "language": 8, "vision": VISION,
        "resampler": {"latents": 2, "layers": 1, "heads": 2, "head_width": 8, "expansion": 2},
        "foresight": {"queries": 2, "decoder": {"width": 16, "heads": 2}},
    },
    "f1": {
        "size": 16, "layers": 2, "heads": 2, "head_width": 8,
        "understanding": {
            "width": 16, "hidden": 16, "language": 8, "vision": VISION,
            "resampler": {"latents": 2, "layers": 1, "heads": 2, "head_width": 8, "expansion": 2},
        },
        "generation": {"width": 16, "hidden": 16},
        "action": {"width": 16, "hidden": 16},
    },
}  # fmt: skip
