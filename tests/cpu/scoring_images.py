"""Folders of images to score, and what must be true of their scores."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from resnet_deploy.names import readable

DIFFERENT = 12


def draw_pictures(folder):
    """Write a few small JPEGs that differ."""
    draw = np.random.default_rng(11)
    for number in range(DIFFERENT):
        coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), np.uint8))
        coarse.resize((44, 36), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    return sorted(folder.iterdir())


def lay_out(pictures, folder, count):
    """Link images into two folders, so that base names occur twice."""
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number // 2:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(pictures[number % DIFFERENT], path)
    return folder


def parts(out):
    """Names of the tables of scores."""
    return sorted(path.name for path in out.glob("part-*.parquet"))


def scores(out):
    """All rows of scores, as whoever reads the folder finds them."""
    return pq.read_table(out)


def errors(out):
    """Path -> error of every bad image."""
    tables = [pq.read_table(path) for path in sorted((out / "_errors").glob("*.parquet"))]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row["error"] for row in rows}


def assert_each_once(out, source, bad=()):
    """Every image has one row in one of the tables, in the order of the names; and nothing half-written lies about."""
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*.jpg"))
    assert len(names) > 0
    assert set(errors(out)) == {readable(name) for name in bad}
    assert scores(out)["path"].to_pylist() == [readable(name) for name in names if name not in bad]
    assert list(out.rglob(".*")) == []
    record = json.loads((out / "_scoring.json").read_text())
    assert (record["scored"], record["bad"]) == (len(names) - len(bad), len(bad))
