"""Reading one published CSV file, zipped or not, without trusting it.

A zip file can name members outside the target, claim one size and unpack to another, or
hold a directory of millions of entries. Nothing is ever unpacked to disk here: the one
member that the archive's name promises is read into memory, and every limit is checked
before it is read and again while it is.
"""

from __future__ import annotations

import hashlib
import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, NoReturn

from riskml.errors import DataError, Problem

MAX_BYTES = 1 << 30
"""Largest CSV that is read. The largest published one, a month of one-second bars, has 0.4 GB."""
MAX_RATIO = 200
"""Largest ratio of unpacked to packed size. Published files lie between 3 and 30."""
MAX_DIRECTORY_BYTES = 1 << 16
"""Largest directory of a zip file; one entry needs about a hundred bytes."""

_CHUNK = 1 << 20
_RATIO_MATTERS_FROM = 1 << 20
"""Below this size a high ratio is harmless: a halted market is the same line over and over."""
_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE, _ZIP64_LOCATOR = b"PK\x05\x06", b"PK\x06\x07"
_ZIP64_LOCATOR_BYTES = 20
_LONGEST_COMMENT = 0xFFFF
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_AGAIN = "download the file again"
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    struct.error,
)
"""What ``zipfile`` raises on damaged bytes."""


def read_published(path: Path, where: str) -> bytes:
    """The bytes of a published CSV file, or of the one CSV inside its zip file.

    Parameters
    ----------
    path : ``NAME.csv`` or ``NAME.zip``. A file ``NAME.zip.CHECKSUM`` beside it is
        verified first.
    where : what problems call the file.

    Raises
    ------
    DataError : code ``checksum-mismatch``; ``unsafe-archive`` (a member that is not the
        flat file ``NAME.csv``, a link, encrypted or packed in another way, more than one
        member); ``too-large`` (declared or actual size above a limit); ``damaged-file``.
    """
    if path.suffix != ".zip":
        if path.stat().st_size > MAX_BYTES:
            _refuse("too-large", where, f"the file is larger than {MAX_BYTES >> 20} MiB", "split it")
        return path.read_bytes()
    verify_checksum(path, where)
    try:
        with path.open("rb") as file:
            _check_directory(file, where)
            with zipfile.ZipFile(file) as archive:
                return _read(archive, _member(archive, f"{path.stem}.csv", where), where)
    except _BROKEN as error:
        if isinstance(error, DataError):
            raise
        _refuse("damaged-file", where, f"it cannot be read as a zip file: {error}", _AGAIN)


def verify_checksum(path: Path, where: str) -> None:
    """Compare a file with the sha256 in ``<name>.CHECKSUM`` beside it, when there is one.

    Raises
    ------
    DataError : the sum differs, or the checksum file holds none.
    """
    beside = path.with_name(f"{path.name}.CHECKSUM")
    if not beside.is_file():
        return
    with beside.open("rb") as file:
        words = file.read(4096).decode("ascii", "replace").split()
    if not words or not _DIGEST.fullmatch(words[0]):
        _refuse("checksum-mismatch", where, f"{beside.name} holds no sha256", "download it again")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != words[0].lower():
        message = f"its sha256 is {found[:12]}..., {beside.name} says {words[0][:12].lower()}..."
        _refuse("checksum-mismatch", where, message, f"{_AGAIN} (and its CHECKSUM: archives are revised)")


def _check_directory(file: BinaryIO, where: str) -> None:
    """Refuse a directory that would fill the memory before ``zipfile`` reads it."""
    size = file.seek(0, 2)
    file.seek(max(size - _END.size - _LONGEST_COMMENT - _ZIP64_LOCATOR_BYTES, 0))
    tail = file.read()
    at = len(tail) - _END.size
    # The order in which zipfile looks: without a comment first.
    if at < 0 or tail[at : at + 4] != _END_SIGNATURE or tail[-2:] != b"\0\0":
        at = tail.rfind(_END_SIGNATURE)
    if at < 0 or at + _END.size > len(tail):
        _refuse("damaged-file", where, "it is truncated, or no zip file", _AGAIN)
    if tail[max(at - _ZIP64_LOCATOR_BYTES, 0) : at].startswith(_ZIP64_LOCATOR):
        _refuse("unsafe-archive", where, "it is a zip64 file; no published file is that large", _AGAIN)
    entries, directory_bytes = _END.unpack_from(tail, at)[4:6]
    if entries != 1 or directory_bytes > MAX_DIRECTORY_BYTES:
        message = f"it has to hold one CSV file, found {entries} members"
        _refuse("unsafe-archive", where, message, _AGAIN)
    file.seek(0)


def _member(archive: zipfile.ZipFile, expected: str, where: str) -> zipfile.ZipInfo:
    """The only member, if it is the plain file that the archive's name promises."""
    members = archive.infolist()
    if len(members) != 1:
        message = f"it has to hold one CSV file, found {len(members)} members"
        _refuse("unsafe-archive", where, message, _AGAIN)
    (member,) = members
    reason = _unsafe_name(member.orig_filename, expected)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        reason = f"member '{expected}' is a link or a device"
    if reason:
        _refuse("unsafe-archive", where, reason, _AGAIN)
    if member.flag_bits & _ENCRYPTED:
        _refuse("unsafe-archive", where, "its member is encrypted", "published files are not")
    if member.compress_type not in _METHODS:
        message = f"its member is packed by method {member.compress_type}; only deflate is expected"
        _refuse("unsafe-archive", where, message, _AGAIN)
    if member.file_size > MAX_BYTES:
        message = f"its member unpacks to {member.file_size >> 20} MiB, more than {MAX_BYTES >> 20} MiB"
        _refuse("too-large", where, message, "split it")
    if member.file_size > max(member.compress_size * MAX_RATIO, _RATIO_MATTERS_FROM):
        message = f"its member unpacks to more than {MAX_RATIO} times its packed size"
        _refuse("too-large", where, message, _AGAIN)
    return member


def _unsafe_name(name: str, expected: str) -> str:
    """Why a member may not be read; empty when it is the expected file."""
    if name == expected:
        return ""
    shown = ascii(name if len(name) <= 80 else name[:77] + "...")
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in parts:
        return f"member {shown} would unpack outside the target"
    return f"its member has to be '{expected}', found {shown}"


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> bytes:
    """Unpack into memory, counting what really comes out."""
    chunks: list[bytes] = []
    count = 0
    with archive.open(member) as stream:
        while chunk := stream.read(_CHUNK):
            count += len(chunk)
            if count > member.file_size:
                _refuse("too-large", where, "it unpacks to more than it declares", _AGAIN)
            chunks.append(chunk)
    if count != member.file_size:
        _refuse("damaged-file", where, "its member is shorter than declared", _AGAIN)
    return b"".join(chunks)


def _refuse(code: str, where: str, reason: str, fix: str) -> NoReturn:
    message = f"{where}: {reason}"
    raise DataError(message, fix=fix, problems=(Problem(code, message, fix, partition=where),))
