"""What is in ``deploy/``: files that can be read, options that exist, paths that the service answers."""

from __future__ import annotations

import configparser
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from polypseg.cli.serve import serve

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
OPTIONS = {f"--{name}" for name in inspect.signature(serve).parameters}
HEALTH = {"/health/live", "/health/ready"}


def options_of(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def test_the_unit_of_systemd() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string((DEPLOY / "polypseg.service").read_text())
    service = unit["Service"]
    words = service["ExecStart"].split()
    assert words[1] == "serve" and options_of(words) <= OPTIONS
    assert service["ExecReload"].endswith("-HUP $MAINPID")  # as SIGHUP opens the models anew
    assert f"/var/lib/{service['StateDirectory']}" in words
    assert f"/run/{service['RuntimeDirectory']}/stream.sock" in words
    assert (service["DynamicUser"], service["ProtectSystem"]) == ("yes", "strict")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze: Debian's systemd")
def test_systemd_has_nothing_to_say_of_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "polypseg.service"
    unit.write_text((DEPLOY / unit.name).read_text().replace("/opt/polypseg/bin/polypseg", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_manifest_of_kubernetes() -> None:
    found = {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}
    assert set(found) == {"PersistentVolumeClaim", "Deployment", "Service"}
    pod = found["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["command"][:2] == ["polypseg", "serve"] and options_of(container["command"]) <= OPTIONS
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in HEALTH
        assert container[probe]["httpGet"]["port"] in {port["name"] for port in container["ports"]}
    assert found["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert found["Deployment"]["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    claims = [
        one["persistentVolumeClaim"]["claimName"]
        for one in pod["spec"]["volumes"]
        if len(one) > 1 and "persistentVolumeClaim" in one
    ]
    assert claims == [found["PersistentVolumeClaim"]["metadata"]["name"]]


@pytest.mark.parametrize("file", ["deploy/compose-orthanc.yaml", "compose.yaml"])
def test_what_compose_starts(file: str) -> None:
    found: dict[str, Any] = yaml.safe_load((DEPLOY.parent / file).read_text())
    for one in found["services"].values():
        named = {volume.partition(":")[0] for volume in one.get("volumes", []) if volume[0].isalpha()}
        assert named <= set(found["volumes"])
        assert set(one.get("depends_on", [])) <= set(found["services"])
        assert all(port.startswith("127.0.0.1:") for port in one["ports"])  # for this computer
        if str(one.get("image", "")).startswith("polypseg") and "entrypoint" not in one:
            assert options_of(one.get("command", [])) <= OPTIONS and "POLYPSEG_TOKEN" in one["environment"]


def test_no_file_names_a_registry_or_a_machine() -> None:
    for path in DEPLOY.iterdir():
        assert not re.search(r"(docker\.io|ghcr\.io|quay\.io|gcr\.io|/home/|/root/)", path.read_text()), path
