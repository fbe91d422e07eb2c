"""Keeps huggingface_hub, which LeRobot asks, on this machine."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
