"""An engine that many callers share by ``submit``."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from resnet_deploy.backends import find_backend
from resnet_deploy.engine import load
from resnet_deploy.errors import DataError, FeedError, FileError, SpecError
from resnet_deploy.microbatching import Batching


@pytest.fixture(scope="module")
def fp32(deployment):
    with load(deployment.engines["fp32"], threads=1) as opened:
        yield opened


def assert_close(logits, expected, share):
    np.testing.assert_allclose(logits, expected, rtol=0, atol=share * np.abs(expected).max())


@pytest.mark.parametrize("precision", find_backend("onnxruntime").precisions)
def test_sixteen_callers_get_their_own_answers(deployment, images, precision):
    # As in test_engine: kernels add in another order at another batch size, and INT8 may fall a step to the other side.
    share = 1e-2 if precision == "int8" else 1e-4
    with load(deployment.engines[precision], threads=1, batching=Batching(max_batch=8, max_delay_s=0.01)) as engine:
        expected = engine(images)

        def call(caller):
            for index in range(caller, 40, 16):
                assert_close(engine.submit(images[index]).result(), expected[index], share)
                with pytest.raises(AssertionError):
                    assert_close(engine.submit(images[index]).result(), expected[index - 1], share)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(call, range(16)))


def test_every_form_of_a_request(fp32, paths, images):
    """Alone in its batch each time, and so to the last bit what the engine says of a batch of one."""
    torch = pytest.importorskip("torch")
    expected = fp32(images[:1])[0]
    opened = Image.open(paths[0]).convert("RGB")
    for request in (paths[0], str(paths[0]), opened, images[0], torch.from_numpy(images[0])):
        logits = fp32.submit(request).result()
        np.testing.assert_array_equal(logits, expected)
        assert (logits.shape, logits.dtype, logits.base) == ((10,), np.float32, None)
    several = fp32.submit(torch.from_numpy(images[:3])).result()
    np.testing.assert_array_equal(several, fp32(images[:3]))
    assert several.shape == (3, 10)


def test_what_is_refused(fp32, paths, images, tmp_path, deployment):
    (tmp_path / "damaged.png").write_bytes(paths[0].read_bytes()[:100])
    for request, kind, message in (
        (tmp_path / "gone.png", FileError, "gone"),
        (tmp_path / "damaged.png", DataError, "damaged"),
        (images.astype(np.float32), FeedError, "dtype float32"),
        (images[:, :9], FeedError, "the engine takes"),
        (np.repeat(images, 2, axis=0), FeedError, "a request of 80 images"),
        (list(paths), FeedError, "a request of list"),
    ):
        with pytest.raises(kind, match=message) as caught:
            fp32.submit(request)
        assert caught.value.hint
    for timeout in (0, -1, float("nan")):
        with pytest.raises(SpecError, match="a timeout of"):
            fp32.submit(images[0], timeout_s=timeout)
    with pytest.raises(SpecError, match="max_batch is 65"):
        load(deployment.engines["fp32"], batching=Batching(max_batch=65))


def test_a_generous_timeout_changes_nothing(fp32, images):
    np.testing.assert_array_equal(fp32.submit(images[0], timeout_s=60).result(), fp32(images[:1])[0])


def test_close_answers_first_and_then_refuses(deployment, images):
    engine = load(deployment.engines["fp32"], threads=1, batching=Batching(max_delay_s=30))
    futures = [engine.submit(image) for image in images[:5]]
    engine.close()
    expected = [future.result(0) for future in futures]
    for use in (engine.submit, engine):
        with pytest.raises(FeedError, match="the engine is closed"):
            use(images[0])
    again = load(deployment.engines["fp32"], threads=1)
    np.testing.assert_array_equal(expected, again(images[:5]))
    again.close()
    with pytest.raises(FeedError, match="the engine is closed"):
        again.submit(images[0])


def test_close_without_draining_cancels(deployment, images):
    engine = load(deployment.engines["fp32"], threads=1, batching=Batching(max_delay_s=30))
    futures = [engine.submit(image) for image in images[:5]]
    engine.close(drain=False)
    assert all(future.cancelled() for future in futures)


FORKED = """
import atexit, os, signal, sys
import numpy as np
import resnet_deploy
engine = resnet_deploy.load(sys.argv[1], threads=1)
image = np.zeros((32, 32, 3), np.uint8)
engine.submit(image).result()
with engine._runners_lock.held(), engine._batcher_lock, engine._batcher._lock:  # others have them while it forks
    child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), engine.submit(image).result().shape, flush=True)
else:
    signal.alarm(30)  # kills what hangs
    for use in (lambda: engine.submit(image), lambda: engine._batcher.submit(image), lambda: engine(image[None])):
        try:
            use()
        except resnet_deploy.FeedError as error:
            print(error.message, error.hint, sep="; ", flush=True)
    engine._batcher.close()
    engine.close()
    atexit._run_exitfuncs()
    print("closed", flush=True)
    os._exit(0)  # a forked process that has imported ONNX Runtime 1.32 does not come to its end, whatever it does
"""


def test_a_forked_process_is_refused_and_ends(deployment):
    """Locks that other threads had stay locked there: neither ``close`` nor what runs at exit waits for them."""
    # Python 3.12 and later warn of every fork beside threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, deployment.engines["fp32"]]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    refusal = "the engine was opened in another process; load it in each process, after the fork\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, refusal * 3 + "closed\n0 (10,)\n", "")


PROGRAM = """
import sys
import numpy as np
import resnet_deploy
engine = resnet_deploy.load(sys.argv[1], threads=1, batching=resnet_deploy.Batching(max_delay_s=30))
engine.submit(np.zeros((32, 32, 3), np.uint8)).add_done_callback(lambda future: print(future.result().shape))
"""


def test_a_program_that_ends_is_answered_first(deployment):
    command = [sys.executable, "-c", PROGRAM, deployment.engines["fp32"]]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(10,)\n", "")
