"""The mount inside containers, bound in by the commands of docs/operations.md, on the engines that people use.

One machine for all of them: a mount namespace whose root is shared, as systemd makes it, where every repository is
mounted on one directory, and single ones below others: by hand, and by the automounter. Each container is started
first, and everything happens afterwards.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import kernel_caches
from tests.e2e.booted import LET_GO
from tests.e2e.host import PYTHON, ROOT, TOKEN, Host, Store, kill, run, wait_until
from tests.servers import FaultyServer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount for others")

FIRST = "first.example.org"
PROGRAMS = {
    "podman": "podman",
    "podman, rootless": "podman",
    "kubernetes": "catatonit",
    "docker": "dockerd",
    "compose": "docker-compose",
    "runc": "runc",
    "crun": "crun",
    "bubblewrap": "bwrap",
    "charliecloud": "ch-run",
}
USER = 7077
"""Runs what is rootless; known in this namespace only."""

_SHARED = f"""{LET_GO}
mount --make-rshared /
umount /sys/fs/cgroup/unified
for name in passwd subuid subgid; do mount --bind "$0/etc/$name" /etc/$name; done
echo; exec sleep 3600
"""
# crun refuses two hierarchies of control groups at once, so the second one goes, if it is there.

_CAT = 'echo ready; while read -r path; do echo "$(cat "/cvfs/$path" 2>&1)"; done'
_PODMAN = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "{runtime}"
"""
_DOCKER = {"iptables": False, "ip6tables": False, "bridge": "none", "storage-driver": "vfs"}
_DIRECTORIES = "bin cvfs dev etc proc run sys tmp home root usr var mnt"
_FILES = "etc/hosts etc/resolv.conf etc/hostname etc/passwd etc/group run/.containerenv"

Cat = Callable[[str], str]


