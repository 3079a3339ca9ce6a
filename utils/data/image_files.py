"""Open image files that may be damaged or hostile: the header is checked before memory is taken for the voxels."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

MOST_VOXELS = 2**30  # 1024 along each axis; scans of 0.25 mm have half as many
GZIP_MAGIC, GZIP_RATIO = b"\x1f\x8b", 1032  # the most that deflate can shrink
MOST_TRAILING = 2**26  # bytes after the voxels
LONGEST_HEADER = 540  # bytes, of NIfTI-2
MGH_HEADER = 284  # bytes


class UnusableScanError(Exception):
    """A file that is no usable scan, and why."""


class _Claim(NamedTuple):
    """What a header says of the voxels: shape, bytes of each, and where they begin in the file."""

    image: Any
    shape: tuple[int, ...]
    itemsize: int
    offset: int


def is_nifti(path: Path) -> bool:
    """Tell by its name whether a path is a NIfTI file; hidden ones are none."""
    return path.name.lower().endswith((".nii", ".nii.gz")) and not path.name.startswith(".")


def is_image(path: Path) -> bool:
    """Tell by its name whether a path is a NIfTI file or one of FreeSurfer's, which preprocessing reads, too."""
    return is_nifti(path) or (path.suffix.lower() in (".mgz", ".mgh") and not path.name.startswith("."))


@contextmanager
def open_image(path: Path) -> Iterator[Any]:
    """Open a NIfTI or MGH file, compressed or not, whatever its name says.

    Parameters
    ----------
    path : Path

    Yields
    ------
    nibabel image
        Of one 3-D volume of real numbers. Its voxels are not read yet; see `read_voxels`.

    Raises
    ------
    UnusableScanError
        If it is no such file, or holds less than its header claims. Also
        instead of whatever a damaged file makes the caller's block raise.
    """
    try:
        if path.is_dir():
            raise UnusableScanError("is a folder; expected a file")
        if not path.exists():
            raise UnusableScanError("does not exist: a broken link, or a file that was removed")
        if not path.is_file():
            raise UnusableScanError("is no file but a pipe or a device; expected a file")
        with path.open("rb") as file:
            size = path.stat().st_size
            stream: Any = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == GZIP_MAGIC else file
            claim = _read_claim(stream)
            _check_claim(claim, size * GZIP_RATIO if stream is not file else size)
            stream.seek(0)
            image = claim.image.from_file_map({"image": nibabel.FileHolder(fileobj=stream)}, mmap=False)
            yield image
    except UnusableScanError:
        raise
    except PermissionError as error:
        raise UnusableScanError("may not be read; change its permissions") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnusableScanError("is a damaged or cut off gzip file; copy it again") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise many types
        raise UnusableScanError(f"not a readable NIfTI or MGH image ({error}); write it again") from error


def read_voxels(image: Any) -> np.ndarray:
    """Read the voxels of an image of `open_image`, and verify the checksum of a compressed file.

    Returns
    -------
    (D, H, W) float32 array
    """
    voxels = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
    stream = image.file_map["image"].fileobj
    if isinstance(stream, gzip.GzipFile) and len(stream.read(MOST_TRAILING)) == MOST_TRAILING:
        raise UnusableScanError("holds much more than its header claims; write it again")
    return voxels


def _read_claim(stream: BinaryIO) -> _Claim:
    """Read the header alone."""
    block = stream.read(LONGEST_HEADER)
    if not block:
        raise UnusableScanError("is empty, 0 bytes; copy it again")
    if block[128:132] == b"DICM":
        raise UnusableScanError("is a DICOM file; convert its series to NIfTI, with dcm2niix for instance")
    for kind, header_class, magic in (
        (nibabel.Nifti1Image, Nifti1Header, slice(344, 348)), (nibabel.Nifti2Image, Nifti2Header, slice(4, 12)),
    ):  # fmt: skip
        length = header_class.template_dtype.itemsize
        if len(block) >= length and length in (int.from_bytes(block[:4], order) for order in ("little", "big")):
            name = block[magic][:3]
            if name in (b"ni1", b"ni2", b"\0\0\0"):
                raise UnusableScanError(
                    "is the header of a pair of files (.hdr, .img), or of Analyze; convert it to .nii.gz"
                )
            if name not in (b"n+1", b"n+2"):
                raise UnusableScanError(f"has {name!r} where NIfTI says n+1 or n+2; write it again")
            header = header_class(block[:length], check=False)
            kind_of_voxels = header.get_data_dtype()
            if kind_of_voxels.kind not in "iuf":
                label = header.get_value_label("datatype")
                raise UnusableScanError(f"its voxels are no plain numbers but {label}; give a T1-weighted image")
            return _Claim(kind, header.get_data_shape(), kind_of_voxels.itemsize, header.get_data_offset())
    version, *shape = map(int, np.frombuffer(block[:20].ljust(20, b"\0"), ">i4"))
    if version != 1 or len(block) < MGH_HEADER:
        raise UnusableScanError("not a readable NIfTI or MGH image (no header of either); give .nii, .nii.gz or .mgz")
    return _Claim(nibabel.MGHImage, tuple(shape), 1, MGH_HEADER)


def _check_claim(claim: _Claim, capacity: int) -> None:
    """Refuse what is not one volume, and what the file cannot hold."""
    shape = tuple(claim.shape)
    text = "x".join(map(str, shape))
    if len(shape) < 3 or min(shape, default=0) < 1 or set(shape[3:]) - {1}:
        raise UnusableScanError(f"has {len(shape)} dimensions, {text}; expected one 3-D volume")
    claimed = claim.offset + prod(shape) * claim.itemsize
    if prod(shape) > MOST_VOXELS or claimed > capacity:
        raise UnusableScanError(
            f"its header claims {text} voxels, {claimed:,} bytes, which "
            + ("no scan has" if claimed <= capacity else "the file cannot hold")
            + "; it is damaged or was cut off: copy or write it again"
        )
