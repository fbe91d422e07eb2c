"""Makes the modules in this folder importable from every test, and keeps torch to one thread: tests run side by side."""

import torch

torch.set_num_threads(1)
