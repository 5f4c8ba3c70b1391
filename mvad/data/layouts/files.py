"""Which files of a folder are images: by their suffix, and where that says nothing, by their first bytes."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from mvad import storage
from mvad.errors import ImageError
from mvad.storage import FileEntry

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
    *(".jp2", ".j2k", ".jpf", ".jpx", ".pgm", ".ppm", ".pnm", ".pbm"),
)
OTHER_SUFFIXES = frozenset(  # of files that are no images, whatever their first bytes are
    {
        *(".txt", ".md", ".rst", ".log", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini"),
        *(".cfg", ".conf", ".html", ".htm", ".css", ".js", ".py", ".ipynb", ".sh", ".bat", ".ps1", ".exe", ".dll"),
        *(".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".odt", ".ods", ".lnk", ".url"),
        *(".zip", ".gz", ".tgz", ".tar", ".bz2", ".xz", ".zst", ".7z", ".rar", ".md5", ".sha256"),
        *(".db", ".sqlite", ".parquet", ".feather", ".arrow", ".npy", ".npz", ".pkl", ".mat", ".h5", ".hdf5"),
        *(".pt", ".pth", ".onnx", ".safetensors", ".mp4", ".avi", ".mov", ".mkv", ".wav", ".mp3"),
        *(".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".download", ".bak", ".swp", ".lock"),
    }
)
IGNORE_NAME = "ignore.png"  # in a category's folder, or above all: white where its images are not looked at
SIGNATURE_BYTES = 16
SIGNATURES = re.compile(  # PNG, JPEG, GIF, BMP, TIFF, WebP, JPEG 2000, portable maps, AVIF and HEIF
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|P[1-6]\s|.{4}ftyp(?:avi|hei|mif)",
    re.DOTALL,
)


@dataclass
class Found:
    """The files of a folder, or of a part of it."""

    images: list[FileEntry] = field(default_factory=list)
    others: list[FileEntry] = field(default_factory=list)  # no images
    unknown: list[FileEntry] = field(default_factory=list)  # neither a suffix nor a look inside says what they are
    ignore: dict[str, str] = field(default_factory=dict)  # URIs of masks by the folder they lie in: `IGNORE_NAME`

    def count_others(self) -> Counter[str]:
        """Count the files that are no images by their suffix."""
        return Counter(suffix_of(file.path) for file in self.others)


def find_images(files: Iterable[FileEntry]) -> Found:
    """Tell images from other files.

    A file with an unknown suffix, or none, is opened if it is on this machine. In object storage that would take a
    request per file, so there it stays unknown.
    """
    found = Found()
    for file in files:
        suffix = suffix_of(file.path)
        folder, _, name = file.path.rpartition("/")
        if name == IGNORE_NAME and "/" not in folder:
            found.ignore[folder] = file.uri
        elif suffix in SUFFIXES:
            found.images.append(file)
        elif suffix in OTHER_SUFFIXES:
            found.others.append(file)
        elif not storage.is_local(file.uri):
            found.unknown.append(file)
        elif _may_be_image(storage.local_path(file.uri)):
            found.images.append(file)
        else:
            found.others.append(file)
    return found


def suffix_of(path: str) -> str:
    """Return the suffix of a file, in small letters."""
    return PurePosixPath(path).suffix.lower()


def _may_be_image(path: bytes) -> bool:
    """Return whether a local file starts as an image does; also if it cannot be read, which becomes its error."""
    try:
        with storage.open_regular(path) as stream:
            return SIGNATURES.match(stream.read(SIGNATURE_BYTES)) is not None
    except ImageError:  # a named pipe or a device
        return False
    except OSError:
        return True
