"""Steps, records, the times of decoding and the table of an evaluation, with runners that compute next to nothing."""

import json

import msgspec
import numpy as np
import pytest
from PIL import Image
from record_factory import SYNTHETIC_ENVIRONMENT
from rich.console import Console

from resnet_deploy.bench import record_files
from resnet_deploy.bench.decoding import bound, measure_decoding
from resnet_deploy.bench.evaluation import Step, Subject, collect, take_steps
from resnet_deploy.bench.evaluation_records import (
    EvaluatedEngine,
    EvaluationCost,
    EvaluationRecord,
    read_evaluation,
    write_evaluation,
)
from resnet_deploy.bench.records import DatasetRecord, DecodeTimes, Outputs
from resnet_deploy.bench.ways import Entrant
from resnet_deploy.datasets import BatchReader, ImageDataset, find_images
from resnet_deploy.errors import FileError
from resnet_deploy.protocols import Silent
from resnet_deploy.report.evaluation_table import duration, print_evaluation
from resnet_deploy.runners.null import NullRunner
from resnet_deploy.specs import BatchRange, ModelCard, Preprocess

SPEC = Preprocess(image_size=8, resize=8)
CARD = ModelCard(architecture="resnet18", num_classes=3, weights="none", weights_sha256="0" * 64, preprocess=SPEC)


class SumRunner(NullRunner):
    """Logits that are of the pixels, and a little of how many images there are at once, as kernels' may be."""

    def __init__(self, gain=1.0):
        super().__init__(CARD, BatchRange(1, 8, 64))
        self.gain = gain

    def load(self, feed):
        self.feed = feed

    def fetch(self):
        sums = self.feed.reshape(len(self.feed), -1, 3).sum(1, dtype=np.float64) * self.gain
        return (sums + len(self.feed) * 1e-3).astype(np.float32)


ENTRANTS = [Entrant("one", SumRunner()), Entrant("two", SumRunner(1.01))]


@pytest.fixture
def dataset(tmp_path):
    """Eleven images, of which 4 and the last are damaged."""
    for number in range(11):
        path = tmp_path / "data" / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 11, 3), np.uint8)).save(path)
        if number in (4, 10):
            path.write_bytes(path.read_bytes()[:60])
    return find_images(tmp_path / "data")


def steps_of(dataset, start=0, session=1, batch=4):
    reader = BatchReader(dataset.rest(start), SPEC, batch, skip_corrupt=True, hashing=True)
    return list(take_steps(reader, reader, ENTRANTS, start, session))


def test_steps_cover_the_set_and_say_what_was_damaged(dataset):
    steps = steps_of(dataset)
    assert [step.end for step in steps] == [4, 9, 10, 11]
    assert [step.kept for step in steps] == [(0, 1, 2, 3), (5, 6, 7, 8), (9,), ()]
    digests = [digest for step in steps for digest in step.digests]
    assert digests == list(dataset.image_digests.values())  # read a second time, one by one
    assert all(step.seconds >= step.waiting + step.inferring for step in steps)


def test_whatever_step_it_goes_on_from_the_answers_are_the_same(dataset):
    whole = collect(steps_of(dataset))
    assert whole.kept == (0, 1, 2, 3, 5, 6, 7, 8, 9)
    assert len(whole.digests) == 11
    for done in range(1, 4):
        begun = steps_of(dataset)[:done]
        again = collect([*begun, *steps_of(dataset, begun[-1].end, session=2)])
        assert (again.kept, again.digests, again.answers) == (whole.kept, whole.digests, whole.answers)
        assert again.cost.sessions == 2
    other = collect(steps_of(dataset, batch=3))
    assert (other.kept, other.digests) == (whole.kept, whole.digests)
    assert other.answers != whole.answers  # so that another partition would have shown above


SUBJECT = Subject(
    version="1",
    created="2026-01-01T00:00:00Z",
    environment=SYNTHETIC_ENVIRONMENT,
    weights_sha256="a",
    classes=3,
    preprocess_sha256="b",
    engines=(("one", "c", "CPU"),),
    threads=2,
    batch=32,
    images=10,
    files_sha256="d",
)
# What `steps_of` are of.
STEPPED = msgspec.structs.replace(SUBJECT, engines=(("one", "c", "CPU"), ("two", "d", "CPU")), images=11)


def require_whole(steps):
    for before, step in zip([None, *steps], steps, strict=False):
        step.require_next(before, STEPPED)


def changing(number, **changes):
    """Change one of several steps."""

    def change(steps):
        return [msgspec.structs.replace(one, **changes) if one is steps[number] else one for one in steps]

    return change


