"""What a client keeps between rounds and runs, on its node's disk.

A node's process may end after any message, and Flower keeps no state over a resume; so state lives in files, one
folder for each (job, client), one file for each round that wrote one:

    <root>/<job>/<client>/round-7.safetensors

A reply can be lost after the state was written. So two generations are kept, and the server says with each order
which round's update from this client it used last: that generation is the one to go on from, any other never was.
"""

import hashlib
from logging import WARNING
from pathlib import Path

from flwr.common.logger import log
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fl_app.run_folder import write_atomically
from fl_app.tensors import tensor_bytes
from strategies.update import Arrays


class ClientStore:
    """Reads and writes the generations of client state below `root`."""

    def __init__(self, root: Path, job: str) -> None:
        self._root = root / file_name(job)

    def load(self, client: str, used_round: int) -> Arrays:
        """The state that the update of round `used_round` left; empty for 0, and where it is lost."""
        if used_round == 0:
            return ()
        try:
            arrays = load_file(self._path(client, used_round))
        except (SafetensorError, OSError) as error:
            log(WARNING, "the state of client %s after round %d is lost: %s", client, used_round, error)
            return ()
        return tuple(arrays[str(i)] for i in range(len(arrays)))

    def save(self, client: str, used_round: int, round: int, state: Arrays) -> None:
        """Write the state after `round`; of the earlier ones keep that of `used_round` alone."""
        folder = self._path(client, round).parent
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._path(client, round), tensor_bytes({str(i): a for i, a in enumerate(state)}))
        for path in folder.glob("round-*.safetensors"):
            number = int(path.stem.removeprefix("round-"))
            if number < round and number != used_round:
                path.unlink(missing_ok=True)

    def _path(self, client: str, round: int) -> Path:
        return self._root / file_name(client) / f"round-{round}.safetensors"


def file_name(text: str) -> str:
    """A name that is safe on every file system, whatever the client is called."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
