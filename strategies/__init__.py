"""How a federation learns. A strategy composes parts into one Flower `Strategy`; this is the list of the named ones."""

STRATEGIES = {
    "fedavg": "strategies.fedavg:FedAvg",
    "fedsgd": "strategies.fedsgd:FedSGD",
    "fednewton": "strategies.fednewton:FedNewton",
    "fedprox": "strategies.fedprox:FedProx",
    "scaffold": "strategies.scaffold:Scaffold",
    "fedavgm": "strategies.fedavgm:FedAvgM",
    "fedadam": "strategies.fedadam:FedAdam",
    "fedyogi": "strategies.fedyogi:FedYogi",
    "fedadagrad": "strategies.fedadagrad:FedAdagrad",
    "compressed-fedavg": "strategies.compressed_fedavg:CompressedFedAvg",
    "compressed-dp-fedavg": "strategies.compressed_dp_fedavg:CompressedDPFedAvg",
    "dp-fedavg": "strategies.dp_fedavg:DPFedAvg",
    "dp-fedavg-adaptive": "strategies.dp_fedavg_adaptive:DPFedAvgAdaptive",
    "dp-ftrl": "strategies.dp_ftrl:DPFTRL",
    "local-dp-fedavg": "strategies.local_dp_fedavg:LocalDPFedAvg",
    "record-dp-fedavg": "strategies.record_dp_fedavg:RecordDPFedAvg",
    "median": "strategies.median:Median",
    "trimmed-mean": "strategies.trimmed_mean:TrimmedMean",
    "krum": "strategies.krum:Krum",
    "norm-bound": "strategies.norm_bound:NormBound",
}

STOPS = {
    "rounds": "strategies.stopping:Rounds",
    "converged": "strategies.stopping:Converged",
    "target": "strategies.stopping:Target",
    "patience": "strategies.stopping:Patience",
}
