"""A PyTorch model of the user's own, as a federated task."""

import inspect
from typing import Any

from torch import nn

from tasks.base import ObjectPath, Schema
from tasks.imported import imported
from tasks.torch_task import TorchTask
from tasks.torch_training import LOSSES, Loss

NO_PATH = ObjectPath("")


class OwnTorchTask(TorchTask):
    """A PyTorch model of your own: any function that returns an nn.Module, by `module:function`.

    The module takes rows (n, features), float32, and gives logits (n, classes), or numbers (n, 1) or (n,). The function
    is called with `features` and `outputs`, those of the two that it has as parameters. All processes of a run call it,
    with the same seed of torch's generator, so that all begin with the same weights.

    Args:
        model: module:function that returns the model
        loss: cross_entropy, squared_error, or module:function of (outputs, targets); empty = as the label is
    """

    def __init__(self, schema: Schema, *, model: ObjectPath, loss: ObjectPath = NO_PATH, **training: Any) -> None:
        """Raises ValueError for names that cannot be imported, and a function that raises or gives no module."""
        self._path, self._make = model, imported(model, "model")
        super().__init__(schema, **training)
        if loss:
            self.loss = self._named(loss)

    def build(self) -> nn.Module:
        """What the function returns. Raises ValueError for whatever it raises, and for another thing than a module."""
        known = {"features": len(self.schema.features), "outputs": len(self.schema.classes) or 1}
        wanted = inspect.signature(self._make).parameters
        try:
            module = self._make(**{name: value for name, value in known.items() if name in wanted})
        except Exception as error:  # a function of somebody else's may raise anything
            what = f"model={self._path}: {type(error).__name__}: {error} (it is called with features and outputs)"
            raise ValueError(what) from error
        if not isinstance(module, nn.Module):
            raise ValueError(f"the model is of type {type(module).__name__}: return a torch.nn.Module")
        return module

    def _named(self, loss: str) -> Loss:
        if ":" in loss:
            if self.together > 1:
                raise ValueError(f"together={self.together} knows only the losses {', '.join(LOSSES)}: leave it out")
            return imported(loss, "loss")
        if loss not in LOSSES:
            raise ValueError(f"loss={loss}: expected {', '.join(LOSSES)} or module:function")
        if loss != self.measures.loss:
            kind = "has classes" if self.schema.classes else "is a number"
            raise ValueError(f"loss={loss}: the label {self.schema.label!r} {kind}: leave loss out")
        return LOSSES[loss]
