"""A trained model as an ONNX file that takes columns in their own units. Imports onnx, an extra.

The task writes its operators (`Task.add_to_graph`); around them stand what `predict` does before and after: missing
cells filled, columns scaled, logits made into probabilities, numbers brought back to the label's units.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, compose, helper, numpy_helper

from fl_app import __version__
from fl_app.errors import Refused
from fl_app.model import Model
from fl_app.tensors import params_sha256
from tasks.data.design import Design
from tasks.graph import OPSET, Graph, Node, TracedModel

INPUT, PROBABILITIES, PREDICTION = "features", "probabilities", "prediction"
IR_VERSION = 8
"""Of the file, that of the release of ONNX which brought these operators: old runtimes read it too."""


def onnx_model(model: Model) -> onnx.ModelProto:
    """The model as ONNX: `features` (n, d) float64 -> `prediction` (n,), and of a classifier `probabilities` (n, K).

    A prediction is an int64 class index, or a float64 number in the label's units; probabilities are float64. Raises
    Refused for a model that scores no rows by itself, and one whose task cannot be written.
    """
    _refuse_personal(model)
    design, graph = model.design, Graph()
    try:
        given = model.task.add_to_graph(model.arrays, graph, _scaled(design, graph))
    except NotImplementedError as error:
        remedy = f"{error}; docs/models.md says what can be exported"
        raise Refused("the model cannot be exported", f"task={model.about['task']}", remedy) from error
    outputs = _head(design, graph, graph.cast(given, np.float64))
    nodes = [proto for node in graph.nodes for proto in _protos(node, graph)]
    nodes += [helper.make_node("Identity", [tensor], [name]) for name, tensor in outputs.items()]
    written = helper.make_model(
        helper.make_graph(
            nodes,
            "fl_app",
            [_value(INPUT, TensorProto.DOUBLE, len(design.schema.features))],
            [_output(name, design) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fl-app",
        producer_version=__version__,
    )
    helper.set_model_props(written, _about(model))
    onnx.checker.check_model(written)
    return written


def unscaled(design: Design) -> Design:
    """The design that encodes rows as the file takes them."""
    return replace(design, standardize="none")


def number_columns(design: Design) -> NDArray[np.bool_]:
    """Which columns of the model are numbers or booleans, not made of categories or of gaps: (d,)."""
    return np.array(
        [term.kind != "category" and column == term.name for term in design.terms for column in term.columns]
    )


def _refuse_personal(model: Model) -> None:
    """As `Model.predict` does."""
    if names := model.task.personal_names:
        remedy = "the file holds what they share: train without personal layers to export a model"
        what = f"each client has {', '.join(names[:3])} of its own"
        raise Refused(what, f"task-args={model.about['task_args']}", remedy)


def _scaled(design: Design, graph: Graph) -> str:
    """What the model sees of `features`: gaps of numbers filled where training filled them, then scaled."""
    rows, known = INPUT, design.scaling()
    if known is None:
        what = "the model is for columns that each client scaled by statistics of its own"
        raise Refused(what, "standardize=local", "train with standardize=global to export a model")
    shift, scale = known
    if design.missing != "error":
        means = [np.nan if term.mean is None else term.mean for term in design.terms for _ in term.columns]
        fill = np.where(number_columns(design), means, np.nan)
        rows = graph.add("Where", graph.add("IsNaN", rows), fill, rows)
    return graph.add("Div", graph.add("Sub", rows, shift), scale) if shift.any() or (scale != 1).any() else rows


def _head(design: Design, graph: Graph, given: str) -> dict[str, str]:
    """The tensors that leave the graph, by name, from what the task gives in float64."""
    if design.classes:
        prediction = graph.add("ArgMax", given, axis=1, keepdims=0)  # of equal ones the first, as in predict
        return {PROBABILITIES: graph.add("Softmax", given, axis=1), PREDICTION: prediction}
    schema = design.schema
    numbers = graph.add("Reshape", given, np.array([-1]))
    return {PREDICTION: graph.add("Add", graph.add("Mul", numbers, np.array(schema.scale)), np.array(schema.shift))}


def _protos(node: Node | TracedModel, graph: Graph) -> list[NodeProto]:
    if isinstance(node, TracedModel):
        return _inlined(node, graph)
    attributes: dict[str, Any] = {
        key: helper.np_dtype_to_tensor_dtype(value) if isinstance(value, np.dtype) else value
        for key, value in node.attributes.items()
    }
    return [helper.make_node(node.operator, node.inputs, [node.output], **attributes)]


def _inlined(node: TracedModel, graph: Graph) -> list[NodeProto]:
    """The nodes of the traced model, under names of their own; its constants become the graph's."""
    traced = compose.add_prefix(onnx.load_from_string(node.model), f"{node.output}/").graph
    graph.constants.update({tensor.name: numpy_helper.to_array(tensor) for tensor in traced.initializer})
    (enters,), (leaves,) = traced.input, traced.output
    return [
        helper.make_node("Identity", [node.input], [enters.name]),
        *traced.node,
        helper.make_node("Identity", [leaves.name], [node.output]),
    ]


def _output(name: str, design: Design) -> onnx.ValueInfoProto:
    if name == PROBABILITIES:
        return _value(name, TensorProto.DOUBLE, len(design.classes))
    return _value(name, TensorProto.INT64 if design.classes else TensorProto.DOUBLE)


def _value(name: str, dtype: int, *width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, ["rows", *width])


def _about(model: Model) -> dict[str, str]:
    """What stands in the file beside the graph; lists are JSON."""
    about: dict[str, Any] = {
        "task": model.about["task"],
        "task_args": model.about["task_args"],
        "features": json.dumps(model.design.schema.features),
        "columns": json.dumps(model.design.to_json()["features"]),  # what the features were made of
        "label": model.design.label,
        "classes": json.dumps(model.design.classes),
        "params_sha256": params_sha256(model.task.array_names, model.arrays),
    }
    return {key: str(value) for key, value in about.items()}
