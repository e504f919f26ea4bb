"""Which runtime, device and precision a bundle is computed with, and why."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys

from polypseg.bundle import Export, ModelBundle
from polypseg.errors import PolypsegError, UsageError
from polypseg.inference.runtimes import NAMES, PRECISIONS, Runtime

MOST_THREADS = 1024
_PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime"}
# Fastest first; an int8 export exists only where its Dice was found to hold.
_PREFERENCE = {"openvino": ("int8", "bf16", "fp32"), "onnx": ("int8", "fp32")}


def open_runtime(
    bundle: ModelBundle,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    compile: bool = False,
    channels_last: bool = True,
) -> tuple[Runtime, str]:
    """Open a bundle with what suits this machine, or with what is asked for.

    ``auto`` takes a GPU by PyTorch where there is one and int8 is not asked for, else OpenVINO where the bundle has an
    export for it, else ONNX Runtime likewise, else PyTorch on the CPU.

    Args:
        bundle: an opened bundle.
        runtime: ``auto``, ``openvino``, ``onnx`` or ``torch``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``int8``.
        threads: of the computation on a CPU; 0 leaves it to the runtime.
        compile: PyTorch only, by ``torch.compile``.
        channels_last: PyTorch only, the memory layout.

    Returns:
        The runtime, and one sentence that says why it was taken.

    Raises:
        UsageError: a name is unknown, or runtime, device and precision do not go together.
        PolypsegError: the export is not there or damaged, its runtime is not installed, or the weights do not fit.
    """
    if runtime not in ("auto", *NAMES):
        raise UsageError(f"--runtime {runtime}: is unknown; choose auto, {', '.join(NAMES)}")
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"--precision {precision}: is unknown; choose auto, {', '.join(PRECISIONS)}")
    check_threads(threads)
    # Of int8 there are exports alone, which run on the CPU.
    may_be_gpu = device == "auto" and (runtime == "torch" or (runtime == "auto" and precision != "int8"))
    gpu = device not in ("auto", "cpu") or (may_be_gpu and _has_gpu())
    if gpu and runtime not in ("auto", "torch"):
        raise UsageError(f"--device {device}: {runtime} runs on the CPU here; use --runtime torch, or --device cpu")
    if runtime == "torch" or gpu:
        why = "it was asked for" if runtime == "torch" or device != "auto" else "this machine has a GPU"
        return _open_torch(bundle, device, precision, threads, compile, channels_last, why)
    if runtime == "auto":
        return _open_best_on_cpu(bundle, precision, threads, compile, channels_last)
    return _open_export(bundle, runtime, precision, threads, "it was asked for")


def check_threads(threads: int) -> None:
    """Raise ``UsageError`` for a number of threads that no machine has: some runtimes would start them all."""
    if not 0 <= threads <= MOST_THREADS:
        raise UsageError(f"--threads {threads}: must be 0 (all) to {MOST_THREADS}")


def _open_best_on_cpu(
    bundle: ModelBundle, precision: str, threads: int, compile: bool, channels_last: bool
) -> tuple[Runtime, str]:
    missing = ""
    for name, package in _PACKAGES.items():
        if _find(bundle, name, precision) is None or compile:
            continue
        if importlib.util.find_spec(package) is None:
            missing = missing or f"; {package} is not installed"
            continue
        return _open_export(bundle, name, precision, threads, "the bundle has an export for it, the fastest on a CPU")
    if precision == "int8":
        raise PolypsegError(f"{bundle.folder}: {_lacks(bundle, 'openvino', 'int8')}{missing}")
    why = "compiling was asked for" if compile else f"the bundle has no export for this CPU{missing}"
    if not compile and not missing:
        why += f" (polypseg export {bundle.folder} makes a faster one)"
    return _open_torch(bundle, "cpu", precision, threads, compile, channels_last, why)


def _open_torch(
    bundle: ModelBundle, device: str, precision: str, threads: int, compile: bool, channels_last: bool, why: str
) -> tuple[Runtime, str]:
    from polypseg.inference.runtimes.torch import TorchRuntime

    opened = TorchRuntime(bundle, device, precision, threads, compile, channels_last)
    return opened, _sentence(opened, why)


def _open_export(bundle: ModelBundle, name: str, precision: str, threads: int, why: str) -> tuple[Runtime, str]:
    if name == "onnx" and precision == "bf16":
        raise UsageError("--precision bf16: ONNX Runtime has no bf16 on a CPU; use fp32 or int8, or --runtime openvino")
    export = _find(bundle, name, precision)
    if export is None:
        raise PolypsegError(f"{bundle.folder}: {_lacks(bundle, name, precision)}")
    opened: Runtime
    if name == "openvino":
        from polypseg.inference.runtimes.openvino import OpenVINORuntime

        opened = OpenVINORuntime(export, bundle.preprocessing, export.precision, threads)
    else:
        from polypseg.inference.runtimes.onnx import ONNXRuntime

        opened = ONNXRuntime(export, bundle.preprocessing, threads)
    return opened, _sentence(opened, why)


def _find(bundle: ModelBundle, name: str, precision: str) -> Export | None:
    wanted = _PREFERENCE[name] if precision == "auto" else (precision,)
    exports = {export.precision: export for export in bundle.exports if export.runtime == name}
    return next((exports[one] for one in wanted if one in exports), None)


def _lacks(bundle: ModelBundle, name: str, precision: str) -> str:
    option = "" if precision == "auto" else f" --precision {precision}"
    kind = name if precision == "auto" else f"{name} {precision}"
    return f"contains no {kind} export; make one: polypseg export {bundle.folder} --format {name}{option}"


def _sentence(runtime: Runtime, why: str) -> str:
    threads = f", {runtime.threads} thread{'s' * (runtime.threads != 1)}" if runtime.device == "cpu" else ""
    return f"{runtime.name} on {runtime.device} in {runtime.precision}{threads}: {why}"


def _has_gpu() -> bool:
    """Whether PyTorch finds a GPU; PyTorch itself, slow to import, is asked only where there may be one."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    nvidia = os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg") or shutil.which("nvidia-smi") is not None
    if not apple and not nvidia:
        return False
    from polypseg.models.device import choose_device

    return choose_device("auto").type != "cpu"
