"""Makes the modules in this folder importable from every test, and keeps torch to one thread: tests run side by side."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("shared machine", deadline=None)  # a time limit per example would fail at random
settings.load_profile("shared machine")
