"""The publisher's private keys: Ed25519, each in a file of its own that only its owner can read, or in the environment.

They are never in the store, and nothing of them is ever in a message: an error names the file or the variable.
"""

import base64
import binascii
import os
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from securesystemslib.signer import CryptoSigner

from cvfs.errors import ConfigError

Signer = CryptoSigner
ROLES = ("root", "targets", "snapshot", "timestamp")
PASSPHRASE = "CVFS_KEY_PASSPHRASE"  # noqa: S105
ROOT_FILE = "root.json"
"""In the key directory: the newest root, by which the publisher knows its own store."""

_MAX_BYTES = 64 << 10


def default_keys(repository: str) -> Path:
    """$CVFS_KEYS, else /etc/cvfs-publisher/keys/NAME as root, $XDG_CONFIG_HOME/cvfs/keys/NAME for others."""
    named = os.environ.get("CVFS_KEYS")
    if named:
        return Path(named).absolute()
    if os.geteuid() == 0:
        return Path("/etc/cvfs-publisher/keys") / repository
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "cvfs/keys" / repository


def _no_passphrase(what: str) -> str:
    raise ConfigError(f"{what} is protected by a passphrase: set {PASSPHRASE}")


def ask_environment(what: str) -> str:
    """The passphrase that the environment has."""
    return os.environ.get(PASSPHRASE) or _no_passphrase(what)


@dataclass(frozen=True)
class Keys:
    """The keys in `directory`; those of the root in `root_paths`, if these are named, which may be on a medium that
    is seldom there. `ask` gives the passphrase for what it is told. What is in the environment goes first."""

    directory: Path
    root_paths: tuple[Path, ...] = ()
    ask: Callable[[str], str] = ask_environment
    _passphrases: list[str] = field(default_factory=list, repr=False)
    """Those that were told already: keys often share one, and nobody wants to type it three times."""
    _known: dict[Path, CryptoSigner] = field(default_factory=dict, repr=False)

    def path(self, role: str) -> Path:
        """Where the key of `role` is, or would be made; of the root, the first."""
        return self.root_paths[0] if role == "root" and self.root_paths else self.directory / f"{role}.pem"

    def next_path(self, role: str) -> Path:
        """Where a key that is to replace that of `role` waits until it has."""
        return self.path(role).with_suffix(".new.pem")

    def candidates(self, role: str) -> list[Path]:
        """Where keys of `role` may be. Which of them count is the root's to say."""
        others = self.root_paths or tuple(sorted(self.directory.glob("root-*.pem"))) if role == "root" else ()
        return [path for path in dict.fromkeys((self.path(role), *others, self.next_path(role))) if path.exists()]

    def signers(self, role: str) -> list[CryptoSigner]:
        """All keys of `role` that are at hand. Raises ConfigError: one cannot be read."""
        return [signer for _, signer in self.places(role)]

    def places(self, role: str) -> list[tuple[str, CryptoSigner]]:
        """As `signers`, each with the file or variable that it is in."""
        variable = f"CVFS_{role.upper()}_KEY"
        if os.environ.get(variable):
            return [(f"${variable}", self._decode(_decode_variable(os.environ[variable], variable), variable))]
        return [(str(path), self.load(path)) for path in self.candidates(role)]

    def is_protected(self, role: str) -> bool:
        """Whether a passphrase protects a key of `role` that is in a file. Raises ConfigError: it cannot be read."""
        return any(b"ENCRYPTED" in _read(path) for path in self.candidates(role))

    def unlock(self) -> None:
        """Ask for the passphrases of all keys but the root's now: later there may be something else on the terminal.

        Raises ConfigError: a key cannot be read.
        """
        for role in ROLES:
            if role != "root":
                self.signers(role)

    def load(self, path: Path) -> CryptoSigner:
        """The key in `path`. Raises ConfigError."""
        if path not in self._known:
            self._known[path] = self._decode(_read(path), str(path))
        return self._known[path]

    def add(self, path: Path, passphrase: str | None) -> CryptoSigner:
        """The key in `path`, made now if there is none. Raises ConfigError."""
        if passphrase and passphrase not in self._passphrases:
            self._passphrases.append(passphrase)
        if not path.exists():
            self._write(path, Ed25519PrivateKey.generate(), passphrase)
        return self.load(path)

    def settle(self, role: str, keyids: Collection[str]) -> None:
        """Bring to its end what an earlier replacement left: a new key that is trusted takes the old one's place."""
        waiting = self.next_path(role)
        if not waiting.exists():
            return
        if self.load(waiting).public_key.keyid in keyids:
            waiting.rename(self.path(role))
        else:
            waiting.unlink()
        self._known.clear()

    def keep_root(self, data: bytes) -> None:
        """Remember the newest root."""
        temporary = self.directory / f".{ROOT_FILE}-{os.getpid()}"
        try:
            make_directory(self.directory)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.directory / ROOT_FILE)
        except OSError as error:
            raise ConfigError(f"cannot write {self.directory / ROOT_FILE}: {error.strerror}") from error

    def forget_root(self) -> None:
        """Remember no root any more."""
        try:
            (self.directory / ROOT_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot remove {self.directory / ROOT_FILE}: {error.strerror}") from error

    def known_root(self) -> bytes | None:
        """The newest root that was remembered, None if there is none."""
        try:
            return (self.directory / ROOT_FILE).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"cannot read {self.directory / ROOT_FILE}: {error.strerror}") from error

    def _write(self, path: Path, key: Ed25519PrivateKey, passphrase: str | None) -> None:
        protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            protection = serialization.BestAvailableEncryption(passphrase.encode())
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
        try:
            if path.parent == self.directory:
                make_directory(path.parent)  # Another has to be there: it may be where a medium is to be mounted.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConfigError(f"cannot write the key {path}: {error.strerror}") from error

    def _decode(self, data: bytes, what: str) -> CryptoSigner:
        key = self._decrypt(data, what) if b"ENCRYPTED" in data[:64] else _parse(data, None)
        if key is None:
            raise ConfigError(f"cannot use the key in {what}: it is not a private key in PEM")
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"cannot use the key in {what}: it is not an Ed25519 key")
        return CryptoSigner(key)

    def _decrypt(self, data: bytes, what: str) -> PrivateKeyTypes:
        for passphrase in self._passphrases:
            if (key := _parse(data, passphrase)) is not None:
                return key
        passphrase = self.ask(f"the key in {what}")
        key = _parse(data, passphrase)
        if key is None:
            raise ConfigError(f"cannot use the key in {what}: the passphrase is wrong")
        self._passphrases.append(passphrase)
        return key


def _parse(data: bytes, passphrase: str | None) -> PrivateKeyTypes | None:
    """None if it cannot be: what the library says of why could quote the key."""
    try:
        return serialization.load_pem_private_key(data, passphrase.encode() if passphrase is not None else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def make_directory(path: Path) -> None:
    """A directory that only its owner can enter, unless it was there before."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ConfigError(f"others can read the key {path}: chmod 600 {path}, and think of who may have it")
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}") from error


def _decode_variable(text: str, variable: str) -> bytes:
    """PEM, or PEM in base64 for systems that keep no line ends."""
    if "-----BEGIN" in text:
        return text.encode()
    try:
        return base64.b64decode(text, validate=False)
    except (binascii.Error, ValueError):
        raise ConfigError(f"the key in {variable} is neither PEM nor base64 of it") from None
