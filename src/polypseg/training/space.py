"""The values that a search tries: of each field of a recipe a range or a list of choices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from polypseg.errors import PolypsegError, UsageError
from polypseg.files import check_yaml
from polypseg.training.recipe import Recipe, with_values

if TYPE_CHECKING:
    import optuna

# Of the recipe's fields those that matter most for a network of any size. Under adam the scale of the loss is of no
# matter, so that one of its two weights is enough.
DEFAULT_SPACE: dict[str, dict[str, Any]] = {
    "optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "optimizer.encoder_learning_rate": {"low": 3e-5, "high": 3e-3, "log": True},
    "optimizer.weight_decay": {"low": 1e-5, "high": 1e-1, "log": True},
    "optimizer.ema_decay": {"choices": [None, 0.95, 0.99, 0.995]},
    "loss.bce": {"low": 0.25, "high": 4.0, "log": True},
    "loss.dice_per_image": {"choices": [False, True]},
    "frames.augmentation": {"choices": ["baseline", "strong"]},
    "frames.batch_size": {"choices": [4, 8, 16]},
}
FIXED = ("name", "split", "threshold")  # trials are compared by the same validation frames, before any threshold


@dataclass(frozen=True)
class Range:
    """The values of one field: ``low`` to ``high``, or ``choices``.

    Attributes:
        low, high: bounds, both possible; whole numbers where both are.
        log: on a logarithmic scale.
        choices: the values, where they are no range.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that show whether all can be used."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """The trial's value."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


def read_space(path: str | Path | None, recipe: Recipe) -> dict[str, Range]:
    """The values of each field, checked against the recipe.

    Raises:
        UsageError: a field or a value is none of a recipe's, or a range is none.
        PolypsegError: the file cannot be read.
    """
    values: Any = DEFAULT_SPACE
    where = "the default space"
    if path is not None:
        where = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
            check_yaml(text)
            values = yaml.safe_load(text)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise PolypsegError(f"{path}: cannot be read ({reason}); name a YAML file of fields and values") from error
    if not isinstance(values, dict) or not values:
        raise UsageError(f"{where}: contains no fields; write one a line, as loss.bce: {{low: 0.5, high: 2.0}}")
    ranges = {}
    for name, given in values.items():
        try:
            ranges[str(name)] = one = _range(given)
            if name in FIXED:
                raise UsageError("trials could not be compared if it differed")
            for value in one.ends:
                with_values(recipe, {str(name): value})
        except UsageError as error:
            raise UsageError(f"{where}: {name}: cannot be searched ({error}); correct it") from error
    return ranges


def _range(given: Any) -> Range:
    if isinstance(given, dict) and given.keys() == {"choices"} and isinstance(given["choices"], list):
        if given["choices"] and all(
            one is None or isinstance(one, bool | int | float | str) for one in given["choices"]
        ):
            return Range(choices=tuple(given["choices"]))
    elif isinstance(given, dict) and {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
        low, high, log_scale = _number(given["low"]), _number(given["high"]), given.get("log", False)
        if (
            low is not None
            and high is not None
            and low < high
            and (log_scale is False or (log_scale is True and low > 0))
        ):
            return Range(low, high, log_scale)
    raise UsageError("give {low: A, high: B}, A below B, with log: true where both are above 0; or {choices: [A, B]}")


def _number(value: Any) -> float | None:
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)  # YAML takes 1e-3 for text
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
