"""Reading and resizing images: against the recordings, OpenCV, SciPy, and what bad files get."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from repro.constants import MEAN_BGR
from repro.data import images
from repro.data.images import (
    preprocess_zoomed,
    read_image_bgr,
    read_image_grey,
    read_image_rgb,
    subtract_mean,
)
from repro.errors import InputError
from repro.layers.resize import resize_bilinear_u8, zoom_linear, zoom_to


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def cv2_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(height, width, *image.shape[2:])  # OpenCV drops an axis of one channel


# --- resize_bilinear_u8 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(6))
def test_resize_is_the_recorded_image_data(golden, number):
    recorded = golden("stage1")
    batch, place = divmod(number, 3)
    got = resize_bilinear_u8(recorded[f"inputs/image_bgr_{number}"][()], 321, 321)
    np.testing.assert_array_equal(got, recorded[f"image_data/batch{batch}_uint8_bgr"][place])


@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4, 5])
def test_resize_is_opencvs_on_random_sizes(rng, channels):
    for _ in range(150):
        height, width, new_height, new_width = (int(n) for n in rng.integers(1, 80, 4))
        shape = (height, width) if channels is None else (height, width, channels)
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        np.testing.assert_array_equal(
            resize_bilinear_u8(image, new_height, new_width),
            cv2_resize(image, new_height, new_width),
            err_msg=f"{shape} to {new_height}x{new_width}",
        )


@pytest.mark.parametrize(
    ("size", "new_size"),
    [
        ((375, 500), (321, 321)),
        ((333, 500), (321, 321)),
        ((1, 1), (41, 7)),
        ((1, 50), (1, 7)),
        ((50, 40), (1, 1)),
        ((2, 3), (321, 1)),
        ((40, 60), (20, 30)),
        ((40, 60), (20, 31)),
        ((40, 60), (80, 120)),
        ((40, 60), (10, 15)),
        ((1200, 17), (321, 321)),
        ((64, 64), (64, 64)),
    ],
)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_resize_is_opencvs_on_chosen_sizes(rng, size, new_size, channels):
    for image in (
        rng.integers(0, 256, (*size, channels), dtype=np.uint8),
        rng.choice(np.array([0, 255], np.uint8), (*size, channels)),
    ):
        np.testing.assert_array_equal(resize_bilinear_u8(image, *new_size), cv2_resize(image, *new_size))


def test_resize_takes_views_and_gives_its_own_array(rng):
    image = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    view = image[::2, ::-1]
    np.testing.assert_array_equal(
        resize_bilinear_u8(view, 9, 11), resize_bilinear_u8(np.ascontiguousarray(view), 9, 11)
    )
    same = resize_bilinear_u8(image, 30, 40)
    same[:] = 0
    assert image.any()


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (np.zeros((4, 4, 3), np.float32), (2, 2)),
        (np.zeros(4, np.uint8), (2, 2)),
        (np.zeros((1, 4, 4, 3), np.uint8), (2, 2)),
        (np.zeros((0, 4, 3), np.uint8), (2, 2)),
        (np.zeros((4, 4, 3), np.uint8), (0, 2)),
    ],
)
def test_resize_refuses(image, size):
    with pytest.raises(InputError, match="expected"):
        resize_bilinear_u8(image, *size)


# --- zoom_linear --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", "abcd")
@pytest.mark.parametrize("kind", ["numpy", "tensor"])
def test_zoom_is_the_recorded_one(golden, name, kind):
    recorded = golden("inference")["zoom"]
    array = recorded["input"][()]
    factors = recorded[name].attrs["factors"]
    got = zoom_linear(array if kind == "numpy" else torch.from_numpy(array), factors)
    assert isinstance(got, np.ndarray if kind == "numpy" else torch.Tensor)
    np.testing.assert_array_equal(np.asarray(got), recorded[name]["output"][()])


@pytest.mark.parametrize(
    ("size", "factor", "want"), [(150, 0.75, 113), (2, 0.75, 2), (10, 0.25, 3), (10, 0.24, 2)]
)
def test_zoom_rounds_sizes_half_up(size, factor, want):
    assert zoom_linear(np.zeros(size), [factor]).shape == (want,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zoom_is_scipys(rng, dtype):
    """Today's SciPy as the oracle; it only rounds sizes otherwise, which whole sizes avoid."""
    for _ in range(200):
        shape, new_shape = rng.integers(1, 30, (2, 3))
        array = rng.normal(size=shape).astype(dtype)
        want = ndimage.zoom(array, new_shape / shape, order=1)
        if want.shape != tuple(new_shape):
            continue  # the factor's last bit took SciPy elsewhere
        got = zoom_linear(array, new_shape / shape)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, want, err_msg=f"{shape} to {new_shape}")


