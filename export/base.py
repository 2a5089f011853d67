"""A pass changes a model and says whether it did and why; a pipeline is a visible list of passes.

The same shape serves passes on ``nn.Module`` and passes on an ONNX ``ModelProto``: the type variable is the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from clusir.errors import ClusirError, ExportError

if TYPE_CHECKING:
    import onnx

__all__ = ["GraphPass", "Pass", "PassRecord", "PassResult", "Pipeline"]

M = TypeVar("M")


@dataclass(frozen=True)
class PassResult(Generic[M]):
    """What a pass returns: the model (the same object or a new one), whether it changed, and sentences for the
    report."""

    model: M
    modified: bool
    notes: tuple[str, ...] = ()


class Pass(Protocol[M]):
    """One change to a model.

    ``requires`` raises ExportError where the pass cannot be applied at all; ``ensures`` raises ExportError where the
    promise of the pass does not hold on its result. A pass that finds nothing to do returns ``modified=False`` and a
    note that says why.
    """

    name: str

    def requires(self, model: M) -> None: ...

    def apply(self, model: M) -> PassResult[M]: ...

    def ensures(self, model: M) -> None: ...


class GraphPass(ABC):
    """A pass on an ONNX graph that asks for nothing and promises a valid graph; both can be overridden."""

    name: str

    def requires(self, model: onnx.ModelProto) -> None:  # noqa: B027 - asking for nothing is the default
        """Nothing."""

    @abstractmethod
    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]: ...

    def ensures(self, model: onnx.ModelProto) -> None:
        """Raises onnx.checker.ValidationError where the graph is no valid ONNX."""
        import onnx

        onnx.checker.check_model(model)


@dataclass(frozen=True)
class PassRecord:
    """One line of the report: which pass, whether it changed the model, and what it noted."""

    name: str
    modified: bool
    notes: tuple[str, ...] = ()


@dataclass
class Pipeline(Generic[M]):
    """Runs passes in order; a failure names the pass and those that ran before it.

    ``after_each(name, model)`` is called behind every pass that changed the model, for example to check parity and so
    blame a difference on one pass. ``before_each(name)`` is told which pass comes next.
    """

    passes: Sequence[Pass[M]]
    after_each: Callable[[str, M], None] | None = None
    before_each: Callable[[str], None] = lambda _: None
    records: list[PassRecord] = field(default_factory=list)

    def run(self, model: M) -> M:
        for step in self.passes:
            self.before_each(step.name)
            try:
                step.requires(model)
                result = step.apply(model)
                step.ensures(result.model)
                if result.modified and self.after_each is not None:
                    self.after_each(step.name, result.model)
            except ClusirError as error:
                raise type(error)(self._blame(step.name, error)) from error
            except Exception as error:
                raise ExportError(self._blame(step.name, error)) from error
            model = result.model
            self.records.append(PassRecord(step.name, result.modified, result.notes))
        return model

    def _blame(self, name: str, error: Exception) -> str:
        before = ", ".join(r.name for r in self.records) or "none"
        return f"pass {name} failed: {error} (passes before it: {before})"
