"""Hold a sub-layer's output at the restored tokens while a block runs.

The hooks are put on once for a whole walk; which values they write is each thread's own, so
threads can walk their own samples through the same modules.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from tracer.anatomy import Anatomy, SubLayer
from tracer.anatomy.hidden import by_token, hidden_of, with_hidden
from tracer.model.sharded import first_column
from tracer.site import Unit


class Hold:
    """The values at which one kind of sub-layer is held.

    A held MLP's output is not needed at the tokens where it is overwritten, so there it is not
    computed, if the MLP is a module of its own that adds nothing else.

    Attributes:
        path: which sub-layer.
        values: for each layer [row, token, d_model].
    """

    def __init__(self, anatomy: Anatomy, path: SubLayer, values: list[Tensor]) -> None:
        self.anatomy, self.values = anatomy, values
        self.path: SubLayer = path
        self._now: Any = threading.local()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Puts hooks on every layer; they do nothing outside `writing`."""
        names = self.anatomy.names
        prunes = self.path == "mlp" and not names.mlp_site.startswith(f"{names.mlp}.")
        with ExitStack() as hooks:
            for layer, block in enumerate(self.anatomy.blocks):
                if prunes:
                    mlp = block.get_submodule(names.mlp)
                    hooks.callback(mlp.register_forward_pre_hook(self._shorten).remove)
                    hooks.callback(mlp.register_forward_hook(self._lengthen).remove)
                site = self.anatomy.site_module(self.path, layer)
                hooks.callback(site.register_forward_hook(self._write).remove)
            yield

    @contextmanager
    def writing(self, layer: int, rows: Tensor, tokens: Tensor, first: int) -> Iterator[None]:
        """In this thread, some queries of each row get the values of `tokens`, one query for each token.

        Args:
            layer: whose values.
            rows: for each row that runs, whose values, [row].
            tokens: positions in the prompt.
            first: the first of these queries; the others follow it.
        """
        self._now.values, self._now.first, self._now.left_out = self.values[layer][rows][:, tokens], first, 0
        try:
            yield
        finally:
            self._now.values = None

    def _shorten(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        values = getattr(self._now, "values", None)
        if values is None or len(args) != 1 or args[0].dim() != 3:
            return None
        count = values.shape[1]
        if self._now.first > 0 or not 0 < count < args[0].shape[1]:
            return None
        self._now.left_out = count
        return (args[0][:, count:].contiguous(),)

    def _lengthen(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if getattr(self._now, "values", None) is None or not self._now.left_out:
            return None
        missing, self._now.left_out = self._now.left_out, 0
        return with_hidden(output, nn.functional.pad(hidden_of(output), (0, 0, missing, 0)))

    def _write(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        values = getattr(self._now, "values", None)
        if values is None:
            return None
        hidden = hidden_of(output)
        rows = hidden.reshape(len(values), -1, hidden.shape[-1]).clone()
        rows[:, self._now.first : self._now.first + values.shape[1]] = values
        return with_hidden(output, rows.reshape(hidden.shape))


class UnitHold:
    """Overwrites some columns of a matrix's input: a head, a neuron.

    Attributes:
        matrices: of each layer.
        values: its recorded inputs, for each layer [row, token, width].
    """

    def __init__(self, matrices: list[nn.Module], values: list[Tensor]) -> None:
        self.matrices, self.values = matrices, values
        self._now: Any = threading.local()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Puts hooks on every layer; they do nothing outside `writing`."""
        with ExitStack() as hooks:
            for matrix in self.matrices:
                hooks.callback(matrix.register_forward_pre_hook(self._write).remove)
            yield

    @contextmanager
    def writing(self, unit: Unit, rows: Tensor, tokens: Tensor) -> Iterator[None]:
        """In this thread, the queries, which are `tokens`, get the unit's values of the recorded `rows`."""
        here = first_column(self.matrices[unit.layer])
        self._now.columns = slice(max(0, unit.begin - here), max(0, unit.end - here))
        self._now.values = self.values[unit.layer][rows][:, tokens, self._now.columns]
        try:
            yield
        finally:
            self._now.values = None

    def _write(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        values = getattr(self._now, "values", None)
        if values is None:
            return None
        changed = by_token(args[0], len(values)).clone()
        changed[..., self._now.columns] = values
        return (changed.reshape(args[0].shape), *args[1:])
