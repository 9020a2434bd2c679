"""How a federation learns. A strategy composes parts into one Flower `Strategy`; this is the list of the named ones."""

STRATEGIES = {
    "fedavg": "strategies.fedavg:FedAvg",
    "fedsgd": "strategies.fedsgd:FedSGD",
    "fednewton": "strategies.fednewton:FedNewton",
}

STOPS = {
    "rounds": "strategies.stopping:Rounds",
    "converged": "strategies.stopping:Converged",
    "target": "strategies.stopping:Target",
    "patience": "strategies.stopping:Patience",
}