class Machine:
    """The namespace; call it to run a command there. `static` shows all, single mounts are made in `singles`."""

    def __init__(self, top: Path, until_done: contextlib.ExitStack) -> None:
        self.top, self.host = top, Host(top, "channel")
        self.static, self.singles, self.image = (top / name for name in ("static", "singles", "image"))
        for directory in (self.static, self.singles, self.image, top / "etc/repositories.d", top / "served"):
            directory.mkdir(parents=True)
        del self.host.environment["CVFS_ROOT"]
        self.host.environment["CVFS_CONFIG"] = str(top / "etc")
        (top / "etc/config.toml").write_text("refresh_s = 3600\n")
        _make_users(top / "etc")
        _make_image(self.image)
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SHARED, top]
        self._holder = until_done.enter_context(
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        )
        until_done.callback(self._holder.kill)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"\n"
        self._server = until_done.enter_context(FaultyServer(top / "served"))
        self.stores: dict[str, Store] = {}

    def words(self, *words: str | Path) -> list[str | Path]:
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--", *words]

    def __call__(self, *words: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return run(*self.words(*words), env=self.host.environment, **options)

    def cvfs(self, *words: str | Path) -> bytes:
        return self(*PYTHON, "-m", "cvfs", *words).stdout

    def publish(self, name: str, text: str) -> None:
        """The first time, it is configured too."""
        tree = self.top / "trees" / name
        tree.mkdir(parents=True, exist_ok=True)
        (tree / "file").write_text(f"{name}: {text}")
        (tree / "same").write_text("the same")
        store = self.stores.get(name)
        if store is None:
            store = self.stores[name] = Store(self.top / "served" / name, name)
        store.publish_here(tree)
        path = self.top / f"etc/repositories.d/{name}.toml"
        path.write_text(f'url = "{self._server.url}/{name}"\nroot = "{store.keys}/root.json"\n')

    def worker(self) -> int:
        status = json.loads(self.cvfs("status", self.static, "--json"))
        return int(status["mounts"][0]["worker_pid"])

    def helper(self) -> None:
        """Put mount.cvfs where mount(8) looks for it, in this namespace."""
        self.cvfs("setup", "--prefix", self.top / "installed")
        sbin, over = os.path.realpath("/sbin"), self.top / "over"
        over.mkdir()
        layers = f"lowerdir={sbin},upperdir={over}/upper,workdir={over}/work"
        self("mount", "-t", "tmpfs", "tmpfs", over)
        self("mkdir", over / "upper", over / "work")
        self("cp", self.top / "installed/sbin/mount.cvfs", over / "upper")
        self("mount", "-t", "overlay", "overlay", "-o", layers, sbin)

    def mounts(self, kind: str) -> list[str]:
        """Where file systems of a kind are mounted."""
        text = self("cat", "/proc/self/mounts").stdout.decode()
        return re.findall(rf"^\S+ (\S+) {re.escape(kind)} ", text, re.MULTILINE)

    def unmount(self) -> None:
        for directory in (self.static, self.singles / FIRST):
            self("umount", "--lazy", directory, check=False)

    def has(self, path: Path) -> bool:
        return self("test", "-e", path, check=False).returncode == 0


def _make_users(etc: Path) -> None:
    line = f"cvfs-test:x:{USER}:{USER}::/tmp:/bin/sh\n"
    (etc / "passwd").write_text(Path("/etc/passwd").read_text() + line)
    for name in ("subuid", "subgid"):
        Path("/etc", name).touch()
        (etc / name).write_text("cvfs-test:700000:65536\n")


def _make_image(image: Path) -> None:
    """A root file system of one program. It has what engines want to bind something over."""
    for name in _DIRECTORIES.split():
        (image / name).mkdir()
    for name in _FILES.split():
        (image / name).touch()
    (image / "etc/mtab").symlink_to("/proc/mounts")
    shutil.copy("/bin/busybox", image / "bin/busybox")
    for name in ("sh", "cat"):
        (image / "bin" / name).symlink_to("busybox")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Not below pytest's directory, which only its owner may enter."""
    if not Path("/bin/busybox").exists():
        pytest.skip("needs a static busybox")
    with contextlib.ExitStack() as until_done:
        top = Path(until_done.enter_context(tempfile.TemporaryDirectory(prefix="cvfs-containers-")))
        top.chmod(0o755)
        machine = Machine(top, until_done)
        until_done.callback(machine.host.close)
        until_done.callback(machine.unmount)
        machine.publish(FIRST, "one")
        machine.cvfs("mount", "--all", machine.static)
        yield machine


@pytest.mark.parametrize("engine", PROGRAMS)
def test_engine(machine: Machine, engine: str) -> None:
    if not shutil.which(PROGRAMS[engine]):
        pytest.skip(f"{PROGRAMS[engine]} is not installed")
    with ENGINES[engine](machine) as start:
        with start(machine.static) as cat:
            assert cat(f"{FIRST}/same") == "the same"
            _configured_later(machine, f"{PROGRAMS[engine]}{len(machine.stores)}.example.org", cat)
        with _bound_onto_itself(machine, if_so=engine == "crun"), start(machine.singles) as cat:
            _mounted_later(machine, cat)


def _configured_later(machine: Machine, name: str, cat: Cat) -> None:
    machine.publish(name, "one")
    machine.cvfs("refresh", machine.static)
    wait_until(lambda: machine.has(machine.static / name), timeout_s=30)
    assert cat(f"{name}/file") == f"{name}: one"
    machine.publish(name, "two, and longer")
    machine.cvfs("refresh", machine.static / name)
    assert cat(f"{name}/file") == f"{name}: two, and longer"
    machine.cvfs("reload", machine.static)
    _forget()
    assert cat(f"{name}/file") == f"{name}: two, and longer"
    kill(machine.worker())
    _forget()
    assert cat(f"{name}/same") == "the same"
    assert cat(f"{FIRST}/file") == f"{FIRST}: one"


def _forget() -> None:
    """The kernel's caches: what is read is asked for."""
    kernel_caches.drop()


@contextlib.contextmanager
def _bound_onto_itself(machine: Machine, *, if_so: bool) -> Iterator[None]:
    """The single mounts are in a directory that is a mount of its own: docs/operations.md says what for."""
    if if_so:
        machine("mount", "--rbind", machine.singles, machine.singles)
    yield
    if if_so:
        machine("umount", "--lazy", "--recursive", machine.singles)


def _mounted_later(machine: Machine, cat: Cat) -> None:
    """It was there when the container was started, or will be: unmounted, and mounted anew."""
    directory = machine.singles / FIRST
    directory.mkdir(exist_ok=True)
    if machine.has(directory / "file"):
        assert cat(f"{FIRST}/file") == f"{FIRST}: one"
        machine.cvfs("umount", directory)
    assert "No such file" in cat(f"{FIRST}/file")
    machine.cvfs("mount", FIRST, directory)
    assert cat(f"{FIRST}/file") == f"{FIRST}: one"


@pytest.fixture(scope="module")
def automounted(machine: Machine) -> Iterator[Path]:
    """A directory below which the automounter mounts what is looked at, and unmounts what nobody uses for a second."""
    if not shutil.which("automount"):
        pytest.skip("automount is not installed")
    machine.helper()
    top = machine.top / "automounted"
    top.mkdir()
    (machine.top / "auto.map").write_text("* -fstype=cvfs :&\n")
    (machine.top / "auto.master").write_text(f"{top} {machine.top}/auto.map --timeout=1\n")
    words = ("automount", "-f", "--dont-check-daemon", "-p", machine.top / "pid", machine.top / "auto.master")
    with (
        open(machine.top / "automount.log", "wb") as log,
        subprocess.Popen(
            machine.words(*words), env=machine.host.environment, stdout=log, stderr=log, start_new_session=True
        ) as daemon,
    ):
        try:
            wait_until(lambda: str(top) in machine.mounts("autofs"))
            yield top
        finally:
            daemon.terminate()
            daemon.wait(30)
            for point in (*machine.mounts("fuse.cvfs"), *machine.mounts("autofs")):  # what it found to be in use
                if Path(point).is_relative_to(top):
                    machine("umount", "--lazy", point)


@pytest.mark.parametrize("engine", PROGRAMS)
def test_automounter(machine: Machine, automounted: Path, engine: str) -> None:
    """What is mounted because somebody looks at it inside, and what was unmounted while nobody did."""
    if not shutil.which(PROGRAMS[engine]):
        pytest.skip(f"{PROGRAMS[engine]} is not installed")
    with ENGINES[engine](machine) as start, start(automounted) as cat:
        for _ in range(2):
            wait_until(lambda: str(automounted / FIRST) not in machine.mounts("fuse.cvfs"), 30)
            said = (machine.top / "automount.log").stat().st_size
            assert cat(f"{FIRST}/file") == f"{FIRST}: one", (machine.top / "automount.log").read_bytes()[said:]


def test_private_bind_mount(machine: Machine, automounted: Path) -> None:
    """Where nothing that is mounted later gets in, the static mount works, and the automounter's directory cannot."""
    name = "private.example.org"
    machine.publish(name, "one")
    machine.cvfs("refresh", machine.static)
    wait_until(lambda: machine.has(machine.static / name), timeout_s=30)
    with _private(machine, machine.static) as cat:
        assert cat(f"{name}/file") == f"{name}: one"
    with _private(machine, automounted) as cat:
        assert "Too many levels of symbolic links" in cat(f"{name}/file")
    assert machine("cat", automounted / name / "file").stdout.decode() == f"{name}: one"


@contextlib.contextmanager
def _private(machine: Machine, source: Path) -> Iterator[Cat]:
    """Bound by whoever does not know of propagation."""
    inside = machine.top / "inside"
    inside.mkdir(exist_ok=True)
    script = f"mount --rbind {source} {inside} && {_CAT.replace('/cvfs', str(inside))}"
    with _inside(machine, ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]) as cat:
        yield cat


