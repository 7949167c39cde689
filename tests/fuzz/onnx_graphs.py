"""ONNX files as sources: loaded by ONNX Runtime, probed, and run as a black box."""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgedistill.recipe.schema import Source
from edgedistill.sources import registry
from tests.fuzz.kind import CANARY, Kind
from tests.fuzz.mutations import PLACES, mangled

PX = 8
OPERATORS = (
    *(
        "Relu",
        "Softmax",
        "Reshape",
        "Conv",
        "MatMul",
        "Gather",
        "Slice",
        "Cast",
        "Identity",
        "Loop",
        "If",
        "Scan",
        "Resize",
    ),
    *(
        "Tile",
        "Expand",
        "ConstantOfShape",
        "Pad",
        "TopK",
        "NonZero",
        "StringNormalizer",
        "Optional",
        "SequenceConstruct",
    ),
    *(
        "QuantizeLinear",
        "DequantizeLinear",
        "BatchNormalization",
        "Einsum",
        "RandomNormal",
        "NoSuchOperator",
        "PyOp",
        "",
    ),
)
SIZES = (0, 1, 3, -1, 7, 1000, 2**20, 2**31, 2**62, -(2**62))
TYPES = (*range(0, 24), 999, -1)
LOCATIONS = (
    *PLACES,
    "weights.bin",
    "../weights.bin",
    f"/tmp/{CANARY}",
    "no/../weights.bin",
    "a\0b",
    "\ud7ff",
    "x" * 5000,
)


def float_graph() -> ModelProto:
    """x float [B, 3, 8, 8] -> classes [B, 4] and features [B, 3]."""
    weights = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["features"], keepdims=0, name="pool"),
        helper.make_node("MatMul", ["features", "weights"], ["logits"], name="head"),
        helper.make_node("Add", ["logits", "bias"], ["classes"], name="bias"),
    ]
    constants = {"axes": np.array([2, 3]), "weights": weights, "bias": np.zeros(4, dtype=np.float32)}
    return _model(nodes, TensorProto.FLOAT, ["B", 3, PX, PX], constants)


