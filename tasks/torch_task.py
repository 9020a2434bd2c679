"""Tasks whose model is a PyTorch module."""

import re
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from flwr.client import NumPyClient
from numpy.typing import NDArray
from torch import Tensor, nn

from privacy.entropy import SYSTEM, Entropy
from tasks.base import Arrays, Config, Fit, Rows, Scalar, Schema, Shard, Target
from tasks.dp_sgd import OPTIONS as RECORD_OPTIONS
from tasks.dp_sgd import RecordPrivacy
from tasks.fit_config import GRADIENT_SOLVERS, FitConfig
from tasks.graph import Graph
from tasks.measured_task import MeasuredTask
from tasks.measures import measures_for
from tasks.together import Trained, fit_in_blocks
from tasks.torch_dp_sgd import PoissonBatches, PrivateGradient
from tasks.torch_graph import write_module
from tasks.torch_layout import Layout, matching, normalisation, tensors
from tasks.torch_per_example import PerExample, batch_statistics
from tasks.torch_together import check_module, train_clients
from tasks.torch_training import LOSSES, Batches, Dealer, Loss, Options, SetGradients, precision, train

SOLVERS = ("sgd", "gd", "adam", "adamw")
CHUNK = 8_192  # rows that are measured at a time
RESIDENT_BYTES = 2**30  # rows kept on the device between rounds, those used last


