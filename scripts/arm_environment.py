"""Makes an emulated 64-bit ARM board of this machine, and runs commands on it: Debian, Python, and what a bundle needs.

    python scripts/arm_environment.py                     # make it, once: about a minute
    python scripts/arm_environment.py run python3 …       # each time on a fresh copy of it
    python scripts/arm_environment.py remove

The board is a folder in tvmbridge's cache; apache-tvm lies over it as a layer of its own (`run --tvm`). Whatever is
mounted, and the registration of the emulator, belongs to a mount namespace and ends with the command that runs there.
Exit code 3: code of another machine cannot be run here, or no board was made, and why was said.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from tvmbridge.cache import cache_folder

NOT_POSSIBLE = 3

_REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements-runtime.txt"
_MIRROR, _SUITE, _PYTHON = "http://deb.debian.org/debian", "bookworm", "3.11"
_PACKAGES = ("python3", "libstdc++6", "openssh-server")  # the last: for who reaches it as boards are reached
_SITE = f"usr/local/lib/python{_PYTHON}/dist-packages"
# Beside apache-tvm: what its RPC and the command `tvmbridge` import where a device is served.
_SERVING = (
    "click",
    "cloudpickle",
    "filelock",
    "jinja2",
    "packaging",
    "psutil",
    "pyelftools",
    "PyYAML",
    "rich",
    "tornado",
)
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_EMULATOR = "qemu-aarch64-static"
_DEBIAN_PACKAGES = {
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "unshare": "util-linux",
    "mount": "mount",
    "ssh": "openssh-client",
    _EMULATOR: "qemu-user-static",
}

# What Linux shows on such a core, for programs that ask; the emulator itself refuses what the core has not.
_V80 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_V82 = f"{_V80} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
CPUS = {
    "cortex-a53": ("0xd03", _V80),
    "cortex-a72": ("0xd08", _V80),
    "cortex-a76": ("0xd0b", _V82),
    "neoverse-n1": ("0xd0c", _V82),
}

# F: the kernel keeps the emulator open, so that it need not be in the root. Whoever registers second finds it done.
_EMULATE = r"""set -eu
if [ -n "$EMULATOR" ]; then
    misc=/proc/sys/fs/binfmt_misc
    [ -e $misc/register ] || mount -t binfmt_misc binfmt_misc $misc
    [ -e $misc/tvmbridge-aarch64 ] || printf %s "$RULE" > $misc/register || [ -e $misc/tvmbridge-aarch64 ]
fi
"""
_RULE = (
    r":tvmbridge-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:"
)
# Packages' own scripts would run in the emulator, and take longer than all the rest; Python asks for none of them. The
# links that merge /bin and /lib into /usr are kept; a link that debootstrap makes of /proc in a container is not.
_UNPACK = r"""set -eu
for package in "$1"/var/cache/apt/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$1" --keep-directory-symlink
done
cp "$1"/usr/share/base-passwd/passwd.master "$1"/etc/passwd
cp "$1"/usr/share/base-passwd/group.master "$1"/etc/group
rm -rf "$1"/proc "$1"/dev
mkdir "$1"/proc "$1"/dev
rm -r "$1"/debootstrap "$1"/var/cache/apt/archives
"""
# $1: the folders of which the root is made, the upmost first. $2: a folder to mount on. $3: /proc/cpuinfo. $4: shared
# folders, one a line, each at its own path. The rest: the command.
_RUN = (
    _EMULATE
    + r"""
[ -z "$OFFLINE" ] || ip link set lo up
lower=$1 work=$2 cpuinfo=$3 shared=$4
shift 4
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
root=$work/root
mount -t overlay -o "lowerdir=$lower,upperdir=$work/upper,workdir=$work/work" overlay "$root"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
[ ! -e "$cpuinfo" ] || mount --bind "$cpuinfo" "$root/proc/cpuinfo"
printf '%s\n' "$shared" | while IFS= read -r folder; do
    [ -z "$folder" ] || { mkdir -p "$root$folder" && mount --rbind "$folder" "$root$folder"; }
