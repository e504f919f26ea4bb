"""What options take, as types; the command line and the Python API share them. Imports nothing."""

from typing import Literal

Runtime = Literal["auto", "openvino", "onnx", "torch"]
Precision = Literal["auto", "fp32", "bf16", "int8"]
Part = Literal["train", "val", "test", "all"]  # of a split
FrameState = Literal["predicted", "accepted", "corrected", "no_polyp", "poor_view", "unsure"]  # of an annotated frame
DataFormat = Literal["folder", "coco", "yolo"]  # in which annotated frames are exported
Objective = Literal["lesion_f1", "dice"]  # by which an operating point is chosen
