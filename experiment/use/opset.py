"""ONNX models for runtimes that know older operators only: the exporter's lowest operator set, converted down."""

from onnx import ModelProto, checker, helper, version_converter

LOWEST = 18  # that PyTorch's exporter writes
KEPT = "kept"  # a domain whose operators the converter does not touch


def lowered(model: ModelProto, opset: int) -> ModelProto:
    """The model in a lower operator set than LOWEST.

    ONNX's converter knows no way down for Pad, which needs none: without axes it is what it has been since 13. It also
    leaves an attribute at reductions that older ones lack, and that says nothing where axes are given.

    Raises:
        RuntimeError, ValueError: an operator that the lower set lacks.
    """
    given = ModelProto()
    given.CopyFrom(model)
    for node in given.graph.node:
        if node.op_type == "Pad" and len(node.input) < 4:
            node.domain = KEPT
    given.opset_import.append(helper.make_opsetid(KEPT, 1))
    converted = version_converter.convert_version(given, opset)
    for node in converted.graph.node:
        if node.domain == KEPT:
            node.domain = ""
        if node.op_type.startswith("Reduce"):
            others = [one for one in node.attribute if one.name != "noop_with_empty_axes"]
            del node.attribute[:]
            node.attribute.extend(others)
    del converted.opset_import[:]
    converted.opset_import.append(helper.make_opsetid("", opset))
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    checker.check_model(converted)
    return converted