done
exec chroot "$root" /usr/bin/env -C "$FOLDER" "$@"
"""
)


class Problem(Exception):  # noqa: N818 -- as a command says it
    """Why there is no board; `code` is what the command exits with."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def main() -> int:
    """Do what the command line says; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("make", help="make the board where there is none (what happens without an ACTION)")
    actions.add_parser("remove", help="remove all boards")
    actions.add_parser("check", help="say whether there is a board that runs")
    run = actions.add_parser("run", help="run a command on a fresh copy of the board")
    run.add_argument("--tvm", action="store_true", help="with apache-tvm, to serve a device")
    run.add_argument("--cpu", choices=CPUS, default="cortex-a72", help="the core to be (default: %(default)s)")
    run.add_argument("--cores", type=int, default=4, help="how many of them programs are shown (default: %(default)s)")
    run.add_argument(
        "--share", type=Path, action="append", default=[], help="a folder of this machine, same path there"
    )
    run.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of its environment")
    run.add_argument("--offline", action="store_true", help="with a network of its own, which nothing else is on")
    run.add_argument("--folder", default="/", help="where the command starts (default: %(default)s)")
    run.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is unfinished is removed then, too
    try:
        if arguments.action == "remove":
            remove_boards()
        elif arguments.action == "check":
            check_board()
        elif arguments.action == "run":
            run_command(arguments)
        else:
            make_board()
    except Problem as problem:
        print(f"arm_environment: {problem}", file=sys.stderr)
        return problem.code
    return 0


def board_folder() -> Path:
    """Where the board is: another one for each set of versions that it is made of."""
    recipe = [_SUITE, *_PACKAGES, *_SERVING, *_tvm_requirements(), _REQUIREMENTS.read_text()]
    return cache_folder() / f"arm64-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"


def make_board() -> None:
    """Make the board, unless it is there; its last step is a rename, so that half of one is never seen."""
    board = board_folder()
    if platform.system() != "Linux" or os.geteuid() != 0:
        raise Problem("an arm64 root is made as root, on Linux: try sudo, or a container", NOT_POSSIBLE)
    board.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock(board.parent / "arm64.lock"):
        _install_tools(board)
        if not board.is_dir():
            _try_to_emulate()
            _reach_mirror()
            for abandoned in board.parent.glob("arm64-unfinished-*"):  # by a killed one: who works on it has the lock
                shutil.rmtree(abandoned)
            unfinished = Path(tempfile.mkdtemp(prefix="arm64-unfinished-", dir=board.parent))
            try:
                _make_root(unfinished / "root")
                _make_layer(unfinished)
                unfinished.chmod(0o755)
                unfinished.rename(board)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    check_board()
    print(board)


def check_board() -> None:
    """Problem unless the board is there and runs."""
    if not board_folder().is_dir():
        raise Problem("there is no board: python scripts/arm_environment.py (make test-arm does it)", NOT_POSSIBLE)
    _try_to_emulate()
    command = [
        sys.executable,
        __file__,
        "run",
        "python3",
        "-c",
        "import numpy, tvm_ffi, platform; print(platform.machine())",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or done.stdout.strip() != "aarch64":
        raise Problem(f"the board does not run: {_last_line(done)}", NOT_POSSIBLE)


def remove_boards() -> None:
    """Remove every board, whatever it was made of, and what killed tries have left."""
    for folder in sorted(cache_folder().glob("arm64-*")):
        print(f"removing {folder}")
        shutil.rmtree(folder)


def run_command(arguments: argparse.Namespace) -> None:
    """Become the command, in a mount namespace in which a fresh copy of the board is the root; never returns."""
    board = board_folder()
    if not board.is_dir():
        raise Problem("there is no board: python scripts/arm_environment.py", NOT_POSSIBLE)
    if not arguments.command:
        raise Problem("run what? for example: run python3 -c 'print(1)'", 2)
    lower = [str(board / "root")]
    search = [value.partition("=")[2] for value in arguments.env if value.startswith("PYTHONPATH=")]
    if arguments.tvm:
        lower.insert(0, str(board / "tvm"))
        search.append("/opt/tvm")
    cpuinfo = _write_cpuinfo(board, arguments.cpu, arguments.cores)
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        **({"QEMU_CPU": arguments.cpu} if _emulator() else {}),
        **dict(value.partition("=")[::2] for value in arguments.env),
        **({"PYTHONPATH": ":".join(search)} if search else {}),
        "FOLDER": arguments.folder,
        "OFFLINE": "1" if arguments.offline else "",
        **_emulation(),
    }
    shared = "\n".join(str(folder.resolve()) for folder in arguments.share)
    mounted_on = str(board / "mounted")  # by nobody else: the namespace has it to itself
    spaces = ["--mount", *(["--net"] if arguments.offline else [])]
    command = ["unshare", *spaces, "sh", "-c", _RUN, "sh", ":".join(lower), mounted_on, str(cpuinfo), shared]
    sys.stdout.flush()
    os.execvpe("unshare", [*command, *arguments.command], environment)


def _write_cpuinfo(board: Path, cpu: str, cores: int) -> Path:
    """What /proc/cpuinfo shows there; a file that does not exist where the real one is right."""
    path = board / f"cpuinfo-{cpu}-{cores}"
    if _emulator() and not path.exists():
        part, features = CPUS[cpu]
        core = f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {part}\n"
        text = "\n".join(f"processor\t: {index}\n{core}" for index in range(cores))
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_text(text)
        unfinished.rename(path)
    return path


def _make_root(root: Path) -> None:
    """Debian, and in its Python what requirements-runtime.txt names."""
    with _step(f"Debian {_SUITE} for arm64"):
        options = ["--arch=arm64", "--foreign", "--variant=minbase", f"--include={','.join(_PACKAGES)}"]
        keyring = [f"--keyring={_KEYRING}"] if _KEYRING.exists() else []
        _call(["debootstrap", *options, *keyring, _SUITE, str(root), _MIRROR])
        _call(["sh", "-c", _UNPACK, "sh", str(root)])
    with _step("NumPy, msgspec and tvm-ffi"):
        _pip_install(root / _SITE, ["--requirement", str(_REQUIREMENTS)])


def _make_layer(board: Path) -> None:
    (board / "mounted").mkdir()
    with _step("apache-tvm, in a layer of its own"):
        _pip_install(board / "tvm" / "opt" / "tvm", [*_tvm_requirements(), *_SERVING])


def _pip_install(folder: Path, what: Sequence[str]) -> None:
    """This machine's pip unpacks the wheels of the other: as good as its own, and ten times as fast."""
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 24, 17)]
    platforms.append("--platform=manylinux2014_aarch64")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    _call([*pip, f"--python-version={_PYTHON}", *platforms, "--no-compile", "--target", str(folder), *what])


