"""Each image stands alone, and docker-compose.yml makes a suite of them; shown without an engine.

What a Dockerfile copies is laid out in an empty folder, its lock is installed in a virtual
environment of its own, and the commands of the compose file run there, on loopback.
"""

import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config import GatewayConfig
from services.classifier.config import ClassifierConfig
from services.generator.config import GeneratorConfig
from services.registry.config import RegistryConfig
from services.registry.worker.config import WorkerConfig
from services.runtime.config import ServerConfig
from tests.postgres import Postgres, postgres
from tests.redis import Redis, redis

REPOSITORY = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CONFIGS: dict[str, type[ServerConfig]] = {
    "registry": RegistryConfig,
    "classifier": ClassifierConfig,
    "generator": GeneratorConfig,
    "gateway": GatewayConfig,
    "worker": WorkerConfig,
}
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
JOBS = OURS.keys() - CONFIGS.keys()
# What each has and no other may: its own package, and the heavy part of its extra.
OWN = {
    "registry": {"services.registry", "sqlalchemy"},
    "classifier": {"services.classifier", "onnxruntime", "tokenizers", "redis"},
    "generator": {"services.generator", "openvino_genai", "tokenizers"},
    "gateway": {"gateway", "fastapi", "redis"},
    "worker": {
        *("services.registry", "sqlalchemy", "onnxruntime", "tokenizers", "openvino_genai", "onnx"),
    },
    "setup": {"gristmill_client", "onnx"},
}
EXTRAS = {**{name: name for name in CONFIGS}, "setup": "models"}
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.pyi", "Dockerfile")
TOKEN = "a-token-that-only-this-test-knows"
START_S = 60.0


@dataclass(frozen=True)
class Image:
    """What a Dockerfile says."""

    name: str
    file: Path

    @cached_property
    def stages(self) -> list[list[tuple[str, str]]]:
        """The instructions of each stage; a first one holds what stands before any FROM."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        found: list[list[tuple[str, str]]] = [[]]
        for line in filter(None, re.sub(r"\\\n\s*", " ", text).splitlines()):
            word, _, rest = line.partition(" ")
            if word == "FROM":
                found.append([])
            found[-1].append((word, rest.strip()))
        return found

    def all(self, word: str, stage: int = -1) -> list[str]:
        """The arguments of every such instruction of a stage, by default of the last."""
        return [rest for one, rest in self.stages[stage] if one == word]

    def one(self, word: str) -> str:
        """The argument of an instruction that the last stage has once."""
        (rest,) = self.all(word)
        return rest

    def copies(self, stage: int = -1) -> list[tuple[list[str], str]]:
        """Paths of the repository and where they go, relative to the working folder."""
        words = [rest.split() for rest in self.all("COPY", stage) if "--from" not in rest]
        return [(sources, target) for *sources, target in words]

    @property
    def lock(self) -> Path:
        """The requirements that are installed."""
        ((source,), _) = self.copies(1)[0]
        return REPOSITORY / source

    @property
    def environment(self) -> dict[str, str]:
        """What ENV sets."""
        words = [word for rest in self.all("ENV") for word in shlex.split(rest)]
        return {name: value for name, _, value in (word.partition("=") for word in words)}

    @property
    def ports(self) -> list[int]:
        """What EXPOSE names: the port, then the admin port."""
        return [int(port) for port in self.one("EXPOSE").split()] if self.all("EXPOSE") else []

    @property
    def entrypoint(self) -> list[str]:
        """The command, in its exec form."""
        words: list[str] = json.loads(self.one("ENTRYPOINT"))
        return words

    @property
    def health(self) -> list[str]:
        """The command of HEALTHCHECK."""
        words: list[str] = json.loads(self.one("HEALTHCHECK").partition(" CMD ")[2])
        return words

    def lay_out(self, folder: Path, stage: int = -1) -> None:
        """Copy what COPY copies."""
        for sources, target in self.copies(stage):
            for source in sources:
                path, to = REPOSITORY / source, folder / target
                if path.is_dir():
                    shutil.copytree(path, to, ignore=IGNORED, dirs_exist_ok=True)
                else:
                    to = to / path.name if target.endswith("/") else to
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, to)

    def venv(self) -> Path:
        """A virtual environment with the lock and nothing else; kept while the lock stays."""
        key = hashlib.sha256(self.lock.read_bytes() + sys.version.encode()).hexdigest()[:16]
        folder = REPOSITORY / ".cache" / "venvs" / f"{self.name}-{key}"
        if folder.exists():
            return folder
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        uv = Path(sys.executable).with_name("uv")
        run(uv, "venv", "--quiet", "--python", sys.executable, partial)
        exact = ("--require-hashes", "--only-binary", ":all:", "--compile-bytecode")
        python = partial / "bin" / "python"
        run(uv, "pip", "install", "--quiet", "--python", python, *exact, "-r", self.lock)
        for old in folder.parent.glob(f"{self.name}-????????????????"):
            shutil.rmtree(old, ignore_errors=True)
        partial.rename(folder)
        return folder


IMAGES = {
    name: Image(name, REPOSITORY / path)
    for name, path in {
        "registry": "services/registry/Dockerfile",
        "classifier": "services/classifier/Dockerfile",
        "generator": "services/generator/Dockerfile",
        "gateway": "gateway/Dockerfile",
        "worker": "services/registry/worker/Dockerfile",
        "setup": "deploy/setup/Dockerfile",
    }.items()
}


def run(*command: str | Path, **more: Any) -> None:
    """A command that must succeed."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, **more)
    assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"


