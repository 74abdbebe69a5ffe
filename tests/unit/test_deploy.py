"""The container and deploy/: valid by their own tools where these are at hand, and true of our code.

The tools come with `pip install -e '.[deploy]'`; kubectl and promtool with the system.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from prometheus_client import generate_latest

from service.settings import Settings, unknown_variables

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "petseg.json"
USER_ID = 10001


def tool(name: str) -> str:
    """The path of a program; skips the test where there is none."""
    found = shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def our_settings(environment: dict[str, Any]) -> dict[str, Any]:
    ours = {name: value for name, value in environment.items() if name.startswith("PETSEG_")}
    assert ours
    assert unknown_variables(ours) == []
    return ours


# The image


def instructions() -> Iterator[tuple[str, str]]:
    """(instruction, rest) of the Dockerfile, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, rest


def last_stage() -> list[tuple[str, str]]:
    steps = list(instructions())
    begins = max(index for index, (name, _) in enumerate(steps) if name == "FROM")
    return steps[begins:]


def test_hadolint_finds_nothing() -> None:
    run(tool("hadolint"), "Dockerfile")


def test_the_image_runs_as_nobody_in_particular_and_installs_nothing() -> None:
    steps = last_stage()
    assert dict(steps)["USER"] == str(USER_ID)
    assert json.loads(dict(steps)["ENTRYPOINT"]) == ["petseg", "serve"]  # as process 1, or no signal reaches it
    assert not any("pip install" in rest or "apt-get" in rest for name, rest in steps if name == "RUN")
    assert not any(name == "COPY" and "--from=build" not in rest for name, rest in steps)
    variables = re.findall(r"(\w+)=(\S+)", next(rest for name, rest in steps if name == "ENV"))
    assert our_settings(dict(variables))["PETSEG_HOST"] == "0.0.0.0"


def test_what_the_build_copies_reaches_it() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    for source in [source for sources in copied for source in sources]:
        assert (ROOT / source).exists(), source
        assert source in sent, source


def test_requirements_of_the_image() -> None:
    script = DEPLOY / "list_requirements.py"
    listed = run(sys.executable, script, "pyproject.toml", "scale").splitlines()
    assert any(each.startswith("fastapi") for each in listed)
    assert any(each.startswith("ray[serve]") for each in listed)
    assert not any(each.startswith("pytest") for each in listed)
    assert subprocess.run([sys.executable, script, "pyproject.toml", "none"], cwd=ROOT, capture_output=True).returncode


# Compose


def test_compose_has_the_form_of_its_specification() -> None:
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


@pytest.mark.parametrize("name", ["petseg", "petseg-gpu"])
def test_compose_runs_the_service_with_little_rights(name: str) -> None:
    service = read_yaml(ROOT / "docker-compose.yml")["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert float(service["stop_grace_period"].removesuffix("s")) > Settings().drain_s
    our_settings(service["environment"])


def test_compose_publishes_on_this_machine_alone() -> None:
    services = read_yaml(ROOT / "docker-compose.yml")["services"]
    ports = [port for service in services.values() for port in service["ports"]]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_what_compose_alone_reads_is_no_setting_of_the_service() -> None:
    # Exported for compose, it would stop every petseg command of the same shell as an unknown setting.
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert unknown_variables(dict.fromkeys(re.findall(r"\$\{(\w+)", text), "")) == []


def test_compose_mounts_what_exists_and_prometheus_asks_the_operation_port() -> None:
    composed = read_yaml(ROOT / "docker-compose.yml")
    for service in composed["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in composed["volumes"], volume
    (job,) = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    (address,) = job["dns_sd_configs"]
    assert address["names"] == ["petseg"]
    assert str(address["port"]) == composed["services"]["petseg"]["environment"]["PETSEG_OPERATION_PORT"]


# Prometheus and Grafana


def test_prometheus_takes_its_files() -> None:
    run(tool("promtool"), "check", "config", DEPLOY / "prometheus" / "prometheus.yml")


def expressions() -> Iterator[str]:
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for group in read_yaml(DEPLOY / "prometheus" / "alerts.yml")["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for rule in read_yaml(KUBERNETES / "prometheus_adapter.yaml")["rules"]["custom"]:
        yield from (rule["seriesQuery"], rule["metricsQuery"])


@pytest.mark.anyio
async def test_every_figure_that_is_drawn_or_watched_exists(app: FastAPI) -> None:
    async with app.router.lifespan_context(app):
        text = generate_latest(app.state.metrics.registry).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    series = set(kinds) | {
        name + suffix for name, kind in kinds.items() if kind == "histogram" for suffix in ("_bucket", "_sum", "_count")
    }
    asked = {name for each in expressions() for name in re.findall(r"\b(?:petseg|process)_\w+", each)}
    assert len(asked) > 20
    assert asked - series == set()


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    places = [panel["gridPos"] for panel in panels]
    cells = [
        (column, row)
        for place in places
        for column in range(place["x"], place["x"] + place["w"])
        for row in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(column for column, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


# Kubernetes


def manifests(folder: Path = KUBERNETES / "base") -> dict[str, Any]:
    files = [path for path in sorted(folder.glob("*.yaml")) if path.name != "kustomization.yaml"]
    return {manifest["kind"]: manifest for manifest in map(read_yaml, files)}


def test_manifests_have_kubernetes_form() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for manifest in manifests().values():
        kubernetes_validate.validate(manifest, desired_version="1.31", strict=True)


@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_kustomize_builds_them_all(folder: str) -> None:
    built = list(yaml.safe_load_all(run(tool("kubectl"), "kustomize", KUBERNETES / folder)))
    assert {manifest["kind"] for manifest in built} == set(manifests())
    (container,) = next(each for each in built if each["kind"] == "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (folder == "gpu")


def test_kustomize_names_every_manifest() -> None:
    listed = read_yaml(KUBERNETES / "base" / "kustomization.yaml")["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(path.name for path in (KUBERNETES / "base").glob("*.yaml"))


def test_pods_have_little_rights_and_time_to_finish() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsUser"] == USER_ID
    assert pod["enableServiceLinks"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    settings = our_settings({entry["name"]: entry.get("value") for entry in container["env"]})
    # What a node has is not what a pod may use, and none of the three can see the difference by itself.
    assert {"PETSEG_STREAMS", "PETSEG_STREAM_THREADS", "PETSEG_IMAGE_THREADS"} <= settings.keys()
    assert pod["terminationGracePeriodSeconds"] > float(settings["PETSEG_LINGER_S"]) + Settings().drain_s


def test_manifests_agree_with_each_other() -> None:
    every = manifests()
    pods = every["Deployment"]["spec"]["template"]
    labels = pods["metadata"]["labels"]
    assert every["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert every["Service"]["spec"]["selector"] == labels
    assert every["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert every["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert every["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == every["Deployment"]["metadata"]["name"]
    (container,) = pods["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert {
        container[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    } <= ports
    assert {port["targetPort"] for port in every["Service"]["spec"]["ports"]} <= ports
    scaled_on = every["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    (rule,) = read_yaml(KUBERNETES / "prometheus_adapter.yaml")["rules"]["custom"]
    assert rule["name"]["as"] == scaled_on


# Ray Serve


def test_ray_serves_what_our_code_has() -> None:
    config = read_yaml(DEPLOY / "ray.yaml")
    (application,) = config["applications"]
    module, _, name = application["import_path"].partition(":")
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert name in assigned
    assert {deployment["name"] for deployment in application["deployments"]} <= classes
    our_settings(application["runtime_env"]["env_vars"])