def best(*classes):
    """Change the best classes of the first image."""

    def change(steps):
        first, second = steps[0].answers
        other = msgspec.structs.replace(first, top5=(classes, *first.top5[1:]))
        return changing(0, answers=(other, second))(steps)

    return change


def test_steps_follow_each_other(dataset):
    require_whole([*steps_of(dataset)[:2], *steps_of(dataset, start=9, session=2)])


DAMAGES = {
    "left out": (lambda steps: steps[:1] + steps[2:], "1 digests for 6 images"),
    "there twice": (lambda steps: [steps[0], *steps], "a step that ends at 4 follows one that ends at 4"),
    "another order": (lambda steps: [steps[1], steps[0]], "5 digests for 9 images"),
    "an end beyond the images": (changing(3, end=12), "a step that ends at 12 follows one that ends at 10"),
    "a session left out": (changing(1, session=3), "a step that ends at 9"),
    "an image of the step before": (changing(1, kept=(3, 6, 7, 8)), "from 4 to 9 are elsewhere, or not in order"),
    "an image of the step after": (changing(1, kept=(5, 6, 7, 9)), "from 4 to 9 are elsewhere, or not in order"),
    "an image twice": (changing(1, kept=(5, 6, 6, 8)), "from 4 to 9 are elsewhere, or not in order"),
    "no digests": (changing(1, digests=()), "0 digests for 5 images"),
    "answers of one engine": (
        lambda steps: changing(0, answers=steps[0].answers[:1])(steps),
        "answers of other engines",
    ),
    "errors of the reference": (lambda steps: changing(0, answers=steps[0].answers[::-1])(steps), "one error of the"),
    "a class that there is not": (best(0, 1, 3), "not 3 of 3"),
    "a class before the first": (best(-1, 1, 0), "not 3 of 3"),
    "a class twice": (best(0, 1, 1), "not 3 of 3"),
    "two classes": (best(0, 1), "not 3 of 3"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_step_that_does_not_follow_is_damage(dataset, damage):
    change, words = DAMAGES[damage]
    steps = change(steps_of(dataset))
    with pytest.raises(ValueError, match=words):
        require_whole(steps)


def test_an_answer_that_is_no_number_has_no_classes(dataset):
    best()(steps_of(dataset))[0].require_next(None, STEPPED)


def test_a_step_survives_its_line(dataset):
    for step in steps_of(dataset):
        assert msgspec.json.decode(msgspec.json.encode(step), type=Step) == step


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": "2"}, "version"),
        ({"weights_sha256": "x"}, "weights"),
        ({"preprocess_sha256": "x"}, "input contract"),
        ({"engines": (("one", "x", "CPU"),)}, "engines"),
        ({"engines": (("one", "c", "GPU"),)}, "engines"),
        ({"threads": 1}, "threads"),
        ({"batch": 8}, "batch"),
        ({"images": 9}, "number of images"),
        ({"files_sha256": "x"}, "names, sizes or times"),
        ({"environment": msgspec.structs.replace(SYNTHETIC_ENVIRONMENT, python="3.13.0")}, "Python"),
        ({"created": "2026-01-02T00:00:00Z"}, None),
    ],
)
def test_what_must_be_the_same(change, word):
    difference = msgspec.structs.replace(SUBJECT, **change).difference_from(SUBJECT)
    assert (word in difference) if word else (difference == "")


# --- records


def engine(name, top5, **values):
    fields = {"backend": "onnxruntime", "precision": "int8", "size_bytes": 1, "sha256": "a", "device": "CPU"}
    return EvaluatedEngine(name=name, **fields, role="engine", in_sample=False, outputs=Outputs(top5=top5, **values))


def make_record(**changes):
    fields = {
        "created": "2026-01-01T00:00:00Z",
        "environment": SYNTHETIC_ENVIRONMENT,
        "architecture": "resnet18",
        "weights_sha256": "0" * 64,
        "preprocess": SPEC,
        "threads": 2,
        "batch": 32,
        "workers": 2,
        "dataset": DatasetRecord(name="val", digest="ab" * 32, images=4, labels=(0, 1, 2, 0), skipped=("bad.png",)),
        "engines": (
            engine("first", ((0, 1), (1, 0), (1, 2), (0, 2))),
            engine("second", ((0, 1), (0, 1), (2, 1), ()), noise=(1.0, 1.0, 1.0, None), signal=(9.0,) * 4),
        ),
        "cost": EvaluationCost(sessions=2, seconds=8.0, waiting=2.0, inferring=5.0),
        "decoding": DecodeTimes(workers=2, images=4, decode=100.0, engines={"first": (100.0, 45.0)}),
    }
    return EvaluationRecord(**(fields | changes))