def _install_tools(board: Path) -> None:
    """Install what Debian has for this, where it is missing; a board that is there may be another machine's cache."""
    needless = {"debootstrap"} if board.is_dir() else set()
    if not _is_foreign():
        needless.add(_EMULATOR)
    wanted = {tool: package for tool, package in _DEBIAN_PACKAGES.items() if tool not in needless}
    packages = [package for tool, package in wanted.items() if shutil.which(tool) is None]
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise Problem(f"{', '.join(packages)} is missing, and this is no Debian: install it", NOT_POSSIBLE)
    with _step(f"installing {', '.join(packages)}"):
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        try:
            _call(["apt-get", "update", "-qq"], environment=quiet)
            _call(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], environment=quiet)
        except Problem as problem:
            raise Problem(str(problem), NOT_POSSIBLE) from problem


def _reach_mirror() -> None:
    """Problem where Debian cannot be had: that is this machine's network, and no fault of what makes the board."""
    try:
        urllib.request.urlopen(f"{_MIRROR}/dists/{_SUITE}/Release", timeout=60).close()
    except OSError as exc:
        raise Problem(f"{_MIRROR} is not reached from here: {exc}", NOT_POSSIBLE) from exc


def _try_to_emulate() -> None:
    """Problem unless the kernel lets us mount, and hand programs of another machine to the emulator."""
    if _is_foreign() and _emulator() is None:
        raise Problem(f"{_EMULATOR} is missing: apt-get install qemu-user-static", NOT_POSSIBLE)
    command = ["unshare", "--mount", "sh", "-c", _EMULATE]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_emulation()}, check=False)
    if done.returncode:
        needs = "it takes root with CAP_SYS_ADMIN (docker run --privileged) and a kernel with binfmt_misc"
        raise Problem(f"the emulator cannot be registered: {_last_line(done)}; {needs}", NOT_POSSIBLE)


def _is_foreign() -> bool:
    return platform.machine() not in ("aarch64", "arm64")


def _emulator() -> str | None:
    return shutil.which(_EMULATOR) if _is_foreign() else None


def _emulation() -> dict[str, str]:
    """The variables that _EMULATE reads."""
    emulator = _emulator() or ""
    return {"EMULATOR": emulator, "RULE": f"{_RULE}{emulator}:F"}


def _tvm_requirements() -> list[str]:
    """Both: left to itself, apache-tvm takes a newer tvm-ffi than bundles run with."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in ("apache-tvm", "apache-tvm-ffi")]


def _call(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **(environment or {})},
        start_new_session=True,  # so that it can be ended with all that it has started
    )
    try:
        said, _ = process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        raise Problem(f"{command[0]} failed with status {process.returncode}:\n{said.strip()[-2000:]}")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").rpartition("\n")[2]


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    print(f"{what} … ", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    yield
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One at a time makes a board; the others wait."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
