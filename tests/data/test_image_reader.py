"""Images read ahead: in order, with the processor's own pixel values, and errors where they belong."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medgraft.backbones.blip import BlipBackbone
from medgraft.data.image_reader import ImageReader
from medgraft.data.images import open_image
from medgraft.data.read_ahead import read_ahead
from medgraft.errors import DataError


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    shapes = [(90, 60, 3), (33, 200, 3), (64, 64), (500, 300, 3), (31, 17, 3)]
    paths = [folder / f"{number}.png" for number in range(len(shapes))]
    for path, shape in zip(paths, shapes, strict=True):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return paths


def test_results_come_in_order_whatever_is_ready_first():
    first = threading.Event()

    def read(number):
        if number == 0:
            assert first.wait(10)
        first.set()
        return number**2

    assert list(read_ahead(range(6), read, threads=3, ahead=4)) == [(n, n**2) for n in range(6)]


def test_so_many_are_read_ahead_and_no_more():
    started = []
    coming = read_ahead(range(9), started.append, threads=1, ahead=2)
    next(coming)
    assert len(started) <= 3
    coming.close()
    assert len(started) <= 3


def test_an_error_is_raised_where_its_item_would_come():
    def read(number):
        if number == 2:
            raise DataError("two")
        return number

    seen = []
    with pytest.raises(DataError, match="two"):
        for _, value in read_ahead(range(5), read, threads=2, ahead=3):
            seen.append(value)
    assert seen == [0, 1]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_reader_gives_batches_with_the_images_that_are_asked_for(blip_folder, files, threads):
    backbone = BlipBackbone.load(str(blip_folder))
    reader = ImageReader(backbone, torch.device("cpu"), threads=threads)
    batches = [files[:2], files[2:3], files[3:]]
    got = list(reader.ahead(batches, lambda paths: [path for path in paths if path != files[2]]))
    assert [batch for batch, _ in got] == batches
    assert [list(read.paths) for _, read in got] == [files[:2], [], files[3:]]
    assert got[1][1].values is None
    expected = backbone.pixel_values([open_image(path) for path in files[3:]])
    assert torch.equal(reader.pixel_values(got[2][1]), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_broken_image_is_an_error_of_its_batch(blip_folder, files, tmp_path, threads):
    reader = ImageReader(BlipBackbone.load(str(blip_folder)), torch.device("cpu"), threads=threads)
    coming = reader.ahead([files[:2], [tmp_path / "none.png"], files[2:]])
    assert list(next(coming)[0]) == files[:2]
    batch, read = next(coming)
    assert list(batch) == [tmp_path / "none.png"]
    with pytest.raises(DataError, match="There is no image"):
        reader.pixel_values(read)
    batch, read = next(coming)
    assert list(batch) == files[2:]
    assert len(reader.pixel_values(read)) == len(files[2:])
