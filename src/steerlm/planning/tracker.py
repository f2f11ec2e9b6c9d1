"""Counts the bytes of all tensors that are alive, real ones or fake."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that were made under this mode and still are.

    Those of `known` (weights, inputs) are not counted, nor are views of them.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self._peak = 0
        self._known = WeakIdKeyDictionary({tensor.untyped_storage(): None for tensor in known})
        self._sizes: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def peak(self) -> int:
        """The most that was alive at any moment since this was last asked."""
        peak, self._peak = self._peak, self.now
        return peak

    def __enter__(self) -> LiveBytes:
        # FSDP frees and takes up gathered weights by resizing their storage, which no dispatch mode sees.
        self._resize = torch.UntypedStorage.resize_
        resize = self._resize

        def counted(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            if storage in self._sizes:
                self._set(self._sizes[storage], size)
            return result

        torch.UntypedStorage.resize_ = counted  # type: ignore[method-assign, assignment]
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            # A DTensor is a name for its local part, which is counted when it is made.
            if isinstance(leaf, Tensor) and not isinstance(leaf, DTensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known or storage in self._sizes:
            return
        self._sizes[storage] = size = [0]
        self._set(size, storage.nbytes())
        weakref.finalize(storage, self._set, size, 0)

    def _set(self, size: list[int], new: int) -> None:
        self.now += new - size[0]
        size[0] = new
        self._peak = max(self._peak, self.now)
