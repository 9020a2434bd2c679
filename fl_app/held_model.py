"""The model that a node was sent last, kept on its disk so that the next message need only say what has changed.

A node's process may end after any message, and a simulated node moves between processes; so the model lies in a file
named after its round.
"""

from pathlib import Path

from flwr.app import RecordDict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fl_app.run_folder import write_atomically
from fl_app.tensors import tensor_bytes
from strategies import wire
from strategies.downlink import StepCodec, follow
from strategies.update import Arrays


class HeldModel:
    """The model of one node in one run, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def receive(self, content: RecordDict, codec: StepCodec | None) -> Arrays:
        """The params of a message, read-only: as they came, or made of what is held and the steps since then.

        Raises InvalidUpdate("decode") where the steps lead elsewhere, and WireError.
        """
        sent = wire.read_model(content)
        if sent is None or codec is None:
            return wire.read_params(content)
        held, number = ((), 0) if sent.model else self._load()
        model = follow(codec, sent, held, number)
        if number != sent.round:
            self._save(sent.round, model)
        for array in model:
            array.setflags(write=False)
        return model

    def _load(self) -> tuple[Arrays, int]:
        """What is held and of which round; nothing of round 0 where there is none, or it cannot be read."""
        found = sorted(self._folder.glob("round-*.safetensors"), key=_number)
        if not found:
            return (), 0
        try:
            arrays = load_file(found[-1])
        except (SafetensorError, OSError):
            return (), 0
        return tuple(arrays[str(i)] for i in range(len(arrays))), _number(found[-1])

    def _save(self, number: int, model: Arrays) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"round-{number}.safetensors"
        write_atomically(path, tensor_bytes({str(i): array for i, array in enumerate(model)}))
        for other in self._folder.glob("round-*.safetensors"):
            if other != path:
                other.unlink(missing_ok=True)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))