each_image = pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
each_server = pytest.mark.parametrize("image", [IMAGES[name] for name in CONFIGS], ids=CONFIGS)
each_service = pytest.mark.parametrize("name", SERVICES)


# What a Dockerfile must say.


@each_image
def test_image_is_built_on_one_exact_base_from_hashed_wheels(image: Image) -> None:
    ((word, base),) = image.stages[0]
    assert word == "ARG"
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-[a-z]+", base)
    assert len(image.stages) == 3
    assert [stage[0] for stage in image.stages[1:]] == [
        ("FROM", "${BASE} AS build"),
        ("FROM", "${BASE}"),
    ]
    (install,) = [rest for rest in image.all("RUN", 1) if " install " in rest]
    assert "--require-hashes" in install
    assert "--only-binary=:all:" in install
    assert base == IMAGES["registry"].all("ARG", 0)[0], "all images share one base"


@each_image
def test_image_runs_as_nobody_in_particular(image: Image) -> None:
    words = [word for word, _ in image.stages[-1]]
    assert image.one("USER") == "10001:10001"
    assert "RUN" not in words[words.index("USER") :]
    assert "ADD" not in words
    assert image.one("STOPSIGNAL") == "SIGTERM"
    assert image.environment["PYTHONUNBUFFERED"] == "1"
    assert not [name for name in image.environment if re.search("TOKEN|SECRET|PASSWORD", name)]


@each_server
def test_server_image_has_its_ports_its_probe_and_its_volume(image: Image) -> None:
    fields = CONFIGS[image.name].model_fields
    assert image.ports == [fields["port"].default, fields["admin_port"].default]
    assert image.entrypoint[:2] == ["python", "-m"]
    assert image.health[:3] == ["python", "-m", "services.runtime.probe"]
    assert f"127.0.0.1:{image.ports[0]}" in image.health[3]
    for name, value in image.environment.items():
        if name.startswith("GRISTMILL_"):
            assert name.removeprefix(f"GRISTMILL_{image.name.upper()}_").lower() in fields
        if name.endswith("_DIR"):
            assert value.startswith(image.one("VOLUME") + "/")
            made = "install --directory --owner=10001 --group=10001 --mode=0700 "
            assert made + image.one("VOLUME") in " ".join(image.all("RUN"))


@each_image
def test_image_copies_named_paths_that_the_builder_is_sent(image: Image) -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    sent = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    for sources, _ in (*image.copies(), *image.copies(1)):
        for source in sources:
            assert (REPOSITORY / source).exists()
            assert any(fnmatch(source, one) or f"{source}/".startswith(f"{one}/") for one in sent)
    assert not {".env", ".git", "data", "tests", ".venv", "."} & set(sent)


