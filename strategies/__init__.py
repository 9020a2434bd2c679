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
}

STOPS = {
    "rounds": "strategies.stopping:Rounds",
    "converged": "strategies.stopping:Converged",
    "target": "strategies.stopping:Target",
    "patience": "strategies.stopping:Patience",
}
