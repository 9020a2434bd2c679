"""Whether a site's files are still those with which its client enrolled: noticed by hash, at the site alone.

    <state>/<job>/<client>/files-<node>.sha256

The row count and the columns that a client announced when it enrolled are those of its files then. A round on others is
declined; the server is told no more than that.
"""

import hashlib
from logging import WARNING
from pathlib import Path

from flwr.common.logger import log

from fl_app.client_state import file_name
from fl_app.policy import Declined
from fl_app.run_folder import write_atomically
from tasks.data.base import OwnFile


class OwnFiles:
    """The files that a node's config names for its client, in one job. `state` is the site's state folder, which nodes
    of one machine may share by mistake."""

    def __init__(self, own: OwnFile, state: Path, job: str, node: int) -> None:
        self._own = own
        self._noted = state / file_name(job) / file_name(own.client) / f"files-{node}.sha256"

    def note(self) -> None:
        """Remember the files as they are now, when the client enrols.

        Nothing is raised for files that cannot be read: the code that reads the rows does that.
        """
        try:
            found = self._sha256()
        except OSError:
            return
        if self._earlier() not in (None, found):
            log(WARNING, "the data of client %s are others than when it last joined this run", self._own.client)
        self._noted.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._noted, found.encode())

    def check(self) -> None:
        """Raises Declined where they have changed since the client enrolled, or cannot be read.

        Where nobody remembers them, as after the loss of the state folder, they are remembered from now on.
        """
        try:
            found = self._sha256()
        except OSError as error:
            raise Declined("data", f"{error.filename} cannot be read ({error.strerror}): put it back") from error
        earlier = self._earlier()
        if earlier is None:
            self.note()
        elif earlier != found:
            what = f"the files of client {self._own.client}, or its label, have changed since it joined this run"
            raise Declined("data", f"{what}: put them back, or let it join anew with the next run or --resume")

    def _earlier(self) -> str | None:
        try:
            return self._noted.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None

    def _sha256(self) -> str:
        """Of the training and the test file, and of which column is the label. Raises OSError."""
        digest = hashlib.sha256(self._own.label.encode())
        for path in filter(None, (self._own.path, self._own.test_path)):
            with Path(path).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()
