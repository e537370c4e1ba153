"""Files as the makers of a data set published them: found, checked, fetched, and read without unpacking anything.

Nothing is ever written but a download, and of an archive only those members are read that were asked for by name.
"""

import hashlib
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from tqdm import tqdm

NETWORK_TIMEOUT = 20  # seconds of silence after which a download counts as failed
CHUNK = 2**20
SHOWN = 3  # of what is wrong, so many are named

Read = Callable[[Sequence[str]], Iterator[tuple[str, bytes]]]
"""Gives the named files with their contents, each once, in the order that is quickest."""


class SourceError(Exception):
    """A source cannot give the files; the message says why."""


class MissingFilesError(SourceError):
    """A source has some of the files only.

    Attributes:
        names: of those that it lacks.
    """

    def __init__(self, message: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.names = names


@dataclass(frozen=True)
class Piece:
    """One of the files in which a data set was published.

    Attributes:
        file: its name; .tgz and .zip are archives, another file is taken as it is. What was never published as one file
            has the name of its folder.
        unpacked: the folder at the top of the archive; of another file its name again.
        checksum: ``"sha256:..."``, or ``"md5:..."`` where no better one is known, or None where none is.
        size: in bytes, where known; always where there are urls.
        urls: where to fetch it, in this order; none where no official host has it any more, or no checksum is known.
    """

    file: str
    unpacked: str
    checksum: str | None = None
    size: int | None = None
    urls: tuple[str, ...] = ()

    def __str__(self) -> str:
        facts = [] if self.size is None else [f"{self.size:,} bytes"]
        facts += [] if self.checksum is None else [self.checksum.replace(":", " ")]
        return f"{self.file} ({', '.join(facts) or 'no checksum is known'})"


def located(piece: Piece, places: Sequence[Path]) -> Read:
    """How to read a piece: from the archive, from the folder it was unpacked to, or fetched into the first place.

    Raises:
        SourceError: if it is nowhere, whole, and cannot be fetched.
    """
    reasons = []
    for place in places:
        if not (place / piece.file).is_file():
            continue
        try:
            return checked(place / piece.file, piece)
        except SourceError as error:
            reasons.append(str(error))
    for place in places:
        folder = place / piece.unpacked
        if folder.is_dir():  # some tools unpack into a folder of the same name
            return partial(read_folder, folder if (folder / piece.unpacked).is_dir() else place)
    return fetched(piece, places[0], reasons or [f"{piece.file} is not in {' or '.join(map(str, places))}"])


def checked(path: Path, piece: Piece) -> Read:
    """How to read a file that is there, once its size and its checksum are right.

    Raises:
        SourceError: if they are not.
    """
    size = path.stat().st_size
    if piece.size is not None and size != piece.size:
        raise SourceError(f"{path} is cut off or another file: {size:,} bytes, expected {piece.size:,}")
    if piece.checksum is not None:
        _check_digest(path, piece, size)
    return _reader(path)


def _check_digest(path: Path, piece: Piece, size: int) -> None:
    algorithm, _, expected = piece.checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file, _bar(f"checking {piece.file}", size) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != expected:
        raise SourceError(
            f"{path} is altered or another file: {algorithm} {digest.hexdigest()[:12]}..., expected {expected[:12]}..."
        )


def fetched(piece: Piece, place: Path, reasons: Sequence[str]) -> Read:
    """How to read a piece that one of its hosts gives. What was received stays, and another run goes on from there.

    Raises:
        SourceError: if none gives it, after the reasons why it had to be fetched; it is not in the place then, at most
            a part of it by another name.
        OSError: if the place cannot be written.
    """
    path, part, reasons = place / piece.file, place / f"{piece.file}.part", list(reasons)
    for url in piece.urls:
        place.mkdir(parents=True, exist_ok=True)
        try:
            _receive(url, part, piece)
        except SourceError as error:
            reasons.append(f"not from {url}: {error}")
            continue
        part.replace(path)
        return _reader(path)
    raise SourceError("\n    ".join(reasons))


def _receive(url: str, part: Path, piece: Piece) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have < piece.size:
        try:
            _go_on(url, part, have, piece)
        except (HTTPException, OSError) as error:
            raise SourceError(f"no download ({' '.join(str(error).split()) or type(error).__name__})") from error
        if (have := part.stat().st_size) < piece.size:
            raise SourceError(f"the download broke off after {have:,} of {piece.size:,} bytes; run again to go on")
    try:
        checked(part, piece)
    except SourceError:
        part.unlink()  # nothing to go on from
        raise


def _go_on(url: str, part: Path, have: int, piece: Piece) -> None:
    """Receive what is missing; all of it, from a host that only gives whole files."""
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urlopen(request, timeout=NETWORK_TIMEOUT) as response:
        start = have if getattr(response, "status", None) == 206 else 0  # partial content
        offered = response.headers.get("Content-Length")
        if offered is not None and start + int(offered) != piece.size:  # often a web page that says sorry
            raise SourceError(f"offers {start + int(offered):,} bytes, expected {piece.size:,}")
        with part.open("r+b" if start else "wb") as file, _bar(f"fetching {piece.file}", piece.size, start) as bar:
            file.seek(start)
            while file.tell() <= piece.size and (chunk := response.read(CHUNK)):
                file.write(chunk)
                bar.update(len(chunk))


def read_folder(parent: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Files below a folder, in the order given. All are looked for before the first is read."""
    for name in names:
        if ".." in name.split("/") or "\\" in name or posixpath.isabs(name):
            raise SourceError(f"the lists name the file {name!r}, which is not below {parent}")
    _check_none_missing([name for name in names if not (parent / name).is_file()], names, parent)
    for name in names:
        yield name, (parent / name).read_bytes()


def read_zip(path: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Members of a .zip, in the order given. One that was packed without its top folder is read as if it had it."""
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        present = set(archive.namelist())
        members = {name: name if name in present else name.partition("/")[2] for name in names}
        _check_none_missing([name for name in names if members[name] not in present], names, path)
        for name in names:
            yield name, archive.read(members[name])


def read_tar(path: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Members of a .tgz, in the order of the archive: to go back in it would mean to begin anew each time."""
    missing = dict.fromkeys(names)
    with _damage_named(path), tarfile.open(path, "r|gz") as archive:
        for member in archive:
            name = posixpath.normpath(member.name)
            if member.isreg() and name in missing:
                del missing[name]
                yield name, archive.extractfile(member).read()
            if not missing:
                return
    _check_none_missing(list(missing), names, path)


def _reader(path: Path) -> Read:
    if path.suffix == ".tgz":
        return partial(read_tar, path)
    if path.suffix == ".zip":
        return partial(read_zip, path)
    return partial(read_folder, path.parent)


def _check_none_missing(missing: Sequence[str], names: Sequence[str], where: Path) -> None:
    if missing:
        what = f"{where} lacks {len(missing):,} of {len(names):,} files, the first is {', then '.join(missing[:SHOWN])}"
        raise MissingFilesError(what, missing)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def _bar(title: str, total: int, initial: int = 0) -> tqdm:
    return tqdm(desc=title, total=total, initial=initial, unit="B", unit_scale=True, disable=None)
