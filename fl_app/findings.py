"""What is found out once training is over: baselines, how good the model is at each site, coefficients.

Baselines are the same model trained on the pooled rows, and by each client alone, measured on the same test rows. They
need all rows in one place, so they exist where the data can be opened there: in simulations. In a federation of real
sites the table of sites comes from one more exchange, and shows the federated model alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from logging import WARNING
from statistics import fmean
from typing import Any

import numpy as np
from flwr.common.logger import log

from fl_app.assembly import fit_config
from fl_app.config import RunConfig
from fl_app.rows import pooled
from strategies.sampling import derive_seed
from strategies.stopping import LOWER_IS_BETTER
from strategies.survey import COMMON, FINETUNED, WITHOUT_PERSONAL, Survey
from strategies.update import Arrays
from tasks.base import Coefficients, CurvatureSums, Rows, Shard, Task
from tasks.data.design import Design

MAX_SITES = 100
"""How many clients at most are trained alone and listed one by one; of more, so many are drawn at random."""
FEWEST_TO_SHOW = 5
"""A site's own metrics are shown only if it has so many test rows: those of two patients would tell how both fared."""
MAX_PARAMETERS = 1_000
"""Above this many no Hessian is asked for: it would be larger than 4 MB a client, and cubic in time here."""

Site = dict[str, Any]
Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Findings:
    """As they stand in the files of a run; each is None where it does not exist."""

    baselines: dict[str, Any] | None = None
    sites: dict[str, Any] | None = None
    coefficients: Coefficients | None = None
    unprotected: dict[str, Any] | None = None

    def unprotected_json(self) -> dict[str, Any] | None:
        """Baselines and sites of a run that promises privacy, apart from what the promise covers."""
        if self.baselines is None and self.sites is None:
            return None
        note = "NOT PRIVATE: computed from rows without noise. The run's epsilon does not cover this file."
        return {"schema": 1, "note": note, "baselines": self.baselines, "sites": self.sites}


def wants_curvature(task: Task, config: RunConfig, params: Arrays, design: Design) -> bool:
    """Whether standard errors are asked for and this model has them."""
    if not config.standard_errors or sum(array.size for array in params) > MAX_PARAMETERS:
        return False
    if task.coefficients(params, design.scaling(), None) is None:
        return False
    try:
        task.check_config(fit_config(config, 1, "curvature", seed=0))
    except ValueError:  # such as an L1 penalty
        return False
    return True


def coefficients(
    task: Task, config: RunConfig, params: Arrays, design: Design, survey: Survey | None
) -> Coefficients | None:
    """The coefficients of a linear model; None for another model.

    They have standard errors where the survey brought the curvature of all clients.
    """
    sums = None
    if survey is not None and survey.curvature is not None:
        sums = CurvatureSums(survey.curvature, survey.examples, config.l2)
    try:
        return task.coefficients(params, design.scaling(), sums)
    except np.linalg.LinAlgError as error:
        log(WARNING, "no standard errors: %s", error)
        return task.coefficients(params, design.scaling(), None)


def surveyed_sites(task: Task, survey: Survey, examples: Mapping[str, int]) -> dict[str, Any]:
    """The table of sites from what each client measured itself."""
    clients = sorted(survey.metric_sums)
    sites = [_surveyed(task, client, examples[client], survey.metric_sums[client]) for client in clients[:MAX_SITES]]
    return _table(task, sites, len(examples) - len(sites))


def kinds_of_models(task: Task, config: RunConfig) -> tuple[str, ...]:
    """Which models the clients are to measure in the last exchange."""
    personal = (WITHOUT_PERSONAL,) if task.personal_names else ()
    return (COMMON, *personal, *((FINETUNED,) if config.finetune_epochs else ()))


def _surveyed(task: Task, client: str, train: int, sums: Mapping[str, Mapping[str, Fraction]]) -> Site:
    return {**_blank(client, train, int(sums[COMMON].get("examples", 0))), **_told(task, sums)}


def _told(task: Task, sums: Mapping[str, Mapping[str, Fraction]]) -> Site:
    """What a client measured: the model it has in the end, and those that it is to be compared with."""
    if sums[COMMON].get("examples", 0) < FEWEST_TO_SHOW:
        return {}
    means = {kind: dict(task.summarise(own)) for kind, own in sums.items()}
    told: Site = {"federated": means[COMMON]}
    if WITHOUT_PERSONAL in means:
        told["personal"] = {"with": means[COMMON], "without": means[WITHOUT_PERSONAL]}
    if FINETUNED in means:
        told["finetuned"] = means[FINETUNED]
    return told