@each_image
def test_lock_is_that_of_the_extra_at_the_versions_under_test(image: Image) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]

    def direct(requirements: list[str]) -> Iterator[str]:
        for one in requirements:
            found = re.match(r"([\w.-]+)(?:\[([\w.,-]+)\])?", one)
            assert found
            if found[1] != "gristmill-services":
                yield found[1].lower()
            else:
                for extra in found[2].split(","):
                    yield from direct(project["optional-dependencies"][extra])

    wanted = {
        *direct(project["dependencies"]),
        *direct([f"gristmill-services[{EXTRAS[image.name]}]"]),
    }
    locked, tested = pinned(image.lock), pinned(REPOSITORY / "requirements" / "dev.txt")
    assert wanted - {"gristmill-protos", "gristmill-client"} <= {name for name, _ in locked}
    assert locked <= tested, "run `make lock`"


def pinned(lock: Path) -> set[tuple[str, str]]:
    """Name and version of everything in a lock."""
    return set(re.findall(r"^([\w.-]+)==([\w.+!-]+)", lock.read_text(), re.MULTILINE))


# What the compose file must say.


def test_compose_takes_the_token_from_outside_and_holds_no_secret() -> None:
    text = (REPOSITORY / "docker-compose.yml").read_text()
    code = re.sub(r"(?m)^\s*#.*$", "", text)
    assert re.findall(r"\$\{GRISTMILL_TOKEN[^}]*\}", code)
    assert all(
        one.startswith("${GRISTMILL_TOKEN:?") for one in re.findall(r"\$\{\w*TOKEN[^}]*", code)
    )
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if re.search("TOKEN|SECRET|PASSWORD|KEY", key):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value)
        for word in service.get("command", ()):
            assert "token" not in word or re.search(r"(^|=)/etc/gristmill/|tokens\.py$", word)


def test_compose_publishes_only_the_gateway_and_the_grpc_ports() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert sorted(published) == sorted(
        f"${{GRISTMILL_BIND:-127.0.0.1}}:{IMAGES[name].ports[0]}:{IMAGES[name].ports[0]}"
        for name in CONFIGS
        if name != "worker"  # it calls, and nobody calls it
    )
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for network, members in (
        ("database", {"registry", "postgres"}),
        ("answers", {"classifier", "redis"}),
    ):
        assert COMPOSE["networks"][network] == {"internal": True}
        found = {name for name, one in SERVICES.items() if network in one.get("networks", ())}
        assert found == members, "a server there asks for no password"
    for name in ("postgres", "redis"):
        assert len(SERVICES[name]["networks"]) == 1
    for service in SERVICES.values():
        if service.get("network_mode") != "none":
            assert ("outside" in service["networks"]) == ("ports" in service)
    more = yaml.safe_load((REPOSITORY / "deploy" / "compose.grafana.yml").read_text())["services"]
    assert [service["ports"] for service in more.values()] == [["127.0.0.1:3000:3000"]]


@each_service
def test_composed_container_can_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
    assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & service.keys()
    assert service.get("network_mode", "none") == "none"
    assert name in OURS or re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert "user" not in service or name not in OURS
    for volume in service.get("volumes", ()):
        source, _, rest = volume.partition(":")
        assert source in COMPOSE["volumes"] or rest.endswith(":ro")
        assert "docker.sock" not in volume
    if name not in OURS:
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+(\.\d+)?", service["image"])


