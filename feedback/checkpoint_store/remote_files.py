"""Files behind any fsspec URL: read, written whole or not at all, listed, removed.

Promises: whoever reads a name sees all of a file or none of it. An object store makes a PUT, or the last call of a multipart
upload, visible at once; a file system gets a temporary name and a rename. Does not make buckets. Credentials and endpoint
come from the SDK's own environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from feedback.durable import fsync
from feedback.errors import StoreUnavailable

TEMPORARY = ".unfinished-"
BLOCK_BYTES = 16 * 2**20  # read ahead, and a part of an upload: what is held in memory of a file, a few times over
_NUM_PARTS = 4  # uploaded at once
_ATOMIC = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss"}  # an object appears whole
_TIMES = ("LastModified", "mtime", "updated", "last_modified")  # what back ends call a modification time


@dataclass(frozen=True)
class RemoteFile:
    """A file that is there. name: relative to the root; size: bytes; modified_at: seconds, by the back end's clock."""

    name: str
    size: int
    modified_at: float
    is_link: bool = False


class RemoteFiles:
    """The files below one URL. Names are relative, with `/`. Every method raises StoreUnavailable."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.protocol = url.partition("://")[0]
        with self._guard():
            self._fs, root = fsspec.core.url_to_fs(url, **_choose_options(self.protocol))
            self._root = root.rstrip("/")
        if self.protocol in ("s3", "s3a"):
            self._fs.retries = 3  # its own rounds of tries; 5 would hang for minutes on a server that does not answer

    @property
    def is_local(self) -> bool:
        return isinstance(self._fs, LocalFileSystem)

    def stat(self, name: str) -> RemoteFile | None:
        """The file of this name, None if there is none."""
        with self._guard():
            try:
                found = self._fs.info(self._locate(name))
            except FileNotFoundError:
                return None
        return self._describe(found) if found["type"] == "file" else None

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """What a small file holds, None if there is none. Raises ValueError beyond `max_bytes`."""
        with self._guard():
            try:
                with self._fs.open(self._locate(name), "rb", block_size=BLOCK_BYTES) as file:
                    data = bytes(file.read(max_bytes + 1))
            except (FileNotFoundError, IsADirectoryError):
                return None
        if len(data) > max_bytes:
            raise ValueError(f"{name} is larger than {max_bytes} bytes")
        return data

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes] | None]:
        """A file to be read from its begin to its end, block by block; None if there is none."""
        with self._guard():
            try:
                file = self._fs.open(self._locate(name), "rb", block_size=BLOCK_BYTES)
            except (FileNotFoundError, IsADirectoryError):
                file = None
        if file is None:
            yield None
            return
        with file:
            yield file

    def read_block(self, file: IO[bytes]) -> bytes:
        """The next block of an open file, empty at its end."""
        with self._guard():
            return file.read(BLOCK_BYTES)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, in place of what had its name. Durable on return."""
        path = self._locate(name)
        with self._guard():
            if self.is_local:
                with _renamed_into_place(Path(path)) as file:
                    file.write(data)
            elif self.protocol in _ATOMIC:
                self._fs.pipe_file(path, data)
            else:
                self._fs.pipe_file(temporary := self._name_temporary(path), data)
                self._fs.mv(temporary, path)

    def upload(self, source: Path, name: str) -> None:
        """Copy a local file there, in place of what had its name, block by block. Durable on return."""
        path = self._locate(name)
        with self._guard():
            if self.is_local:
                with source.open("rb") as local, _renamed_into_place(Path(path)) as file:
                    shutil.copyfileobj(local, file, BLOCK_BYTES)
            elif self.protocol in ("s3", "s3a"):
                self._fs.put_file(str(source), path, chunksize=BLOCK_BYTES, max_concurrency=_NUM_PARTS)
            elif self.protocol in _ATOMIC:
                self._fs.put_file(str(source), path)
            else:
                self._fs.put_file(str(source), temporary := self._name_temporary(path))
                self._fs.mv(temporary, path)

    def list_files(self, folder: str) -> list[RemoteFile]:
        """Every file below a folder, also those of uploads that a file system's crash left; none if it is not there."""
        with self._guard():
            if (
                self.is_local
            ):  # fsspec's own listing leaves out what it cannot read: a collection would delete what that names
                return [self._describe(found) for found in _list_local(self._locate(folder))]
            try:
                found = self._fs.find(self._locate(folder), detail=True)
            except FileNotFoundError:
                return []
        return [self._describe(each) for each in found.values() if each["type"] == "file"]

    def list_folders(self, folder: str) -> list[str]:
        """The names directly in a folder that are folders themselves; none if it is not there."""
        with self._guard():
            try:
                found = self._fs.ls(self._locate(folder), detail=True)
            except FileNotFoundError:
                self._require_bucket()
                return []
        return sorted(each["name"].rstrip("/").rpartition("/")[2] for each in found if each["type"] == "directory")

    def _require_bucket(self) -> None:
        if self.protocol in ("s3", "s3a"):  # else a bucket that is not there would look like an empty one
            self._fs.call_s3("list_objects_v2", Bucket=self._root.partition("/")[0], MaxKeys=1)

    def remove(self, name: str) -> None:
        """Remove a file. Harmless to repeat."""
        path = self._locate(name)
        with self._guard(), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def remove_folder(self, name: str) -> None:
        """Remove a folder that is empty; an object store has none such."""
        if self.is_local:
            with contextlib.suppress(OSError):
                os.rmdir(self._locate(name))

    def abort_uploads(self, before: float) -> int:
        """End uploads in parts that began before a time (seconds) and were never finished; how many. S3 alone keeps such."""
        if self.protocol not in ("s3", "s3a"):
            return 0
        bucket, _, prefix = self._root.partition("/")
        with self._guard():
            answer = self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix and prefix + "/")
            stale = [row for row in answer.get("Uploads") or [] if row["Initiated"].timestamp() < before]
            for row in stale:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=row["Key"], UploadId=row["UploadId"])
        return len(stale)

    def _locate(self, name: str) -> str:
        assert name and not name.startswith("/") and ".." not in name.split("/"), name
        return f"{self._root}/{name}"

    def _name_temporary(self, path: str) -> str:
        folder, _, name = path.rpartition("/")
        return f"{folder}/{TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"

    def _describe(self, found: dict[str, Any]) -> RemoteFile:
        time = next((found[key] for key in _TIMES if found.get(key) is not None), 0.0)
        if isinstance(time, str):
            time = datetime.fromisoformat(time)
        modified_at = time.timestamp() if isinstance(time, datetime) else float(time)
        name = str(found["name"]).removeprefix(self._root).lstrip("/")
        return RemoteFile(name, int(found["size"] or 0), modified_at, bool(found.get("islink")))

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # back ends raise their SDK's own errors, of no common kind
            raise StoreUnavailable(f"{self.url}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _renamed_into_place(path: Path) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def _list_local(folder: str) -> Iterator[dict[str, Any]]:
    """What fsspec would say of every file below a folder. What goes meanwhile is left out; what cannot be read is raised."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for place, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            path = os.path.join(place, name)
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(path)
                is_link = stat.S_ISLNK(found.st_mode)
                yield {"name": path, "size": found.st_size, "mtime": found.st_mtime, "islink": is_link}


def _choose_options(protocol: str) -> dict[str, Any]:
    """Nothing that was listed is remembered: another process may have changed it."""
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol in ("s3", "s3a"):
        region = os.environ.get("AWS_REGION")  # botocore itself reads AWS_DEFAULT_REGION alone
        options["client_kwargs"] = {"region_name": region} if region else {}
        options["config_kwargs"] = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 1}}
    return options
