"""Adds the definitions of a report to ``results/scores.csv``, one row a number, with its provenance.

polypseg evaluate runs/realtime --data ../shared/data/Kvasir-SEG --out runs/realtime/evaluation
python benchmarks/record.py runs/realtime/evaluation
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from results import add_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="folder that `polypseg evaluate` wrote")
    parser.add_argument("--out", type=Path, default=Path("results/scores.csv"))
    options = parser.parse_args()
    numbers = json.loads((options.report / "report.json").read_text(encoding="utf-8"))
    origin = numbers["provenance"]
    rows = [
        {
            "date": origin["date"][:10],
            "model": numbers["name"],
            "data": " ".join(sorted(origin["datasets"])),
            "split": origin["split"]["name"],
            "part": origin["split"]["part"],
            "n": numbers["n"],
            "metric": name,
            "value": round(one["mean"], 6),
            "low": _rounded(one.get("low")),
            "high": _rounded(one.get("high")),
            "threshold": numbers["threshold"],
            "split_hash": origin["split"]["hash"],
            "bundle_hash": origin.get("bundle_hash"),
            "commit": origin["commit"],
            "device": origin.get("device"),
            "threads": origin.get("threads"),
            "precision": origin.get("precision"),
            "tta": origin.get("tta"),
        }
        for name, one in numbers["definitions"].items()
    ]
    add_rows(options.out, rows)
    print(f"{options.out}: {len(rows)} rows added")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


if __name__ == "__main__":
    main()