def test_composed_containers_start_in_order_of_need() -> None:
    started, healthy, done = (
        {"condition": "service_started"},
        {"condition": "service_healthy"},
        {"condition": "service_completed_successfully"},
    )
    followed = {"registry": healthy, "classifier": healthy, "generator": healthy}
    assert {name: service.get("depends_on", {}) for name, service in SERVICES.items()} == {
        "tokens": {},
        "postgres": {},
        "redis": {},
        "registry": {"tokens": done, "postgres": healthy},
        "worker": {"registry": healthy},
        "classifier": {"registry": healthy, "redis": started},
        "generator": {"registry": healthy},
        "models": {**followed, "worker": healthy},
        "gateway": {**followed, "models": done},
        "prometheus": {},
        "grafana": {"prometheus": healthy},
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_composed_server_has_time_to_drain(name: str) -> None:
    grace = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert grace >= CONFIGS[name].model_fields["drain_grace_s"].default + 10
    assert SERVICES[name]["init"] is True
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_prometheus_scrapes_every_server() -> None:
    file = REPOSITORY / "deploy" / "prometheus" / "prometheus.yml"
    scraped = yaml.safe_load(file.read_text())["scrape_configs"]
    assert {one["job_name"]: one["static_configs"][0]["targets"] for one in scraped} == {
        name: [f"{name}:{IMAGES[name].ports[1]}"] for name in CONFIGS
    }
    assert all("--admin-host=0.0.0.0" in SERVICES[name]["command"] for name in CONFIGS)


# What they do.


@dataclass
class Container:
    """A place where an image's commands run as they would in a container of it."""

    image: Image
    root: Path
    paths: dict[str, str]
    """What stands for what: folders of the container, addresses of the network."""
    tree: Path = field(init=False)
    before: dict[Path, int] = field(init=False)

    def __post_init__(self) -> None:
        self.tree = self.root / "app"
        self.image.lay_out(self.tree)
        self.before = self.files()
        (self.root / "tmp").mkdir()
        folders = {
            "/app": self.tree,
            "/opt/venv": self.image.venv(),
            "/tmp": self.root / "tmp",
            # Where no volume is mounted there, nobody can write there, so it is not there.
            "/var/lib/gristmill": self.root / "none",
        }
        self.paths = {**{inside: str(host) for inside, host in folders.items()}, **self.paths}

    def files(self) -> dict[Path, int]:
        """Everything in the working folder, and when it changed."""
        return {file: file.stat().st_mtime_ns for file in self.tree.rglob("*")}

    def here(self, text: str) -> str:
        """The text with what stands on this machine for what is in the container."""
        known = sorted(self.paths, key=len, reverse=True)
        here = re.sub("|".join(map(re.escape, known)), lambda found: self.paths[found[0]], text)
        assert not re.search(r"(^|=)/(etc|opt|var/lib)/gristmill", here), f"{here} is no volume"
        return here

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        """What a process of the container finds: nothing of this test's own."""
        given = {**self.image.environment, **more}
        found = {name: self.here(value) for name, value in given.items()}
        found["PATH"] = found["PATH"].replace("$PATH", "/usr/bin:/bin")
        home = self.here("/var/lib/gristmill")
        # A read-only file system takes no bytecode.
        return {**found, "HOME": home, "TMPDIR": self.here("/tmp"), "PYTHONDONTWRITEBYTECODE": "1"}

    def command(self, *words: str) -> list[str]:
        """The words as they are on this machine."""
        program, *rest = [self.here(word) for word in words]
        return [str(self.image.venv() / "bin" / program), *rest]

    def execute(
        self, *words: str, timeout_s: float = 60.0, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*words),
            cwd=self.tree,
            env=self.environment(more),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


IMPORT_ALL = """
import importlib, importlib.util, json, pathlib, sys
names = []
for file in sorted(pathlib.Path(".").rglob("*.py")):
    parts = file.with_suffix("").parts
    if parts[-1] == "__main__" or "migrations" in parts or parts[0] == "setup":
        continue
    if parts == ("services", "work", "transformer") or parts[-1].startswith("pytorch"):
        continue  # needs torch, which a worker and a classifier may do without
    if parts[-1] == "native" and importlib.util.find_spec("pygrpc_native") is None:
        continue  # of the transports, which is chosen only where it is installed
    if parts[-1] == "redis" and importlib.util.find_spec("redis") is None:
        continue  # of the cache, which a worker does not have
    if parts[-1] == "vllm_worker":
        continue  # a script for the Python that vLLM is installed for
    names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
for name in names:
    importlib.import_module(name)
def there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
print(json.dumps({"imported": names, "there": [n for n in sys.argv[1:] if there(n)]}))
"""


@pytest.mark.timeout(300)
@each_image
def test_image_imports_all_that_it_copies_and_nothing_of_another(
    image: Image, tmp_path: Path
) -> None:
    container = Container(image, tmp_path, {})
    every = sorted(set().union(*OWN.values()) | {"models", "tests", "pytest", "torch"})
    ran = container.execute("python", "-c", IMPORT_ALL, *every)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert set(said["there"]) == OWN[image.name]
    assert "services.runtime.probe" in said["imported"]
    assert container.files() == container.before


@dataclass
class Composed:
    """docker-compose.yml, as far as it is ours, with processes for containers."""

    root: Path
    ports: dict[str, int] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    postgres: Postgres | None = None
    redis: Redis | None = None

    def __post_init__(self) -> None:
        self.paths["0.0.0.0"] = "127.0.0.1"
        for address, server in (("postgres:5432", self.postgres), ("redis:6379", self.redis)):
            if server is not None:
                self.paths[address] = f"127.0.0.1:{server.port}"
        for name in CONFIGS:
            port = self.ports[name] = free_port()
            for host in (name, "127.0.0.1"):
                self.paths[f"{host}:{IMAGES[name].ports[0]}"] = f"127.0.0.1:{port}"

    def up(self, name: str) -> None:
        """Start what a service needs, in the order and on the conditions of the file; then it."""
        service = SERVICES[name]
        if name in self.containers or name not in OURS:
            return
        for needed, how in service.get("depends_on", {}).items():
            self.up(needed)
            if how["condition"] == "service_healthy" and needed in OURS:
                self.await_healthy(needed)
        image = IMAGES[Path(service["build"]["dockerfile"]).parent.name]
        container = Container(image, self.root / name, {**self.paths, **self._volumes(service)})
        self.containers[name] = container
        self._run(name, service) if name in JOBS else self._serve(name, service)

    def _volumes(self, service: dict[str, Any]) -> dict[str, str]:
        found = {}
        for volume in service.get("volumes", ()):
            name, inside, *_ = volume.split(":")
            folder = self.root / "volumes" / name
            folder.mkdir(parents=True, exist_ok=True)
            found[inside] = str(folder)
        return found

    def _run(self, name: str, service: dict[str, Any]) -> None:
        given = {**service["environment"], "GRISTMILL_TOKEN": TOKEN}
        ran = self.containers[name].execute("python", *service["command"], timeout_s=120, **given)
        assert ran.returncode == 0, f"{name}: {ran.stdout}{ran.stderr}"

    def _serve(self, name: str, service: dict[str, Any]) -> None:
        container = self.containers[name]
        # Beyond loopback, where containers listen, `auto` takes grpcio.
        where = (f"--port={self.ports[name]}", "--admin-port=0", "--transport=grpcio")
        with (self.root / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                container.command(*container.image.entrypoint, *service["command"], *where),
                cwd=container.tree,
                env=container.environment({}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def await_healthy(self, name: str) -> None:
        """Ask as HEALTHCHECK does until it says yes."""
        container, deadline = self.containers[name], time.monotonic() + START_S
        while True:
            ran = container.execute(*container.image.health)
            if ran.returncode == 0:
                return
            log = (self.root / f"{name}.log").read_text()
            assert self.running[name].poll() is None, f"{name} ended:\n{log}"
            assert time.monotonic() < deadline, f"{name}: {ran.stdout}{ran.stderr}\n{log}"
            time.sleep(0.2)

    def restart(self, name: str) -> None:
        """End a server and start it again."""
        process = self.running[name]
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_S) == 0
        self._serve(name, SERVICES[name])
        self.await_healthy(name)

    def stop(self) -> dict[str, int]:
        """SIGTERM from the edge inwards; the exit statuses."""
        statuses = {}
        for name, process in reversed(self.running.items()):
            process.send_signal(signal.SIGTERM)
            grace = SERVICES[name]["stop_grace_period"]
            statuses[name] = process.wait(int(grace.removesuffix("s")))
        return statuses

    def kill(self) -> None:
        """Leave nothing behind."""
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Composed]:
    command = tuple(SERVICES["redis"]["command"])
    with postgres("fsync=off") as database, redis(command=command) as answers:
        database.run("CREATE ROLE gristmill LOGIN")
        database.run("CREATE DATABASE gristmill OWNER gristmill")
        suite = Composed(tmp_path, postgres=database, redis=answers)
        try:
            yield suite
        finally:
            suite.kill()


@pytest.mark.timeout(300)
def test_composed_suite_starts_answers_and_drains(composed: Composed, tmp_path: Path) -> None:
    composed.paths["/opt/gristmill/models"] = str(smallest_model(tmp_path / "models"))
    composed.up("gateway")
    composed.await_healthy("gateway")
    status, answer = classify(composed.ports["gateway"], TOKEN)
    assert status == 200, answer
    assert "versicolor" in json.dumps(answer)
    for refused in ("", "another-token-of-some-length"):
        status, answer = classify(composed.ports["gateway"], refused)
        assert status == 401, answer
    answers_are_shared(composed)
    assert composed.stop() == dict.fromkeys(CONFIGS, 0)
    for name, container in composed.containers.items():
        assert container.files() == container.before, f"{name} wrote into its image"
    for name in CONFIGS:
        container = composed.containers[name]
        assert container.execute(*container.image.health).returncode == 1, "nobody is there"
        assert TOKEN not in (composed.root / f"{name}.log").read_text()


def answers_are_shared(composed: Composed) -> None:
    """What the classifier answered is in Redis, and a process that begins anew has it."""
    assert composed.redis is not None
    deadline = time.monotonic() + START_S
    while not composed.redis.keys():
        assert time.monotonic() < deadline, "the answer was not written to Redis"
        time.sleep(0.05)
    composed.restart("classifier")
    while (answered := classify(composed.ports["gateway"], TOKEN))[0] != 200:
        assert time.monotonic() < deadline, answered  # the gateway has yet to connect anew
        time.sleep(0.2)
    (result,) = answered[1]["results"]
    assert result["classification"]["cached"] is True


def test_composed_redis_is_a_cache_and_nothing_else(tmp_path: Path) -> None:
    service = SERVICES["redis"]
    assert "volumes" not in service
    with redis(command=tuple(service["command"])) as server, server.client() as client:
        has = {name: client.config_get(name)[name] for name in ("save", "appendonly")}
        assert has == {"save": "", "appendonly": "no"}
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "allkeys-lru"
        most = int(client.config_get("maxmemory")["maxmemory"])
        assert 0 < 1.25 * most <= bytes_in(service["deploy"]["resources"]["limits"]["memory"])
        asked, program, *words = service["healthcheck"]["test"]
        assert asked == "CMD"
        run(program, "-p", str(server.port), *words)


def bytes_in(text: str) -> int:
    """What a limit of the compose file means."""
    return int(text[:-1]) * {"m": 2**20, "g": 2**30}[text[-1]]


def smallest_model(folder: Path) -> Path:
    """The one model that is built from nothing but the repository, as the image's build does."""
    image = IMAGES["setup"]
    image.lay_out(folder / "build", 1)
    (build,) = [rest for rest in image.all("RUN", 1) if "models build" in rest]
    python, *words = shlex.split(build.replace("/opt/gristmill", str(folder / "cache")))
    assert python == "/opt/venv/bin/python"
    run(image.venv() / "bin" / "python", *words, "iris", cwd=folder / "build")
    return folder / "cache" / "models"


def classify(port: int, token: str) -> tuple[int, Any]:
    """A request to the gateway, for an iris that is a versicolor."""
    item = {"float_features": {"values": [6.0, 2.7, 4.2, 1.3]}}
    body = json.dumps({"model": {"model": "iris"}, "items": [item]})
    headers = {"content-type": "application/json"}
    headers |= {"authorization": f"Bearer {token}"} if token else {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/classifier/v1/classify", body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.timeout(300)
def test_token_files_are_hashed_private_and_kept(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    names = ("tokens", "gateway", "follower", "worker")
    volumes = {f"/etc/gristmill/{name}": str(tmp_path / "etc" / name) for name in names}
    container = Container(IMAGES["setup"], tmp_path, volumes)
    for folder in volumes.values():
        Path(folder).mkdir()

    def write(token: str) -> int:
        command = SERVICES["tokens"]["command"]
        return container.execute("python", *command, GRISTMILL_TOKEN=token).returncode

    def written() -> dict[str, str]:
        files = [file for file in (tmp_path / "etc").rglob("*") if file.is_file()]
        assert {file.stat().st_mode & 0o777 for file in files} <= {0o600}
        return {file.parent.name: file.read_text() for file in files}

    for short in ("", "fifteen-letters", "a token with a line\nbreak in it"):
        assert write(short) == 1
    assert not written()
    assert write(TOKEN) == 0
    before = written()
    assert TOKEN not in "".join(before.values())
    entries = yaml.safe_load(before["tokens"])["tokens"]
    assert {entry["identity"]: set(entry["scopes"]) for entry in entries} == {
        "operator": {"infer", "read", "admin"},
        "gateway": {"infer", "read", "admin", "delegate"},
        "follower": {"read"},
        "worker": {"read", "admin"},
    }
    assert write(TOKEN + "-changed") == 0
    after = written()
    assert [name for name in names if before[name] != after[name]] == ["tokens"]