@pytest.mark.parametrize(("size_in", "size_out"), [(125, 241), (219, 401), (8, 401)])
def test_zoom_keeps_scipys_zero_at_the_last_sample(size_in, size_out):
    """(n_out − 1) · ((n_in − 1)/(n_out − 1)) exceeds n_in − 1 by rounding: SciPy takes it for outside."""
    got = zoom_linear(np.ones(size_in), [size_out / size_in])
    np.testing.assert_array_equal(got, [1.0] * (size_out - 1) + [0.0])
    np.testing.assert_array_equal(got, ndimage.zoom(np.ones(size_in), size_out / size_in, order=1))


def test_zoom_to_one_sample_takes_the_first(rng):
    array = rng.normal(size=(7, 9))
    np.testing.assert_array_equal(zoom_to(array, 1, 1), array[:1, :1])
    np.testing.assert_array_equal(zoom_to(array, 1, 9), array[:1])
    np.testing.assert_array_equal(zoom_to(array[:1, :1], 3, 4), np.full((3, 4), array[0, 0]))


def test_zoom_to_serves_its_callers(rng):
    blob = rng.normal(size=(2, 3, 11, 13)).astype(np.float32)
    want = np.stack([[ndimage.zoom(plane, (23 / 11, 7 / 13), order=1) for plane in item] for item in blob])
    np.testing.assert_array_equal(zoom_to(torch.from_numpy(blob), 23, 7).numpy(), want)
    np.testing.assert_array_equal(zoom_to(blob[0], 23, 7), want[0])
    hwc = blob[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(zoom_to(hwc, 23, 7, axes=(0, 1)), want[0].transpose(1, 2, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zoom_keeps_a_tensors_dtype(rng, dtype):
    array = torch.from_numpy(rng.normal(size=(5, 6))).to(dtype)
    got = zoom_to(array, 8, 4)
    assert got.dtype == dtype
    torch.testing.assert_close(got, zoom_to(array.double(), 8, 4).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(2, 3)])
def test_zoom_to_the_same_size_gives_its_own_array(array):
    same = zoom_to(array, 2, 3)
    same[:] = -1
    assert array.max() == 5


def test_zoom_takes_what_torch_cannot_share(rng):
    array = rng.normal(size=(6, 8))
    want = zoom_to(array, 9, 5)
    frozen = array.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(zoom_to(frozen, 9, 5), want)
    np.testing.assert_array_equal(zoom_to(array[::-1].copy()[::-1], 9, 5), want)
    np.testing.assert_array_equal(zoom_to(array.astype(">f8"), 9, 5), want)


def test_zoom_does_not_record_gradients():
    assert not zoom_to(torch.ones(2, 2, requires_grad=True), 3, 3).requires_grad


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_zoom_on_the_device_is_the_same(rng):
    array = torch.from_numpy(rng.normal(size=(2, 21, 41, 41)).astype(np.float32))
    got = zoom_to(array.cuda(), 375, 500)
    assert got.is_cuda
    np.testing.assert_array_equal(got.cpu().numpy(), zoom_to(array, 375, 500).numpy())


@pytest.mark.parametrize(
    ("array", "factors"),
    [
        (np.zeros((3, 3)), [2.0]),
        (np.zeros((3, 3)), [2.0, 0.1]),
        (np.zeros((3, 3)), [2.0, -1.0]),
        (np.zeros((3, 3)), [2.0, float("nan")]),
        (np.zeros((3, 0)), [2.0, 2.0]),
        (np.zeros((3, 3), np.uint8), [2.0, 2.0]),
        (torch.zeros(3, 3, dtype=torch.int64), [2.0, 2.0]),
    ],
)
def test_zoom_refuses(array, factors):
    with pytest.raises(InputError, match="expected"):
        zoom_linear(array, factors)


# --- blobs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1])
def test_preprocessed_image_is_the_recorded_one(golden, number):
    recorded = golden("inference")[f"image{number}"]
    image = recorded["image_rgb"][()]
    got = preprocess_zoomed(image, (241 / image.shape[0], 241 / image.shape[1]))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, recorded["preprocessed_241"][0])


def test_subtract_mean_orders_and_subtracts():
    image = np.zeros((2, 3, 3), np.uint8)
    image[1, 2] = (1, 2, 3)
    blob = subtract_mean(image)
    assert blob.dtype == np.float32
    assert blob.flags.c_contiguous
    assert blob[:, 0, 0].tolist() == [-value for value in MEAN_BGR]
    assert blob[:, 1, 2].tolist() == [1 - 104, 2 - 117, 3 - 123]
    assert subtract_mean(image, (0, 0, 0))[:, 1, 2].tolist() == [1, 2, 3]


# --- reading ------------------------------------------------------------------------------------------------


def test_read_is_opencvs_on_voc(voc_sample):
    paths = sorted((voc_sample / "VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))[::4]
    assert paths
    for path in paths:
        np.testing.assert_array_equal(read_image_bgr(path), cv2.imread(str(path)), err_msg=path.name)
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(read_image_grey(path), grey, err_msg=path.name)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_read_is_opencvs_on_png(tmp_path, rng, mode):
    path = tmp_path / "image.png"
    Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).convert(mode).save(path)
    got = read_image_bgr(path)
    assert got.shape == (9, 7, 3)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, cv2.imread(str(path)))
    np.testing.assert_array_equal(read_image_rgb(str(path)), got[:, :, ::-1])


def chunk(name: bytes, *numbers: int) -> dict[str, PngInfo]:
    info = PngInfo()
    info.add(name, b"".join(number.to_bytes(4 if name == b"gAMA" else 1, "big") for number in numbers))
    return {"pnginfo": info}


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
STORED = {  # suffix, mode, how it is saved
    "JPEG, 4:2:0": ("jpg", "RGB", {"quality": 90, "subsampling": 2}),
    "JPEG, progressive": ("jpg", "RGB", {"quality": 75, "progressive": True}),
    "JPEG, stored as RGB": ("jpg", "RGB", {"keep_rgb": True}),
    "JPEG, grey": ("jpg", "L", {}),
    "PNG": ("png", "RGB", {}),
    "PNG, alpha": ("png", "RGBA", {}),
    "PNG, palette": ("png", "P", {}),
    "PNG, palette, sRGB": ("png", "P", chunk(b"sRGB", 0)),
    "PNG, grey": ("png", "L", {}),
    "PNG, grey, alpha": ("png", "LA", {}),
    "PNG, 1 bit": ("png", "1", {}),
    "PNG, sRGB": ("png", "RGB", chunk(b"sRGB", 0)),
    "PNG, profile": ("png", "RGB", {"icc_profile": SRGB}),
    "BMP": ("bmp", "RGB", {}),
    "PPM": ("ppm", "RGB", {}),
    "TIFF": ("tiff", "RGB", {}),
} | {
    f"PNG, gamma {g}": ("png", "RGB", chunk(b"gAMA", g))
    for g in (0, 45455, 94999, 95237, 95238, 105000, 105001, 105264)
}


@pytest.mark.parametrize("name", STORED)
def test_grey_is_opencvs(tmp_path, rng, name):
    suffix, mode, how = STORED[name]
    image = cv2.resize(rng.integers(0, 256, (9, 11, 3), np.uint8), (131, 97), interpolation=cv2.INTER_CUBIC)
    image[0], image[1] = rng.integers(0, 256, (131, 3)), np.arange(131)[:, None]  # noise, and grey
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(image).convert(mode).save(path, **how)
    np.testing.assert_array_equal(read_image_grey(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_grey_of_webp_and_gif_is_one_apart_at_most(tmp_path, rng, suffix):
    Image.fromarray(rng.integers(0, 256, (97, 131, 3), np.uint8)).save(tmp_path / f"x.{suffix}")
    theirs = cv2.imread(str(tmp_path / f"x.{suffix}"), cv2.IMREAD_GRAYSCALE)
    if theirs is None:
        pytest.skip(f"this OpenCV reads no {suffix}")
    apart = np.abs(read_image_grey(tmp_path / f"x.{suffix}").astype(int) - theirs)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.02


def test_read_leaves_the_stored_orientation(tmp_path):
    image = Image.fromarray(np.zeros((4, 8, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image_bgr(tmp_path / "turned.jpg").shape == (4, 8, 3)


def jpeg(path, shape=(40, 50, 3)):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).save(
        path, format="JPEG"
    )
    return path.read_bytes()


def bad_missing(path):
    pass


def bad_empty(path):
    path.write_bytes(b"")


def bad_text(path):
    path.write_text("no image\n")


def bad_truncated(path):
    path.write_bytes(jpeg(path)[:-400])


def bad_png(path):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path, format="PNG")
    data = bytearray(path.read_bytes())
    data[45] ^= 0xFF
    path.write_bytes(data)


def bad_folder(path):
    path.mkdir()


def bad_depth(path):
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(path, format="PNG")


def bad_format(path):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path, format="TGA")


def bad_colour_depth(path):
    """Pillow reads 16-bit RGB, and drops half of each value."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header, row = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0), b"\0" + bytes(range(12))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (bad_missing, "no such image file"),
        (bad_empty, "0 bytes"),
        (bad_text, "not an image of a known format"),
        (bad_truncated, "damaged"),
        (bad_png, "damaged"),
        (bad_folder, "a folder, a file expected"),
        (bad_depth, "mode 'I;16'"),
        (bad_colour_depth, "a PNG of 16 bits"),
        (bad_format, "not an image of a known format"),
    ],
)
@pytest.mark.parametrize("read", [read_image_bgr, read_image_rgb])
def test_bad_images_name_file_and_reason(tmp_path, spoil, reason, read):
    path = tmp_path / "image.jpg"
    spoil(path)
    with pytest.raises(InputError, match=reason) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pixels", [30_000, 100])  # below and above the size at which Pillow itself refuses
def test_absurd_sizes_are_refused_from_the_header(tmp_path, monkeypatch, pixels):
    monkeypatch.setattr(images, "MAX_PIXELS", 1_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    path = tmp_path / "huge.png"
    Image.fromarray(np.zeros((100, 150, 3), np.uint8)).save(path)
    with pytest.raises(InputError, match="150x100 pixels claimed, at most 1000") as caught:
        read_image_bgr(path)
    assert str(path) in str(caught.value)
    assert pixels == Image.MAX_IMAGE_PIXELS


def test_a_huge_image_is_refused_with_its_size_before_it_is_decoded(tmp_path):
    path = tmp_path / "huge.png"
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )
    with pytest.raises(InputError, match=f"20000x20000 pixels claimed, at most {images.MAX_PIXELS} in all"):
        read_image_rgb(path)


def test_threads_that_read_leave_pillows_limit_alone(tmp_path, monkeypatch):
    """It is the whole process's: a program that uses this package keeps its own."""

    class Watched:
        def __getattr__(self, name):
            return getattr(Image, name)

        def __setattr__(self, name, value):
            raise AssertionError(f"{name} of Pillow is set")

    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path)
    monkeypatch.setattr(images, "Image", Watched())
    assert read_image_bgr(path).shape == (4, 5, 3)
