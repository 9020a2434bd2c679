"""The run configuration: every key with its type, default and bounds, once.

`[tool.flwr.app.config]` of pyproject.toml repeats names and defaults, because Flower accepts only keys it finds
there; a test keeps the two equal.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fl_app.errors import Refused, suggestion

Text = str
Count = Annotated[int, Field(ge=0, lt=2**63)]  # Flower's integers have 64 bits
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Penalty = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _kebab(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


class RunConfig(BaseModel):
    """One run. Frozen and hashable; the same on the server and on every node."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", alias_generator=_kebab, validate_by_name=False, validate_by_alias=True
    )

    task: Text = Field("logistic", description="what is learned")
    task_args: Text = Field("", description='arguments of the task, "key=value key=value"')
    data: Text = Field("breast-cancer", description="where the rows come from")
    data_args: Text = Field("", description="arguments of the data source")
    strategy: Text = Field("fedavg", description="how the federation learns")
    strategy_args: Text = Field("", description="arguments of the strategy")
    partition: Text = Field("iid", description="how rows are dealt to clients")
    partition_args: Text = Field("", description="arguments of the partition")
    num_clients: Count = Field(0, description="how many clients there are; 0 = as many as the data say, else 10")
    clients_per_round: Count = Field(0, description="how many are drawn for a round; 0 = all")
    over_selection: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0,
        description="share of clients-per-round drawn on top; a round ends with its first clients-per-round updates",
    )
    rounds: Positive = Field(20, description="how many rounds at most")
    seed: Count = Field(0, description="the same seed gives the same model, to the bit")
    local_epochs: Positive = Field(5, description="passes of a client over its rows in a round")
    local_steps: Count = Field(0, description="steps of a client in a round, instead of local-epochs; 0 = epochs")
    batch_size: Count = Field(16, description="rows in a mini-batch; 0 = all")
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        0.1, description="step size of local training"
    )
    finetune_epochs: Count = Field(
        0, description="passes of each client over its rows after the last round, to measure what that gains"
    )
    lr_schedule: Text = Field(
        "constant",
        description='over rounds: constant, "step every=10 factor=0.5", "cosine floor=0 warmup=3", inv-sqrt',
    )
    l1: Penalty = Field(0.0, description="weight of the L1 penalty")
    l2: Penalty = Field(0.01, description="weight of the L2 penalty; separable data have no optimum without one")
    solver: Text = Field("sgd", description="how clients train: sgd, gd, lbfgs, newton; PyTorch: sgd, gd, adam, adamw")
    standardize: Literal["global", "local", "none", "declared", "private"] = Field(
        "global",
        description="how features are scaled: global = by statistics over all clients; local = by each client's own; "
        "none; declared = by declared ranges, as also global does where privacy is promised; private = by declared "
        "ranges, centred at means that are released with noise",
    )
    schema_: Text = Field("", description="a JSON file that declares the columns, their ranges, categories and classes")
    stop: Text = Field("rounds", description="when a run ends before its last round")
    stop_args: Text = Field("", description="arguments of the stop rule")
    evaluate_every: Count = Field(
        0,
        description="rounds between evaluations by the clients; 0 = at the end (a server with test rows: every round)",
    )
    noisy_metrics: Annotated[float, Field(ge=0, le=1e6)] = Field(
        0.0,
        description="where privacy is promised: noise multiplier of metrics that clients measure every evaluate-every "
        "rounds and at the end; 0 = they measure nothing",
    )
    baselines: bool = Field(
        True,
        description="where all rows can be opened: also train on pooled rows and on each client's alone, to compare",
    )
    unprotected_baselines: bool = Field(
        False,
        description="baselines also where privacy is promised, in baselines.json, which the promise does not cover",
    )
    standard_errors: bool = Field(
        True, description="standard errors of a linear model's coefficients, by one more exchange"
    )
    min_clients: Positive = Field(2, description="a round with fewer good updates does not count")
    round_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        600.0, description="how long to wait for the nodes in one exchange"
    )
    enrol_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        60.0, description="how long to wait for the clients before round 1, and for min-clients of them later"
    )
    min_examples: Positive = Field(20, description="a client with fewer rows sends no statistics of its features")
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="share of a client's rows kept for tests"
    )
    device: Text = Field("auto", description="where models are trained: auto, cpu, cuda or cuda:N")
    threads: Positive = Field(1, description="CPU threads of a process; more make small models slower")
    init: Text = Field("", description="a model.safetensors to start from")
    sinks: Text = Field("", description='where round reports go besides rounds.jsonl: "tensorboard mlflow"')
    out: Text = Field("", description="folder of the results; empty = runs/TIME-TASK-STRATEGY")
    resume: bool = Field(False, description="go on from the checkpoint in out (for `flwr run`; fl-app has --resume)")
    variants: Text = Field(
        "", description="several runs in one, as a JSON list of their keys: what fl-app compare sets"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.num_clients and self.min_clients > self.num_clients:
            raise ValueError(f"min-clients={self.min_clients} of num-clients={self.num_clients} can never be reached")
        if self.clients_per_round and self.min_clients > self.clients_per_round:
            raise ValueError(
                f"min-clients={self.min_clients} of clients-per-round={self.clients_per_round} can never be reached"
            )
        if self.over_selection and not self.clients_per_round:
            raise ValueError(f"over-selection={self.over_selection:g} of clients-per-round=0, which is all of them")
        if self.num_clients and self.clients_per_round > self.num_clients:
            raise ValueError(f"clients-per-round={self.clients_per_round} of num-clients={self.num_clients}")
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "RunConfig":
        """From typed values by their kebab-case keys. Raises Refused naming the first fault."""
        for key in values:
            if key not in KEYS:
                raise Refused(f"unknown key {key!r}", f"{key}={values[key]}", suggestion(key, KEYS))
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            message = first["msg"].removeprefix("Value error, ")
            if not first["loc"]:
                raise Refused("inconsistent configuration", message, "change one of the two") from error
            key = str(first["loc"][0])
            raise Refused(f"{key}={first['input']!r}", key, message[0].lower() + message[1:]) from error

    @classmethod
    def parse_texts(cls, texts: Mapping[str, str], base: Mapping[str, Any] | None = None) -> "RunConfig":
        """From texts as typed on a command line, over the typed values of `base`. Raises Refused."""
        typed = {key: from_text(key, text) for key, text in texts.items()}
        return cls.parse({**(base or {}), **typed})

    def values(self) -> dict[str, str | int | float | bool]:
        """Every key, kebab-case: what travels, what files hold, what `parse` takes."""
        return self.model_dump(by_alias=True)

    def sha256(self) -> str:
        """Of the keys that decide what is computed; not of where its results go."""
        values = {k: v for k, v in self.values().items() if k not in ("sinks", "out", "resume")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


KEYS = {_kebab(name): field for name, field in RunConfig.model_fields.items()}


def _plain_type(annotation: Any) -> type:
    if get_origin(annotation) in (Annotated, Literal):
        first = get_args(annotation)[0]
        return first if isinstance(first, type) else type(first)
    return annotation if isinstance(annotation, type) else str


def from_text(key: str, text: str) -> str | int | float | bool:
    """The typed value of a key from its text. Raises Refused for an unknown key or a text of another type."""
    if key not in KEYS:
        raise Refused(f"unknown key {key!r}", f"-c {key}={text}", suggestion(key, KEYS))
    kind = _plain_type(KEYS[key].annotation)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise Refused(f"{key}={text}", f"-c {key}={text}", "expected true or false")
        return text.lower() == "true"
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        expected = {int: "a whole number", float: "a number"}[kind]
        raise Refused(f"{key}={text}", f"-c {key}={text}", f"expected {expected}") from None
