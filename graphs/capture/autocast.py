"""Autocast for an accelerator, while a step is captured on tensors of the CPU: the dtypes that it would run in there.

PyTorch's autocast looks at where a tensor is, so one for ``"cuda"`` does nothing to the tensors of a capture; without a
GPU it even switches itself off. And the rules of a CPU are others: there a softmax stays in bfloat16. So while such an
autocast is on, the kernels that the dispatcher has for autocast on a CPU are replaced by ones with a GPU's rules.

The rules are those of PyTorch's ``ATen/autocast_mode.h``; other accelerators are taken to have them, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.amp.autocast_mode import autocast
from torch.utils._pytree import tree_map_only

from graphs.errors import InputError

_LOWER = frozenset(
    (
        *("_convolution", "conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d"),
        *("conv_transpose3d", "convolution", "cudnn_convolution", "cudnn_convolution_transpose", "prelu", "addmm"),
        *("addmv", "addr", "matmul", "einsum", "mm", "mv", "linalg_vecdot", "linear", "addbmm", "baddbmm", "bmm"),
        *("chain_matmul", "linalg_multi_dot", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "lstm_cell"),
        *("gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "_scaled_dot_product_flash_attention"),
        "scaled_dot_product_attention",
    )
)
"""Ops that compute in the lower precision."""

_WIDEST = frozenset(
    (
        *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot"),
        "scatter_add",
    )
)
"""Ops that compute in the widest dtype among their arguments."""

_INTO_FLOAT32 = frozenset(
    ("prod", "softmax", "log_softmax", "cumprod", "cumsum", "linalg_vector_norm", "linalg_matrix_norm", "sum")
)
"""Ops that read the lower precision and put out float32. All that are not named compute in float32."""

_BACKENDS = {"aten::norm.Scalar": "ScalarOpt_dtype", "aten::norm.ScalarOpt_dim": "ScalarOpt_dim_dtype"}
"""Ops that put out float32 by another overload, whose last argument is the dtype."""


@contextmanager
def autocast_as_on_its_device() -> Iterator[None]:
    """Let every autocast mean what it would on the device that it names, here or not.

    Raises:
        InputError: Inside, where an autocast is entered that PyTorch has switched off because there is no GPU.
    """
    rules = _Rules()
    before = {name: vars(autocast)[name] for name in ("__init__", "__enter__", "__exit__")}
    init, enter, leave = before["__init__"], before["__enter__"], before["__exit__"]
    own: set[int] = set()
    held: list[autocast] = []  # so that no other object gets the address of one that was made here

    def __init__(
        self: autocast,
        device_type: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        if device_type == "cpu" or not isinstance(device_type, str):
            init(self, device_type, dtype, enabled, cache_enabled)
            return
        init(self, device_type, dtype, False, cache_enabled)
        self._enabled = enabled
        own.add(id(self))
        held.append(self)

    def __enter__(self: autocast) -> Any:
        if self.device == "cuda" and not self._enabled and id(self) not in own and not torch.cuda.is_available():
            raise InputError(
                "an autocast for 'cuda' was made before the step, where PyTorch switches it off because there is no "
                "GPU; make it where it is entered: with torch.autocast('cuda', dtype=...) inside of forward"
            )
        result = enter(self)
        if self.device != "cpu":
            rules.enter(bool(self._enabled), self.fast_dtype)
        return result

    def __exit__(self: autocast, *error: Any) -> Any:
        if self.device != "cpu":
            rules.leave()
        return leave(self, *error)

    autocast.__init__, autocast.__enter__, autocast.__exit__ = __init__, __enter__, __exit__  # type: ignore[method-assign]
    try:
        if torch.is_autocast_enabled("cuda"):  # around the capture
            with autocast("cuda", torch.get_autocast_dtype("cuda")):
                yield
        else:
            yield
    finally:
        rules.end()
        for name, method in before.items():
            setattr(autocast, name, method)


class _Rules:
    """The rules of an accelerator's autocast in the place of the CPU's, as long as one is entered."""

    def __init__(self) -> None:
        self._outer: list[tuple[bool, torch.dtype]] = []
        self._library: torch.library.Library | None = None
        self._cast: dict[tuple[int, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}

    def enter(self, enabled: bool, dtype: torch.dtype) -> None:
        """An autocast for an accelerator begins, inside of others or not."""
        self._outer.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        if enabled and self._library is None:
            self._library = self._replace_kernels()
        if self._library is not None:
            torch.set_autocast_enabled("cpu", enabled)
            torch.set_autocast_dtype("cpu", dtype)

    def leave(self) -> None:
        """The last one that began ends."""
        enabled, dtype = self._outer.pop()
        torch.set_autocast_enabled("cpu", enabled)
        torch.set_autocast_dtype("cpu", dtype)
        if not self._outer:
            self.end()

    def end(self) -> None:
        """Put the rules of the CPU back."""
        if self._outer:
            enabled, dtype = self._outer[0]
            torch.set_autocast_enabled("cpu", enabled)
            torch.set_autocast_dtype("cpu", dtype)
            self._outer.clear()
        self._cast.clear()
        if self._library is not None:
            self._library._destroy()
            self._library = None

    def _replace_kernels(self) -> torch.library.Library:
        library = torch.library.Library("aten", "IMPL")
        on_gpu = set(torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that kernels are replaced
            for name in sorted({*on_gpu, *torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCPU")}):
                kernel = self._kernel(name) if name in on_gpu else torch.library.fallthrough_kernel
                library.impl(name.removeprefix("aten::"), kernel, "AutocastCPU")
        return library

    def _kernel(self, name: str) -> Callable[..., Any]:
        base, _, overload = name.removeprefix("aten::").partition(".")
        packet = getattr(torch.ops.aten, base)
        func = getattr(packet, overload or "default")

        def lower(args: Any, kwargs: Any) -> Any:
            return func(*self._to(_lower_dtype(), args), **self._to(_lower_dtype(), kwargs))

        def widest(args: Any, kwargs: Any) -> Any:
            wide = any(t.dtype is torch.float32 for t in _eligible([*args, *kwargs.values()]))
            dtype = torch.float32 if wide else _lower_dtype()
            return func(*self._to(dtype, args), **self._to(dtype, kwargs))

        def into_float32(args: Any, kwargs: Any) -> Any:
            given = args[position] if len(args) > position else kwargs.get("dtype")
            if args[0].is_floating_point() and given is None:
                if len(args) > position:
                    args = (*args[:position], torch.float32, *args[position + 1 :])
                else:
                    kwargs = {**kwargs, "dtype": torch.float32}
            return func(*args, **kwargs)

        def norm(args: Any, kwargs: Any) -> Any:
            dtype = torch.float32 if args[0].is_floating_point() else args[0].dtype
            filled = [
                args[i] if i < len(args) else kwargs.get(a.name, a.default_value) for i, a in enumerate(arguments)
            ]
            return getattr(packet, _BACKENDS[name])(*filled, dtype=dtype)

        def float32(args: Any, kwargs: Any) -> Any:
            return func(*self._to(torch.float32, args), **self._to(torch.float32, kwargs))

        def banned(args: Any, kwargs: Any) -> Any:
            raise InputError(
                "binary cross entropy cannot run in an autocast on a GPU; use binary_cross_entropy_with_logits"
            )

        arguments = func._schema.arguments
        position = next((i for i, a in enumerate(arguments) if a.name == "dtype"), len(arguments))
        rule = float32
        for rules, kernel in ((_LOWER, lower), (_WIDEST, widest), (_INTO_FLOAT32, into_float32)):
            rule = kernel if base in rules else rule
        rule = norm if name in _BACKENDS else banned if base == "binary_cross_entropy" else rule
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

        def without_autocast(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return rule(args, kwargs)

        return without_autocast

    def _to(self, dtype: torch.dtype, value: Any) -> Any:
        """Arguments with every number of single or half precision in a dtype; what stays the same is not copied."""
        return tree_map_only(torch.Tensor, lambda tensor: self._tensor_to(dtype, tensor), value)

    def _tensor_to(self, dtype: torch.dtype, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.dtype in (torch.float64, dtype):
            return tensor
        weight = (
            *(tensor.requires_grad, tensor.is_leaf, not tensor._is_view(), tensor.dtype is torch.float32),
            *(dtype is _lower_dtype(), torch.is_autocast_cache_enabled()),
        )
        if not all(weight):
            return tensor.to(dtype)
        key = id(tensor), dtype
        if key not in self._cast:
            self._cast[key] = tensor, tensor.to(dtype)
        return self._cast[key][1]


def _lower_dtype() -> torch.dtype:
    return torch.get_autocast_dtype("cpu")


def _eligible(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point() and value.dtype is not torch.float64:
                yield value
        elif isinstance(value, (list, tuple)):
            yield from _eligible(value)