def byte_graph() -> ModelProto:
    """x uint8 [B, 8, 8, 3] -> classes [B, 4] and features [B, 3], with a convolution, quantized."""
    random = np.random.default_rng(1)
    nodes = [
        helper.make_node("Cast", ["x"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("QuantizeLinear", ["nchw", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"]),
        helper.make_node("Conv", ["dq", "kernel"], ["conv"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["classes"], axis=1),
    ]
    constants = {
        "step": np.array(2.0, dtype=np.float32),
        "zero": np.array(0, dtype=np.uint8),
        "kernel": random.normal(size=(3, 3, 3, 3)).astype(np.float32),
        "weights": random.normal(size=(3, 4)).astype(np.float32),
    }
    return _model(nodes, TensorProto.UINT8, ["B", PX, PX, 3], constants)


def _model(nodes: list[NodeProto], kind: int, shape: list[Any], constants: dict[str, Any]) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [
            helper.make_tensor_value_info("classes", TensorProto.FLOAT, ["B", 4]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["B", 3]),
        ],
        [numpy_helper.from_array(constant, name) for name, constant in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def make(random: Random) -> bytes:
    """A graph with one to three changes, or with changed bytes."""
    model = random.choice((float_graph, byte_graph))()
    if random.random() < 0.45:
        return mangled(random, model.SerializeToString())
    for _ in range(random.choice((1, 1, 2, 3))):
        random.choice(CHANGES)(random, model)
    content: bytes = model.SerializeToString()
    return content


def _name(random: Random, model: ModelProto) -> str:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return random.choice([*names, *(tensor.name for tensor in model.graph.initializer), "", "none", "x", "\x1b[31m"])


def _rewire(random: Random, model: ModelProto) -> None:
    """Another name for an input or an output of a node: cycles, names that are given twice or never."""
    if model.graph.node:
        node = random.choice(model.graph.node)
        names = random.choice((node.input, node.output))
        if names:
            names[random.randrange(len(names))] = _name(random, model)


def _operator(random: Random, model: ModelProto) -> None:
    if model.graph.node:
        node = random.choice(model.graph.node)
        node.op_type = random.choice(OPERATORS)
        node.domain = random.choice(("", "", "ai.onnx.ml", "com.microsoft", "nobody", "ai.onnx.preview.training"))


def _attribute(random: Random, model: ModelProto) -> None:
    if model.graph.node:
        node = random.choice(model.graph.node)
        name = random.choice(
            ("axis", "to", "perm", "pads", "kernel_shape", "group", "body", "value", "keepdims", "strides")
        )
        del node.attribute[:]
        number = random.choice(SIZES)
        values = (number, [number] * random.randrange(1, 5), 0.5, "text", float_graph().graph, np_tensor(random))
        node.attribute.append(helper.make_attribute(name, random.choice(values)))


def np_tensor(random: Random) -> TensorProto:
    """A small tensor of a random type, at times with a shape or a place that is not its own."""
    tensor = numpy_helper.from_array(np.zeros(2, dtype=random.choice((np.float32, np.int64, np.uint8))), "t")
    _tensor(random, tensor)
    return tensor


def _tensor(random: Random, tensor: TensorProto) -> None:
    change = random.randrange(5)
    if change == 0:
        tensor.dims[:] = [random.choice(SIZES) for _ in range(random.randrange(5))]
    elif change == 1:
        tensor.data_type = random.choice([kind for kind in TYPES if kind >= 0])
    elif change == 2:
        tensor.ClearField("raw_data")
    elif change == 3:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entries = {
            "location": random.choice(LOCATIONS),
            "offset": str(random.choice(SIZES)),
            "length": random.choice(("48", "-1", "99999999999999999999", "x", "")),
        }
        for key, text in random.sample(sorted(entries.items()), random.choice((1, 2, 3))):
            tensor.external_data.add(key=key, value=text)
    else:
        tensor.raw_data = mangled(random, tensor.raw_data)


def _initializer(random: Random, model: ModelProto) -> None:
    tensors = model.graph.initializer
    if not tensors:
        return
    position = random.randrange(len(tensors))
    change = random.randrange(4)
    if change == 0:
        del tensors[position]
    elif change == 1:
        tensors.append(tensors[position])
    elif change == 2:
        tensors[position].name = _name(random, model)
    else:
        _tensor(random, tensors[position])


def _input(random: Random, model: ModelProto) -> None:
    values = random.choice((model.graph.input, model.graph.input, model.graph.output))
    change = random.randrange(7)
    if change == 0 or not values:
        del values[:]
    elif change == 1:
        values.append(helper.make_tensor_value_info(_name(random, model), TensorProto.FLOAT, [random.choice(SIZES), 3]))
    elif change == 2:
        values[0].type.tensor_type.elem_type = random.choice(TYPES)
    elif change == 3:
        values[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    elif change == 4:
        values[0].name = _name(random, model)
    elif change == 5:
        values[0].type.tensor_type.ClearField("shape")
    else:
        dims = values[0].type.tensor_type.shape.dim
        if dims:
            dims[random.randrange(len(dims))].dim_value = random.choice(SIZES)


def _nodes(random: Random, model: ModelProto) -> None:
    nodes = model.graph.node
    if not nodes:
        return
    position = random.randrange(len(nodes))
    change = random.randrange(4)
    if change == 0:
        del nodes[position]
    elif change == 1:
        nodes.append(nodes[position])
    elif change == 2:
        nodes.add().CopyFrom(helper.make_node(random.choice(OPERATORS), [_name(random, model)], [_name(random, model)]))
    else:
        first, *rest = list(nodes)
        del nodes[:]
        nodes.extend([*rest, first])


def _versions(random: Random, model: ModelProto) -> None:
    if random.random() < 0.4:
        model.ir_version = random.choice((0, 3, 13, 999, 2**40))
    else:
        del model.opset_import[random.randrange(1) :]
        for domain in random.sample(("", "", "ai.onnx.ml", "nobody", f"{CANARY}.so"), random.randrange(3)):
            model.opset_import.append(helper.make_opsetid(domain, random.choice((0, 1, 17, 18, 23, 999, -1, 2**40))))


def _function(random: Random, model: ModelProto) -> None:
    """A function of the model that calls itself, or one of a built-in's name."""
    name, domain = random.choice((("Again", "own"), ("Relu", ""), ("Softmax", "own")))
    inner = helper.make_node(name, ["a"], ["b"], domain=domain)
    model.functions.append(helper.make_function(domain, name, ["a"], ["b"], [inner], [helper.make_opsetid("", 18)]))
    if model.graph.node:
        node = random.choice(model.graph.node)
        node.op_type, node.domain = name, domain
    model.opset_import.append(helper.make_opsetid(domain, 1))


CHANGES = (
    _rewire,
    _rewire,
    _operator,
    _attribute,
    _initializer,
    _initializer,
    _input,
    _input,
    _nodes,
    _versions,
    _function,
)


def deep(count: int) -> ModelProto:
    """A chain of nodes, or of graphs inside graphs."""
    model = float_graph()
    nodes = [helper.make_node("Identity", [f"n{i}" if i else "x"], [f"n{i + 1}"]) for i in range(count)]
    model.graph.node.extend(nodes)
    return model


def nested(depth: int) -> ModelProto:
    """An If inside an If inside an If."""
    graph = helper.make_graph([], "empty", [], [helper.make_tensor_value_info("weights", TensorProto.FLOAT, [3, 4])])
    for _ in range(depth):
        branch = helper.make_node("If", ["flag"], ["out"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph(
            [branch], "level", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
        )
    model = float_graph()
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    model.graph.node.extend(graph.node)
    return model


def cases() -> list[bytes]:
    """Crafted files: no graph at all, sizes out of all proportion, files elsewhere."""
    models = [deep(3000), nested(12)]
    for shape in (
        [1, 3, 50_000, 50_000],
        ["B", 3, 2**40, 2**40],
        [10**6, 3, 8, 8],
        [0, 3, 8, 8],
        [3],
        [],
        ["B", 3, "H", "W"],
    ):
        model = float_graph()
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
        models.append(model)
    for location in LOCATIONS:
        model = float_graph()
        tensor = model.graph.initializer[1]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        models.append(model)
    huge = float_graph()
    huge.graph.node.append(helper.make_node("ConstantOfShape", ["axes"], ["huge"]))
    huge.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([2**33, 2**3]), "axes"))
    valid = KIND.valid()
    return [
        *(
            b"",
            b"\n",
            b"\0" * 100,
            b"PK\x03\x04",
            b"ORTM",
            b"\xff" * 10_000,
            valid[:-1],
            valid[: len(valid) // 2],
            valid * 2,
        ),
        *(model.SerializeToString() for model in (*models, huge)),
    ]


def prepare(folder: Path) -> None:
    """Weights beside the graph, and outside."""
    (folder / "weights.bin").write_bytes(np.ones((3, 4), dtype=np.float32).tobytes())


def call(path: Path) -> None:
    """Load the source, with options that its own bytes choose; `registry.load` runs it on two images."""
    random = Random(path.read_bytes())
    options: dict[str, Any] = {"features": "features"} if random.random() < 0.5 else {}
    network = registry.load(
        Source.model_validate({"name": "odd", "kind": "onnx", "file": path.name, **options}), path.parent
    )
    assert network.input_px > 0


KIND = Kind(
    name="onnx",
    file="model.onnx",
    valid=lambda: float_graph().SerializeToString(),
    make=make,
    call=call,
    inputs=1500,
    prepare=prepare,
    cases=functools.cache(cases),
)