def test_a_record_comes_back(tmp_path):
    record = make_record()
    write_evaluation(record, tmp_path / "a.json")
    assert record_files.kind_of(tmp_path / "a.json") == "evaluate"
    assert read_evaluation(tmp_path / "a.json") == record


def test_records_that_are_none(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match="an evaluation of no engine"):
        make_record(engines=())
    with pytest.raises(ValueError, match="1 answers of 'first' for 4 images"):
        make_record(engines=(engine("first", ((0,),)),))
    for text, message in (
        ("{", "is no record of `evaluate`"),
        ('{"schema_version": 1}', "is a record of `bench`"),
        ('{"kind": "evaluate", "schema_version": 9}', "has schema version 9"),
    ):
        path.write_text(text)
        with pytest.raises(FileError, match=message):
            read_evaluation(path)
    write_evaluation(make_record(), path)
    fields = json.loads(path.read_text())
    fields["dataset"]["labels"] = [1]
    path.write_text(json.dumps(fields))
    with pytest.raises(FileError, match="1 labels for 4 images"):
        read_evaluation(path)


def shown(record):
    console = Console(width=200, no_color=True, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with console.file:
        print_evaluation(record, console)
    return console.export_text()


def test_the_table():
    text = shown(make_record())
    first, second = (next(row for row in text.splitlines() if row.startswith(name)) for name in ("first", "second"))
    assert "75.00 (30.06" in first  # 3 of 4, and Wilson's interval
    assert "50.00 (15.00" in second
    assert second.split()[-3:] == ["+1", "-2", "1.000"]  # 1 and 2 flips: twice 4/8
    assert " 25.00 " in second  # agreement: only the first image
    words = " ".join(text.split())
    assert "0.500 images/s through 2 engines, in 8 s (2 sessions); engines busy 62%, waiting for images 25%" in words
    assert "1 corrupt left out at your request: bad.png" in words
    assert "100 100 45.0 50.0 90%" in words  # of decoding alone, engine alone, together; one CPU does 50 of both
    assert "are against first" in words


def test_the_table_without_labels():
    bare = DatasetRecord(name="val", digest="ab" * 32, images=4)
    text = shown(make_record(dataset=bare, decoding=None))
    assert "top-1" not in text
    assert "of bound" not in text
    assert "agree %" in text


def test_the_table_of_one_engine():
    words = " ".join(shown(make_record(engines=(engine("first", ((0,),) * 4),), threads=1, decoding=None)).split())
    assert "images/s through 1 engine, in" in words
    assert "1 thread per engine" in words
    assert "are against" not in words


def test_names_steer_no_terminal():
    hostile = (engine("first\x1b[31m", ((0,),) * 4),)
    assert "\x1b" not in shown(make_record(engines=hostile))


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


# --- the times of decoding


def test_bounds():
    assert bound(100.0, 100.0, shared=True) == pytest.approx(50.0, rel=1e-12)
    assert bound(300.0, 100.0, shared=True) == pytest.approx(75.0, rel=1e-12)
    assert bound(300.0, 100.0, shared=False) == 100.0


def test_decoding_is_timed_alone_and_beside_each_engine(dataset):
    reader = BatchReader(dataset, SPEC, 4, skip_corrupt=True, workers=2)
    shown_to = []

    class Watched(SumRunner):
        def load(self, feed):
            shown_to.append(len(feed))
            super().load(feed)

    times = measure_decoding(reader, [Entrant("one", Watched())], Silent(), rounds=2)
    assert (times.workers, times.images) == (2, 9)
    assert times.decode > 0
    assert set(times.engines) == {"one"}
    assert min(times.engines["one"]) > 0
    # Alone and together, twice each: as many images, in the same batches.
    assert shown_to == [4, 4, 1] * 4


def test_digests_are_taken_only_where_asked_for(dataset):
    reader = BatchReader(dataset, SPEC, 4, skip_corrupt=True)
    list(reader)
    assert reader.digests == []
    assert len(reader.skipped) == 2


def test_the_rest_of_a_set():
    labelled = ImageDataset(SPEC, ("a", "b", "c"), (1, 2, 3))
    assert (labelled.rest(1).paths, labelled.rest(1).labels) == (("b", "c"), (2, 3))
    assert len(labelled.rest(3)) == 0
