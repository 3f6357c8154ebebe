"""Label what a C++ camera sees: its buffers in, logits into a buffer of its own out, and no pixel copied between."""

import argparse
import sys
from pathlib import Path

import camera

import resnet_deploy
from resnet_deploy.errors import ResnetDeployError


def label_camera(engine: resnet_deploy.Engine, batches: int, batch: int) -> list[int]:
    """Take pictures and find the best class of each.

    Args:
        engine: For uint8 input, which is what a camera delivers.
        batches: How many times to take ``batch`` pictures.
        batch: As many as the engine takes at once, at most.
    """
    card = engine.manifest.card
    source = camera.Camera(batch, card.preprocess.image_size, buffers=2)
    answers = camera.Answers(batch, card.num_classes)
    logits, best = answers.view(), []
    for _ in range(batches):
        engine(source.capture(), out=logits)
        best += answers.best()
    return best


def main() -> None:
    """Print the best class of a few pictures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--engine", type=Path, required=True, help="an engine bundle")
    arguments = parser.parse_args()
    try:
        with resnet_deploy.load(arguments.engine) as engine:
            for number, index in enumerate(label_camera(engine, batches=4, batch=2)):
                print(f"{number}  {engine.manifest.card.label(index)}")
    except ResnetDeployError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
