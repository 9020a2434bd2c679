"""What is learned and from which data: tasks, data sources and partitions, each under the name a run calls it by.

The registries hold "module:Attr" strings, so that nothing is imported before a run asks for it. To add a task, a data
source or a partition, write its class and add its line here. Each class is built from keyword arguments alone; its
signature gives the names, types and defaults, and its docstring's `Args:` section says what they mean.
"""

from collections.abc import Mapping
from types import MappingProxyType

TASKS: Mapping[str, str] = MappingProxyType(
    {
        "logistic": "tasks.logistic:LogisticTask",
        "linear": "tasks.linear:LinearTask",
        "mlp": "tasks.mlp:MlpTask",
        "cnn": "tasks.cnn:CnnTask",
        "torch": "tasks.own_torch:OwnTorchTask",
    }
)

DATA: Mapping[str, str] = MappingProxyType(
    {
        "breast-cancer": "tasks.data.bundled:BreastCancer",
        "digits": "tasks.data.bundled:Digits",
        "diabetes": "tasks.data.bundled:Diabetes",
        "synthetic": "tasks.data.synthetic:Synthetic",
        "csv": "tasks.data.csv_source:Csv",
        "npz": "tasks.data.npz_source:Npz",
        "idx": "tasks.data.idx_source:Idx",
        "loader": "tasks.data.loader:Loader",
    }
)

PARTITIONS: Mapping[str, str] = MappingProxyType(
    {
        "iid": "tasks.data.partition:Iid",
        "dirichlet": "tasks.data.partition:Dirichlet",
        "shards": "tasks.data.partition:Shards",
        "by-size": "tasks.data.partition:BySize",
        "by-column": "tasks.data.partition:ByColumn",
        "noise": "tasks.data.partition:Noise",
        "rotation": "tasks.data.partition:Rotation",
    }
)
