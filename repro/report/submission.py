"""What the PASCAL VOC 2012 evaluation server takes: an archive of one palette mask for each image of the test list.

``results/VOC2012/Segmentation/comp6_test_cls/<id>.png`` in a ``.tar.gz``; comp6 is the segmentation competition in
which other data than VOC's own may be used (ImageNet's, SBD's), "cls" are class masks, and the paths are those of the
development kit's results folder. The server scores none of the images alone, so a mask that is missing, of another
size or coloured instead of indexed shows only as a bad mean: all that is checked here first.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from repro.data import CLASS_NAMES, colour_palette
from repro.data.images import MAX_PIXELS, open_image
from repro.errors import InputError, damaged, line_of
from repro.fetch.archives import BoundedHeader
from weights_conversion.files import atomic_path, check_plain, check_target

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
TEST_IMAGES = 1456
_ID = re.compile(r"\d{4}_\d{6}")
_LARGEST = 10_000_000  # bytes of a mask: many times what any VOC mask takes


def check_ids(ids: Sequence[str], where: str) -> None:
    """Raise InputError unless these can be the test list's: 1456 different VOC ids."""
    strange = next((name for name in ids if not _ID.fullmatch(name)), None)
    if strange is not None:
        raise InputError(f"{where}: {strange!r} is no id of VOC 2012 such as 2008_000006")
    if len(ids) != TEST_IMAGES:
        raise InputError(
            f"{where}: {len(ids)} ids, the {TEST_IMAGES} of VOC 2012's segmentation test list expected"
        )


def write_submission(masks: Path, images: Mapping[str, Path], target: Path) -> None:
    """Pack the masks of the test images; the same masks give the same bytes.

    Args:
        masks: folder of ``<id>.png``.
        images: id -> its image, whose size the mask must have.
        target: the ``.tar.gz`` to write.

    Raises:
        InputError: ids that are not the test list's, a mask that is missing or that the server could not read; then
            nothing is written.
    """
    check_ids(list(images), "--list")
    if not target.name.endswith((".tar.gz", ".tgz")):
        raise InputError(f"--submission {target}: expected a name that ends in .tar.gz")
    check_target(target, of="submission", begins=_is_submission)
    files: dict[str, bytes] = {}
    for name, image in sorted(images.items()):
        path = masks / f"{name}.png"
        if not path.is_file():
            raise InputError(f"{path}: no mask of test image {name}")
        files[name] = path.read_bytes()
        _check_mask(files[name], str(path), open_image(image).size)
    with (
        atomic_path(target) as temporary,
        temporary.open("wb") as raw,
        # no time and no owner of ours: an archive depends on its masks alone
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in files.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}.png")
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))


def _is_submission(path: Path) -> bool:
    with damaged(path, "a .tar.gz"), tarfile.open(path, mode="r:gz", tarinfo=BoundedHeader) as packed:
        first = packed.next()
    return first is not None and first.name.startswith(FOLDER)


def check_submission(archive: Path, ids: Sequence[str], image: Callable[[str], Path] | None = None) -> None:
    """Validate an archive for the server.

    Args:
        archive: a ``.tar.gz``.
        ids: the test list's.
        image: id -> its image, to compare sizes with; without it sizes are not compared.

    Raises:
        InputError: the first thing wrong with it, and where.
    """
    check_ids(ids, "--list")
    check_plain(archive)
    wanted = {f"{FOLDER}/{name}.png": name for name in ids}
    seen: set[str] = set()
    try:
        with tarfile.open(archive, mode="r:gz", tarinfo=BoundedHeader) as packed:
            for member in packed:
                where = f"{archive}: {member.name[:200]!r}"
                if member.isdir() and f"{FOLDER}/".startswith(f"{member.name.rstrip('/')}/"):
                    continue
                name = wanted.get(member.name)
                if name is None or not member.isfile():
                    raise InputError(
                        f"{where}: expected nothing but files {FOLDER}/<id>.png of the test list"
                    )
                if member.name in seen:
                    raise InputError(f"{where} is in the archive twice")
                seen.add(member.name)
                if member.size > _LARGEST:
                    raise InputError(f"{where}: {member.size} bytes, a mask expected")
                with damaged(where, "a mask"):
                    content = _content(packed, member)
                _check_mask(content, where, open_image(image(name)).size if image else None)
    except InputError:
        raise
    except Exception as error:  # of tarfile and gzip: TarError, zlib.error, EOFError, OSError, ValueError, …
        raise InputError(f"{archive}: not a whole .tar.gz ({line_of(error, 200)})") from None
    if absent := sorted(wanted.keys() - seen):
        raise InputError(f"{archive}: {len(absent)} of {len(wanted)} masks missing, {absent[0]} the first")


def _content(packed: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = packed.extractfile(member)
    return file.read() if file else b""


def _check_mask(content: bytes, where: str, size: tuple[int, int] | None) -> None:
    """``size`` is (width, height)."""
    try:
        mask = Image.open(io.BytesIO(content), formats=["PNG"])
        if mask.width * mask.height > MAX_PIXELS:
            raise InputError(
                f"{where}: {mask.width}x{mask.height} pixels, at most {MAX_PIXELS} in all expected"
            )
        if mask.mode != "P":
            raise InputError(f"{where}: mode {mask.mode}; expected a palette PNG of indices")
        if size is not None and mask.size != size:
            raise InputError(
                f"{where}: {mask.width}x{mask.height} pixels, the image's {size[0]}x{size[1]} expected"
            )
        indices = np.asarray(mask)
        palette = mask.getpalette() or []
    except InputError:
        raise
    except Exception as error:  # of Pillow: OSError, SyntaxError, struct.error, zlib.error, …
        raise InputError(f"{where}: no readable PNG ({line_of(error)})") from None
    if indices.max(initial=0) >= len(CLASS_NAMES):
        raise InputError(f"{where}: class {indices.max()}; expected 0 to {len(CLASS_NAMES) - 1}")
    used = 3 * (int(indices.max(initial=0)) + 1)
    if palette[:used] != colour_palette().ravel().tolist()[:used]:
        raise InputError(f"{where}: not the VOC palette")