# The engines: each a context that is left with nothing of it running, and starts containers.

Start = Callable[[Path], contextlib.AbstractContextManager[Cat]]


def documented(program: str, source: Path, image: str | Path) -> list[str | Path]:
    """The command of docs/operations.md that binds all in, with `source` for /cvfs of the host."""
    found = re.search(rf"^ {{4}}{program} .*", _document(), re.MULTILINE)
    assert found is not None, f"no command for {program}"
    words: list[str | Path] = []
    for word in shlex.split(found[0], comments=True):
        if word == "COMMAND":
            words += ["sh", "-c", _CAT]
        elif word == "IMAGE":
            words.append(image)
        elif word == "/cvfs" and words[-1] != source:  # the first of two: the host's
            words.append(source)
        else:
            words.append(re.sub("^/cvfs:", f"{source}:", word))
    return words


def _document() -> str:
    return (ROOT / "docs/operations.md").read_text().partition("\n## Containers\n")[2].partition("\n## ")[0]


@contextlib.contextmanager
def _inside(machine: Machine, words: list[str | Path], **environment: str | Path) -> Iterator[Cat]:
    """What reads a file in the container that `words` start; it ends with its input."""
    variables = machine.host.environment | {name: str(value) for name, value in environment.items()}
    errors = machine.top / "errors"
    with (
        open(errors, "wb") as log,
        subprocess.Popen(
            machine.words(*words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=variables,
            text=True,
            bufsize=1,
        ) as container,
    ):

        def cat(path: str) -> str:
            assert container.stdin is not None
            assert container.stdout is not None
            print(path, file=container.stdin)
            return container.stdout.readline().strip()

        assert container.stdout is not None
        assert container.stdout.readline() == "ready\n", errors.read_text()
        yield cat
        assert container.stdin is not None
        container.stdin.close()
        container.wait(30)


@contextlib.contextmanager
def podman(machine: Machine, user: int = 0) -> Iterator[Start]:
    with tempfile.TemporaryDirectory(prefix="cvfs-podman-") as name:
        environment = _podman_environment(Path(name), user)
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        if user:
            run("chown", "-R", str(user), machine.image)

        def start(source: Path) -> contextlib.AbstractContextManager[Cat]:
            program, verb, *words = documented("podman", source, machine.image)
            words[-4:-4] = ["--rm", "--interactive", "--network", "none", "--rootfs"]
            return _inside(machine, [*as_user, program, verb, *words], **environment)

        try:
            yield start
        finally:  # what holds the namespace of a rootless one
            variables = machine.host.environment | {key: str(value) for key, value in environment.items()}
            run(*machine.words(*as_user, "podman", "system", "migrate"), env=variables)


@contextlib.contextmanager
def kubernetes(machine: Machine) -> Iterator[Start]:
    """The documented pod, as podman runs it: there is no kubelet here."""
    block = re.search(r"^```yaml\n(spec:\n.*?)^```$", _document(), re.MULTILINE | re.DOTALL)
    assert block is not None
    with tempfile.TemporaryDirectory(prefix="cvfs-podman-") as name:
        environment = _podman_environment(Path(name), 0)
        variables = machine.host.environment | {key: str(value) for key, value in environment.items()}
        archive = run("tar", "-c", "-C", machine.image, ".").stdout
        words = machine.words("podman", "import", "--change", "ENV PATH=/bin", "-", "localhost/busybox:latest")
        run(*words, env=variables, input=archive)
        image = "image: localhost/busybox:latest\n      command: [cat]\n      tty: true\n"
        spec = block[1].replace("image: IMAGE\n", image)

        @contextlib.contextmanager
        def start(source: Path) -> Iterator[Cat]:
            pod = Path(name, "pod.yaml")
            head = "apiVersion: v1\nkind: Pod\nmetadata: { name: pod }\n"
            pod.write_text(head + spec.replace("path: /cvfs,", f"path: {source},"))
            run(*machine.words("podman", "play", "kube", "--network", "none", pod), env=variables)
            try:
                with _inside(machine, ["podman", "exec", "-i", "pod-job", "sh", "-c", _CAT], **environment) as cat:
                    yield cat
            finally:
                run(*machine.words("podman", "pod", "rm", "--force", "--time", "0", "pod"), env=variables)

        yield start


def _podman_environment(top: Path, user: int) -> dict[str, str | Path]:
    for directory in ("root", "run", "home"):
        (top / directory).mkdir(mode=0o700)
    runtime = "runc" if shutil.which("runc") else "crun"
    (top / "containers.conf").write_text(_PODMAN.format(runtime=runtime))
    (top / "storage.conf").write_text(f'[storage]\ndriver="vfs"\ngraphroot="{top}/root"\nrunroot="{top}/run"\n')
    run("chown", "-R", f"{user}:{user}", top)
    return {
        "CONTAINERS_CONF": top / "containers.conf",
        "CONTAINERS_STORAGE_CONF": top / "storage.conf",
        "HOME": top / "home",
        "XDG_CONFIG_HOME": top / "home",
        "XDG_RUNTIME_DIR": top / "run",
    }


@contextlib.contextmanager
def docker(machine: Machine) -> Iterator[Start]:
    with _docker_daemon(machine) as address:

        def start(source: Path) -> contextlib.AbstractContextManager[Cat]:
            program, verb, *words = documented("docker", source, "busybox")
            words = ["--rm", "--interactive", "--network", "none", *map(str, words)]
            return _inside(machine, [program, verb, *words], DOCKER_HOST=address)

        yield start


@contextlib.contextmanager
def compose(machine: Machine) -> Iterator[Start]:
    """The documented file, but that its service has no network."""
    block = re.search(r"^```yaml\n(services:\n.*?)^```$", _document(), re.MULTILINE | re.DOTALL)
    assert block is not None
    version = run("docker-compose", "version", check=False)
    if version.returncode:
        pytest.skip(f"docker-compose does not run here: {version.stderr[-300:].decode()}")
    with _docker_daemon(machine) as address, tempfile.TemporaryDirectory(prefix="cvfs-compose-") as name:
        file = Path(name, "compose.yaml")

        def start(source: Path) -> contextlib.AbstractContextManager[Cat]:
            text = block[1].replace("source: /cvfs\n", f"source: {source}\n")
            file.write_text(text.replace("image: IMAGE\n", "image: busybox\n    network_mode: none\n"))
            words = ["docker-compose", "--file", file, "run", "--rm", "-T", "job", "sh", "-c", _CAT]
            return _inside(machine, words, DOCKER_HOST=address)

        yield start


@contextlib.contextmanager
def _docker_daemon(machine: Machine) -> Iterator[str]:
    """The address of one that has the image "busybox"."""
    with tempfile.TemporaryDirectory(prefix="cvfs-docker-") as name:
        top, address = Path(name), f"unix://{name}/socket"
        words = {"data-root": f"{top}/data", "exec-root": f"{top}/exec", "pidfile": f"{top}/pid", "hosts": [address]}
        (top / "daemon.json").write_text(json.dumps(_DOCKER | words))
        command = machine.words("dockerd", "--config-file", top / "daemon.json")
        with open(top / "log", "wb") as log:
            daemon = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {TOKEN: str(machine.top)})
        try:
            _up(daemon, top)
            archive = run("tar", "-c", "-C", machine.image, ".").stdout
            run("docker", "-H", address, "import", "-", "busybox", input=archive)
            yield address
        finally:
            daemon.terminate()
            daemon.wait(30)


