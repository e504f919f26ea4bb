"""Lesions of a video, found and how soon, on predictions whose scores can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polypseg.errors import PolypsegError
from polypseg.evaluation.video import score_video, score_video_files, steadiness

Box = list[int]


def record(index: int, polyps: list[tuple[int | None, Box]], carried: list[tuple[int, Box]]) -> dict[str, Any]:
    found, kept = ([{"id": number, "box": box} for number, box in some] for some in (polyps, carried))
    return {"frame": index, "time": index / 10, "width": 100, "height": 80, "polyps": found, "carried": kept}


def predictions(*frames: list[Box]) -> list[dict[str, Any]]:
    return [record(index, list(enumerate(boxes, 1)), []) for index, boxes in enumerate(frames)]


def boxes(*frames: list[Box]) -> list[list[dict[str, Any]]]:
    return [[{"bbox": box} for box in frame] for frame in frames]


LEFT, RIGHT = [10, 10, 30, 30], [60, 40, 90, 70]
HALF = [10, 10, 30, 22]  # IoU 0.6 with LEFT
THIRD = [10, 10, 30, 18]  # IoU 0.4 with LEFT
SHIFTED = [15, 18, 35, 38]  # IoU 180 / 620 with LEFT, its centre inside
FAR = [40, 0, 50, 10]


def test_boxes_are_counted_by_hand() -> None:
    scores = score_video(
        predictions([], [THIRD], [LEFT, FAR], [HALF, RIGHT], [SHIFTED], []), boxes(*[[LEFT, RIGHT]] * 4, [LEFT], [])
    )
    assert (scores.frames, scores.boxes, scores.predicted) == (6, 9, 6)
    assert scores.recall == {"any": 5 / 9, "iou_0.3": 4 / 9, "iou_0.5": 3 / 9, "centre": 5 / 9}
    assert scores.false_positives_per_frame == {"any": 1 / 6, "iou_0.3": 2 / 6, "iou_0.5": 3 / 6, "centre": 1 / 6}
    assert scores.lesions_found == {"any": 2, "iou_0.3": 2, "iou_0.5": 2, "centre": 2}
    left, right = scores.lesions
    assert (left.start, left.end, left.frames) == (0.0, 0.4, 5) and (right.end, right.frames) == (0.3, 4)
    assert left.first_detection == {"any": 0.1, "iou_0.3": 0.1, "iou_0.5": 0.2, "centre": 0.1}
    assert left.confirmation == left.first_detection
    assert left.frames_found == {"any": 4, "iou_0.3": 3, "iou_0.5": 2, "centre": 4}
    assert right.first_detection == {"any": 0.3, "iou_0.3": 0.3, "iou_0.5": 0.3, "centre": 0.3}
    assert set(left.identity_switches.values()) == set(right.identity_switches.values()) == {0}
    assert json.loads(json.dumps(scores.to_dict()))["lesions"][0]["frames"] == 5


def test_an_iou_equal_to_the_threshold_reaches_it() -> None:
    scores = score_video(predictions([[10, 10, 30, 20]]), boxes([LEFT]))
    assert scores.recall["iou_0.5"] == 1


def test_two_predictions_of_one_box_are_one_found_and_one_false() -> None:
    scores = score_video(predictions([LEFT, HALF]), boxes([LEFT]))
    for criterion in ("any", "iou_0.3", "iou_0.5", "centre"):
        assert (scores.recall[criterion], scores.false_positives_per_frame[criterion]) == (1, 1)


def test_most_pairs_are_made() -> None:
    """The better prediction for the first box is the only one for the second: both are found."""
    first, second = [0, 0, 10, 30], [0, 10, 10, 40]
    scores = score_video(predictions([[0, 4, 10, 34], [0, 0, 10, 20]]), boxes([first, second]))
    assert scores.recall["iou_0.5"] == 1


def test_a_video_without_polyps() -> None:
    scores = score_video(predictions([], [FAR]), boxes([], []))
    assert scores.recall == {"any": None, "iou_0.3": None, "iou_0.5": None, "centre": None}
    assert scores.false_positives_per_frame["centre"] == 0.5 and scores.lesions == []


def test_a_lesion_that_is_never_found() -> None:
    scores = score_video(predictions([], []), boxes([LEFT], [LEFT]))
    (lesion,) = scores.lesions
    assert lesion.first_detection == lesion.confirmation == dict.fromkeys(lesion.first_detection)
    assert scores.lesions_found["centre"] == 0 and scores.recall["centre"] == 0


def test_names_of_lesions_are_taken_where_they_are_given() -> None:
    named = [[{"bbox": LEFT, "lesion": "a"}], [{"bbox": LEFT, "lesion": "b"}], [{"bbox": RIGHT, "lesion": "a"}]]
    scores = score_video(predictions([], [LEFT], [RIGHT]), named)
    assert [(lesion.lesion, lesion.frames) for lesion in scores.lesions] == [("a", 2), ("b", 1)]
    assert [lesion.first_detection["centre"] for lesion in scores.lesions] == [0.2, 0.0]


def test_only_what_is_shown_counts_and_its_fragments_are_one() -> None:
    """A lesion in two pieces, first without a number, then with one, then carried over, then with another one."""
    upper, lower = [10, 10, 30, 20], [10, 21, 30, 30]
    records = [
        record(0, [], []),
        record(1, [(None, LEFT), (None, FAR)], []),
        record(2, [(1, upper), (1, lower), (None, FAR)], []),
        record(3, [], [(1, LEFT)]),
        record(4, [(2, LEFT)], []),
        record(5, [(2, LEFT), (1, FAR)], []),
    ]
    scores = score_video(records, boxes(*[[LEFT]] * 6))
    assert (scores.predicted, scores.recall["iou_0.5"]) == (5, 4 / 6)
    assert scores.false_positives_per_frame["any"] == 1 / 6
    (lesion,) = scores.lesions
    assert (lesion.first_detection["iou_0.5"], lesion.confirmation["iou_0.5"]) == (0.1, 0.2)
    assert lesion.identity_switches == scores.identity_switches == dict.fromkeys(scores.recall, 1)


def test_steadiness_is_counted_by_hand() -> None:
    """Appear 1, nothing, swap 1 for 2, add 3, lose both."""
    numbers: list[list[int]] = [[], [1], [1], [2], [2, 3], []]
    found = steadiness([record(index, [(one, LEFT) for one in some], []) for index, some in enumerate(numbers)])
    assert (found.frames, found.seconds, found.numbers, found.frames_shown) == (6, 0.6, 3, 4)
    assert found.count_changes == 3 and found.changes_per_second == pytest.approx((1 + 2 + 1 + 2) / 0.6)
    assert found.numbers_per_minute == pytest.approx(3 / 0.01)
    assert steadiness([record(0, [], [])]).changes_per_second == 0
    with pytest.raises(ValueError, match="no frame"):
        steadiness([])


def write(folder: Path, records: list[dict[str, Any]], truth: Any) -> tuple[Path, Path]:
    (folder / "exam.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "boxes.json").write_text(json.dumps(truth))
    return folder / "exam.jsonl", folder / "boxes.json"


def test_files_are_scored_as_their_content(tmp_path: Path) -> None:
    records = predictions([LEFT], [], [HALF])
    files = write(tmp_path, records, {"width": 100, "height": 80, "frames": boxes([LEFT], [LEFT], [LEFT])})
    assert score_video_files(*files) == score_video(records, boxes([LEFT], [LEFT], [LEFT]))


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"width": 100, "height": 80, "frames": [[]]}, "has boxes of 1 frames but .* predicts 2"),
        ({"width": 90, "height": 80, "frames": [[], []]}, "of another size"),
        ({"width": 100, "height": 80}, "is no file of boxes"),
        ([1, 2], "is no file of boxes"),
        ({"width": 100, "height": 80, "frames": [[{"bbox": [1, 2, 3]}], []]}, "is no file of boxes"),
        ({"width": 100, "height": 80, "frames": [[{"bbox": [30, 2, 3, 9]}], []]}, "is no file of boxes"),
    ],
)
def test_boxes_that_do_not_fit(tmp_path: Path, truth: Any, message: str) -> None:
    files = write(tmp_path, predictions([], []), truth)
    with pytest.raises(PolypsegError, match=message) as caught:
        score_video_files(*files)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no json\n",
        "[1]\n",
        '{"time": 1}\n',
        '{"time": 0, "width": 1, "height": 1, "polyps": [{"box": [0, 0, 1, 1]}]}\n',
        '{"time": 0, "width": 1, "height": 1, "polyps": 3}\n',
    ],
)
def test_lines_that_are_none(tmp_path: Path, content: str) -> None:
    records, truth = write(tmp_path, [], {"width": 1, "height": 1, "frames": []})
    records.write_text(content)
    with pytest.raises(PolypsegError, match=r"exam\.jsonl: (is no \.jsonl|contains no frame)"):
        score_video_files(records, truth)
    with pytest.raises(PolypsegError, match=r"missing\.jsonl: cannot be read"):
        score_video_files(tmp_path / "missing.jsonl", truth)