def compared(
    task: Task, config: RunConfig, shards: Sequence[Shard], params: Arrays, survey: Survey | None = None
) -> Findings:
    """Baselines and the table of sites, from the rows of the clients that took part, where these can be opened.

    The personal arrays of clients are not here, so what concerns them comes from the survey.
    """
    measured = {} if survey is None else survey.metric_sums
    everyone = pooled([shard.test for shard in shards])
    chosen = _chosen(shards, config.seed)
    alone = {shard.client: _trained(task, config, shard.train) for shard in chosen} if config.baselines else {}
    sites = [
        _completed(task, _site(task, shard, params, alone.get(shard.client), everyone), measured.get(shard.client))
        for shard in chosen
    ]
    baselines = None
    if config.baselines and len(everyone):
        whole = _trained(task, config, pooled([shard.train for shard in shards]))
        everywhere = [site["alone_everywhere"] for site in sites if site["alone_everywhere"] is not None]
        baselines = _baselines(task, None if whole is None else task.evaluate(whole, everyone), everywhere)
        baselines |= {"test_rows": len(everyone), "majority": _majority(task, everyone)}
        baselines |= {"own_rows": gain_on_own_rows(sites, task.reports[0])}
    return Findings(baselines, _table(task, sites, len(shards) - len(sites)))


def _completed(task: Task, site: Site, sums: Mapping[str, Mapping[str, Fraction]] | None) -> Site:
    """The row of a site, with what the client itself measured wherever nothing could be computed from its rows."""
    told = {} if sums is None else _told(task, sums)
    return {**site, **{key: value for key, value in told.items() if site.get(key) is None}}


def _majority(task: Task, rows: Rows) -> float | None:
    """The accuracy of saying the most frequent class of everybody; None where the label is a number."""
    return float(np.bincount(rows.y).max() / len(rows)) if task.schema.classes else None


def gain_on_own_rows(sites: Sequence[Site], name: str) -> dict[str, Any] | None:
    """What federating gains the clients on their own test rows, by this metric: its mean over the clients, and for how
    many it is above, at and below 0. None where no client has both models measured.

    The rows of all, on which a client alone is measured too, may be of a kind that it never meets.
    """
    sign = -1 if name in LOWER_IS_BETTER else 1
    pairs = [(site["federated"], site["alone"]) for site in sites if site["federated"] and site["alone"]]
    gains = [sign * (federated[name] - alone[name]) for federated, alone in pairs]
    gains = [gain for gain in gains if np.isfinite(gain)]
    if not gains:
        return None
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return {"better": better, "same": len(gains) - better - worse, "worse": worse, "gain": fmean(gains)}


def _chosen(shards: Sequence[Shard], seed: int) -> list[Shard]:
    if len(shards) <= MAX_SITES:
        return list(shards)
    rng = np.random.default_rng(derive_seed(seed, "sites"))
    return [shards[index] for index in sorted(rng.choice(len(shards), MAX_SITES, replace=False))]


def _trained(task: Task, config: RunConfig, rows: Rows) -> Arrays | None:
    """The model trained on these rows alone; None, with a warning in the log, where training failed."""
    if not len(rows):
        return None
    configs = (
        fit_config(config, number, "train", seed=derive_seed(config.seed, "alone", number))
        for number in range(1, config.rounds + 1)
    )
    try:
        return task.train_alone(rows, configs)
    except Exception as error:  # a task may raise anything, and the run is over: it has its model
        log(WARNING, "no baseline on %d rows: %s: %s", len(rows), type(error).__name__, error)
        return None


def _site(task: Task, shard: Shard, params: Arrays, alone: Arrays | None, everyone: Rows) -> Site:
    site = _blank(shard.client, len(shard.train), len(shard.test))
    if len(everyone) and alone is not None:
        site["alone_everywhere"] = task.evaluate(alone, everyone)
    if len(shard.test) >= FEWEST_TO_SHOW:
        site["alone"] = None if alone is None else task.evaluate(alone, shard.test)
        if task.personal_names:
            return site
        site["federated"] = task.evaluate(params, shard.test)
        if calibration := task.calibration(params, shard.test):
            site["calibration"] = dict(zip(("predicted", "observed"), calibration, strict=True))
    return site


def _blank(client: str, train: int, test: int) -> Site:
    nothing = dict.fromkeys(("federated", "alone", "alone_everywhere", "calibration"))
    return {"client": client, "train": train, "test": test, **nothing}


def _table(task: Task, sites: Sequence[Site], left_out: int) -> dict[str, Any]:
    return {"schema": 1, "metric": task.reports[0], "sites": list(sites), "left_out": left_out}


def _baselines(task: Task, whole: Metrics | None, alone: Sequence[Metrics]) -> dict[str, Any]:
    """The summary of the baselines. `local_worst` and `local_best` are taken for each metric by itself.

    So they may come from different clients.
    """
    if not alone:
        return {"pooled": whole, "local_mean": None, "local_worst": None, "local_best": None, "clients": 0}
    names = [name for name in alone[0] if all(name in metrics for metrics in alone)]
    values = {name: [metrics[name] for metrics in alone] for name in names}
    least, most = ({name: pick(values[name]) for name in names} for pick in (min, max))
    return {
        "pooled": whole,
        "local_mean": {name: fmean(values[name]) for name in names},
        "local_worst": {name: (most if name in LOWER_IS_BETTER else least)[name] for name in names},
        "local_best": {name: (least if name in LOWER_IS_BETTER else most)[name] for name in names},
        "clients": len(alone),
    }
