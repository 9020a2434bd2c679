"""A finished run with everything in it, to compute it once more by other means."""

import numpy as np
from runs import run
from safetensors.numpy import load_file

from fl_app.assembly import build_task, open_data
from fl_app.checkpoint import Checkpoint
from fl_app.rows import prepared_rows
from tasks.base import Rows


class Federation:
    """A finished run and the rows it trained on. Nothing that takes time beside the training is computed by default."""

    def __init__(self, out, **keys):
        nothing_beside = {"baselines": False, "standard_errors": False}
        self.summary, folder = run(out, **{**nothing_beside, **keys})
        self.params = load_file(folder.model)
        checkpoint = Checkpoint.read(folder.checkpoint)
        self.config = checkpoint.config
        self.rows = prepared_rows(self.config, checkpoint.design)
        self.task = build_task(self.config, checkpoint.design.schema)
        self.shards = {client: self.rows.shard(client) for client in open_data(self.config).clients}

    @property
    def pooled(self):
        trains = [shard.train for shard in self.shards.values()]
        return Rows(np.concatenate([t.x for t in trains]), np.concatenate([t.y for t in trains]))

    @property
    def flat(self):
        return np.concatenate([self.params[name].ravel() for name in self.task.array_names])


def binary_gradient(rows, theta, l2):
    """Of mean log loss + l2/2 ||w||^2, written down once more, for the test."""
    w, b = theta[:-1], theta[-1]
    residual = 1 / (1 + np.exp(-(rows.x @ w + b))) - rows.y
    return np.append(rows.x.T @ residual / len(rows) + l2 * w, residual.mean())
