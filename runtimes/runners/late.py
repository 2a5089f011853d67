"""A graph that is opened when it is first run.

A picture of several tiles never runs the whole graph of a model that has a tile graph and a router; to open it all the
same costs as much as two tiles on ONNX Runtime and ten on OpenVINO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

from clusir.errors import UsageError
from clusir.runtimes.runners.base import Array, Runner
from clusir.spec import ModelSpec

__all__ = ["LateRunner"]


class LateRunner:
    """A :class:`clusir.runtimes.runners.base.Runner` of which ``spec`` and ``name`` are known before it is opened.

    ``open_it`` opens the runner behind it, at the first call that needs one; what that raises, the call raises.
    """

    def __init__(self, spec: ModelSpec, name: str, open_it: Callable[[], Runner]) -> None:
        self.spec, self.name = spec, name
        self._open_it: Callable[[], Runner] | None = open_it
        self._runner: Runner | None = None

    @property
    def opened(self) -> bool:
        return self._runner is not None

    def _opened(self) -> Runner:
        if self._runner is None:
            if self._open_it is None:
                raise UsageError(f"model {self.spec.name}: it was closed; open it again")
            self._runner = self._open_it()
        return self._runner

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self._opened().run(feeds)

    def expect(self, size: tuple[int, int] | None) -> None:
        self._opened().expect(size)

    def placement(self) -> dict[str, int]:
        return self._opened().placement()

    def takes_batches(self) -> bool:
        return self._opened().takes_batches()

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()
        self._runner = self._open_it = None

    def __enter__(self) -> LateRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