def _up(daemon: "subprocess.Popen[bytes]", top: Path) -> None:
    wait_until(lambda: (top / "socket").exists() or daemon.poll() is not None, timeout_s=20)
    if daemon.poll() is not None:
        pytest.skip(f"dockerd does not run here: {(top / 'log').read_text()[-300:]}")


@contextlib.contextmanager
def bundle(machine: Machine, program: str) -> Iterator[Start]:
    """runc and crun: the mount is the documented one, the rest what `spec` makes."""
    mount = re.search(r'^\{ *"destination".*\}$', _document(), re.MULTILINE)
    assert mount is not None

    def start(source: Path) -> contextlib.AbstractContextManager[Cat]:
        top = Path(tempfile.mkdtemp(dir=machine.top))
        run(program, "spec", cwd=top)
        config = json.loads((top / "config.json").read_text())
        config["process"] |= {"terminal": False, "args": ["sh", "-c", _CAT], "rlimits": []}
        config["root"] = {"path": str(machine.image), "readonly": True}
        config["linux"]["rootfsPropagation"] = "rslave"
        config["mounts"] = [each for each in config["mounts"] if each["type"] != "cgroup"]
        config["mounts"].append(json.loads(mount[0]) | {"source": str(source)})
        (top / "config.json").write_text(json.dumps(config))
        words = [program, "--root", top / "state", "run", "--bundle", top, f"cvfs-{os.getpid()}-{top.name}"]
        return _inside(machine, words)

    yield start


@contextlib.contextmanager
def plain(machine: Machine, program: str) -> Iterator[Start]:
    """One that needs nothing but its command."""
    yield lambda source: _inside(machine, documented(program, source, machine.image), USER="root")


ENGINES: dict[str, Callable[[Machine], contextlib.AbstractContextManager[Start]]] = {
    "podman": podman,
    "podman, rootless": lambda machine: podman(machine, USER),
    "kubernetes": kubernetes,
    "docker": docker,
    "compose": compose,
    "runc": lambda machine: bundle(machine, "runc"),
    "crun": lambda machine: bundle(machine, "crun"),
    "bubblewrap": lambda machine: plain(machine, "bwrap"),
    "charliecloud": lambda machine: plain(machine, "ch-run"),
}
