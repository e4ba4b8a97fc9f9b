"""Who made a record: a detached signature by ssh-keygen, for projects that ask for one.

What a record holds is checked without it, and shows that it is consistent, not who made it. A
signature is FILE.sig beside FILE; signers are those of an allowed_signers file (ssh-keygen(1)).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ..errors import PortError

NAMESPACE = "dsv3-port-record"  # a signature made for something else does not count


def _ssh_keygen(*words: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise PortError("ssh-keygen is not here, which signs and checks: install OpenSSH's client")
    return subprocess.run([program, *words], input=given, capture_output=True)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise PortError(f"{file}: cannot be read: {error.strerror or error}") from error


def signature_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sig")


def sign(file: Path, key: str | Path) -> Path:
    """Write the signature beside `file`. key: a private key, or the public one of a key that the
    ssh agent holds. PortError with ssh-keygen's words where that does not do."""
    _read(Path(key)), _read(file)
    signature_of(file).unlink(missing_ok=True)
    done = _ssh_keygen("-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(file))
    if done.returncode or not signature_of(file).is_file():
        raise PortError(f"{file}: cannot be signed with {key}: {_said(done)}")
    return signature_of(file)


def signer_of(file: Path, signers: str | Path) -> str:
    """The name in the allowed_signers file of who signed `file`. PortError where nobody in it did,
    or the file was changed since."""
    content, sig = _read(file), signature_of(file)
    if not sig.is_file():
        raise PortError(f"{file}: has no signature ({sig.name} beside it)")
    _read(Path(signers))
    found = _ssh_keygen("-Y", "find-principals", "-s", str(sig), "-f", str(signers))
    for name in found.stdout.decode(errors="replace").splitlines():
        words = ("-f", str(signers), "-I", name, "-n", NAMESPACE, "-s", str(sig))
        if _ssh_keygen("-Y", "verify", *words, given=content).returncode == 0:
            return name
    raise PortError(
        f"{file}: its signature is of nobody in {signers}, or the file was changed after it was signed"
    )


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return " ".join(done.stderr.decode(errors="replace").split())[:200] or "no reason given"