class TorchTask(MeasuredTask):
    """A PyTorch module, trained by gradient descent on mini-batches.

    Its arrays are the module's parameters and buffers, in the order of its state dict, but those that do not travel:
    `freeze` names tensors that stay as they began, `personal` those that each client trains for itself (FedPer,
    Arivazhagan et al. 2019, arXiv:1912.00818). With a label of classes the module gives their logits (n, K) and is
    trained by cross entropy; else it gives numbers (n,) or (n, 1) and is trained by half the squared error.

    Args:
        momentum: of solver sgd
        nesterov: whether that momentum is Nesterov's
        gradient_clip: the largest norm of a step's gradient; 0 = any
        precision: float32, or bfloat16 for the products (parameters stay float32)
        predicts: what the label of a file is read as: class or number
        freeze: names of tensors or layers that are not trained, with wildcards, separated by commas
        personal: names of tensors or layers that stay at each client, in the same way
        together: how many clients of a node are trained at once, by torch.func.vmap, of models without dropout or batch
            normalisation. A node with fewer clients computes as much as for so many. 1 = in the way of the task itself
        batch_norm: average its parameters and statistics as all others, or keep them local (FedBN, arXiv:2102.07623)
    """

    fit_options = ("proximal-mu", "correction", *RECORD_OPTIONS)
    entropy: Entropy = SYSTEM
    """Where sampling and noise of record-level privacy come from."""

    def __init__(
        self,
        schema: Schema,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        gradient_clip: float = 0.0,
        precision: Literal["float32", "bfloat16"] = "float32",
        predicts: Literal["class", "number"] = "class",
        freeze: str = "",
        personal: str = "",
        batch_norm: Literal["average", "local"] = "average",
        together: int = 1,
    ) -> None:
        """Raises ValueError for options out of range and a pattern that matches nothing."""
        super().__init__(schema, measures_for(schema))
        if predicts == "number" and schema.classes:
            raise ValueError(f"predicts=number: the label {schema.label!r} has classes: leave it out")
        self.options = Options(momentum, nesterov, gradient_clip, precision)
        self.loss: Loss = LOSSES[self.measures.loss]
        self._local = threading.local()
        self._resident = Resident()
        module = self._built(0)
        self.frozen_names = matching(freeze, (name for name, _ in tensors(module)), "freeze")
        self.personal_names = _personal(module, personal, batch_norm)
        if both := set(self.frozen_names) & set(self.personal_names):
            raise ValueError(f"{min(both)} is frozen and personal: a tensor is one of the two")
        self.layout = Layout.of(module, leave_out=self.held_names)
        if not any(name in self.layout.names for name, _ in module.named_parameters()):
            raise ValueError(f"freeze={freeze} personal={personal} leaves nothing to train together: name fewer layers")
        self.array_names = self.layout.names
        trainable = {name for name, _ in module.named_parameters()}
        self.statistics_names = tuple(n for n in normalisation(module) if n in self.array_names and n not in trainable)
        self.held = Layout(self.held_names).read(module)
        self._check_outputs(module)
        self.together = together
        self._check_together(module)

    @classmethod
    def wants(cls, arguments: Mapping[str, str]) -> Target:
        """As `predicts` says."""
        return "number" if arguments.get("predicts") == "number" else "class"

    @abstractmethod
    def build(self) -> nn.Module:
        """A new module for the columns and classes of `self.schema`; its weights drawn from torch's generator."""

    # ------------------------------------------------------------------------------------------------ as a Task

    def initial_arrays(self, seed: int) -> Arrays:
        """The weights that the module draws with this seed."""
        return self.layout.read(self._built(seed))

    def initial_held(self, seed: int) -> Arrays:
        """Drawn together with the params."""
        return Layout(self.held_names).read(self._built(seed))

    def holding(self, held: Arrays) -> "TorchTask":
        """The copy shares the rows that are on the device. It makes modules of its own."""
        task = copy(self)
        task.held, task._local = held, threading.local()
        return task

    def fits_many(self, config: Config) -> bool:
        """With `together` above 1, without record-level privacy, and not in a subclass whose clients are others."""
        plain = self.together > 1 and type(self).make_client is TorchTask.make_client
        return plain and FitConfig.read(config).record is None

    def fit_many(
        self, params: Arrays, shards: Sequence[Shard], config: Config, seeds: Sequence[int]
    ) -> list[Fit | Exception]:
        """What fit gives, up to rounding."""
        asked = FitConfig.read(config)
        torch.set_num_threads(asked.threads)
        device = choose_device(asked.device)
        module = self.module(params, device)

        def train_all(rows: Sequence[Rows], seeds: Sequence[int]) -> list[Trained]:
            data = [self.resident(each, device) for each in rows]
            return train_clients(module, data, seeds, asked, self.options, self.loss, self.together)

        try:
            return fit_in_blocks(self, params, shards, seeds, asked, train_all, cached=False)
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"batch-size={asked.batch_size} of {self.together} clients at once: lower one") from error

    def make_client(self, shard: Shard) -> "TorchClient":
        """Raises ValueError for a shard whose columns are not the schema's in number."""
        self.check_columns(shard)
        return TorchClient(self, shard)

    def check_device(self, name: str, *, here: bool = False) -> None:
        """auto, cpu, cuda or cuda:N."""
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
            raise ValueError("expected auto, cpu, cuda or cuda:N")
        if here:
            choose_device(name)

    def check_config(self, config: Config) -> None:
        """Refuses what `FitConfig` does, and solvers and work that need more than a gradient."""
        asked = FitConfig.read(config)
        if asked.work != "train":
            raise ValueError(
                f"work {asked.work!r} is not for PyTorch models: use a strategy that trains, such as fedavg"
            )
        if asked.solver not in SOLVERS:
            raise ValueError(f"solver {asked.solver!r} is not for PyTorch models: choose one of {', '.join(SOLVERS)}")
        if asked.correction and (self.options.momentum or self.options.gradient_clip):
            raise ValueError("a strategy that corrects gradients needs plain steps: set momentum=0 and gradient-clip=0")
        if self.together > 1 and (asked.correction or asked.solver not in GRADIENT_SOLVERS):
            raise ValueError(f"together={self.together} is for solvers sgd and gd, without corrections: leave it out")
        if asked.record is not None:
            module = self.module(self.initial_arrays(0), torch.device("cpu"))
            self.check_record(module)
            self._try_records(module, asked.record)

    def check_record(self, module: nn.Module) -> None:
        """Refuse (ValueError) record-level privacy where the task's options or its module cannot have it."""
        if self.options.gradient_clip:
            raise ValueError("record-level privacy clips the gradient of every row: set gradient-clip=0")
        if self.together > 1:
            raise ValueError(f"together={self.together} has no record-level privacy: leave it out")
        for name in batch_statistics(module):
            if f"{name}.running_mean" not in self.frozen_names:
                raise ValueError(
                    f"layer {name!r} normalises over the rows of a batch, so that no row has a gradient of its own, as"
                    " record-level privacy needs: use GroupNorm or LayerNorm, or freeze it"
                )

    def per_example(self, module: nn.Module, device: torch.device) -> PerExample:
        """The clipped sums of gradients of a module of this task."""
        means = self.loss in LOSSES.values()
        return PerExample(module, self.loss, lambda: precision(self.options, device), mean_of_rows=means)

    def _try_records(self, module: nn.Module, record: RecordPrivacy) -> None:
        """On two rows of zeros. Raises ValueError where single rows of the model have no gradients."""
        x = torch.zeros(2, len(self.schema.features))
        y = torch.zeros(2, dtype=torch.int64 if self.schema.classes else torch.float32)
        try:
            with torch.random.fork_rng(devices=[]):
                self.per_example(module.train(), x.device).clipped_sum(x, y, record.clip_norm)
        except Exception as error:  # a module of somebody else's may raise anything
            what = f"the model gives no gradients of single rows, as record-level privacy needs: {error}"
            raise ValueError(what) from error

    # ------------------------------------------------------------------------------------------- the module's own

    def outputs(self, arrays: Arrays, x: NDArray[Any], device: str = "cpu") -> NDArray[np.float64]:
        """What the module gives for rows x (n, d), in float64 as `Measures` take it: logits (n, K), with two classes
        the second one's against the first's (n, 1); or numbers (n, 1)."""
        place = choose_device(device)
        module = self.module(arrays, place).eval()
        pieces = []
        with torch.inference_mode(), precision(self.options, place):
            for start in range(0, len(x), CHUNK):
                rows = torch.from_numpy(np.array(x[start : start + CHUNK], np.float32)).to(place)
                given = module(rows).double().cpu().numpy()
                pieces.append(given.reshape(len(given), -1))
        result = np.concatenate(pieces) if pieces else np.zeros((0, self._width))
        return result[:, 1:] - result[:, :1] if self._width == 2 else result

    def add_to_graph(self, arrays: Arrays, graph: Graph, rows: str) -> str:
        """In float32. Raises NotImplementedError for products in bfloat16 and a module that cannot be traced."""
        if self.options.precision != "float32":
            remedy = "its parameters are float32: take precision out of task_args in model.json to score with these"
            raise NotImplementedError(f"precision={self.options.precision} has no operators here; {remedy}")
        module = self.module(arrays, torch.device("cpu")).eval()
        return write_module(module, len(self.schema.features), graph, graph.cast(rows, np.float32))

    def module(self, arrays: Arrays, device: torch.device) -> nn.Module:
        """This thread's module with these arrays: one object, whose tensors are overwritten each time.

        Frozen ones are written once; a normalisation layer whose statistics are frozen uses these in training too.
        One a thread, since a client that overran its deadline goes on training on the thread it was left on.
        """
        kept: dict[torch.device, nn.Module] = self._local.__dict__.setdefault("modules", {})
        if device not in kept:
            module = self._built(0).to(device)
            self._freeze(module)
            kept[device] = module
        whole = arrays if len(arrays) != len(self.array_names) else (*arrays, *self.personal_start)
        Layout(self.array_names + self.personal_names).write(kept[device], whole)
        return kept[device]

    def personal_arrays(self, module: nn.Module) -> Arrays:
        """Those of a module that has been trained."""
        return Layout(self.personal_names).read(module)

    def _freeze(self, module: nn.Module) -> None:
        Layout(self.frozen_names).write(module, self.held[: len(self.frozen_names)])
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in self.frozen_names)
        for name, layer in module.named_modules():
            if f"{name}.running_mean" in self.frozen_names:
                layer.register_forward_pre_hook(_as_when_measured)

    def resident(self, rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows as tensors on the device, kept for the next round."""
        return self._resident.get(rows, device)

    @property
    def _width(self) -> int:
        """Numbers that the module gives for a row."""
        return len(self.schema.classes) or 1

    def _check_together(self, module: nn.Module) -> None:
        if self.together < 1:
            raise ValueError(f"together={self.together}: expected 1 or more")
        if self.together == 1:
            return
        options = self.options
        if self.held_names or options.gradient_clip or options.precision != "float32":
            what = "leave freeze, personal, gradient-clip and precision as they are"
            raise ValueError(f"together={self.together} trains all of a model in plain float32: {what}")
        targets = torch.zeros(2, dtype=torch.int64 if self.schema.classes else torch.float32)
        check_module(module, len(self.schema.features), self.loss, targets, self.together)

    def _check_outputs(self, module: nn.Module) -> None:
        """Try it on two rows of zeros. Raises ValueError where it cannot take them, or gives other numbers."""
        rows = torch.zeros(2, len(self.schema.features))
        try:
            with torch.inference_mode():
                given = tuple(module.eval()(rows).shape)
        except Exception as error:  # a module of somebody else's may raise anything
            what = f"the model cannot take rows of {rows.shape[1]} features: {type(error).__name__}: {error}"
            raise ValueError(what) from error
        if given != (2, self._width) and not (self._width == 1 and given == (2,)):
            needed = f"label {self.schema.label!r} needs {(2, self._width)}"
            raise ValueError(f"the model gives {given} for two rows, {needed}: change its output layer")

    def _built(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()


class TorchClient(NumPyClient):
    """One data owner of a `TorchTask`. `FitConfig` says what the config of `fit` holds.

    `state`: the client's personal arrays; () where they are as they begin.
    """

    def __init__(self, task: TorchTask, shard: Shard) -> None:
        self.state: Arrays = ()
        self.task = task
        self.shard = shard

    def fit(
        self, parameters: list[NDArray[Any]], config: dict[str, Scalar]
    ) -> tuple[list[NDArray[Any]], int, dict[str, Scalar]]:
        """Train from the received parameters on the training rows; the new parameters and the number of these rows.

        Returns also, with `metrics`, the sums of the received model on the test rows. Raises ValueError without
        training rows and for a config or parameters that do not fit, ArithmeticError where training diverges.
        """
        asked, rows, task = FitConfig.read(config), self.shard.train, self.task
        if not len(rows):
            raise ValueError(f"client {self.shard.client!r} has no training rows: give it data or leave it out")
        torch.set_num_threads(asked.threads)  # of this thread: OpenMP keeps the number for each
        params, added = asked.split(parameters)
        own = (*params, *self.state)
        metrics: dict[str, Scalar] = {**task.measure(own, self.shard.test)} if asked.metrics else {}
        device = choose_device(asked.device)
        module = task.module(own, device)
        correction = {name: torch.from_numpy(h.copy()).to(device) for name, h in zip(task.array_names, added)}  # noqa: B905  (none without correction)
        try:
            batches, set_gradients = self._steps(module, asked, device)
            steps = train(module, batches, asked, task.options, task.loss, correction, set_gradients)
        except torch.OutOfMemoryError as error:
            size = sum(parameter.numel() for parameter in module.parameters())
            raise MemoryError(f"batch-size={asked.batch_size} of a model of {size} parameters: lower it") from error
        trained = task.layout.read(module)
        self.state = task.personal_arrays(module)
        if asked.correction:
            trained += self._mean_gradients(params, trained, added, asked.learning_rate * steps)
        return list(trained), len(rows), metrics

    def _steps(self, module: nn.Module, asked: FitConfig, device: torch.device) -> tuple[Dealer, SetGradients | None]:
        """The batches, and for record-level privacy the gradients."""
        task, rows = self.task, self.shard.train
        x, y = task.resident(rows, device)
        if asked.record is None:
            return Batches.of(x, y, asked), None
        task.check_record(module)
        gradients = PrivateGradient(task.per_example(module, device), asked.record, task.entropy, len(rows))
        return PoissonBatches(x, y, asked.record, task.entropy), gradients

    def _mean_gradients(self, before: Arrays, after: Arrays, added: Arrays, way: float) -> Arrays:
        """(x - y) / (K r) - h for each parameter; zeros for a buffer, which no gradient trains."""
        trained = {name for name, _ in self.task.module(after, torch.device("cpu")).named_parameters()}
        return tuple(
            (x - y) / x.dtype.type(way) - h if name in trained else np.zeros_like(x)
            for name, x, y, h in zip(self.task.array_names, before, after, added, strict=True)
        )

    def evaluate(
        self, parameters: list[NDArray[Any]], config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """The mean loss on the test rows (nan without any), their number, and the metric sums."""
        sums = self.task.measure((*parameters, *self.state), self.shard.test)
        return self.task.mean_loss(sums), len(self.shard.test), {**sums}


def _as_when_measured(layer: nn.Module, inputs: object) -> None:
    layer.eval()


def _personal(module: nn.Module, patterns: str, batch_norm: str) -> tuple[str, ...]:
    names = tuple(name for name, _ in tensors(module))
    chosen = set(matching(patterns, names, "personal"))
    if batch_norm == "local":
        layers = normalisation(module)
        if not layers:
            raise ValueError("batch-norm=local: the model has no batch normalisation: leave it out")
        chosen |= set(layers)
    return tuple(name for name in names if name in chosen)


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU that this process sees, else the CPU.

    Raises ValueError for a device that is not there, saying what is.
    """
    there = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name == "auto":
        return torch.device(there[0] if there else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and f"cuda:{device.index or 0}" not in there:
        why = " (PyTorch is built without CUDA)" if torch.version.cuda is None else ""
        raise ValueError(f"device={name} is not there: this machine has {', '.join(['cpu', *there])}{why}")
    return device


@dataclass
class Resident:
    """Rows as tensors on a device, those used last, up to RESIDENT_BYTES."""

    def __post_init__(self) -> None:
        self._kept: OrderedDict[tuple[int, torch.device], tuple[Rows, Tensor, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
        """x float32 and y, int64 class indices or float32 numbers."""
        key = (id(rows), device)
        with self._lock:
            if key not in self._kept:
                x = torch.from_numpy(np.array(rows.x, np.float32)).to(device)  # copies: the rows are read-only
                y = np.array(rows.y, np.int64 if rows.y.dtype.kind in "iu" else np.float32)
                self._kept[key] = rows, x, torch.from_numpy(y).to(device)  # the rows, so that the id stays theirs
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and self._bytes() > RESIDENT_BYTES:
                self._kept.popitem(last=False)
            _, x, targets = self._kept[key]
            return x, targets

    def _bytes(self) -> int:
        return sum(x.nbytes + y.nbytes for _, x, y in self._kept.values())
