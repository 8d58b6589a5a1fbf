"""deploy/kubernetes: valid by the published schemas, as hardened as it says, and run here."""

import json
import math
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kubernetes_validate
import pytest
import yaml
import zmq

from manychar.network import keys
from manychar.network.authenticator import Authenticator
from manychar.processes.errors import BAD_INPUT, REFUSED_FOR_SAFETY, RUN_FAILED, STOPPED, UserError
from manychar.protocol.messages import KeyRole
from tests.commands import Commands, until
from tests.conftest import Require
from tests.deploy import operating
from tests.deploy.recipes import DEPLOY, Recipe, documents, flag, shell

KUBERNETES = DEPLOY / "kubernetes"
OLDEST, NEWEST = "1.33", "1.37"
NOBODY = 65532


def base() -> list[dict[str, Any]]:
    """Return the base as kustomize renders it: its resources, each in the namespace."""
    kustomization = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text())
    assert set(kustomization) == {"apiVersion", "kind", "namespace", "resources"}
    found = []
    for name in kustomization["resources"]:
        for document in documents((KUBERNETES / "base" / name).read_text()):
            document["metadata"]["namespace"] = kustomization["namespace"]
            found.append(document)
    return found


def by_kind(found: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


SERVER = by_kind(base())["Job", "manychar-server"]
JOB = by_kind(base())["Job", "manychar-worker"]
PODS = {"server": SERVER["spec"]["template"]["spec"], "worker": JOB["spec"]["template"]["spec"]}
VOLUME, FILES = (
    one
    for name in ("volume", "files")
    for one in documents((KUBERNETES / f"{name}.yaml").read_text())
)
ALL_CONTAINERS = [
    pytest.param(container, id=f"{pod}-{container['name']}")
    for pod, spec in {**PODS, "files": FILES["spec"]}.items()
    for container in (*spec.get("initContainers", ()), *spec["containers"])
]
PROBES = 128 * operating.MIB


def kustomized(require: Require, directory: Path) -> list[dict[str, Any]]:
    """Return what kustomize itself renders."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here, and none that .ci/run could install: kustomize cannot render")
    done = subprocess.run(
        ["kubectl", "kustomize", str(directory)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def faults_of(found: list[dict[str, Any]], version: str = NEWEST) -> dict[str, str]:
    """Return what a version's strict schemas have against the documents, by their names."""
    faults = {}
    for document in found:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            faults[document["metadata"]["name"]] = str(error)
    return faults


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_base_is_valid_by_the_strict_schemas(version: str) -> None:
    assert len(base()) > 3
    assert faults_of([*base(), VOLUME, FILES], version) == {}


def test_the_volume_is_the_clusters_default_or_of_a_class_that_is_named() -> None:
    text = (KUBERNETES / "volume.yaml").read_text()
    assert "storageClassName" not in VOLUME["spec"]
    (named,) = documents(text.replace("# storageClassName:", "storageClassName:"))
    assert named["spec"]["storageClassName"] == "NAME"
    assert faults_of([named]) == {}
    for spec in (PODS["server"], FILES["spec"]):
        claims = [volume.get("persistentVolumeClaim") for volume in spec["volumes"]]
        assert {"claimName": VOLUME["metadata"]["name"]} in claims
    assert VOLUME["kind"] not in {kind for kind, _ in by_kind(base())}  # deleted with the base


def test_a_misspelt_field_is_not() -> None:
    job = json.loads(json.dumps(JOB))
    job["spec"]["backofLimitPerIndex"] = 1
    assert "backofLimitPerIndex" in faults_of([SERVER, job])["manychar-worker"]


def test_kustomize_renders_the_base_as_this_test_does(require: Require) -> None:
    assert by_kind(kustomized(require, KUBERNETES / "base")) == by_kind(base())


def test_the_overlay_for_ones_own_text_is_complete_as_it_lies_there(require: Require) -> None:
    found = kustomized(require, KUBERNETES / "own-text")
    assert faults_of(found) == {}
    kinds = by_kind(found)
    assert kinds.keys() == by_kind(base()).keys()
    server = kinds["Job", "manychar-server"]["spec"]["template"]["spec"]["containers"][0]
    job = kinds["Job", "manychar-worker"]["spec"]
    assert job["parallelism"] == job["completions"] == int(flag(server["args"], "shards")) == 16
    place = server["args"][1]
    readme = (KUBERNETES / "README.md").read_text(encoding="utf-8")
    assert f" cp text.txt {FILES['metadata']['name']}:{place}\n" in readme
    assert place.startswith("/runs/")
    expect_limits_of_the_formula(server, job, characters=256)


def test_the_limits_of_memory_follow_from_the_formula() -> None:
    expect_limits_of_the_formula(PODS["server"]["containers"][0], JOB["spec"], characters=103)


def expect_limits_of_the_formula(
    server: dict[str, Any], job: dict[str, Any], *, characters: int
) -> None:
    """Twice the formula, the probes beside the server, in steps of 64 MiB."""
    flags = dict(word[2:].split("=") for word in server["args"] if "=" in word)
    size = operating.recipe_size(
        characters, hidden=int(flags.get("hidden", 100)), shards=int(flags["shards"])
    )
    worker = job["template"]["spec"]["containers"][0]
    for container, needed in (
        (server, 2 * operating.server_memory(size, job["completions"]) + PROBES),
        (worker, 2 * operating.worker_memory(size, size.shards)),
    ):
        memory = container["resources"]["limits"]["memory"]
        assert memory == container["resources"]["requests"]["memory"]
        assert memory == f"{math.ceil(needed / 64 / operating.MIB) * 64}Mi"


def with_metrics() -> dict[tuple[str, str], dict[str, Any]]:
    """Return the base with the component's patches, each of which adds to the end of a list."""
    component = yaml.safe_load((KUBERNETES / "metrics" / "kustomization.yaml").read_text())
    found = by_kind(base())
    for each in component["patches"]:
        (change,) = yaml.safe_load(each["patch"])
        assert change["op"] == "add"
        place: Any = found[each["target"]["kind"], each["target"]["name"]]
        *path, last = change["path"].removeprefix("/").split("/")
        assert last == "-"
        for name in path:
            place = place[name]
        place.append(change["value"])
    return found


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_prometheus_is_served_where_its_network_policy_says(version: str) -> None:
    found = with_metrics()
    assert faults_of(list(found.values()), version) == {}
    pod = found["Job", "manychar-server"]["spec"]["template"]["spec"]
    (server,), metrics = pod["containers"], pod["initContainers"][-1]
    assert metrics["restartPolicy"] == "Always"
    port = int(flag(metrics["args"], "metrics-port"))
    assert metrics["ports"] == [{"name": "metrics", "containerPort": port, "protocol": "TCP"}]
    assert {"--insecure", "--metrics-host=0.0.0.0"} <= set(metrics["args"])
    assert metrics["args"][:2] == ["follow", "tcp://127.0.0.1:5577"]
    for same in ("image", "securityContext", "env"):
        assert metrics[same] == server[same]
    assert metrics["volumeMounts"] == server["volumeMounts"][1:]
    assert metrics["resources"]["limits"]["memory"]
    ports = found["Service", "manychar-server"]["spec"]["ports"]
    assert ports[1]["targetPort"] == "metrics"
    _, rule = found["NetworkPolicy", "manychar-server"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": port, "protocol": "TCP"}]
    assert rule["from"], "no rule for everybody"


def test_kustomize_takes_the_component_in(require: Require, tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    mine = tmp_path / "kubernetes" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(
        "namespace: manychar\nresources: [../base]\ncomponents: [../metrics]\n"
    )
    assert by_kind(kustomized(require, mine)) == with_metrics()


@pytest.mark.parametrize("container", ALL_CONTAINERS)
def test_a_container_can_do_nothing_that_it_need_not(container: dict[str, Any]) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert "cpu" not in container["resources"]["limits"]
    assert not container["image"].endswith(":latest")


def test_a_finished_run_is_not_started_again_and_one_that_was_stopped_is() -> None:
    spec = SERVER["spec"]
    assert spec["completions"] == spec["parallelism"] == 1
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # or Kubernetes takes no policy
    assert spec["podReplacementPolicy"] == "Failed"  # no second server beside the first
    never = {BAD_INPUT, RUN_FAILED, REFUSED_FOR_SAFETY}
    assert actions(SERVER) == {STOPPED: "Ignore", **dict.fromkeys(never, "FailJob")}


def actions(job: dict[str, Any]) -> dict[int, str]:
    """Return what a Job does by the exit code of its container."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    rules = [rule for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    for rule in rules:
        assert rule["onExitCodes"]["containerName"] == container["name"]
    return {code: rule["action"] for rule in rules for code in rule["onExitCodes"]["values"]}


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_is_nobody_and_holds_no_token(pod: str) -> None:
    context = PODS[pod]["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == NOBODY
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert PODS[pod]["automountServiceAccountToken"] is False
    secrets = [v["secret"] for v in PODS[pod]["volumes"] if "secret" in v]
    items = {item["key"] for secret in secrets for item in secret["items"]}
    server = {"server.key", "probe.key", "clients.json"}
    assert items == (server if pod == "server" else {"worker.key"})


def test_as_many_workers_as_shards_and_a_network_for_nobody_else() -> None:
    shards = int(flag(PODS["server"]["containers"][0]["args"], "shards"))
    assert JOB["spec"]["parallelism"] == JOB["spec"]["completions"] == shards
    policies = {n: p for (kind, n), p in by_kind(base()).items() if kind == "NetworkPolicy"}
    for pod, owner in (("server", SERVER), ("worker", JOB)):
        policy = policies[f"manychar-{pod}"]["spec"]
        labels = owner["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"] == labels
        assert policy["policyTypes"] == ["Ingress", "Egress"]
    (ingress,) = policies["manychar-server"]["spec"]["ingress"]
    (sender,) = ingress["from"]
    assert sender["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "worker"
    assert ingress["ports"] == [{"port": 5577, "protocol": "TCP"}]
    assert "egress" not in policies["manychar-server"]["spec"]
    assert "ingress" not in policies["manychar-worker"]["spec"]


def test_the_job_knows_this_programs_exit_codes() -> None:
    never = {BAD_INPUT, REFUSED_FOR_SAFETY}
    assert actions(JOB) == {STOPPED: "Ignore", **dict.fromkeys(never, "FailIndex")}
    assert PODS["worker"]["restartPolicy"] == "Never"  # or Kubernetes takes no such policy


@pytest.mark.parametrize("name", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_a_probe_is_given_the_time_that_it_takes(name: str) -> None:
    probe = PODS["server"]["containers"][0][name]
    assert probe["exec"]["command"][:2] == ["manychar", "health"]
    timeout = float(flag(probe["exec"]["command"], "connect-timeout"))
    assert probe["timeoutSeconds"] >= 2 * timeout + 2


@pytest.fixture
def places() -> Iterator[dict[str, Path]]:
    """The containers' directories, open to every user, with a Secret as Kubernetes lays it out."""
    with TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        found = {name: Path(scratch + name) for name in ("/runs", "/keys", "/secret", "/clients")}
        for place in found.values():
            place.mkdir()
            place.chmod(0o777)
        made = Path(scratch, "made")
        keys.create(made)
        keys.add(made, "probe", KeyRole.OBSERVER)
        for name in ("server", "worker", "probe"):
            lay_out(made / f"{name}.key", found["/secret"])
        lay_out(made / "clients.json", found["/clients"])
        yield {**found, "made": made}


def lay_out(source: Path, volume: Path, generation: int = 1) -> None:
    """Mount a Secret's key: a link over a link to a file that the fsGroup, too, can read."""
    data = volume / f"..{generation}"
    data.mkdir(exist_ok=True)
    mounted = Path(shutil.copy(source, data))
    mounted.chmod(0o440)
    if os.geteuid() == 0:
        os.chown(mounted, 0, NOBODY)
    for link, target in (("..data", data.name), (source.name, f"..data/{source.name}")):
        fresh = volume / "..fresh"
        fresh.symlink_to(target)
        fresh.rename(volume / link)


def init(pod: str, places: dict[str, Path], **options: Any) -> None:
    (container,) = PODS[pod]["initContainers"]
    shell([*container["command"], *container.get("args", [])], places, **options)


def test_the_keys_are_such_as_this_program_takes(require: Require, places: dict[str, Path]) -> None:
    require(os.geteuid() == 0, "not root: cannot be the pod's user")
    with pytest.raises(UserError, match="others can read this secret"):
        keys.read_client_key(places["/secret"] / "worker.key")
    for pod in PODS:
        for _ in range(2):  # an init container may run again
            init(pod, places, user=NOBODY, group=NOBODY, extra_groups=[])
    for name in ("server", "worker", "probe"):
        place = places["/keys"] / ("" if name == "worker" else "own")
        status = (place / f"{name}.key").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, NOBODY)
    assert keys.read_server_key(places["/keys"] / "own")
    assert keys.read_client_key(places["/keys"] / "worker.key").name == "worker"
    assert keys.read_client_key(places["/keys"] / "own" / "probe.key").role is KeyRole.OBSERVER


def test_a_key_revoked_in_the_secret_is_noticed_without_a_restart(places: dict[str, Path]) -> None:
    init("server", places)
    public = keys.read_client_key(places["made"] / "worker.key").public
    with zmq.Context() as context:
        authenticator = Authenticator(context, places["/keys"] / "own")
        try:
            owner = authenticator.owner_of(public)
            assert owner is not None
            assert owner.name == "worker"
            keys.revoke(places["made"], "worker")
            lay_out(places["made"] / "clients.json", places["/clients"], generation=2)
            until(lambda: authenticator.owner_of(public) is None, "the end of a revoked key")
        finally:
            authenticator.socket.close()


@pytest.mark.parametrize("ends", ["SuccessCriteriaMet Complete", "FailureTarget Failed"])
def test_waiting_for_the_job_ends_when_it_fails_too(tmp_path: Path, ends: str) -> None:
    readme = (KUBERNETES / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^until kubectl .*?^done$", readme, re.DOTALL | re.MULTILINE)
    kubectl, asked = tmp_path / "kubectl", tmp_path / "asked"
    kubectl.write_text(
        f'#!/bin/sh\necho "$*" >>{asked}\n[ $(wc -l <{asked}) -lt 3 ] && echo Suspended && exit\n'
        f"echo {ends}\n"
    )
    kubectl.chmod(0o755)
    sleep = tmp_path / "sleep"
    sleep.write_text("#!/bin/sh\n")
    sleep.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-c", command], env=path, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == f"{ends}\n"
    assert len(asked.read_text().splitlines()) == 3
    assert "get job manychar-server" in asked.read_text()
    assert "--for=condition=complete" not in readme


def test_the_secret_is_made_by_the_command_in_the_readme(require: Require, tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here, and none that .ci/run could install: no Secret can be made")
    readme = (KUBERNETES / "README.md").read_text(encoding="utf-8")
    match = re.search(
        r"^(kubectl .*create secret generic manychar-keys .*) \| kubectl", readme, re.M
    )
    assert match, "no command in the README that makes the Secret"
    keys.create(tmp_path / "KEYS")
    keys.add(tmp_path / "KEYS", "probe", KeyRole.OBSERVER)
    made = subprocess.run(
        match[1].split(), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    (secret,) = documents(made.stdout)
    wanted = {
        item["key"]
        for spec in PODS.values()
        for volume in spec["volumes"]
        if "secret" in volume
        for item in volume["secret"]["items"]
    }
    assert secret["metadata"]["name"] == "manychar-keys"
    assert secret["metadata"]["namespace"] == base()[0]["metadata"]["namespace"]
    assert set(secret["data"]) == wanted


@pytest.mark.long
def test_the_pods_own_commands_train_are_stopped_and_go_on(
    manychar: Commands, places: dict[str, Path]
) -> None:
    for pod in PODS:
        init(pod, places)
    worker = PODS["worker"]["containers"][0]["args"]
    server = PODS["server"]["containers"][0]
    recipe = Recipe(
        manychar,
        server=server["args"],
        workers=[[word.replace("$(INDEX)", str(i)) for word in worker] for i in range(2)],
        places=places,
        worker_key=places["/keys"] / "worker.key",
    )
    probe = server["livenessProbe"]["exec"]["command"]
    probe_key = places["/keys"] / "own" / "probe.key"
    recipe.start()
    code, said = recipe.health(probe, probe_key)
    assert code == 0, said
    assert "it advances" in said
    assert recipe.stop() == (STOPPED, [STOPPED, STOPPED])
    recipe.start()
    assert recipe.interrupt() == (0, [0, 0])
    assert "resuming the run in" in recipe.server.err
    assert (places["/runs"] / "run" / "term").read_text() == "2\n"
