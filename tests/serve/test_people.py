"""The files of tokens and of labels: read, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from polypseg.errors import UsageError
from polypseg.serve.annotations.labels import LabelClass, read_labels
from polypseg.serve.people import name_of, read_tokens

ANNA, BOB = "a" * 16, "b" * 20


def test_each_line_is_a_person(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"# the ward\nanna {ANNA}\n\n  bob\t{BOB}  \n")
    tokens = read_tokens(tmp_path / "tokens")
    assert tokens == {"anna": ANNA, "bob": BOB}
    assert name_of(BOB, tokens) == "bob" and name_of(BOB[:-1], tokens) is None and name_of("", tokens) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("anna short", "line 1: the token must be 16"), ("anna", "line 1: must be a name"),
        (f"anna {ANNA} x", "line 1: must be a name"), (f"anna {ANNA}\nanna {BOB}", "line 2: the name or the token"),
        (f"anna {ANNA}\nbob {ANNA}", "line 2: the name or the token"), (f"local {ANNA}", "has a meaning of its own"),
        ("# nobody\n", "names nobody"),
    ],
)  # fmt: skip
def test_tokens_that_cannot_be_used_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(UsageError, match=says) as raised:
        read_tokens(tmp_path / "tokens")
    assert ANNA not in str(raised.value) and BOB not in str(raised.value)  # a log may be read by others


def test_files_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--tokens .*cannot be read"):
        read_tokens(tmp_path / "none")
    with pytest.raises(UsageError, match=r"--labels .*cannot be read"):
        read_labels(tmp_path / "none.yaml")


def test_labels_in_yaml_and_json_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("classes: [x, {name: y, colour: '#00ff00'}]\nattributes: {nice: [1, 2], note: []}")
    (tmp_path / "a.json").write_text(
        '{"classes": ["x", {"name": "y", "colour": "#00ff00"}], "attributes": {"nice": ["1", "2"], "note": {}}}'
    )
    labels = read_labels(tmp_path / "a.yaml")
    assert labels == read_labels(tmp_path / "a.json")
    assert labels.default == "x" and labels.classes[1] == LabelClass("y", "#00ff00")
    assert labels.problem("y", {"nice": "2", "note": "anything"}) is None
    assert "3 is no value; choose one of 1, 2" in str(labels.problem("y", {"nice": "3"}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("classes: []", "names no classes"), ("classes: [a, A]", "names the class a twice"), ("[a]", "must contain"),
        ("classes: [a]\nnames: [b]", "has names, which has no meaning"), ("classes: [yes]", "put yes, no"),
        ("classes: ['a:b']", "without a colon"), ("classes: [{name: a, color: red}]", "has color"),
        ("classes: [{name: a, colour: red}]", "must be like '#e4572e'"),
        ("classes: [a]\nattributes: [x]", "must be a list"), ("classes: [a]\nattributes: {x y: []}", "letters, digits"),
        ("classes: [a]\nattributes: {x: [1, 1]}", "value of x 1 twice"), ("classes: [a]\nclasses: [b]", "stands twice"),
        ("classes: [a", "is no YAML"), ("classes: [[]]", "must be text"),
        ("", "must contain classes"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_used_are_refused_in_a_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "labels.yaml").write_text(text)
    with pytest.raises(UsageError, match=says) as raised:
        read_labels(tmp_path / "labels.yaml")
    assert str(raised.value).startswith("--labels ") and "\n" not in str(raised.value)
